"""The course of an examination: one small generator of findings after the other.

They run in an order in which a hanging storage shows itself: what was found so far has been told by then.
Everything that is tried is undone, and bears a name that no consumer looks at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from sidecar.cli.doctor import owner_checks, path_checks, read_checks, watch_checks, write_checks
from sidecar.cli.doctor.report import Finding, Target
from sidecar.volume.content import snapshot

_CHECKS = (
    path_checks.access,
    write_checks.space,
    write_checks.write,
    write_checks.write_set,
    write_checks.left_overs,
    owner_checks.replaceable,
    owner_checks.links,
    owner_checks.shared_history,
    read_checks.file_layout,
    owner_checks.set_in_force,
    read_checks.content,
    watch_checks.arrivals,
    watch_checks.limits,
)


def examine(
    path: str,
    *,
    max_size: int = snapshot.MAX_SIZE,
    mode: int = 0o644,
    group: int | None = None,
) -> Iterator[Finding]:
    """Yield what is found, from the ground up; what rests on something that is missing is left out."""
    patient = Target(
        os.path.abspath(path) + ("/" if path.endswith("/") else ""),
        max_size=max_size,
        mode=mode,
        group=group,
    )
    try:
        yield path_checks.process()
        yield from path_checks.path(patient)
        yield from path_checks.mount(patient)
        if patient.fd >= 0:
            for look in _CHECKS:
                yield from look(patient)
            yield read_checks.opening()
    finally:
        patient.close()
