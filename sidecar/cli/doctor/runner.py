"""Runs the checks: one small generator of findings after the other.

Their order reveals a hanging storage: earlier findings are already printed.
Everything that is tried is undone, and has a name that no consumer reads.
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
    owner_checks.active_set,
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
    verify_key: tuple[str, ...] = (),
) -> Iterator[Finding]:
    """Yield the findings in order; checks whose prerequisites are missing are skipped."""
    target = Target(
        os.path.abspath(path) + ("/" if path.endswith("/") else ""),
        max_size=max_size,
        mode=mode,
        group=group,
        verify_key=verify_key,
    )
    try:
        yield path_checks.process()
        yield from path_checks.path(target)
        yield from path_checks.mount(target)
        if target.fd >= 0:
            for look in _CHECKS:
                yield from look(target)
            yield read_checks.opening()
    finally:
        target.close()
