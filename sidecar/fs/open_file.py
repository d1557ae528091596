"""Large files, which are kept open instead of in memory and read from the disk in chunks.

An open file outlives its name, so replacing or deleting the file does not affect its readers.
Rewriting it in place does: then its bytes differ from those read before.
So each chunk is read first, and the size and mtime of the file are checked afterwards:
if they are unchanged, the chunk is part of the content that was there at the start.
(A coarse clock, two seconds on FAT, can hide a change; newer kernels timestamp each change.)

File descriptors are limited, so for a directory with very many large files only some are kept open.
The others are opened by name on each access, if they are still the same files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import stat
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

from sidecar import _errors
from sidecar.fs import openat, xattrs
from sidecar.fs.openat import StatSignature

LARGE_FILE_BYTES = 1 << 20
"""Files above this size are not held in memory. Smaller ones are cheaper to hold than to send from the disk,
and configuration, the purpose of most volumes, even survives a program that rewrites it in place."""
READ_CHUNK_BYTES = 1 << 20
"""Bytes per read: the memory used for a file of any size."""

_MAX_OPEN_FILES = 1024
_MAX_DIGESTS = 1024
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


def can_hold() -> bool:
    """Whether another file may be kept open: the limit is an eighth of RLIMIT_NOFILE, at most 1,024."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, soft // 8)
    return len(_Descriptor.held) < most


class _Descriptor:
    """Owns a descriptor, which is closed when the last reference is dropped."""

    __slots__ = ("__weakref__", "fd")
    held: ClassVar[set[int]] = set()

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.held.add(fd)

    def __del__(self) -> None:
        self.held.discard(self.fd)
        openat.close(self.fd)


class Directory(_Descriptor):
    """A directory that is kept open for its files."""

    __slots__ = ()


