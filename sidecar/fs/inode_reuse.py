"""A file of ours that is to be removed, taken for the next content: its inode and its blocks are there already.

To create a file, to give it blocks, and to remove another one takes most of the time of a small publish:
ext4 without a journal looks at each inode that was freed within the last minutes before it takes one.

A file is taken only if nobody can tell it from a new one. It has one name left, and nobody has it open:
a lease proves that (see `leases`), and keeps others out until the new content is complete.
What was seen of it before is older than a tick of the clock, so no signature of old is that of the new content.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable

from sidecar.fs import atomic, layout, leases, openat

MAX_BYTES: int = 64 << 10
"""Bytes of a file that is worth it; a larger one is not the cheaper for it."""
#: File systems note times by the tick of the kernel, of 1 to 10 ms.
_TICK_NS = 20_000_000


def try_reuse(
    folder_fd: int, entry: str, dir_fd: int, access_matches: Callable[[os.stat_result], bool]
) -> tuple[str, int] | None:
    """Move the file `entry` to a temporary name in another directory of the volume, and return that and a descriptor.

    `access_matches` tells whether it has the mode and the group that are wanted. Call it under `flock.directory_lock`;
    what killed writers leave is removed by `flock.remove_orphans`. None, and nothing has happened, if it cannot be taken.

    Raises:
        OSError: it cannot be opened, or moved.
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
