"""Open and read files on a volume, and never anything outside it.

Any process that can write to a shared volume can create a symbolic link, a FIFO or a huge file there.
So no path string is trusted: the kernel resolves each name relative to an open directory
(`openat2` with `RESOLVE_BENEATH`, see openat2(2)).
If the kernel or its seccomp filter refuses that call, names are resolved component by component with `O_NOFOLLOW`.
Links that stay inside the volume are followed, because the `..data` layout of Kubernetes consists of them.

This module never writes and never blocks on open: every open uses `O_NONBLOCK`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections import deque
from typing import NamedTuple

from sidecar import _errors
from sidecar.fs import mounts, xattrs

#: `openat2` has the same number on every architecture that Python runs on under Linux.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
#: As the kernel's own MAXSYMLINKS.
_MAX_LINKS = 40
#: Retries after EAGAIN, which the kernel returns for a path with `..` while the tree is being renamed; see openat2(2).
_RACE_RETRIES = 64
_SAFE_FLAGS = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_READ_CHUNK_BYTES = 1 << 20

_FILE_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a symbolic link",
}


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class StatSignature(NamedTuple):
    """The metadata that identifies a state of a file without reading it.

    Whole seconds are too coarse and inode numbers are reused, so all five fields count.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> StatSignature:
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode, which stay the same when a file is rewritten in place."""
        return self.device, self.inode


class FileRead(NamedTuple):
    """The bytes of a regular file, and its signature after they were read."""

    data: bytes
    signature: StatSignature
    links: int
    stable: bool
    """False if the file changed during the read: the bytes may mix two contents."""
    attribute: bytes | None = None
    """Its extended attribute, see `xattrs`."""


def openat2_works() -> bool:
    """Whether the kernel and the seccomp filter of this process permit `openat2`."""
    return _openat2.available


def open_directory(path: str, access: int = os.O_RDONLY) -> int:
    """Open a directory of a volume for reading, and return its descriptor.

    With `os.O_PATH`, search permission on the directory is enough; its entries can then be opened by name.

    The volume is the mount that contains the path, and links in the path must not lead out of it.
    On the root file system there is no such boundary, and the path is opened as written.

    Raises:
        OSError: as open(2); `ELOOP` if the path leaves the volume.
    """
    flags = access | os.O_DIRECTORY | os.O_CLOEXEC
    whole = os.path.abspath(path)
    root = mounts.mount_point(whole)[0]
    if root == "/":
        return os.open(whole, flags)
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_beneath(root_fd, os.path.relpath(whole, root), flags)
    except OSError as error:
        if error.errno == errno.EXDEV:  # EXDEV has another meaning for callers that rename
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from error
        raise
    finally:
        close(root_fd)


def open_beneath(dir_fd: int, path: str, flags: int = os.O_RDONLY) -> int:
    """Open `path` relative to a directory without leaving that directory, and return the descriptor.

    Links inside the directory are followed. Absolute paths, links that lead outside and magic links are rejected.
    `O_NONBLOCK`, `O_NOCTTY` and `O_CLOEXEC` are always set, so a FIFO or a terminal cannot block the caller.

    Raises:
        OSError: as openat2(2): `EXDEV` or `ELOOP` where the path leaves the directory.
    """
    # An O_PATH open never blocks, and openat2(2) rejects the other flags together with O_PATH.
    wanted = flags | (os.O_CLOEXEC if flags & os.O_PATH else _SAFE_FLAGS)
    if _openat2.available:
        try:
            return _openat2.open(dir_fd, path, wanted)
        except PermissionError:
            # In sticky directories the kernel may refuse links of other users (`fs.protected_symlinks`).
            # That protects programs that open by path; here no link can lead outside anyway.
            return _resolve(dir_fd, path, wanted)
    return _resolve(dir_fd, path, wanted)


def open_here(dir_fd: int, name: str) -> int:
    """Open a subdirectory by name, without following a link."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)


