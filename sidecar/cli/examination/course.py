"""The course of an examination: one small generator of findings after the other.

They run in an order in which a hanging storage shows itself: what was found so far has been told by then.
Everything that is tried is undone, and bears a name that no consumer looks at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from sidecar.cli.examination import noticing, owners, place, publishing, reading
from sidecar.cli.examination.findings import Finding, Patient
from sidecar.volume.content import snapshot

_LOOKS = (
    place.access,
    publishing.space,
    publishing.write,
    publishing.write_set,
    publishing.left_overs,
    owners.replaceable,
    owners.links,
    owners.shared_history,
    reading.layout,
    owners.set_in_force,
    reading.content,
    noticing.arrivals,
    noticing.limits,
)


def examine(
    path: str,
    *,
    max_size: int = snapshot.MAX_SIZE,
    mode: int = 0o644,
    group: int | None = None,
) -> Iterator[Finding]:
    """Yield what is found, from the ground up; what rests on something that is missing is left out."""
    patient = Patient(
        os.path.abspath(path) + ("/" if path.endswith("/") else ""),
        max_size=max_size,
        mode=mode,
        group=group,
    )
    try:
        yield place.process()
        yield from place.path(patient)
        yield from place.mount(patient)
        if patient.fd >= 0:
            for look in _LOOKS:
                yield from look(patient)
            yield reading.opening()
    finally:
        patient.close()
