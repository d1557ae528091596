"""Replace files whole, durably: the only module that renames and syncs.

The order of the calls is the guarantee.
Temporary file in the same directory, mode and group before anybody can see it, write, `fsync`, `close`,
`rename`, `fsync` of the directory: readers meet the old content or the new one,
and what was acknowledged survives a power cut (rename(2), fsync(2), close(2)).
A failed `fsync` is never repeated, since the kernel forgets the error and drops the pages; the file is dropped instead.

Every name of ours begins with `..`, which no consumer of a Kubernetes volume looks at:

    ..tmp-<random>                      a file, a link or a directory that is being made
    ..gen-<nanoseconds>-<version>       a generation of a set, see `sidecar.disk.generations`
    ..data                              the link to the generation that is in force
    ..versions/                         the history, see `sidecar.volume.history`

Callers hold `locked` while they change a directory.
No link is followed on the way to what is changed: a neighbour could have planted it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Final

from sidecar import _errors
from sidecar.disk import beneath

HIDDEN = ".."
DATA = "..data"
TEMPORARY = "..tmp-"
GENERATION = "..gen-"
DIRECTORY_MODE = 0o755
DEEPEST: Final = 64
"""Directories within each other that are looked into; a name of ours has half as many."""
_LOCK_PAUSE = 0.001
_LOCK_PAUSE_MOST = 0.02
_FOREIGN_AGE = 3600.0
_RENAME_EXCHANGE = 2
#: Files that are synced side by side if there are so many: the threads cost as much as some syncs.
_MANY = 32
_SIDE_BY_SIDE = 8

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Some file systems of other machines have no such call for directories; nothing more can be done there.
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

_STORAGE_FAILS = "(the storage behind the volume is failing)"
_OWN_MOUNT = (
    "the target is a mount of its own and cannot be replaced"
    " (mount the directory, not a single file by subPath)"
)
_NO_DESCRIPTOR = "no file descriptor is left (raise the limit RLIMIT_NOFILE)"
_REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: "no space or no inodes left on the volume"
    " (it needs room for the new content beside the old; enlarge it or delete files)",
    errno.EDQUOT: "the disk quota is used up (raise the quota or delete files)",
    errno.EROFS: "read-only file system (is the volume mounted readOnly?)",
    errno.EBUSY: _OWN_MOUNT,
    errno.EXDEV: _OWN_MOUNT,
    errno.ENOENT: "the directory does not exist (is the volume mounted there?)",
    errno.ENOTDIR: "a part of the path is a file or a link, not a directory"
    " (remove it or choose another name)",
    errno.ELOOP: "a part of the path is a symbolic link (remove it)",
    errno.EISDIR: "a directory lies in the place of the file (remove it or choose another name)",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.EIO: f"{os.strerror(errno.EIO).lower()} {_STORAGE_FAILS}",
    errno.ESTALE: f"{os.strerror(errno.ESTALE).lower()} {_STORAGE_FAILS}",
    errno.EMFILE: _NO_DESCRIPTOR,
    errno.ENFILE: _NO_DESCRIPTOR,
    errno.EFBIG: "the file would be larger than the file system or RLIMIT_FSIZE permits",
}


#: What stands in the way of one name, and of no other.
_IN_THE_WAY = (errno.ENOTDIR, errno.ELOOP, errno.EISDIR)


class GroupRefused(PermissionError):
    """The process may not give a file to that group."""


class publishing:  # noqa: N801 (used as a function; a class costs a fraction of a generator, several times a publish)
    """Turn an `OSError` into the `PublishError` that says what to change.

    `what` completes "cannot …", as in "publish /shared/config".

    Raises:
        VolumeFull: `ENOSPC`, `EDQUOT`.
        VolumeUnavailable: every other error of the operating system.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, _errors.SidecarError):
            full = error.errno in _FULL
            raised = _errors.VolumeFull if full else _errors.VolumeUnavailable
            raise raised(error.errno, f"cannot {self._what}: {remedy(error)}") from error


