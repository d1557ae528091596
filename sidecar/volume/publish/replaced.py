"""What a set replaces that no publish of ours has noted: a generation or loose files of others enter the history, too.

Blocking, one directory, which the caller has opened and locked. Best effort, as all of the history: nothing is raised.
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
    """Copy a generation in force that another publisher has made; call what is yielded with its successor to keep it.

    The copy shares the files, where those may be linked, and retires as the generations of ours do.
    The directory itself stays: its publisher, such as kubelet, may need it under its name.
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
            dirs.rmtree(fd, copy)  # it has another name by now, if all went well


def _copy(fd: int, settings: VolumeConfig, before: ScanResult) -> str | None:
    if settings.keep <= 1 or atomic_writer.is_generation(before.states.generation or ""):
        return None
    with contextlib.suppress(OSError):
        return atomic_writer.build(
            fd, {}, mode=settings.mode, group=None, keep=list(before.snapshot), durable=False
        )
    return None


def archive_loose_files(fd: int, settings: VolumeConfig, entry: str, aside: str) -> None:
    """Keep the loose files that lay where the set has the link `entry` now; they lie under the name `aside`."""
    with contextlib.suppress(OSError):
        nested = [f"{path}/{name}" for path, _, files, _ in dirs.walk(fd, aside) for name in files]
        for path in nested or [aside]:
            single_files.archive_existing(fd, path, entry + path.removeprefix(aside), settings)
