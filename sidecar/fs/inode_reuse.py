"""Reuse an expired file for the next content, with its inode and its blocks.

Creating a file, allocating blocks and removing another file take most of the time of a small publish:
ext4 without a journal checks each inode that was freed within the last minutes before it allocates one.

A file is reused only if it cannot be distinguished from a new one. It has one link left, and no process has it open:
a lease proves that (see `leases`), and blocks other opens until the new content is complete.
Its last change is older than a clock tick, so no old signature can equal that of the new content.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable

from sidecar.fs import atomic, layout, leases, openat

MAX_BYTES: int = 64 << 10
"""Maximum size of a reused file; for larger files there is no benefit."""
#: More than the kernel tick, the resolution of file timestamps: 1 to 10 ms.
_TICK_NS = 20_000_000


def try_reuse(
    folder_fd: int, entry: str, dir_fd: int, access_matches: Callable[[os.stat_result], bool]
) -> tuple[str, int] | None:
    """Move the file `entry` to a temporary name in another directory of the volume; return the name and a descriptor.

    Returns None, without any change, if the file cannot be reused.
    `access_matches` checks its mode and group. Call this under `flock.directory_lock`;
    `flock.remove_orphans` removes the leftovers of killed writers.

    Raises:
        OSError: the file cannot be opened or moved.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(entry, flags, dir_fd=folder_fd)
    try:
        if _is_free(os.fstat(fd), access_matches) and leases.take_write_lease(fd):
            name = layout.temporary_name()
            atomic.move(folder_fd, entry, dir_fd, name)
            taken, fd = (name, fd), -1
            return taken
    finally:
        if fd >= 0:
            openat.close(fd)
    return None


def _is_free(status: os.stat_result, access_matches: Callable[[os.stat_result], bool]) -> bool:
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_nlink == 1
        and status.st_uid == os.geteuid()
        and status.st_size <= MAX_BYTES
        and time.time_ns() - status.st_ctime_ns > _TICK_NS
        and access_matches(status)
    )
