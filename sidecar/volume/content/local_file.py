"""Read a local file to publish: any path on this machine, not necessarily on a volume."""

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

#: Attempts to read a file that changes, and seconds between them.
_ATTEMPTS = 3
_RETRY_DELAY = 0.2
#: A file that was changed within this time is read twice, with this delay in seconds.
_RECENT_CHANGE_NS = 2_000_000_000
_RECHECK_DELAY = 0.1


def read(path: str, name: str, limit: int, where: str) -> bytes | Content:
    """Return the bytes of a regular file, or, above 1 MiB, the open file with its version. Blocking.

    It is to be published as `name`, at the path `where`; `limit` is in bytes.

    Raises:
        NothingPublished: there is no such file.
        ReadError: the file is not regular, cannot be read, or changes during the read.
        ContentTooLarge: the file is larger than the limit.
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
            # File system clocks are coarse, and its writer may only have paused.
            time.sleep(_RECHECK_DELAY)
            if payload.content_size(_read_content(file, name)) != payload.content_size(first):
                raise open_file.changed_error(path)
        return first


def _read_content(file: OpenFile, name: str) -> bytes | Content:
    return _read_all(file) if file.size <= open_file.LARGE_FILE_BYTES else _content_of(file, name)


def _read_all(file: OpenFile) -> bytes:
    """Read to the end of the file; files in /proc have content although their size is 0."""
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