def open_folder(dir_fd: int, path: str) -> int:
    """Open a directory by its relative path, without following links in any component.

    Raises:
        OSError: as openat(2); `ENOTDIR` or `ELOOP` if a component is a link.
    """
    # Two plain calls take half the time of one call through ctypes.
    if path.count("/") > 1 and _openat2.available:
        return _openat2.open(
            dir_fd, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, _RESOLVE_NO_SYMLINKS
        )
    fd = dir_fd
    try:
        for part in filter(None, path.split("/")):
            above, fd = fd, open_here(fd, part)
            if above != dir_fd:
                close(above)
    except BaseException:
        if fd != dir_fd:
            close(fd)
        raise
    return fd


def stat_beneath(dir_fd: int, path: str) -> os.stat_result:
    """Return the status of `path` beneath the directory; links inside the directory are followed.

    Nothing is opened for reading, so a FIFO or a device is safe.

    Raises:
        OSError: as `open_beneath`.
    """
    if "/" not in path and path not in ("", ".", ".."):
        # One call for the common case; only links need `open_beneath`.
        status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            return status
    fd = open_beneath(dir_fd, path, os.O_PATH)
    try:
        return os.fstat(fd)
    finally:
        close(fd)


def read_descriptor(fd: int, limit: int, where: str) -> FileRead:
    """Read an open file from its start, at most `limit` bytes.

    `where` is the path for error messages.

    Raises:
        ReadError: the file is not a regular file, or is larger than the limit.
        OSError: as read(2).
    """
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        kind = kind_of(before.st_mode)
        raise _errors.ReadError(
            errno.EINVAL, f"cannot read {where}: it is {kind}, and only regular files are read"
        )
    if before.st_size > limit:
        raise _too_large(where, before.st_size, limit)
    data = _read_all(fd, before.st_size, limit)
    if len(data) > limit:
        raise _too_large(where, len(data), limit)
    after = os.fstat(fd)
    # ctime is ignored: replacing or linking the file changes it, but not the bytes.
    same = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    return FileRead(
        data,
        StatSignature.of(after),
        after.st_nlink,
        same and len(data) == after.st_size,
        xattrs.read(fd),
    )


def close(fd: int) -> None:
    """Close a descriptor that was only read from. Errors are ignored: the descriptor is released in any case.

    See close(2), "Dealing with error returns".
    """
    try:  # noqa: SIM105 (a publish closes seven; `suppress` takes longer than the call)
        os.close(fd)
    except OSError:
        pass


def kind_of(mode: int) -> str:
    """Return the file type of `st_mode` in words, for messages."""
    return _FILE_KINDS.get(stat.S_IFMT(mode), "a regular file")


class read_errors:  # noqa: N801 (used as a function; in each scan, a class costs a tenth of a generator)
    """Convert the `OSError` of a read into a `ReadError` that names the path and the remedy."""

    __slots__ = ("_where",)

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, _errors.ReadError):
            return
        if isinstance(error, FileNotFoundError):
            raise _errors.NothingPublished(
                errno.ENOENT, f"cannot read {self._where}: nothing has been published there"
            ) from error
        raise _errors.ReadError(
            error.errno, f"cannot read {self._where}: {explain(error)}"
        ) from error


def explain(error: OSError) -> str:
    """Return why a file cannot be read, and what to change, for messages."""
    match error.errno:
        case errno.EXDEV:
            return (
                "a symbolic link is absolute or leads out of the directory"
                " (make it relative, to something inside)"
            )
        case errno.ELOOP:
            return (
                "a symbolic link on the way is absolute, leads out, or leads to itself"
                " (make it relative, to something inside)"
            )
        case errno.EACCES | errno.EPERM:
            return f"permission denied for user {os.geteuid()} (publish it readable for this user or group)"
        case errno.ENXIO:
            return "it is a socket or a device, and only regular files are read"
        case errno.ENOTDIR:
            return "a part of the path is a file, not a directory"
        case errno.E2BIG:
            return "it holds more files than fit into memory (raise max_size)"
        case errno.EMFILE | errno.ENFILE:
            return "no file descriptor is left (raise the limit RLIMIT_NOFILE)"
        case _:
            return os.strerror(error.errno or 0).lower()


def _too_large(where: str, size: int, limit: int) -> _errors.ReadError:
    return _errors.ReadError(
        errno.EFBIG,
        f"cannot read {where}: {size} bytes are more than the limit of {limit} (raise max_size)",
    )