class placing(publishing):  # noqa: N801
    """As `publishing`, for one name beneath a directory that is open: what is in its way is no fault of the volume.

    Raises:
        NameTaken: `ENOTDIR`, `ELOOP`, `EISDIR`.
        NameRefused: `ENAMETOOLONG`: this file system takes less than others.
        VolumeFull, VolumeUnavailable: as `publishing`.
    """

    __slots__ = ()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, _errors.SidecarError):
            if error.errno in _IN_THE_WAY:
                raise _errors.NameTaken(f"cannot {self._what}: {remedy(error)}") from error
            if error.errno == errno.ENAMETOOLONG:
                raise _errors.NameRefused(f"cannot {self._what}: {remedy(error)}") from error
        super().__exit__(kind, error, traceback)


def remedy(error: OSError) -> str:
    """Say in words what an error of the operating system means here, and what to change."""
    if isinstance(error, GroupRefused):
        return str(error.strerror)
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"permission denied for user {os.geteuid()} and group {os.getegid()}"
            " (give the directory to them, or set fsGroup in the Pod's securityContext)"
        )
    return _REMEDIES.get(error.errno or 0) or os.strerror(error.errno or 0).lower()


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


class Staged:
    """A temporary file in the directory of its target, not yet visible under any name that is read.

    Make one under `locked`; the file's own lock then tells `sweep` that its writer lives.
    Then `write`, `seal`, and `replace`; at last `discard`, always: it gives back what is left.
    """

    def __init__(self, dir_fd: int) -> None:
        self.name = temporary_name()
        self.size = 0
        self._fd = -1
        # Opened anew, not dup(2)ed: it must not share the lock of the caller.
        self._dir_fd = open_here(dir_fd, ".")
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


def temporary_name() -> str:
    """Return a name that nobody can foresee: a killed writer must not block the next one."""
    return TEMPORARY + secrets.token_hex(8)


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


def exchange(dir_fd: int, temporary: str, name: str) -> None:
    """Put `temporary` in the place of the directory `name` and remove that; `name` is there all the time.

    Where the kernel or the file system cannot exchange two names (renameat2(2)), it is missing for a moment.
    """
    try:
        _exchange(dir_fd, temporary, name)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        aside = temporary_name()
        os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        temporary = aside
    remove_tree(dir_fd, temporary)


def in_force(dir_fd: int) -> str | None:
    """Return where `..data` points, None where there is no such link.

    Raises:
        OSError: nobody can tell: then nothing may be done that depends on it.
    """
    try:
        return os.readlink(DATA, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise


def link_target(dir_fd: int, name: str) -> str | None:
    """Return where the symbolic link `name` points, None if there is no such link, or if nobody can tell."""
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError:
        return None


def make_directory(path: str) -> None:
    """Create a directory and its missing parents with mode 0755, whatever the umask, durably.

    The set-group-id bit that they inherit stays: see `keep_setgid`.

    Raises:
        OSError: as mkdir(2); nothing is raised for a directory that exists.
    """
    missing: list[str] = []
    head = os.path.abspath(path)
    while not os.path.lexists(head):
        missing.append(head)
        head = os.path.dirname(head)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, DIRECTORY_MODE)
            os.chmod(directory, DIRECTORY_MODE | (os.stat(directory).st_mode & stat.S_ISGID))
            _sync_parent(directory)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    if not missing:
        # Whoever made it may have been killed before this; where we may not look, it is not ours to do.
        with contextlib.suppress(OSError):
            _sync_parent(path)


class inside:  # noqa: N801 (used as a function, see `publishing`)
    """Yield the directory at the relative `path`; `dir_fd` itself for an empty path.

    With `make`, what is missing is created (mode 0755), and with `durable` the names on the way are synced.

    Raises:
        OSError: as openat(2); `ENOTDIR` or `ELOOP` where a link lies on the way.
    """

    __slots__ = ("_dir_fd", "_durable", "_fd", "_make", "_path")

    def __init__(
        self, dir_fd: int, path: str, *, make: bool = False, durable: bool = False
    ) -> None:
        self._dir_fd = self._fd = dir_fd
        self._path = path
        self._make = make
        self._durable = durable

    def __enter__(self) -> int:
        if self._path:
            try:
                for part in filter(None, self._path.split("/")):
                    self._descend(part)
            except BaseException:
                self.__exit__()
                raise
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd != self._dir_fd:
            beneath.close(self._fd)

    def _descend(self, part: str) -> None:
        above = self._fd
        if self._make:
            self._fd = _open_or_make(self._dir_fd, above, part)
        else:
            self._fd = open_here(above, part)
        try:
            if self._durable:
                sync_directory(above)
        finally:
            if above != self._dir_fd:
                beneath.close(above)


