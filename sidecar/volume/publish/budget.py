"""How many bytes of its disk a directory takes, and how many it may: `volume_budget`.

Counted is as kubelet counts a volume (`du`): what lies there in blocks of the disk, directories included,
a file with several hard links once, whoever has put it there. Temporary files of uploads under way are part of it.

A write does not list the directory to know that. What this process does is added to what was counted last;
it is counted anew where another publisher has been here since, before anything is refused, and now and then.
So what is known may be too much for a moment, and a refusal is always true.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from sidecar import _errors
from sidecar.fs import dirs
from sidecar.process import quantities

_BLOCK = 4096
#: Beside a content a publish may make directories: one of the file, one or two of its history.
_DIRECTORY_OVERHEAD_BYTES = 3 * _BLOCK
_COUNT_INTERVAL = 1.0
_QUICK_COUNT_SECONDS = 0.002
_UPLOAD_CHECK_BYTES = 8 << 20
#: To count may take this part of the time at most, as long as a quarter of the budget is left.
_COUNT_TIME_SHARE = 1 / 20

Reclaim = Callable[[int, int, bool], int]
"""Frees so many bytes of old contents in a directory, or none; returns how many. The last argument: only tell how many."""


def on_disk(size: int) -> int:
    """Return the bytes that a file of that size takes on most disks.

    >>> on_disk(0), on_disk(1), on_disk(4097)
    (0, 4096, 8192)
    """
    return -(-size // _BLOCK) * _BLOCK


class OverBudget(_errors.VolumeFull):
    """The budget is used up, though the volume itself may have room."""


class Budget:
    """The bytes that a directory takes, and the bound of them. Without a limit nothing is ever counted.

    What is said of a directory is said under its lock; uploads may grow without it.
    """

    def __init__(self, limit: int | None, give_way: Reclaim) -> None:
        self.limit = limit
        self._reclaim = give_way
        self._stored = 0
        self._uploads: dict[str, int] = {}
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        """The state of the directory as this process has left it; None: count before anything is trusted."""
        self._counted = float("-inf")
        self._count_seconds = 0.0

    @property
    def used(self) -> int:
        """Bytes, as they are known."""
        return self._stored + sum(self._uploads.values())

    @property
    def is_quick(self) -> bool:
        """Whether it takes no time worth mentioning to count, if that is needed."""
        return self.limit is None or (
            self._seen is not None and self._count_seconds < _QUICK_COUNT_SECONDS
        )

    def enter(self, fd: int) -> None:
        """Look whether somebody else has changed the directory, and count what it takes if so."""
        if self.limit is None:
            return
        if self._seen is None or (self._seen != _state(fd) and self._should_count()):
            self.count(fd)

    def leave(self, fd: int) -> None:
        """Note how this process leaves the directory; count what it takes if that is due."""
        if self.limit is None or self._seen is None:
            return
        if time.monotonic() - self._counted > max(
            _COUNT_INTERVAL, self._count_seconds / _COUNT_TIME_SHARE
        ):
            self.count(fd)
        self._seen = _state(fd)

    def count(self, fd: int) -> None:
        """List the directory and add up what it takes."""
        started = time.monotonic()
        with self._lock:
            ours = frozenset(self._uploads)
        found = dirs.disk_usage(fd, leave_out=ours)
        with self._lock:
            self._stored = found
        self._counted = time.monotonic()
        self._count_seconds = self._counted - started
        with suppress(OSError):
            self._seen = _state(fd)

    def invalidate(self) -> None:
        """Count again before anything else: what was added has perhaps not happened."""
        self._seen = None

    def admit(self, fd: int, size: int, where: str, *, dry_run: bool = False) -> None:
        """Return if a content of that size may be written beside what is there; old contents give way for it.

        It counts as written from here on, unless it is a trial.

        Raises:
            VolumeFull: not even without the history.
        """
        if self.limit is None:
            return
        wanted = on_disk(size) + _DIRECTORY_OVERHEAD_BYTES
        if self.used + wanted > self.limit:
            self.count(fd)
            over = self.used + wanted - self.limit
            if over > 0:
                freed = self._reclaim(fd, over, dry_run)
                if freed < over:
                    raise self._over_budget(where, size)
                if not dry_run:
                    self.count(fd)
        if not dry_run:
            self.change(on_disk(size))

    def admit_first(self, size: int, where: str) -> None:
        """Raise `VolumeFull` if a directory that is still to be made could not take a content of that size."""
        if self.limit is not None and on_disk(size) + _DIRECTORY_OVERHEAD_BYTES > self.limit:
            raise self._over_budget(where, size)

    def change(self, size: int) -> None:
        """Add bytes that are on the disk now, or take away those that are not any more."""
        if self.limit is not None:
            with self._lock:
                self._stored = max(self._stored + size, 0)

    def grow(self, upload: str, size: int) -> bool:
        """Count more bytes for the temporary file of an upload; False, and nothing, if that needs `admit_upload`."""
        if self.limit is None:
            return True
        with self._lock:
            so_far = self._uploads.get(upload, 0)
            if so_far // _UPLOAD_CHECK_BYTES != (so_far + size) // _UPLOAD_CHECK_BYTES:
                return False  # others may have published meanwhile
            others = self._stored + sum(self._uploads.values()) - so_far
            if others + on_disk(so_far + size) + _DIRECTORY_OVERHEAD_BYTES > self.limit:
                return False
            self._uploads[upload] = so_far + size
        return True

    def admit_upload(self, fd: int, upload: str, size: int, where: str) -> None:
        """Count more bytes for an upload, for which old contents give way.

        Raises:
            VolumeFull: not even without the history.
        """
        self.admit(fd, size, where)
        with self._lock:
            self._stored -= on_disk(size)
            self._uploads[upload] = self._uploads.get(upload, 0) + size

    def end_upload(self, upload: str, *, published: bool) -> None:
        """Count an upload as a content from here on, or not at all. It may have ended before."""
        with self._lock:
            size = self._uploads.pop(upload, 0)
            if published:
                self._stored += on_disk(size)

    def _should_count(self) -> bool:
        """Whether to count is worth its time: always if that is short, or if there is not much left."""
        if self.used > (self.limit or 0) * 3 // 4:
            return True
        return time.monotonic() - self._counted > self._count_seconds / _COUNT_TIME_SHARE

    def _over_budget(self, where: str, size: int) -> OverBudget:
        return OverBudget(
            errno.EDQUOT,
            f"cannot publish {where}: the volume takes {self.used} bytes of its budget of {quantities.format_size(self.limit or 0)},"
            f" and has no room for {size} more, even without its history (delete files, or raise volume_budget)",
        )


def _state(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return (
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
        status.st_nlink,
    )
