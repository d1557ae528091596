"""Copies of large files that no other program can change, for contents that were verified."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable

from sidecar.fs import atomic, open_file, openat
from sidecar.fs.open_file import LazyFile, OpenFile
from sidecar.fs.openat import StatSignature


def copy(
    file: OpenFile | LazyFile, digest: str, on_progress: Callable[[], None] = lambda: None
) -> tuple[OpenFile, str]:
    """Copy a file, and return the copy and its SHA-256 in hex digits.

    The copy is in memory, sealed (memfd_create(2)), or, where the variable TMPDIR is set, a file there without a name.
    Its space is freed when nobody uses it any more.

    Raises:
        ContentAltered: its digest does not begin with `digest` any more.
        OSError: the file cannot be read, or there is no space for the copy.
    """
    found = hashlib.sha256()
    target = _create()
    try:

        def write(piece: bytes) -> None:
            found.update(piece)
            atomic.write_all(target, piece)
            on_progress()

        open_file.copy(file, digest, write)
        _seal(target)
        signature = StatSignature.of(os.fstat(target))
    except BaseException:
        openat.close(target)
        raise
    return OpenFile(target, signature, file.where), found.hexdigest()


def _create() -> int:
    directory = os.environ.get("TMPDIR")
    if directory or not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile(dir=directory) as file:
            return os.dup(file.fileno())
    return os.memfd_create("sidecar-verified", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _seal(fd: int) -> None:
    """Forbid all further writes, also to other processes of this user; a file on a disk cannot be sealed."""
    if hasattr(fcntl, "F_ADD_SEALS"):
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
