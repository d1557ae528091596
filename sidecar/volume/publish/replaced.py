"""Archive content of other publishers that a set replaces: a generation, or loose files.

Blocking. The caller has opened and locked the directory. Best effort, like the whole history: nothing is raised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sidecar.fs import atomic, atomic_writer, dirs, layout
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.publish import history, single_files
from sidecar.volume.publish.models import VolumeConfig


@contextmanager
def archive_generation(
    fd: int, settings: VolumeConfig, before: ScanResult | None
) -> Iterator[Callable[[str], None]]:
    """Copy the active generation of another publisher; call the yielded function with the new generation to keep the copy.

    The copy hard-links the files where possible, and is archived like our own generations.
    The original directory stays, because its publisher, such as kubelet, may need it.
    """
    copy = _copy(fd, settings, before) if before is not None else None

    def keep(successor: str) -> None:
        if copy is not None and before is not None:
            stamp = atomic_writer.timestamp_of(successor) - 1
            name = history.entry_name(stamp, before.snapshot.version)
            with contextlib.suppress(OSError):
                atomic.move(fd, copy, fd, layout.GENERATION + name)

    try:
        yield keep
    finally:
        if copy is not None:
            dirs.rmtree(fd, copy)  # after success it was renamed and no longer exists


def _copy(fd: int, settings: VolumeConfig, before: ScanResult) -> str | None:
    if settings.keep <= 1 or atomic_writer.is_generation(before.states.generation or ""):
        return None
    with contextlib.suppress(OSError):
        return atomic_writer.build(
            fd, {}, mode=settings.mode, group=None, keep=list(before.snapshot), durable=False
        )
    return None


def archive_loose_files(fd: int, settings: VolumeConfig, entry: str, aside: str) -> None:
    """Archive the loose files that the link `entry` has replaced; they were moved to the name `aside`."""
    with contextlib.suppress(OSError):
        nested = [f"{path}/{name}" for path, _, files, _ in dirs.walk(fd, aside) for name in files]
        for path in nested or [aside]:
            single_files.archive_existing(fd, path, entry + path.removeprefix(aside), settings)
