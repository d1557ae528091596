"""One writer at a time in a directory, and what killed ones have left there.

A lock of the kernel tells who lives: nothing has to be cleared away after a writer that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sidecar import _errors
from sidecar.fs import atomic, dirs, layout, openat

_MIN_RETRY_DELAY = 0.001
_MAX_RETRY_DELAY = 0.02
_MAX_NEXT_RETRY_DELAY = 0.005
_NEXT_TIMEOUT = 1.0
"""Seconds for which the next in line keeps others from a lock; it may be stopped."""
_FLOCK_STRUCT_FORMAT = "hhqqi4x"
"""The type, then `SEEK_SET`, start, length and process: `struct flock` of fcntl(2)."""
_FOREIGN_MAX_AGE = 3600.0
_GROUP_OTHER_READ = 0o044


def _no_check() -> None:
    """Wait for the lock without asking anybody."""


@contextmanager
def directory_lock(
    dir_fd: int,
    *,
    timeout: float,
    where: str,
    before_wait: Callable[[], None] = _no_check,
    create: bool = True,
) -> Iterator[None]:
    """Keep other writers out of a directory, in this process and in other containers of the node.

    An flock(2), so a killed writer frees it. Whoever can open a file may lock it, hence not the directory is locked
    where others can read that, but `..lock` in it: it can be opened for writing alone, by those who may write there.
    Without `create`, that file is locked only where it is there. Where nothing can be locked, writers are not kept apart.
    `before_wait` is called between two tries; it ends the wait by raising.
    Who waits longest in line gets the lock before whoever has just released it.

    Raises:
        VolumeUnavailable: another writer held the lock for `timeout` seconds.
    """
    fd = _acquire(dir_fd, timeout, before_wait, create)
    if fd is None:
        raise _errors.VolumeUnavailable(
            errno.EWOULDBLOCK,
            f"cannot publish to {where}: another writer has held its lock for {timeout:g} s"
            " (is a second writer stuck?)",
        )
    try:
        yield
    finally:
        # A process that was forked meanwhile has the descriptor, too: the lock would stay with that one.
        unlock(fd)
        openat.close(fd)


def try_lock(fd: int) -> bool:
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


def unlock(fd: int) -> None:
    """Unlock what `try_lock` has locked, for all processes that have the descriptor."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def remove_orphans(dir_fd: int) -> int:
    """Remove the temporary entries of killed writers, and return how many those were.

    Call it under `directory_lock`: then a temporary file without a lock of its own has no living writer.
    """
    orphans = [
        e
        for e in os.listdir(dir_fd)
        if e.startswith(layout.TEMPORARY) and not _has_living_writer(dir_fd, e)
    ]
    for entry in orphans:
        dirs.rmtree(dir_fd, entry)
    return len(orphans)


def is_orphan(dir_fd: int, name: str) -> bool:
    """Whether the writer of a temporary entry is gone, as far as can be told: an upload may take hours."""
    return not _has_living_writer(dir_fd, name)


def share(dir_fd: int) -> None:
    """Let those lock a directory who may write there by now: its group, or all. Never raises."""
    with contextlib.suppress(OSError):
        fd = _open_lock_file(dir_fd)
        try:
            _give_to_writers(fd, dir_fd)
        finally:
            openat.close(fd)


