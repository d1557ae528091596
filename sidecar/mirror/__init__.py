"""Mirror what an engine has into a volume: Kubernetes objects, git, etcd, Redis, HTTP, or a source of your own.

    await mirror.run("/shared", [mirror.make_source("etcd+http://etcd:2379/app/")])

The names below are public; the modules they live in may change.

Inside, `runner` follows sources and decides what is believed, `composition` makes one set of all units
and publishes what has changed, `records` is what is known of each source, `states` is what sources yield,
`backoff` how long they are left alone. `sources` are the engines, `client` is the HTTP that they share.
"""

from __future__ import annotations

from sidecar.mirror.runner import Mirror as Mirror
from sidecar.mirror.runner import run as run
from sidecar.mirror.states import Alive as Alive
from sidecar.mirror.states import Reference as Reference
from sidecar.mirror.states import Source as Source
from sidecar.mirror.states import SourceUnavailable as SourceUnavailable
from sidecar.mirror.states import State as State
from sidecar.mirror.states import Unit as Unit

__all__ = ["Alive", "Mirror", "Reference", "Source", "SourceUnavailable", "State", "Unit", "run"]
