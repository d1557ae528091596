"""Replace files atomically and durably. Only this module renames and syncs.

The order of the system calls is the guarantee:
create a temporary file in the same directory, set mode and group while it is invisible, write, `fsync`, `close`,
`rename`, `fsync` the directory. Readers see either the old content or the new one,
and acknowledged content survives a power failure (rename(2), fsync(2), close(2)).
A failed `fsync` is never retried: the kernel reports the error once and drops the pages. The file is discarded instead.

Callers hold `flock.directory_lock` while they change a directory.
Symbolic links are never followed: another user of the volume could have created them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from sidecar.fs import layout, libc, openat, oserrors, xattrs
from sidecar.fs.oserrors import ChmodDenied

_RENAME_EXCHANGE = 2
_GROUP_OTHER_READ = 0o044
#: From this number of files on, syncs run in parallel. For fewer files, starting threads costs more than it saves.
_PARALLEL_SYNC_MIN_FILES = 32
_SYNC_THREADS = 8
#: Some network file systems cannot sync a directory. The error is ignored there.
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


class TempFile:
    """A temporary file in the directory of its target, under a name that readers ignore.

    Create it under `flock.directory_lock`. The file's own lock shows `flock.remove_orphans` that its writer is alive.
    Call `write`, `finalize` and `rename_into`, and always `discard` at the end, which releases what is left.
    A `short_lived` file is discarded before the directory lock is released and `dir_fd` is closed,
    so it takes no lock and opens no directory of its own.
    `reused` is the name and descriptor of a file from `inode_reuse.try_reuse`, which already has the right mode;
    only for short-lived files.
    """

    def __init__(
        self, dir_fd: int, *, short_lived: bool = False, reused: tuple[str, int] | None = None
    ) -> None:
        self.size = 0
        self._fd = self._path_fd = -1
        self._short_lived = short_lived
        self._reused = reused is not None
        if reused is not None:
            self._dir_fd, (self.name, self._fd) = dir_fd, reused
            return
        self.name = layout.temporary_name()
        # Opened again instead of dup(2): the descriptor must not share the caller's lock.
        self._dir_fd = dir_fd if short_lived else openat.open_here(dir_fd, ".")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self.name, flags, 0o600, dir_fd=dir_fd)
        except BaseException:
            if not short_lived:
                openat.close(self._dir_fd)
            raise
        if not short_lived:
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def fd(self) -> int:
        """The open descriptor; -1 after `finalize` or `discard`."""
        return self._fd

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`, also after short writes and signals."""
        write_all(self._fd, data)
        self.size += len(data)

    def set_attribute(self, value: bytes | None) -> bool:
        """Set the extended attribute, before `finalize`; None removes that of a reused file.

        Returns False if the file system does not take it; then the file has none.

        Raises:
            OSError: as fsetxattr(2).
        """
        if value is not None and xattrs.write(self._fd, value):
            return True
        if self._reused:
            xattrs.remove(self._fd)
        return value is None

    def finalize(self, mode: int, group: int | None, *, durable: bool = True) -> None:
        """Set mode and group, sync the file if `durable`, and close it. After an error, discard the file.

        From then on `status` describes the published file itself, even if its name is given to another file.

        Raises:
            ChmodDenied, ChownDenied: see there.
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
        # O_PATH does not count as open for writing, so watchers do not consider the file unfinished.
        self._path_fd = os.open(self.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._dir_fd)
        if not os.path.samestat(status, os.fstat(self._path_fd)):
            raise OSError(errno.EIO, "the temporary file was replaced by another process")
        # NFS and FUSE report a full disk only on close(2), which must not be called twice.
        fd, self._fd = self._fd, -1
        os.close(fd)

    def status(self) -> os.stat_result:
        """Return the status of the finalized file itself, regardless of what its name refers to now."""
        return os.fstat(self._path_fd)

    def rename_into(self, target: str, dir_fd: int) -> None:
        """Rename the file over `target` in a directory of the same volume. The directory is not synced."""
        os.rename(self.name, target, src_dir_fd=self._dir_fd, dst_dir_fd=dir_fd)
        self.name = ""

    def link_as(self, name: str, dir_fd: int) -> None:
        """Link the finalized file itself under a second name, regardless of what its first name refers to now."""
        link_open(self._path_fd, dir_fd, name)

    def link_into(self, dir_fd: int, target: str) -> None:
        """Link the file into another directory of the same volume."""
        os.link(
            self.name, target, src_dir_fd=self._dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False
        )

    def discard(self) -> None:
        """Close and unlink what is left of the file. Never raises; may be called repeatedly."""
        fd, self._fd = self._fd, -1
        sealed, self._path_fd = self._path_fd, -1
        name, self.name = self.name, ""
        own, self._dir_fd = self._dir_fd, -1
        for descriptor in (fd, sealed):
            if descriptor >= 0:
                openat.close(descriptor)
        with contextlib.suppress(OSError):
            if name:
                os.unlink(name, dir_fd=own)
        if own >= 0 and not self._short_lived:
            openat.close(own)


def replace_file(
    dir_fd: int,
    name: str,
    data: bytes,
    mode: int,
    *,
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    """Replace a small file of our own in an open directory by `data`, durably; `before_rename` is called just before.

    Raises:
        OSError: it could not be written, and the old file is unchanged; or its directory could not be synced.
    """
    staged = TempFile(dir_fd)
    try:
        staged.write(data)
        staged.finalize(mode, None)
        before_rename()
        staged.rename_into(name, dir_fd)
    finally:
        staged.discard()
    sync_directory(dir_fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`; a single write(2) may be partial."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def check_size(status: os.stat_result, size: int) -> None:
    """Raise `OSError` (`EIO`) if the size of a file differs from the number of bytes written."""
    if status.st_size != size:
        raise OSError(errno.EIO, f"{size} bytes were written, and {status.st_size} arrived")


def set_owner_and_mode(fd: int, mode: int, group: int | None) -> os.stat_result:
    """Set group and mode of a file that is not visible yet, independent of the umask, and return its status.

    If the mount fixes the modes (vfat, CIFS, some FUSE), a mode that grants at least the requested one is accepted,
    unless it also lets the group or others read a file that they must not read.

    Raises:
        ChownDenied: the process may not change the file to that group.
        ChmodDenied: the mount fixes a different mode.
        OSError: as fchmod(2).
    """
    if group is not None:
        oserrors.set_group(fd, group)
    refused: PermissionError | None = None
    try:
        os.fchmod(fd, mode)  # after fchown, which clears set-id bits
    except PermissionError as error:
        refused = error
    status = os.fstat(fd)  # some mounts accept fchmod and ignore it
    found = stat.S_IMODE(status.st_mode)
    if mode & ~found or found & ~mode & _GROUP_OTHER_READ:
        raise ChmodDenied(
            errno.EPERM,
            f"mode {mode:04o} cannot be set: the mount fixes that of its files at {found:04o}"
            f" (ask for --mode {found:04o}, or mount it with other modes: file_mode=, umask=)",
        ) from refused
    return status


def link_open(fd: int, dir_fd: int, name: str) -> None:
    """Link an open file under another name; see open(2), `O_TMPFILE`.

    Raises:
        OSError: as linkat(2); `ENOENT` if the file has no name left.
    """
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=dir_fd, follow_symlinks=True)


def start_writeback(fd: int) -> None:
    """Start writing the dirty pages of a file to the disk, without waiting."""
    # The standard library has no sync_file_range(2); this advice has the same effect.
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def sync_file(fd: int) -> None:
    """Sync the data of a file. An error means that data was lost: never retry."""
    os.fsync(fd)


def sync_files(fds: Sequence[int]) -> None:
    """Sync the data of several files; in parallel if there are many, since a sync mostly waits.

    An error means that data was lost. When it is raised, no sync is running any more.
    """
    if len(fds) < _PARALLEL_SYNC_MIN_FILES:
        for fd in fds:
            sync_file(fd)
        return
    with ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="sidecar-sync") as threads:
        for _ in threads.map(sync_file, fds):
            pass


def sync_directory(dir_fd: int) -> None:
    """Make the entries of a directory durable; see fsync(2)."""
    try:
        os.fsync(dir_fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    # On XFS this fsync can succeed although the log was just shut down and the change is lost; fstat(2) then fails.
    os.fstat(dir_fd)


def sync_data(fd: int) -> None:
    """Make the data and size of an open file durable; see fdatasync(2)."""
    os.fdatasync(fd)


def rename(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a file and replace the target. Nothing is synced."""
    os.replace(path, target)