def _acquire(
    dir_fd: int, timeout: float, before_wait: Callable[[], None], create: bool
) -> int | None:
    """Return a descriptor that has the lock, None if somebody else kept it for `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        fd = _open_lock(dir_fd, create)
        try:
            directory_lock = _lock(fd, end - time.monotonic(), before_wait)
            if directory_lock and _is_current(dir_fd, fd):
                return fd
        except BaseException:
            openat.close(fd)
            raise
        openat.close(fd)
        if not directory_lock:
            return None


def _open_lock(dir_fd: int, create: bool) -> int:
    """Open what writers lock: the directory itself if it is private, or if there can be no file for it."""
    if os.fstat(dir_fd).st_mode & _GROUP_OTHER_READ:
        with contextlib.suppress(OSError):
            try:
                return _open_lock_file(dir_fd)
            except FileNotFoundError:
                if create:
                    _make_lock_file(dir_fd)
            return _open_lock_file(dir_fd)
    # Opened anew, not dup(2)ed: a lock belongs to what open(2) has made.
    return openat.open_here(dir_fd, ".")


def _open_lock_file(dir_fd: int) -> int:
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(layout.LOCK, flags, dir_fd=dir_fd)


def _make_lock_file(dir_fd: int) -> None:
    """Make the file under a temporary name first: it must not be closed to a neighbour even for a moment."""
    name = layout.temporary_name()
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o200, dir_fd=dir_fd)
    try:
        _give_to_writers(fd, dir_fd)
        with contextlib.suppress(FileExistsError):
            os.link(name, layout.LOCK, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            return
    except (
        OSError
    ):  # no hard links here: two that make it at once may replace it, which `_is_current` sees
        atomic.move(dir_fd, name, dir_fd, layout.LOCK)
    finally:
        openat.close(fd)
        dirs.rmtree(dir_fd, name)


def _give_to_writers(fd: int, dir_fd: int) -> None:
    """Let all those write to the lock file, and nobody read it, who may write to its directory."""
    directory, own = os.fstat(dir_fd), os.fstat(fd)
    with contextlib.suppress(OSError):
        if own.st_gid != directory.st_gid:
            os.fchown(fd, -1, directory.st_gid)
    with contextlib.suppress(OSError):
        mode = 0o200 | (directory.st_mode & 0o022)
        if stat.S_IMODE(own.st_mode) != mode:
            os.fchmod(fd, mode)


def _is_current(dir_fd: int, fd: int) -> bool:
    """Whether what was locked is still what writers lock: somebody may have removed the file meanwhile."""
    own = os.fstat(fd)
    if stat.S_ISDIR(own.st_mode):
        return True
    with contextlib.suppress(OSError):
        return os.path.samestat(own, os.stat(layout.LOCK, dir_fd=dir_fd, follow_symlinks=False))
    return False


def _lock(fd: int, timeout: float, before_wait: Callable[[], None]) -> bool:
    """Take the lock within `timeout` seconds, after the one who is next in line.

    Only the next one asks for the lock; the others ask to be next. So who has just released it, and wants it again, waits.
    """
    if not _has_next_waiter(fd) and try_lock(fd):
        return True
    started = time.monotonic()
    pause, is_next = _MIN_RETRY_DELAY, False
    try:
        while True:
            is_next = is_next or _become_next_waiter(fd)
            waited = time.monotonic() - started
            if (is_next or waited >= _NEXT_TIMEOUT) and try_lock(fd):
                return True
            if waited >= timeout:
                return False
            before_wait()
            time.sleep(pause)
            pause = min(pause * 2, _MAX_NEXT_RETRY_DELAY if is_next else _MAX_RETRY_DELAY)
    finally:
        if is_next:
            with contextlib.suppress(OSError):
                _lock_first_byte(fd, "F_OFD_SETLK", fcntl.F_UNLCK)


def _become_next_waiter(fd: int) -> bool:
    """Become the one who gets the lock next, unless somebody is; True where nobody can tell: a directory, some file systems."""
    try:
        _lock_first_byte(fd, "F_OFD_SETLK", fcntl.F_WRLCK)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def _has_next_waiter(fd: int) -> bool:
    try:
        return _lock_first_byte(fd, "F_OFD_GETLK", fcntl.F_WRLCK) != fcntl.F_UNLCK
    except OSError:
        return False


def _lock_first_byte(fd: int, command: str, kind: int) -> int:
    """Lock the first byte of a lock file, apart from its flock(2), and return the type that fcntl(2) answers.

    Raises:
        OSError: as fcntl(2); `ENOSYS` where the system has no locks of open file descriptions.
    """
    number = getattr(fcntl, command, None)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    answer = fcntl.fcntl(fd, number, struct.pack(_FLOCK_STRUCT_FORMAT, kind, os.SEEK_SET, 0, 1, 0))
    return int(struct.unpack_from(_FLOCK_STRUCT_FORMAT, answer)[0])


def _has_living_writer(dir_fd: int, name: str) -> bool:
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
        openat.close(fd)
    return False


def _is_young(dir_fd: int, name: str) -> bool:
    try:
        modified = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mtime
    except OSError:
        return False
    return time.time() - modified < _FOREIGN_MAX_AGE