def open_here(dir_fd: int, name: str) -> int:
    """Open a directory that lies in another one, without following a link."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)


def keep_setgid(dir_fd: int) -> int:
    """Return mode 0755 for a directory of ours, with the set-group-id bit if it has inherited that.

    Kubernetes sets the bit for `fsGroup`, so that what is made inside belongs to that group.
    """
    return DIRECTORY_MODE | (os.fstat(dir_fd).st_mode & stat.S_ISGID)


def prune(dir_fd: int, path: str) -> None:
    """Remove the directory at `path` and those above it, as far as they are empty. Never raises."""
    with contextlib.suppress(OSError):
        while path:
            path, _, last = path.rpartition("/")
            with inside(dir_fd, path) as above:
                os.rmdir(last, dir_fd=above)


def sweep(dir_fd: int) -> int:
    """Remove the temporary entries of killed writers, and return how many those were.

    Call it under `locked`: then a temporary file without a lock of its own has no living writer.
    """
    orphans = [e for e in os.listdir(dir_fd) if e.startswith(TEMPORARY) and not _alive(dir_fd, e)]
    for entry in orphans:
        remove_tree(dir_fd, entry)
    return len(orphans)


def remove_tree(dir_fd: int, name: str) -> None:
    """Remove a file, a link or a directory with all it holds. Never raises, never follows a link."""
    # A neighbour can nest directories deeper than a recursion may go.
    with contextlib.suppress(OSError, RecursionError):
        if stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=dir_fd)
        else:
            os.unlink(name, dir_fd=dir_fd)


def walk(
    dir_fd: int, folder: str, *, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str], int]]:
    """Yield of a directory, and of each beneath it, its path, directories, files and descriptor; follow no link.

    It is `os.fwalk`, to a depth of `DEEPEST`: the directories there are named, and not gone into.
    Each that it is in holds a descriptor, and a neighbour can nest more than a process may open.
    """
    for path, directories, files, fd in os.fwalk(folder, dir_fd=dir_fd, onerror=onerror):
        yield path, directories, files, fd
        if path.count("/") >= DEEPEST:
            directories.clear()


def is_single_file_mount(path: str) -> bool:
    """Whether `path` is a mount point of its own that is no directory (`subPath` in a Pod).

    Such a file cannot be replaced, and never shows what replaces its source.
    """
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            points = {line.split(b" ", 5)[4] for line in table}
    except OSError:
        return False
    directory, name = os.path.split(os.path.abspath(path))
    # The kernel lists the mount under its real name.
    real = os.path.join(os.path.realpath(directory), name)
    escaped = os.fsencode(real).replace(b"\\", b"\\134")
    for blank in (b" ", b"\t", b"\n"):
        escaped = escaped.replace(blank, b"\\%03o" % ord(blank))
    return escaped in points and not os.path.isdir(path)


def _lock(dir_fd: int, timeout: float, waiting: Callable[[], None]) -> bool:
    end = time.monotonic() + timeout
    pause = _LOCK_PAUSE
    while True:
        try:
            fcntl.flock(dir_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            waiting()
            time.sleep(pause)
            pause = min(pause * 2, _LOCK_PAUSE_MOST)
        except OSError:
            # NFS and some FUSE file systems cannot lock a directory: one writer is assumed.
            return True
        else:
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


def _sync_parent(path: str) -> None:
    parent = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_directory(parent)
    finally:
        beneath.close(parent)


def _open_or_make(root_fd: int, dir_fd: int, name: str) -> int:
    """Open a directory; a missing one gets its mode under a temporary name, and only then its own."""
    with contextlib.suppress(FileNotFoundError):
        return open_here(dir_fd, name)
    temporary = temporary_name()
    os.mkdir(temporary, 0o700, dir_fd=root_fd)
    try:
        made = open_here(root_fd, temporary)
        try:
            give(made, keep_setgid(made), None)
            move(root_fd, temporary, dir_fd, name)
        except BaseException:
            beneath.close(made)
            raise
    except BaseException:
        remove_tree(root_fd, temporary)
        raise
    return made


def _exchange(dir_fd: int, first: str, second: str) -> None:
    # The standard library has no renameat2(2), and not every C library has it either.
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(first), os.fsencode(second)
    if call(dir_fd, names[0], dir_fd, names[1], _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
