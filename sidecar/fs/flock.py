"""Directory locks for writers, and removal of temporary files of killed writers.

The locks are kernel locks: the kernel releases the lock of a killed writer, so no cleanup is needed.
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
"""Seconds for which the next waiter has priority; after that, others try as well, since it may be stopped."""
_FLOCK_STRUCT_FORMAT = "hhqqi4x"
"""`struct flock` of fcntl(2): type, whence, start, length, process."""
_FOREIGN_MAX_AGE = 3600.0
_GROUP_OTHER_READ = 0o044


def _no_check() -> None:
    """Wait for the lock unconditionally."""


class OpenLock:
    """The lock of a directory, open and not locked, for the next `directory_lock` of the same directory.

    It saves the calls that open it. Its directory stays open as well, so `close` it soon.
    """

    __slots__ = ("_dir_status", "_fd")

    def __init__(self) -> None:
        self._fd = -1
        self._dir_status: tuple[int, int, int] | None = None

    def close(self) -> None:
        """Close the descriptor, if there is one."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            openat.close(fd)

    def take(self, dir_fd: int, create: bool) -> int:
        """Return the descriptor, or open the lock if the directory is another one, or has another mode."""
        status = os.fstat(dir_fd)
        found = (status.st_dev, status.st_ino, status.st_mode)
        if found != self._dir_status:
            self.close()
            self._dir_status = found
        fd, self._fd = self._fd, -1
        return fd if fd >= 0 else _open_lock(dir_fd, create)

    def keep(self, fd: int) -> None:
        """Take back a descriptor that is not locked any more."""
        self.close()
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            openat.close(fd)  # somebody may create the lock file meanwhile, and lock that
        else:
            self._fd = fd


@contextmanager
def directory_lock(
    dir_fd: int,
    *,
    timeout: float,
    where: str,
    before_wait: Callable[[], None] = _no_check,
    create: bool = True,
    kept: OpenLock | None = None,
) -> Iterator[None]:
    """Exclude other writers from a directory, in this process and in other containers of the node.

    Uses flock(2), which the kernel releases when a writer is killed. Any process that can open a file can lock it.
    So if other users can read the directory, the file `..lock` in it is locked instead,
    which only users who may write to the directory can open. Without `create`, a missing lock file is not created.
    On file systems without locks, writers are not excluded.
    `before_wait` is called before each retry, and may raise to end the wait.
    With `kept`, the lock stays open for the next call.
    A waiting writer gets the lock before one that has just released it.

    Raises:
        VolumeUnavailable: another writer held the lock for `timeout` seconds.
    """
    fd = _acquire(dir_fd, timeout, before_wait, create, kept)
    if fd is None:
        raise _errors.VolumeUnavailable(
            errno.EWOULDBLOCK,
            f"cannot publish to {where}: another writer has held its lock for {timeout:g} s"
            " (is a second writer stuck?)",
        )
    try:
        yield
    finally:
        # Unlock explicitly: a process that was forked meanwhile shares the descriptor and would keep the lock.
        unlock(fd)
        if kept is not None:
            kept.keep(fd)
        else:
            openat.close(fd)