def move(from_fd: int, name: str, to_fd: int, target: str) -> None:
    """Rename an entry from one directory of the volume to another."""
    os.rename(name, target, src_dir_fd=from_fd, dst_dir_fd=to_fd)


def exchange(dir_fd: int, temporary: str, name: str) -> str:
    """Replace the directory `name` by `temporary`, and return the new name of the old directory.

    `name` always exists. If the kernel or the file system cannot exchange two names (renameat2(2)),
    it is missing for a moment.
    """
    if _exchange(dir_fd, temporary, name):
        return temporary
    aside = layout.temporary_name()
    move(dir_fd, name, dir_fd, aside)
    try:
        move(dir_fd, temporary, dir_fd, name)
    except OSError:
        move(dir_fd, aside, dir_fd, name)
        raise
    return aside


def rename_or_exchange(dir_fd: int, temporary: str, name: str) -> str | None:
    """Rename `temporary` to `name`; return the new name of the entry that was there, None if there was none.

    A file is replaced atomically. For a directory, see `exchange`.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        move(dir_fd, temporary, dir_fd, name)
        return None
    if not stat.S_ISDIR(status.st_mode):
        if _exchange(dir_fd, temporary, name):
            return temporary if _exists(dir_fd, temporary) else None
        aside = layout.temporary_name()
        os.link(name, aside, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        move(dir_fd, temporary, dir_fd, name)
        return aside
    return exchange(dir_fd, temporary, name)


def _exists(dir_fd: int, name: str) -> bool:
    """Whether `name` exists, so that an exchange really was one: some FUSE file systems ignore the flags of a rename.

    True if the check fails: the old entry must not be lost.
    """
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        return error.errno != errno.ENOENT
    return True


def _exchange(dir_fd: int, first: str, second: str) -> bool:
    """Exchange two entries; return False if the kernel or the file system cannot."""
    old, new = os.fsencode(first), os.fsencode(second)
    try:
        libc.call("renameat2", dir_fd, old, dir_fd, new, _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        return False
    return True