class OpenFile(_Descriptor):
    """A regular file that is kept open, with the signature of its expected state.

    It owns the descriptor. Any thread may read, at explicit offsets.
    """

    __slots__ = ("signature", "where")

    def __init__(self, fd: int, signature: StatSignature, where: str) -> None:
        super().__init__(fd)
        self.signature = signature
        self.where = where

    def __repr__(self) -> str:
        return f"<OpenFile {self.where} size={self.size}>"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.signature.size

    def open(self) -> OpenFile:
        """Return this file, which is already open."""
        return self

    def check(self) -> None:
        """Check that the file is unchanged, so that the bytes read so far are valid.

        Raises:
            ContentAltered: the file was rewritten in place.
            OSError: as fstat(2).
        """
        status = os.fstat(self.fd)
        # ctime is ignored: adding or removing a link changes it, but not the bytes.
        if (status.st_mtime_ns, status.st_size) != (self.signature.mtime_ns, self.size):
            raise changed_error(self.where)

    def read(self, start: int, count: int) -> bytes:
        """Return `count` bytes from offset `start`, fewer only at the end of the file. Blocking.

        Raises:
            ContentAltered, OSError: as `check`, and as pread(2).
        """
        data = os.pread(self.fd, count, start)
        wanted = min(count, self.size - start)
        while data and len(data) < wanted:  # a signal, or a file system that returns short reads
            more = os.pread(self.fd, wanted - len(data), start + len(data))
            if not more:
                break
            data += more
        self.check()
        if len(data) < wanted:
            raise changed_error(self.where)
        return data[:wanted]

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to `stop` in chunks. Blocking; raises as `read`."""
        stop = self.size if stop is None else stop
        while start < stop:
            data = self.read(start, min(READ_CHUNK_BYTES, stop - start))
            start += len(data)
            yield data

    def read_all(self) -> bytes:
        """Return all of it. Blocking; raises as `read`."""
        return self.read(0, self.size)

    def in_page_cache(self, start: int, count: int) -> bool:
        """Whether both ends of a range are in the page cache, so that reading it probably does not wait for the disk.

        False if the file system cannot say, such as network file systems.
        """
        if not _NOWAIT or count <= 0:
            return False
        byte = [bytearray(1)]
        with contextlib.suppress(OSError):
            return all(os.preadv(self.fd, byte, at, _NOWAIT) for at in (start, start + count - 1))
        return False


class LazyFile:
    """A large file that is opened on demand, relative to a directory that is kept open.

    Unlike an `OpenFile`, it is lost when the file is replaced or deleted.
    """

    __slots__ = ("__weakref__", "_directory", "_name", "signature", "where")

    def __init__(
        self, directory: Directory, name: str, signature: StatSignature, where: str
    ) -> None:
        self._directory = directory
        self._name = name
        self.signature = signature
        self.where = where

    def __repr__(self) -> str:
        return f"<LazyFile {self.where} size={self.size}>"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.signature.size

    def open(self) -> OpenFile:
        """Open the file. Blocking.

        Raises:
            ContentAltered: the file was replaced or deleted.
            ReadError: the file cannot be opened.
        """
        with openat.read_errors(self.where):
            try:
                fd = openat.open_beneath(self._directory.fd, self._name)
            except FileNotFoundError as error:
                raise changed_error(self.where) from error
        found = OpenFile(fd, self.signature, self.where)
        if StatSignature.of(os.fstat(fd)).identity != self.signature.identity:
            raise changed_error(self.where)
        found.check()
        return found

    def read_all(self) -> bytes:
        """Return all of it. Blocking; raises as `open` and `OpenFile.read`."""
        return self.open().read_all()


class LargeRead(NamedTuple):
    """A large file that was read to its end and is kept open."""

    file: OpenFile
    signature: StatSignature
    digest: str | None
    """SHA-256 in hex digits, or a known prefix of it; None if the file changed during the read."""
    links: int
    attribute: bytes | None
    """Its extended attribute, see `xattrs`."""


class DigestCache:
    """The digests of large files by signature, so that unchanged files are not read again."""

    def __init__(self) -> None:
        self._known: dict[StatSignature, str] = {}

    def get(self, signature: StatSignature) -> str | None:
        """Return the cached digest (or prefix), None if unknown."""
        return self._known.get(signature)

    def put(self, signature: StatSignature, digest: str) -> None:
        """Cache a digest; evict the oldest entry above the limit."""
        self._known[signature] = digest
        if len(self._known) > _MAX_DIGESTS:
            self._known.pop(next(iter(self._known)), None)


_NO_DIGESTS = DigestCache()


def read(
    dir_fd: int,
    path: str,
    limit: int,
    where: str,
    *,
    on_progress: Callable[[], None] = lambda: None,
    known: DigestCache = _NO_DIGESTS,
) -> openat.FileRead | LargeRead:
    """Read a regular file beneath the directory, at most `limit` bytes: up to `LARGE_FILE_BYTES` into memory, else for its digest.

    `where` is the path for error messages.
    `on_progress` is called after each chunk, and may raise to abort. Files with a `known` digest are not read.

    Raises:
        NothingPublished: there is no such file.
        ReadError: it is outside the volume, not a regular file, larger than the limit, or unreadable.
    """
    with openat.read_errors(where):
        try:
            return _read_once(dir_fd, path, limit, where, on_progress=on_progress, known=known)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            # NFS: the file was replaced on the server between open and read; a new open finds the new file.
            return _read_once(dir_fd, path, limit, where, on_progress=on_progress, known=known)


def copy(file: OpenFile | LazyFile, digest: str, write: Callable[[bytes], object]) -> None:
    """Pass all bytes of a file to `write` in chunks, and verify that their digest begins with `digest`.

    Raises:
        ContentAltered: the digest differs.
        OSError: the file cannot be read, or `write` failed.
    """
    found = hashlib.sha256()
    for piece in file.open().pieces():
        found.update(piece)
        write(piece)
    if not found.hexdigest().startswith(digest):
        raise changed_error(file.where)


class Copy(NamedTuple):
    """A large file to copy, and the expected prefix of its digest."""

    file: OpenFile | LazyFile
    digest: str


def changed_error(where: str) -> _errors.ContentAltered:
    """Return the error for a file that has changed since it was read."""
    return _errors.ContentAltered(
        errno.EIO,
        f"cannot read {where}: it was rewritten in place or taken away after it had been read,"
        " and large files are not held in memory (replace it by rename, and keep it until readers have the new one)",
    )


def _read_once(
    dir_fd: int,
    path: str,
    limit: int,
    where: str,
    *,
    on_progress: Callable[[], None],
    known: DigestCache,
) -> openat.FileRead | LargeRead:
    fd = openat.open_beneath(dir_fd, path)
    keep = False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not LARGE_FILE_BYTES < status.st_size <= limit:
            return openat.read_descriptor(fd, limit, where)
        keep = True
    finally:
        if not keep:
            openat.close(fd)
    file = OpenFile(fd, StatSignature.of(status), where)
    digest = known.get(file.signature)
    if digest is not None:
        attribute = xattrs.read(file.fd)
        return LargeRead(file, file.signature, digest, status.st_nlink, attribute)
    return _digest(file, status.st_nlink, on_progress)


def _digest(file: OpenFile, links: int, on_progress: Callable[[], None]) -> LargeRead:
    digest = hashlib.sha256()
    fadvise(file.fd, 0, file.size, "POSIX_FADV_SEQUENTIAL")
    try:
        for piece in file.pieces():
            digest.update(piece)
            on_progress()
    except _errors.ContentAltered:
        return LargeRead(file, file.signature, None, links, None)
    status = os.fstat(file.fd)
    # ctime may have changed by a new or removed link, which is no change of content; other changes show at the next scan.
    now = file.signature._replace(ctime_ns=status.st_ctime_ns)
    return LargeRead(file, now, digest.hexdigest(), status.st_nlink, xattrs.read(file.fd))


def fadvise(fd: int, start: int, count: int, advice: str) -> None:
    """Call posix_fadvise(2), if the system has it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, start, count, getattr(os, advice))
