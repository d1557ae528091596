"""The disk space that a directory uses and may use: `volume_budget`.

Usage is counted like kubelet counts a volume (`du`): in disk blocks, including directories,
each hard-linked file once, files of all publishers, and temporary files of running uploads.

A write does not list the directory. Its own changes are added to the last count.
The directory is counted again after changes by another publisher, before anything is rejected, and periodically.
So the known usage may be too high for a moment, but a rejection is always based on a new count.
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

_BLOCK_BYTES = 4096
#: Besides the content, a publish may create directories: one for the file, one or two for its history.
_DIRECTORY_OVERHEAD_BYTES = 3 * _BLOCK_BYTES
_COUNT_INTERVAL = 1.0
_QUICK_COUNT_SECONDS = 0.002
_UPLOAD_CHECK_BYTES = 8 << 20
#: Maximum share of the time for counting, as long as a quarter of the budget is free.
_COUNT_TIME_SHARE = 1 / 20

Reclaim = Callable[[int, int, bool], int]
"""Frees at least the given bytes of old versions, or nothing; returns the bytes. The last argument is `dry_run`."""


def on_disk(size: int) -> int:
    """Return the disk space in bytes of a file of that size on most file systems.

    >>> on_disk(0), on_disk(1), on_disk(4097)
    (0, 4096, 8192)
    """
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


class OverBudget(_errors.VolumeFull):
    """The budget is exhausted, although the volume may have space."""


class Budget:
    """The used disk space of a directory and its limit. Without a limit, nothing is counted.

    Call the methods with a descriptor under the directory lock; `grow` and `end_upload` need no lock.
    """

    def __init__(self, limit: int | None, give_way: Reclaim) -> None:
        self.limit = limit
        self._reclaim = give_way
        self._stored = 0
        self._uploads: dict[str, int] = {}
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        """The status of the directory after the last change by this process; None: count again first."""
        self._counted = float("-inf")
        self._count_seconds = 0.0

    @property
    def used(self) -> int:
        """The known disk usage in bytes."""
        return self._stored + sum(self._uploads.values())

    @property
    def is_quick(self) -> bool:
        """Whether a count, if needed, takes less than `_QUICK_COUNT_SECONDS`."""
        return self.limit is None or (
            self._seen is not None and self._count_seconds < _QUICK_COUNT_SECONDS
        )

    def enter(self, fd: int) -> None:
        """Count again if another publisher has changed the directory."""
        if self.limit is None:
            return
        if self._seen is None or (self._seen != _state(fd) and self._should_count()):
            self.count(fd)

    def leave(self, fd: int) -> None:
        """Record the status of the directory; count again if that is due."""
        if self.limit is None or self._seen is None:
            return
        if time.monotonic() - self._counted > max(
            _COUNT_INTERVAL, self._count_seconds / _COUNT_TIME_SHARE
        ):
            self.count(fd)
        self._seen = _state(fd)

    def count(self, fd: int) -> None:
        """List the directory and add up its disk usage."""
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
        """Count again next time, because an added change may not have happened."""
        self._seen = None

    def admit(self, fd: int, size: int, where: str, *, dry_run: bool = False) -> None:
        """Reserve space for a content of that size; remove old versions if necessary. A dry run reserves nothing.

        Raises:
            VolumeFull: removing the whole history would not suffice.
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
                    if self.used + wanted > self.limit:
                        raise self._over_budget(where, size)
        if not dry_run:
            self.change(on_disk(size))

    def admit_first(self, size: int, where: str) -> None:
        """Raise `VolumeFull` if a content of that size does not fit into a directory that does not exist yet."""
        if self.limit is not None and on_disk(size) + _DIRECTORY_OVERHEAD_BYTES > self.limit:
            raise self._over_budget(where, size)

    def change(self, size: int) -> None:
        """Add bytes to the usage; negative if they were freed."""
        if self.limit is not None:
            with self._lock:
                self._stored = max(self._stored + size, 0)

    def grow(self, upload: str, size: int) -> bool:
        """Add bytes of an upload; return False, without adding, if `admit_upload` is needed."""
        if self.limit is None:
            return True
        with self._lock:
            so_far = self._uploads.get(upload, 0)
            if so_far // _UPLOAD_CHECK_BYTES != (so_far + size) // _UPLOAD_CHECK_BYTES:
                return False  # other publishers may have used space meanwhile
            others = self._stored + sum(self._uploads.values()) - so_far
            if others + on_disk(so_far + size) + _DIRECTORY_OVERHEAD_BYTES > self.limit:
                return False
            self._uploads[upload] = so_far + size
        return True

    def admit_upload(self, fd: int, upload: str, size: int, where: str) -> None:
        """Add bytes of an upload; remove old versions if necessary.

        Raises:
            VolumeFull: removing the whole history would not suffice.
        """
        self.admit(fd, size, where)
        with self._lock:
            self._stored -= on_disk(size)
            self._uploads[upload] = self._uploads.get(upload, 0) + size

    def end_upload(self, upload: str, *, published: bool) -> None:
        """Count a finished upload as content if published, else not at all. May be called repeatedly."""
        with self._lock:
            size = self._uploads.pop(upload, 0)
            if published:
                self._stored += on_disk(size)

    def _should_count(self) -> bool:
        """Whether to count now: always if less than a quarter of the budget is free, else within the time share."""
        if self.used > (self.limit or 0) * 3 // 4:
            return True
        return time.monotonic() - self._counted > self._count_seconds / _COUNT_TIME_SHARE

    def _over_budget(self, where: str, size: int) -> OverBudget:
        return OverBudget(
            errno.EDQUOT,
            f"cannot publish {where}: the volume takes {self.used} bytes of its budget of {quantities.format_size(self.limit or 0)},"
            f" and has no space for {size} more, even without its history (delete files, or raise volume_budget)",
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
