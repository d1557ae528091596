"""One writer at a time in a directory, and what killed ones have left there.

A lock of the kernel tells who lives: nothing has to be cleared away after a writer that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sidecar import _errors
from sidecar.disk import beneath, naming, trees

_LOCK_PAUSE = 0.001
_LOCK_PAUSE_MOST = 0.02
_FOREIGN_AGE = 3600.0


def _go_on() -> None:
    """Wait for the lock without asking anybody."""


@contextmanager
def locked(
    dir_fd: int, *, timeout: float, where: str, waiting: Callable[[], None] = _go_on
) -> Iterator[None]:
    """Keep other writers out of a directory, in this process and in other containers of the node.

    An flock(2) on the directory itself, so nothing is left behind and a killed writer frees it.
    Where the file system cannot lock a directory, several writers are not kept apart.
    `waiting` is called between two tries; it ends the wait by raising.

    Raises:
        VolumeUnavailable: another writer held the lock for `timeout` seconds.
    """
    if not _lock(dir_fd, timeout, waiting):
        raise _errors.VolumeUnavailable(
            errno.EWOULDBLOCK,
            f"cannot publish to {where}: another writer has held its lock for {timeout:g} s"
            " (is a second writer stuck?)",
        )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(dir_fd, fcntl.LOCK_UN)


def take(fd: int) -> bool:
    """Lock an open file or directory for this process, until it is closed; return False while somebody else has it.

    NFS and some FUSE file systems have no locks, or none for directories: there it is ours.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def sweep(dir_fd: int) -> int:
    """Remove the temporary entries of killed writers, and return how many those were.

    Call it under `locked`: then a temporary file without a lock of its own has no living writer.
    """
    orphans = [
        e for e in os.listdir(dir_fd) if e.startswith(naming.TEMPORARY) and not _alive(dir_fd, e)
    ]
    for entry in orphans:
        trees.remove(dir_fd, entry)
    return len(orphans)


def _lock(dir_fd: int, timeout: float, waiting: Callable[[], None]) -> bool:
    end = time.monotonic() + timeout
    pause = _LOCK_PAUSE
    while not take(dir_fd):
        if time.monotonic() >= end:
            return False
        waiting()
        time.sleep(pause)
        pause = min(pause * 2, _LOCK_PAUSE_MOST)
    return True


def _alive(dir_fd: int, name: str) -> bool:
    """Whether the writer of a temporary entry may still be at work: it holds the lock of its file."""
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return False  # made and renamed under the lock of the directory, which we hold
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except OSError:
        # A writer of another user: its lock cannot be asked for, so only age tells.
        return _is_young(dir_fd, name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return _is_young(dir_fd, name)  # there are no locks on this file system
    finally:
        beneath.close(fd)
    return False


def _is_young(dir_fd: int, name: str) -> bool:
    try:
        modified = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mtime
    except OSError:
        return False
    return time.time() - modified < _FOREIGN_AGE
