"""What `sidecar sign` does, apart from its options."""

from __future__ import annotations

import hashlib
import os

from sidecar import _errors
from sidecar.cli.impl import publish_source
from sidecar.fs import atomic, layout, openat
from sidecar.volume.publish import models
from sidecar.volume.validation import signatures
from sidecar.volume.validation.signatures import LIST, LIST_SIGNATURES

_CHUNK_BYTES = 1 << 20
_STDIN = "-"


def sign_file(source: str, key: str, name: str | None) -> str:
    """Return the signature of a file, or of standard input, under the name that it is published by.

    Raises:
        ConfigError: the key or the file cannot be read, or standard input has no name.
        NameRefused: no file may have that name.
    """
    if name is None and source == _STDIN:
        raise _errors.ConfigError(
            "standard input has no name: give --name, the one that it is published by"
        )
    published = models.check_name(os.path.basename(source) if name is None else name)
    private = signatures.read_private_key(key)
    digest = hashlib.sha256()
    with publish_source.open_source(None if source == _STDIN else source) as fd:
        os.set_blocking(fd, True)
        while piece := os.read(fd, _CHUNK_BYTES):
            digest.update(piece)
    line = signatures.line(published, digest.hexdigest())
    return signatures.sign(private, line.encode())


def sign_directory(directory: str, key: str) -> None:
    """Write the list of a directory and its signature into it, each replaced as a whole.

    Raises:
        ConfigError: the key or the directory cannot be read or written.
        SidecarError: it holds no file, or something that cannot be published.
    """
    private = signatures.read_private_key(key)
    if os.path.lexists(os.path.join(directory, layout.DATA)):
        raise _errors.ConfigError(
            f"{directory} holds a set that is published already: sign the directory that it is published from"
        )
    files = publish_source.read_set(directory, max_size=2**63 - 1)
    digests = {
        name: signatures.digest_of(content)
        for name, content in files.items()
        if name not in (LIST, LIST_SIGNATURES)
    }
    if not digests:
        raise _errors.SidecarError(f"{directory} is not signed: it holds no file")
    text = signatures.make_list(digests)
    try:
        _replace(directory, LIST, text)
        _replace(directory, LIST_SIGNATURES, f"{signatures.sign(private, text)}\n".encode())
    except OSError as error:
        raise _errors.ConfigError(f"cannot write to {directory}: {error.strerror}") from error


def _replace(directory: str, name: str, data: bytes) -> None:
    fd = openat.open_directory(directory)
    staged = atomic.TempFile(fd, short_lived=True)
    try:
        staged.write(data)
        staged.finalize(0o644, None)
        staged.rename_into(name, fd)
    finally:
        staged.discard()
        openat.close(fd)
