"""A file of the caller's that is to be published: any path of this machine, which need not lie on a volume."""

from __future__ import annotations

import errno
import hashlib
import os
import stat

from sidecar import _errors
from sidecar.disk import beneath, pinned
from sidecar.disk.beneath import Signature
from sidecar.disk.pinned import Pinned
from sidecar.volume import snapshot as snapshots
from sidecar.volume import terms
from sidecar.volume.snapshot import Content


def read(path: str, name: str, limit: int, where: str) -> bytes | Content:
    """Return the bytes of a regular file, or, above 1 MiB, the file itself, held open, with its version. Blocking.

    `name` is what it is published as, at `where`; `limit` is in bytes.

    Raises:
        NothingPublished: there is no such file.
        ReadError: it is no regular file, cannot be read, or changes while it is read.
        ContentTooLarge: it is larger than the limit.
    """
    with beneath.reading(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
        except OSError:
            os.close(fd)
            raise
        file = Pinned(fd, Signature.of(status), path)
        if not stat.S_ISREG(status.st_mode):
            raise _errors.ReadError(
                errno.EINVAL, f"cannot publish {path} as {where}: it is no regular file"
            )
        if file.size > limit:
            raise terms.too_large(where, limit)
        try:
            if file.size <= pinned.LARGE:
                return _whole(file)
            return _content_of(file, name)
        except _errors.ContentAltered as error:
            raise _errors.ReadError(
                errno.EBUSY,
                f"cannot publish {path} as {where}: it changed while it was read"
                " (publish it again once it is complete)",
            ) from error


def _whole(file: Pinned) -> bytes:
    """Return the bytes up to the end; files of /proc have some although their size is 0."""
    if file.size:
        return file.whole()
    found = b""
    while piece := os.pread(file.fd, pinned.PIECE, len(found)):
        found += piece
        if len(found) > pinned.LARGE:
            raise pinned.altered(file.where)
    file.check()
    return found


def _content_of(file: Pinned, name: str) -> Content:
    digest = hashlib.sha256()
    for piece in file.pieces():
        digest.update(piece)
    version = digest.hexdigest()[: snapshots.VERSION_DIGITS]
    return Content(name, file, version, file.signature.mtime_ns / 1e9)
