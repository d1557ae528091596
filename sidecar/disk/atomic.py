"""Replace files whole, durably: the only module that renames and syncs.

The order of the calls is the guarantee.
Temporary file in the same directory, mode and group before anybody can see it, write, `fsync`, `close`,
`rename`, `fsync` of the directory: readers meet the old content or the new one,
and what was acknowledged survives a power cut (rename(2), fsync(2), close(2)).
A failed `fsync` is never repeated, since the kernel forgets the error and drops the pages; the file is dropped instead.

Callers hold `locks.locked` while they change a directory.
No link is followed on the way to what is changed: a neighbour could have planted it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sidecar.disk import beneath, naming
from sidecar.disk.failures import GroupRefused

_RENAME_EXCHANGE = 2
#: Files that are synced side by side if there are so many: the threads cost as much as some syncs.
_MANY = 32
_SIDE_BY_SIDE = 8
#: Some file systems of other machines have no such call for directories; nothing more can be done there.
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


class Staged:
    """A temporary file in the directory of its target, not yet visible under any name that is read.

    Make one under `locks.locked`; the file's own lock then tells `locks.sweep` that its writer lives.
    Then `write`, `seal`, and `replace`; at last `discard`, always: it gives back what is left.
    """

    def __init__(self, dir_fd: int) -> None:
        self.name = naming.temporary_name()
        self.size = 0
        self._fd = -1
        # Opened anew, not dup(2)ed: it must not share the lock of the caller.
        self._dir_fd = beneath.open_here(dir_fd, ".")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self.name, flags, 0o600, dir_fd=dir_fd)
        except BaseException:
            beneath.close(self._dir_fd)
            raise
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def fd(self) -> int:
        """The open descriptor; -1 once it is sealed or discarded."""
        return self._fd

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`: short writes and signals are dealt with."""
        write_all(self._fd, data)
        self.size += len(data)

    def seal(self, mode: int, group: int | None, *, durable: bool = True) -> None:
        """Give it mode and group, sync it unless it need not be durable, and close it. Any error means: drop it.

        Raises:
            OSError: as fchmod(2), fchown(2), fsync(2), close(2); `EIO` if bytes are missing.
        """
        check_size(self._fd, self.size)
        give(self._fd, mode, group)
        if durable:
            sync_file(self._fd)
        # NFS and FUSE report a full disk only here, and close(2) must not be called twice.
        fd, self._fd = self._fd, -1
        os.close(fd)

    def replace(self, target: str, dir_fd: int) -> None:
        """Rename it over `target` in a directory of its volume, which is not synced yet."""
        os.rename(self.name, target, src_dir_fd=self._dir_fd, dst_dir_fd=dir_fd)
        self.name = ""

    def link_into(self, dir_fd: int, target: str) -> None:
        """Give the file a second name in another directory of the same volume."""
        os.link(
            self.name, target, src_dir_fd=self._dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False
        )

    def discard(self) -> None:
        """Close and unlink whatever is left of it. Never raises, and may be called again."""
        fd, self._fd = self._fd, -1
        name, self.name = self.name, ""
        own, self._dir_fd = self._dir_fd, -1
        if fd >= 0:
            beneath.close(fd)
        with contextlib.suppress(OSError):
            if name:
                os.unlink(name, dir_fd=own)
        if own >= 0:
            beneath.close(own)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`: write(2) may take a part of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def check_size(fd: int, size: int) -> None:
    """Raise `OSError` (`EIO`) if a file has not got the bytes that were written."""
    found = os.fstat(fd).st_size
    if found != size:
        raise OSError(errno.EIO, f"{size} bytes were written, and {found} arrived")


def give(fd: int, mode: int, group: int | None) -> None:
    """Set group and mode of what is not visible yet, whatever the umask.

    Raises:
        GroupRefused: the process may not give it to that group.
        OSError: as fchmod(2).
    """
    if group is not None and os.fstat(fd).st_gid != group:
        try:
            os.fchown(fd, -1, group)
        except PermissionError as error:
            raise GroupRefused(
                error.errno,
                f"user {os.geteuid()} may not give files to group {group}"
                " (make it a member by fsGroup or supplementalGroups, or leave the group out)",
            ) from error
    os.fchmod(fd, mode)  # after fchown, which clears set-id bits


def begin_sync(fd: int) -> None:
    """Start to bring the bytes of a file to the disk, and do not wait for it."""
    # The standard library has no sync_file_range(2); this advice begins the same work.
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def sync_file(fd: int) -> None:
    """Bring the bytes of a file to the disk. An error means that they are lost: never try again."""
    os.fsync(fd)


def sync_files(fds: Sequence[int]) -> None:
    """Bring the bytes of several files to the disk, many of them side by side: most of a sync is waiting.

    An error means that they are lost; none is being synced any more when it is raised.
    """
    if len(fds) < _MANY:
        for fd in fds:
            sync_file(fd)
        return
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="sidecar-sync") as threads:
        for _ in threads.map(sync_file, fds):
            pass


def sync_directory(dir_fd: int) -> None:
    """Make the names of a directory durable; see fsync(2)."""
    try:
        os.fsync(dir_fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    # XFS lets this fsync succeed if its log has died just before and taken the change along;
    # whether it has died, stat(2) tells.
    os.fstat(dir_fd)


def sync_data(fd: int) -> None:
    """Make the bytes of an open file durable, and its size; see fdatasync(2)."""
    os.fdatasync(fd)


def rename(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a file another name, in place of what has that name. It is not synced."""
    os.replace(path, target)


def move(from_fd: int, name: str, to_fd: int, target: str) -> None:
    """Rename an entry from one directory of the volume to another."""
    os.rename(name, target, src_dir_fd=from_fd, dst_dir_fd=to_fd)


def exchange(dir_fd: int, temporary: str, name: str) -> str:
    """Put `temporary` in the place of the directory `name`; return what that is called from now on.

    `name` is there all the time. Where the kernel or the file system cannot exchange two names (renameat2(2)),
    it is missing for a moment.
    """
    try:
        _exchange(dir_fd, temporary, name)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        aside = naming.temporary_name()
        os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        return aside
    return temporary


def _exchange(dir_fd: int, first: str, second: str) -> None:
    # The standard library has no renameat2(2), and not every C library has it either.
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(first), os.fsencode(second)
    if call(dir_fd, names[0], dir_fd, names[1], _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
