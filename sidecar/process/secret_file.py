"""A secret in a file, as Kubernetes mounts it: read for each use, so that it can be rotated."""

from __future__ import annotations

import os

_MAX_SECRET_BYTES = 64 << 10


def read_secret(path: str | os.PathLike[str]) -> str:
    """Return the one line of text in a file, without the white space around it.

    It is a small file on a memory-backed volume, so no thread is used.

    Raises:
        ValueError: there is none; the message says why, and never shows the secret.
    """
    where = f"cannot read the secret in {os.fspath(path)}"
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.read(_MAX_SECRET_BYTES).strip()
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{where}: it is no text") from None
    if not secret.isprintable() or not secret:
        raise ValueError(f"{where}: it must be one line of text")
    return secret
