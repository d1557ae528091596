"""Large files: held open instead of in memory, and read where they lie, a piece at a time.

An open file outlives its name, so whoever replaces or deletes it takes nothing away from those who hold it.
Whoever rewrites it in place does: then the bytes are not those any more that were read before.
So each piece is read first and the state of the file looked at after that, by size and time of change:
what was read before an unchanged state is what was there when the state was first seen.
(A clock that stands still, two seconds on FAT, can hide a change; newer kernels stamp each one.)

Descriptors are few, so a directory of very many large files holds some of them
and opens the others anew each time, by name, if they are still the same.
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
from sidecar.fs import openat
from sidecar.fs.openat import StatSignature

LARGE_FILE_BYTES = 1 << 20
"""Bytes above which a content is not held in memory. Up to there it is cheaper to keep than to send from the disk,
and what most volumes are for, configuration, survives even a program that rewrites it in place."""
READ_CHUNK_BYTES = 1 << 20
"""Bytes that are read at a time: so many are in memory of a file of any size."""

_MAX_OPEN_FILES = 1024
_MAX_DIGESTS = 1024
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


def can_hold() -> bool:
    """Whether one more file of a set may be held open: an eighth of what the process may open, 1,024 at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, soft // 8)
    return len(_Descriptor.held) < most


class _Descriptor:
    """Owns a descriptor: it is closed when the last one who has it lets go."""

    __slots__ = ("__weakref__", "fd")
    held: ClassVar[set[int]] = set()

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.held.add(fd)

    def __del__(self) -> None:
        self.held.discard(self.fd)
        openat.close(self.fd)


class Directory(_Descriptor):
    """A directory that is held open for the files in it."""

    __slots__ = ()


class OpenFile(_Descriptor):
    """A regular file that is held open, and the state in which its bytes are those that are meant.

    The descriptor is its own from now on. Any thread may read; each says from where.
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
        """Return the file, open: this one."""
        return self

    def check(self) -> None:
        """Return if the bytes that were read so far were those that are meant.

        Raises:
            ContentAltered: the file was rewritten in place.
            OSError: as fstat(2).
        """
        status = os.fstat(self.fd)
        # Not ctime: a link more or less, as when it is replaced, does not touch the bytes.
        if (status.st_mtime_ns, status.st_size) != (self.signature.mtime_ns, self.size):
            raise changed_error(self.where)

    def read(self, start: int, count: int) -> bytes:
        """Return bytes from a place on, fewer only at the end. Blocking.

        Raises:
            ContentAltered, OSError: as `check`, and as pread(2).
        """
        data = os.pread(self.fd, count, start)
        wanted = min(count, self.size - start)
        while data and len(data) < wanted:  # a signal, or a file system that gives a page at a time
            more = os.pread(self.fd, wanted - len(data), start + len(data))
            if not more:
                break
            data += more
        self.check()
        if len(data) < wanted:
            raise changed_error(self.where)
        return data[:wanted]

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from one place to another in pieces. Blocking; raises as `read`."""
        stop = self.size if stop is None else stop
        while start < stop:
            data = self.read(start, min(READ_CHUNK_BYTES, stop - start))
            start += len(data)
            yield data

    def read_all(self) -> bytes:
        """Return all of it. Blocking; raises as `read`."""
        return self.read(0, self.size)

    def in_page_cache(self, start: int, count: int) -> bool:
        """Whether both ends of a piece are in the page cache: then reading it does not wait for a disk.

        False where the file system cannot tell, as those of other machines.
        """
        if not _NOWAIT or count <= 0:
            return False
        byte = [bytearray(1)]
        with contextlib.suppress(OSError):
            return all(os.preadv(self.fd, byte, at, _NOWAIT) for at in (start, start + count - 1))
        return False


class LazyFile:
    """A large file of a directory that is held open in its place; it is opened when it is wanted.

    Who replaces or removes it takes it away, unlike one that is pinned.
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
        """Return the file, open. Blocking.

        Raises:
            ContentAltered: there is another one by now, or none.
            ReadError: it cannot be opened.
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
    """A large file that was read to its end, and is held open."""

    file: OpenFile
    signature: StatSignature
    digest: str | None
    """SHA-256 in hexadecimal digits, or what is known of it; None if the file changed while it was read."""
    links: int


class DigestCache:
    """What large files were found to hold, by their state: they are not read again for it."""

    def __init__(self) -> None:
        self._known: dict[StatSignature, str] = {}

    def get(self, signature: StatSignature) -> str | None:
        """Return the digest, or the beginning of it that was noted; None if it is not known."""
        return self._known.get(signature)

    def put(self, signature: StatSignature, digest: str) -> None:
        """Remember it; what was noted longest ago gives way to it."""
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

    `where` is the path that error messages name.
    `on_progress` is called between two pieces; it ends the work by raising. What is `known` is not read.

    Raises:
        NothingPublished: nothing is there.
        ReadError: it leaves the volume, is no regular file, is larger than the limit, or cannot be read.
    """
    with openat.read_errors(where):
        try:
            return _read_once(dir_fd, path, limit, where, on_progress=on_progress, known=known)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            # NFS: it was replaced on the server between open and read, and a new open finds the new one.
            return _read_once(dir_fd, path, limit, where, on_progress=on_progress, known=known)


def copy(file: OpenFile | LazyFile, digest: str, write: Callable[[bytes], object]) -> None:
    """Hand all bytes of a file to `write`, piece by piece. `digest` is what theirs must begin with.

    Raises:
        ContentAltered: they are others.
        OSError: they cannot be read, or whatever `write` raises.
    """
    found = hashlib.sha256()
    for piece in file.open().pieces():
        found.update(piece)
        write(piece)
    if not found.hexdigest().startswith(digest):
        raise changed_error(file.where)


class Copy(NamedTuple):
    """A large file that is to be copied, and what its digest must begin with."""

    file: OpenFile | LazyFile
    digest: str


def changed_error(where: str) -> _errors.ContentAltered:
    """Return the error for a file that is not what it was."""
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
        return LargeRead(file, file.signature, digest, status.st_nlink)
    return _digest(file, status.st_nlink, on_progress)


def _digest(file: OpenFile, links: int, on_progress: Callable[[], None]) -> LargeRead:
    digest = hashlib.sha256()
    fadvise(file.fd, 0, file.size, "POSIX_FADV_SEQUENTIAL")
    try:
        for piece in file.pieces():
            digest.update(piece)
            on_progress()
    except _errors.ContentAltered:
        return LargeRead(file, file.signature, None, links)
    status = os.fstat(file.fd)
    # A link more or less since it was opened is no change of what was read; anything else shows at the next look.
    now = file.signature._replace(ctime_ns=status.st_ctime_ns)
    return LargeRead(file, now, digest.hexdigest(), status.st_nlink)


def fadvise(fd: int, start: int, count: int, advice: str) -> None:
    """Tell the kernel what will be read, where it listens."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, start, count, getattr(os, advice))
