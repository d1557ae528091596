"""Replace files whole, durably: the only module that renames and syncs.

The order of the calls is the guarantee.
Temporary file in the same directory, mode and group before anybody can see it, write, `fsync`, `close`,
`rename`, `fsync` of the directory: readers meet the old content or the new one,
and what was acknowledged survives a power cut (rename(2), fsync(2), close(2)).
A failed `fsync` is never repeated, since the kernel forgets the error and drops the pages; the file is dropped instead.

Callers hold `flock.directory_lock` while they change a directory.
No link is followed on the way to what is changed: a neighbour could have planted it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sidecar.fs import layout, openat, oserrors
from sidecar.fs.oserrors import ChmodDenied

_RENAME_EXCHANGE = 2
_READ_BY_OTHERS = 0o044
#: Files that are synced side by side if there are so many: the threads cost as much as some syncs.
_MANY = 32
_SIDE_BY_SIDE = 8
#: Some file systems of other machines have no such call for directories; nothing more can be done there.
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


class TempFile:
    """A temporary file in the directory of its target, not yet visible under any name that is read.

    Make one under `flock.directory_lock`; the file's own lock then tells `flock.remove_orphans` that its writer lives.
    Then `write`, `seal`, and `replace`; at last `discard`, always: it gives back what is left.
    A `brief` one ends before that lock is given back, and `dir_fd` is closed: it needs no lock and directory of its own.
    `reused` are name and descriptor of a file that `inode_reuse.try_reuse` has found, for a brief one: it has its mode already.
    """

    def __init__(
        self, dir_fd: int, *, brief: bool = False, reused: tuple[str, int] | None = None
    ) -> None:
        self.size = 0
        self._fd = self._sealed_fd = -1
        self._brief = brief
        self._reused = reused is not None
        if reused is not None:
            self._dir_fd, (self.name, self._fd) = dir_fd, reused
            return
        self.name = layout.temporary_name()
        # Opened anew, not dup(2)ed: it must not share the lock of the caller.
        self._dir_fd = dir_fd if brief else openat.open_here(dir_fd, ".")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self.name, flags, 0o600, dir_fd=dir_fd)
        except BaseException:
            if not brief:
                openat.close(self._dir_fd)
            raise
        if not brief:
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

        What is published is known by `status` from then on, whoever gives its name to another file.

        Raises:
            ChmodDenied, ChownDenied: see those.
            OSError: as fchmod(2), fchown(2), fsync(2), close(2); `EIO` if bytes are missing.
        """
        if self._reused:
            os.ftruncate(self._fd, self.size)
            status = os.fstat(self._fd)
        else:
            status = set_owner_and_mode(self._fd, mode, group)
        check_size(status, self.size)
        if durable:
            sync_file(self._fd)
        # It does not count as opened for writing, so nobody takes the file for one that is still being written.
        self._sealed_fd = os.open(self.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._dir_fd)
        if not os.path.samestat(status, os.fstat(self._sealed_fd)):
            raise OSError(errno.EIO, "somebody has replaced the temporary file")
        # NFS and FUSE report a full disk only here, and close(2) must not be called twice.
        fd, self._fd = self._fd, -1
        os.close(fd)

    def status(self) -> os.stat_result:
        """Return the state of the file itself once it is sealed, whatever its name leads to by now."""
        return os.fstat(self._sealed_fd)

    def replace(self, target: str, dir_fd: int) -> None:
        """Rename it over `target` in a directory of its volume, which is not synced yet."""
        os.rename(self.name, target, src_dir_fd=self._dir_fd, dst_dir_fd=dir_fd)
        self.name = ""

    def keep_as(self, name: str, dir_fd: int) -> None:
        """Give the sealed file itself a second name, whatever its first name leads to by now."""
        link_open(self._sealed_fd, dir_fd, name)

    def link_into(self, dir_fd: int, target: str) -> None:
        """Give the file a second name in another directory of the same volume."""
        os.link(
            self.name, target, src_dir_fd=self._dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False
        )

    def discard(self) -> None:
        """Close and unlink whatever is left of it. Never raises, and may be called again."""
        fd, self._fd = self._fd, -1
        sealed, self._sealed_fd = self._sealed_fd, -1
        name, self.name = self.name, ""
        own, self._dir_fd = self._dir_fd, -1
        for one in (fd, sealed):
            if one >= 0:
                openat.close(one)
        with contextlib.suppress(OSError):
            if name:
                os.unlink(name, dir_fd=own)
        if own >= 0 and not self._brief:
            openat.close(own)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`: write(2) may take a part of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def check_size(status: os.stat_result, size: int) -> None:
    """Raise `OSError` (`EIO`) if a file has not got the bytes that were written."""
    if status.st_size != size:
        raise OSError(errno.EIO, f"{size} bytes were written, and {status.st_size} arrived")


def set_owner_and_mode(fd: int, mode: int, group: int | None) -> os.stat_result:
    """Set group and mode of a file of ours that is not visible yet, whatever the umask, and return its state.

    Where the mount fixes the modes (vfat, CIFS, some FUSE), one that grants what was asked for is taken,
    unless it lets somebody read who was to be kept out.

    Raises:
        ChownDenied: the process may not give it to that group.
        ChmodDenied: the mount fixes another mode.
        OSError: as fchmod(2).
    """
    if group is not None:
        oserrors.give_group(fd, group)
    refused: PermissionError | None = None
    try:
        os.fchmod(fd, mode)  # after fchown, which clears set-id bits
    except PermissionError as error:
        refused = error
    status = os.fstat(fd)  # some mounts do not refuse it, and change nothing
    found = stat.S_IMODE(status.st_mode)
    if mode & ~found or found & ~mode & _READ_BY_OTHERS:
        raise ChmodDenied(
            errno.EPERM,
            f"mode {mode:04o} cannot be set: the mount fixes that of its files at {found:04o}"
            f" (ask for --mode {found:04o}, or mount it with other modes: file_mode=, umask=)",
        ) from refused
    return status


def link_open(fd: int, dir_fd: int, name: str) -> None:
    """Give an open file another name; see open(2), `O_TMPFILE`.

    Raises:
        OSError: as linkat(2); `ENOENT` if it has no name any more.
    """
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=dir_fd, follow_symlinks=True)


def start_writeback(fd: int) -> None:
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
        aside = layout.temporary_name()
        os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        try:
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except OSError:
            os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            raise
        return aside
    return temporary


def rename_or_exchange(dir_fd: int, temporary: str, name: str) -> str | None:
    """Give an entry its name, whatever has that; return the name of what had it, None if nothing had.

    A file that has the name is replaced at once; of a directory `exchange` says when it is missing for a moment.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        move(dir_fd, temporary, dir_fd, name)
        return None
    if not stat.S_ISDIR(status.st_mode):
        try:
            _exchange(dir_fd, temporary, name)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EINVAL):
                raise
            aside = layout.temporary_name()
            os.link(name, aside, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            move(dir_fd, temporary, dir_fd, name)
            return aside
        return temporary if _is_there(dir_fd, temporary) else None
    return exchange(dir_fd, temporary, name)


def _is_there(dir_fd: int, name: str) -> bool:
    """Whether an exchange was one: some FUSE file systems do not look at the flags of a rename.

    Where nobody can tell it is taken for one: what was there must not be lost.
    """
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        return error.errno != errno.ENOENT
    return True


def _exchange(dir_fd: int, first: str, second: str) -> None:
    # The standard library has no renameat2(2), and not every C library has it either.
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(first), os.fsencode(second)
    if call(dir_fd, names[0], dir_fd, names[1], _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
