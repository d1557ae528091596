"""A file of the caller's that is to be published: any path of this machine, which need not lie on a volume."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time

from sidecar import _errors
from sidecar.fs import open_file, openat
from sidecar.fs.open_file import OpenFile
from sidecar.fs.openat import StatSignature
from sidecar.volume.content import payload, snapshot
from sidecar.volume.content.snapshot import Content

#: How often a file that changes is read, and the seconds in between.
_ATTEMPTS = 3
_RETRY_DELAY = 0.2
#: A file that was changed so lately is read twice, with so many seconds in between.
_RECENT_CHANGE_NS = 2_000_000_000
_RECHECK_DELAY = 0.1


def read(path: str, name: str, limit: int, where: str) -> bytes | Content:
    """Return the bytes of a regular file, or, above 1 MiB, the file itself, held open, with its version. Blocking.

    `name` is what it is published as, at `where`; `limit` is in bytes.

    Raises:
        NothingPublished: there is no such file.
        ReadError: it is no regular file, cannot be read, or changes while it is read.
        ContentTooLarge: it is larger than the limit.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_RETRY_DELAY)
        with contextlib.suppress(_errors.ContentAltered):
            return _read_once(path, name, limit, where)
    raise _errors.ReadError(
        errno.EBUSY,
        f"cannot publish {path} as {where}: it changed while it was read"
        " (publish it again once it is complete)",
    )


def _read_once(path: str, name: str, limit: int, where: str) -> bytes | Content:
    """As `read`, once. Raises `ContentAltered` if it changed meanwhile."""
    with openat.read_errors(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
        except OSError:
            os.close(fd)
            raise
        file = OpenFile(fd, StatSignature.of(status), path)
        if not stat.S_ISREG(status.st_mode):
            raise _errors.ReadError(
                errno.EINVAL, f"cannot publish {path} as {where}: it is no regular file"
            )
        if file.size > limit:
            raise payload.too_large(where, limit)
        started = time.time_ns()
        first = _read_content(file, name)
        if started - status.st_mtime_ns < _RECENT_CHANGE_NS and file.size:
            # Clocks of file systems are coarse, and a program that pauses may go on.
            time.sleep(_RECHECK_DELAY)
            if payload.content_size(_read_content(file, name)) != payload.content_size(first):
                raise open_file.changed_error(path)
        return first


def _read_content(file: OpenFile, name: str) -> bytes | Content:
    return _read_all(file) if file.size <= open_file.LARGE_FILE_BYTES else _content_of(file, name)


def _read_all(file: OpenFile) -> bytes:
    """Return the bytes up to the end; files of /proc have some although their size is 0."""
    if file.size:
        return file.read_all()
    found = b""
    while piece := os.pread(file.fd, open_file.READ_CHUNK_BYTES, len(found)):
        found += piece
        if len(found) > open_file.LARGE_FILE_BYTES:
            raise open_file.changed_error(file.where)
    file.check()
    return found


def _content_of(file: OpenFile, name: str) -> Content:
    digest = hashlib.sha256()
    for piece in file.pieces():
        digest.update(piece)
    version = digest.hexdigest()[: snapshot.VERSION_DIGITS]
    return Content(name, file, version, file.signature.mtime_ns / 1e9)
