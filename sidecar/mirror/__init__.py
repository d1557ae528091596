"""Mirror what a source has into a volume.

    await mirror.run("/shared", ["etcd+http://etcd:2379/app/"])

The names below are public; the modules they live in may change.

Inside, `runner` follows sources and decides what is believed, `composition` makes one set of all units
and publishes what has changed, `records` is what is known of each source, `states` is what sources yield,
`backoff` how long they are left alone, and `testing` has a source that is a list. `sources/` has the engines, and `client` is the HTTP that they share.
"""

from __future__ import annotations

from sidecar.mirror.runner import Mirror as Mirror
from sidecar.mirror.runner import run as run
from sidecar.mirror.sources.factory import make_source as make_source
from sidecar.mirror.states import Alive as Alive
from sidecar.mirror.states import Reference as Reference
from sidecar.mirror.states import Source as Source
from sidecar.mirror.states import SourceUnavailable as SourceUnavailable
from sidecar.mirror.states import State as State
from sidecar.mirror.states import Unit as Unit

__all__ = [
    "Alive",
    "Mirror",
    "Reference",
    "Source",
    "SourceUnavailable",
    "State",
    "Unit",
    "make_source",
    "run",
]
