"""Replace files and sets of files whole, durably: the only module that renames and syncs.

The order of the calls is the guarantee.
Temporary file in the same directory, mode and group before anybody can see it, write, `fsync`, `close`,
`rename`, `fsync` of the directory: readers meet the old content or the new one,
and what was acknowledged survives a power cut (rename(2), fsync(2), close(2)).
A failed `fsync` is never repeated, since the kernel forgets the error and drops the pages; the file is dropped instead.

Sets lie in the layout that kubelet uses for ConfigMap, Secret and projected volumes:
a directory for each generation, the link `..data` to one of them, and visible links through `..data`.

Every name of ours begins with `..`, which no consumer of a Kubernetes volume looks at:

    ..tmp-<random>                      a file, a link or a directory that is being made
    ..gen-<nanoseconds>-<version>       a generation of a set
    ..data                              the link to the generation that is in force
    ..versions/                         the history, see `sidecar.volume.history`

Callers hold `locked` while they change a directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from sidecar import _errors

HIDDEN = ".."
DATA = "..data"
TEMPORARY = "..tmp-"
GENERATION = "..gen-"
DIRECTORY_MODE = 0o755
_LOCK_PAUSE = 0.001
_LOCK_PAUSE_MOST = 0.02
_FOREIGN_AGE = 3600.0

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def publishing(what: str) -> Iterator[None]:
    """Turn an `OSError` into the `PublishError` that says what to change.

    `what` completes "cannot …", as in "publish /shared/config".

    Raises:
        VolumeFull: `ENOSPC`, `EDQUOT`.
        VolumeUnavailable: every other error of the operating system.
    """
    try:
        yield
    except _errors.SidecarError:
        raise
    except OSError as error:
        kind = _errors.VolumeFull if error.errno in _FULL else _errors.VolumeUnavailable
        raise kind(error.errno, f"cannot {what}: {remedy(error)}") from error


def remedy(error: OSError) -> str:
    """Say in words what an error of the operating system means here, and what to change."""
    match error.errno:
        case errno.ENOSPC:
            return (
                "no space or no inodes left on the volume"
                " (it needs room for the new content beside the old; enlarge it or delete files)"
            )
        case errno.EDQUOT:
            return "the disk quota is used up (raise the quota or delete files)"
        case errno.EROFS:
            return "read-only file system (is the volume mounted readOnly?)"
        case errno.EACCES | errno.EPERM:
            return (
                f"permission denied for user {os.geteuid()} and group {os.getegid()}"
                " (give the directory to them, or set fsGroup in the Pod's securityContext)"
            )
        case errno.EBUSY | errno.EXDEV:
            return (
                "the target is a mount of its own and cannot be replaced"
                " (mount the directory, not a single file by subPath)"
            )
        case errno.ENOENT:
            return "the directory does not exist (is the volume mounted there?)"
        case errno.ENOTDIR:
            return "a part of the path is a file, not a directory"
        case errno.EISDIR:
            return "a directory lies in the place of the file (remove it or choose another name)"
        case errno.ENAMETOOLONG:
            return "the name is too long for this file system"
        case errno.EIO | errno.ESTALE:
            return f"{os.strerror(error.errno).lower()} (the storage behind the volume is failing)"
        case errno.EMFILE | errno.ENFILE:
            return "no file descriptor is left (raise the limit RLIMIT_NOFILE)"
        case errno.EFBIG:
            return "the file would be larger than the file system or RLIMIT_FSIZE permits"
        case _:
            return os.strerror(error.errno or 0).lower()


@contextmanager
def locked(dir_fd: int, *, timeout: float, where: str) -> Iterator[None]:
    """Keep other writers out of a directory, in this process and in other containers of the node.

    An flock(2) on the directory itself, so nothing is left behind and a killed writer frees it.
    Where the file system cannot lock a directory, several writers are not kept apart.

    Raises:
        VolumeUnavailable: another writer held the lock for `timeout` seconds.
    """
    if not _lock(dir_fd, timeout):
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
    Then `write`, `seal`, and `replace` or `discard`.
    """

    def __init__(self, dir_fd: int) -> None:
        self.name = TEMPORARY + secrets.token_hex(8)
        self._dir_fd = dir_fd
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self.name, flags, 0o600, dir_fd=dir_fd)
        self.size = 0
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def fd(self) -> int:
        """The open descriptor; -1 once it is sealed."""
        return self._fd

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`: short writes and signals are dealt with."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self.size += len(data)

    def seal(self, mode: int, group: int | None) -> None:
        """Give it mode and group, sync it, and close it. Any error means: drop it.

        Raises:
            OSError: as fchmod(2), fchown(2), fsync(2), close(2); `EIO` if bytes are missing.
        """
        found = os.fstat(self._fd).st_size
        if found != self.size:
            raise OSError(errno.EIO, f"{self.size} bytes were written, and {found} arrived")
        if group is not None:
            os.fchown(self._fd, -1, group)
        os.fchmod(self._fd, mode)  # after fchown, which clears set-id bits
        os.fsync(self._fd)
        # NFS and FUSE report a full disk only here, and close(2) must not be called twice.
        fd, self._fd = self._fd, -1
        os.close(fd)

    def replace(self, target: str, dir_fd: int) -> None:
        """Rename it over `target` in a directory of its volume, which is not synced yet."""
        os.rename(self.name, target, src_dir_fd=self._dir_fd, dst_dir_fd=dir_fd)
        self.name = ""

    def link_into(self, dir_fd: int, target: str) -> None:
        """Give the sealed file a second name in another directory of the same volume."""
        os.link(
            self.name, target, src_dir_fd=self._dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False
        )

    def discard(self) -> None:
        """Close and unlink whatever is left of it. Never raises."""
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                os.close(self._fd)
        self._fd = -1
        with contextlib.suppress(OSError):
            if self.name:
                os.unlink(self.name, dir_fd=self._dir_fd)
        self.name = ""


def sync_directory(dir_fd: int) -> None:
    """Make the names of a directory durable; see fsync(2)."""
    os.fsync(dir_fd)


def remove(dir_fd: int, name: str) -> None:
    """Unlink a file and make that durable."""
    os.unlink(name, dir_fd=dir_fd)
    os.fsync(dir_fd)


def replace_link(dir_fd: int, name: str, target: str) -> None:
    """Point the symbolic link `name` at `target`, in one step for those who follow it.

    The temporary name is random: a killed writer must not block the next one.
    """
    temporary = TEMPORARY + secrets.token_hex(8)
    os.symlink(target, temporary, dir_fd=dir_fd)
    try:
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise


def make_generation(
    dir_fd: int,
    name: str,
    files: Mapping[str, bytes | Staged],
    *,
    mode: int,
    group: int | None,
    keep_from: int | None = None,
    keep: Iterable[str] = (),
) -> None:
    """Write a generation directory, whole and synced, that nothing points at yet.

    `keep` names files of the directory `keep_from` that are taken over as hard links.
    After an error nothing of it is left.

    Raises:
        OSError: whatever the file system says; the generation has been removed.
    """
    os.mkdir(name, 0o700, dir_fd=dir_fd)
    try:
        generation = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            _fill(generation, files, mode, group, keep_from, keep)
        finally:
            os.close(generation)
    except BaseException:
        remove_tree(dir_fd, name)
        raise


def link_visible(dir_fd: int, names: Iterable[str]) -> bool:
    """Make the visible links through `..data` those of `names`, and say whether that changed any.

    Links come after their content and go after it, so that none ever dangles for a reader of a name that stays.
    Files that are no links of ours are left alone, unless a name of the set needs their place.
    """
    wanted = {name.split("/", 1)[0] for name in names}
    changed = False
    for entry in sorted(wanted):
        target = f"{DATA}/{entry}"
        if _link_target(dir_fd, entry) != target:
            replace_link(dir_fd, entry, target)
            changed = True
    for entry in os.listdir(dir_fd):
        ours = entry not in wanted and not entry.startswith(HIDDEN)
        if ours and _link_target(dir_fd, entry) == f"{DATA}/{entry}":
            os.unlink(entry, dir_fd=dir_fd)
            changed = True
    return changed


def link_target(dir_fd: int, name: str) -> str | None:
    """Return where the symbolic link `name` points, None if there is no such link."""
    return _link_target(dir_fd, name)


def move(from_fd: int, name: str, to_fd: int, target: str) -> None:
    """Rename an entry from one directory of the volume to another."""
    os.rename(name, target, src_dir_fd=from_fd, dst_dir_fd=to_fd)


def make_directory(path: str) -> None:
    """Create a directory and its missing parents with mode 0755, whatever the umask, durably.

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
            os.chmod(directory, DIRECTORY_MODE)
            parent = os.open(os.path.dirname(directory), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def subdirectory(dir_fd: int, name: str) -> int:
    """Open the directory `name`, made with mode 0755 if it is missing, without following links."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, DIRECTORY_MODE, dir_fd=dir_fd)
        os.chmod(name, DIRECTORY_MODE, dir_fd=dir_fd)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


def sweep(dir_fd: int) -> int:
    """Remove what killed writers left behind, and return how many entries that were.

    Call it under `locked`: then a temporary file without a lock of its own has no living writer.
    Generations that never became visible are newer than the one in force, because their time only grows.
    """
    current = _link_target(dir_fd, DATA)
    swept = 0
    for entry in os.listdir(dir_fd):
        orphan = (entry.startswith(TEMPORARY) and not _alive(dir_fd, entry)) or (
            entry.startswith(GENERATION) and (current is None or _is_newer(entry, current))
        )
        if orphan:
            remove_tree(dir_fd, entry)
            swept += 1
    if swept:
        os.fsync(dir_fd)
    return swept


def remove_tree(dir_fd: int, name: str) -> None:
    """Remove a file, a link or a directory with all it holds. Never raises, never follows a link."""
    try:
        directory = stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except OSError:
        return
    with contextlib.suppress(OSError):
        if directory:
            shutil.rmtree(name, ignore_errors=True, dir_fd=dir_fd)
        else:
            os.unlink(name, dir_fd=dir_fd)


def is_single_file_mount(path: str) -> bool:
    """Whether `path` is a mount point of its own that is no directory (`subPath` in a Pod).

    Such a file cannot be replaced, and never shows what replaces its source.
    """
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            points = {line.split(b" ", 5)[4] for line in table}
    except OSError:
        return False
    escaped = os.fsencode(os.path.abspath(path)).replace(b"\\", b"\\134").replace(b" ", b"\\040")
    return escaped in points and not os.path.isdir(path)


def _lock(dir_fd: int, timeout: float) -> bool:
    end = time.monotonic() + timeout
    pause = _LOCK_PAUSE
    while True:
        try:
            fcntl.flock(dir_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(pause)
            pause = min(pause * 2, _LOCK_PAUSE_MOST)
        except OSError:
            # NFS and some FUSE file systems cannot lock a directory: one writer is assumed.
            return True
        else:
            return True


def _alive(dir_fd: int, name: str) -> bool:
    """Whether the writer of a temporary file still holds the file's lock."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=dir_fd)
    except PermissionError:
        # A writer of another user: its lock cannot be asked for, so only age tells.
        return _age(dir_fd, name) < _FOREIGN_AGE
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _age(dir_fd: int, name: str) -> float:
    try:
        return time.time() - os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _is_newer(generation: str, current: str) -> bool:
    return current.startswith(GENERATION) and _stamp(generation) > _stamp(current)


def _stamp(generation: str) -> int:
    digits = generation.removeprefix(GENERATION).split("-", 1)[0]
    return int(digits) if digits.isdecimal() else 0


def _link_target(dir_fd: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError:
        return None


def _fill(
    generation: int,
    files: Mapping[str, bytes | Staged],
    mode: int,
    group: int | None,
    keep_from: int | None,
    keep: Iterable[str],
) -> None:
    directories = {"": generation}
    opened: list[int] = []
    try:
        for name, content in files.items():
            parent = _parent(directories, opened, name)
            leaf = name.rsplit("/", 1)[-1]
            if isinstance(content, Staged):
                content.link_into(parent, leaf)
            else:
                _write_new(parent, leaf, content, mode, group)
        if keep_from is not None:
            for name in keep:
                parent = _parent(directories, opened, name)
                os.link(name, name.rsplit("/", 1)[-1], src_dir_fd=keep_from, dst_dir_fd=parent)
        for fd in directories.values():
            if group is not None:
                os.fchown(fd, -1, group)
            os.fchmod(fd, DIRECTORY_MODE)
        for fd in reversed(directories.values()):
            os.fsync(fd)
    finally:
        for fd in opened:
            os.close(fd)


def _parent(directories: dict[str, int], opened: list[int], name: str) -> int:
    """Return the descriptor of the directory that is to hold `name`, made where it is missing."""
    path = ""
    for part in name.split("/")[:-1]:
        above, path = directories[path], f"{path}/{part}" if path else part
        if path not in directories:
            os.mkdir(part, 0o700, dir_fd=above)
            fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
            opened.append(fd)
            directories[path] = fd
    return directories[path]


def _write_new(dir_fd: int, name: str, content: bytes, mode: int, group: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        if os.fstat(fd).st_size != len(content):
            raise OSError(errno.EIO, "bytes are missing after the write")
        if group is not None:
            os.fchown(fd, -1, group)
        os.fchmod(fd, mode)
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