def try_lock(fd: int) -> bool:
    """Lock an open file or directory until it is closed; return False if another process holds the lock.

    Returns True on file systems without locks (NFS and some FUSE file systems, some only for directories).
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def unlock(fd: int) -> None:
    """Release the lock of `try_lock`, for all processes that share the descriptor."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def remove_orphans(dir_fd: int) -> int:
    """Remove the temporary entries of killed writers, and return their number.

    Call this under `directory_lock`: then the writer of an unlocked temporary file is no longer running.
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
    """Whether the writer of a temporary entry has ended, as far as known: an upload may take hours."""
    return not _has_living_writer(dir_fd, name)


def share(dir_fd: int) -> None:
    """Give the current writers of the directory, its group or all users, access to the lock file. Never raises."""
    with contextlib.suppress(OSError):
        fd = _open_lock_file(dir_fd)
        try:
            _give_to_writers(fd, dir_fd)
        finally:
            openat.close(fd)


def _acquire(
    dir_fd: int,
    timeout: float,
    before_wait: Callable[[], None],
    create: bool,
    kept: OpenLock | None,
) -> int | None:
    """Return a locked descriptor, None if another writer held the lock for `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        fd = _open_lock(dir_fd, create) if kept is None else kept.take(dir_fd, create)
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
    """Open the lock file, or the directory itself if it is private or the lock file cannot be created."""
    if os.fstat(dir_fd).st_mode & _GROUP_OTHER_READ:
        with contextlib.suppress(OSError):
            try:
                return _open_lock_file(dir_fd)
            except FileNotFoundError:
                if create:
                    _make_lock_file(dir_fd)
            return _open_lock_file(dir_fd)
    # Opened again instead of dup(2): a lock belongs to the open file description.
    return openat.open_here(dir_fd, ".")


def _open_lock_file(dir_fd: int) -> int:
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(layout.LOCK, flags, dir_fd=dir_fd)


def _make_lock_file(dir_fd: int) -> None:
    """Create the lock file under a temporary name, so that it never has the wrong permissions when visible."""
    name = layout.temporary_name()
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o200, dir_fd=dir_fd)
    try:
        _give_to_writers(fd, dir_fd)
        with contextlib.suppress(FileExistsError):
            os.link(name, layout.LOCK, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            return
    except OSError:  # no hard links: of two concurrent creators, one may replace the file, which `_is_current` detects
        atomic.move(dir_fd, name, dir_fd, layout.LOCK)
    finally:
        openat.close(fd)
        dirs.rmtree(dir_fd, name)


def _give_to_writers(fd: int, dir_fd: int) -> None:
    """Make the lock file writable for all users who may write to the directory, and readable for no user."""
    directory, own = os.fstat(dir_fd), os.fstat(fd)
    with contextlib.suppress(OSError):
        if own.st_gid != directory.st_gid:
            os.fchown(fd, -1, directory.st_gid)
    with contextlib.suppress(OSError):
        mode = 0o200 | (directory.st_mode & 0o022)
        if stat.S_IMODE(own.st_mode) != mode:
            os.fchmod(fd, mode)


def _is_current(dir_fd: int, fd: int) -> bool:
    """Whether the locked file is still the lock file: it may have been removed meanwhile."""
    own = os.fstat(fd)
    if stat.S_ISDIR(own.st_mode):
        return True
    with contextlib.suppress(OSError):
        return os.path.samestat(own, os.stat(layout.LOCK, dir_fd=dir_fd, follow_symlinks=False))
    return False


def _lock(fd: int, timeout: float, before_wait: Callable[[], None]) -> bool:
    """Acquire the lock within `timeout` seconds, after the next waiter.

    Only the next waiter tries to lock; the others try to become the next waiter.
    So a writer that has just released the lock cannot take it again immediately.
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
    """Become the next waiter if there is none; True if that is not supported (directories, some file systems)."""
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
    """Lock or query the first byte of a lock file, independent of its flock(2); return the lock type of the answer.

    Raises:
        OSError: as fcntl(2); `ENOSYS` if the system has no open file description locks.
    """
    number = getattr(fcntl, command, None)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    answer = fcntl.fcntl(fd, number, struct.pack(_FLOCK_STRUCT_FORMAT, kind, os.SEEK_SET, 0, 1, 0))
    return int(struct.unpack_from(_FLOCK_STRUCT_FORMAT, answer)[0])


def _has_living_writer(dir_fd: int, name: str) -> bool:
    """Whether the writer of a temporary entry may still be running: then it holds the lock of the file."""
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return (
                False  # only created and renamed under the directory lock, which the caller holds
            )
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except OSError:
        # The file of another user: its lock cannot be tested, so its age decides.
        return _is_young(dir_fd, name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return _is_young(dir_fd, name)  # the file system has no locks
    finally:
        openat.close(fd)
    return False


def _is_young(dir_fd: int, name: str) -> bool:
    try:
        modified = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mtime
    except OSError:
        return False
    return time.time() - modified < _FOREIGN_MAX_AGE