def _read_all(fd: int, expected: int, limit: int) -> bytes:
    """Read to the end of the file, at most one byte beyond the limit."""
    first = os.read(fd, min(expected, limit) + 1)
    if len(first) == expected:
        return first  # one more byte was requested, so this is the end of the file
    chunks, total = [first], len(first)
    while total <= limit and (chunk := os.read(fd, min(_READ_CHUNK_BYTES, limit - total + 1))):
        chunks.append(chunk)
        total += len(chunk)
    return b"".join(chunks)


class _OpenAt2:
    """Calls `openat2` through `syscall(2)`: the C library of Debian 12 has no wrapper for it."""

    def __init__(self) -> None:
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._syscall.argtypes = (
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.POINTER(_OpenHow),
            ctypes.c_size_t,
        )
        self._known: bool | None = None
        self._hows: dict[tuple[int, int], _OpenHow] = {}

    @property
    def available(self) -> bool:
        if self._known is None:
            self._known = self._try()
        return self._known

    @available.setter
    def available(self, value: bool | None) -> None:
        self._known = value

    def open(self, dir_fd: int, path: str, flags: int, resolve: int = 0) -> int:
        how = self._how(flags, resolve)
        name = os.fsencode(path)
        if b"\0" in name:
            raise ValueError("embedded null byte")
        for _ in range(_RACE_RETRIES):
            fd: int = self._syscall(_SYS_OPENAT2, dir_fd, name, how, ctypes.sizeof(how))
            if fd >= 0:
                return fd
            code = ctypes.get_errno()
            if code not in (errno.EAGAIN, errno.EINTR):
                raise OSError(code, os.strerror(code), path)
        raise OSError(errno.EAGAIN, "the directory is being renamed all the time", path)

    def _how(self, flags: int, resolve: int) -> _OpenHow:
        """Return the cached `open_how` structure for these flags; the kernel only reads it."""
        how = self._hows.get((flags, resolve))
        if how is None:
            always = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS
            how = self._hows[flags, resolve] = _OpenHow(
                flags | getattr(os, "O_LARGEFILE", 0), 0, resolve | always
            )
        return how

    def _try(self) -> bool:
        """Test whether the call works: old kernels return ENOSYS, some seccomp filters EPERM."""
        try:
            root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            close(self.open(root, ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            return False
        finally:
            close(root)
        return True


_openat2 = _OpenAt2()


def _resolve(dir_fd: int, path: str, flags: int) -> int:
    """Resolve a path beneath the directory in user space, one component at a time.

    Each component is opened before it is inspected, and the result is opened from the inspected descriptor,
    so concurrent renames cannot lead outside the directory.
    """
    parts = _parts(path)
    if path.endswith(("/", "/.")):
        flags |= os.O_DIRECTORY
    fds = [os.dup(dir_fd)]
    links = 0
    try:
        while parts:
            part = parts.popleft()
            if part == "..":
                _step_back(fds, path)
                continue
            fds.append(os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fds[-1]))
            if not stat.S_ISLNK(os.fstat(fds[-1]).st_mode):
                continue
            links += 1
            if links > _MAX_LINKS or (not parts and flags & os.O_NOFOLLOW):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink("", dir_fd=fds[-1])
            close(fds.pop())
            if not parts and target.endswith(("/", "/.")):
                flags |= os.O_DIRECTORY
            parts.extendleft(reversed(_parts(target)))
        return _reopen(fds[-1], flags)
    finally:
        for fd in fds:
            close(fd)


def _parts(path: str) -> deque[str]:
    if path.startswith("/"):
        raise OSError(errno.EXDEV, "absolute path", path)
    if not path:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return deque(part for part in path.split("/") if part not in ("", "."))


def _step_back(fds: list[int], path: str) -> None:
    """Return to the parent by its open descriptor, never by name: the name may refer to another directory by now."""
    if not stat.S_ISDIR(os.fstat(fds[-1]).st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    if len(fds) == 1:
        raise OSError(errno.EXDEV, "leads out of the volume", path)
    close(fds.pop())


def _reopen(fd: int, flags: int) -> int:
    """Open the file of an `O_PATH` descriptor with other flags; see proc(5) on `/proc/self/fd`."""
    if not flags & os.O_PATH:
        return os.open(f"/proc/self/fd/{fd}", flags & ~os.O_NOFOLLOW)
    if flags & os.O_DIRECTORY and not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return os.dup(fd)
