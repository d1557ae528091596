"""The content to publish, in any form, with its size and version."""

from __future__ import annotations

import os
from typing import TypeAlias

from sidecar import _errors
from sidecar.fs import open_file
from sidecar.fs.atomic import TempFile
from sidecar.fs.openat import StatSignature
from sidecar.volume.content import snapshot
from sidecar.volume.content.snapshot import Content

Payload: TypeAlias = bytes | tuple[TempFile, str] | Content
"""Bytes, a temporary file with its version, or a content on the disk."""


def content_size(content: Payload) -> tuple[str, int]:
    """Return version and size of a content to publish."""
    if isinstance(content, bytes):
        return snapshot.version_of(content), len(content)
    if isinstance(content, Content):
        return content.version, content.size
    return content[1], content[0].size


def size(content: Payload) -> int:
    """Return the size in bytes of a content to publish."""
    if isinstance(content, bytes):
        return len(content)
    return content.size if isinstance(content, Content) else content[0].size


def as_content(fd: int, version: str, name: str, where: str) -> Content:
    """Return the bytes of an open file as a content to read, which keeps a descriptor of its own."""
    descriptor = os.dup(fd)
    file = open_file.OpenFile(descriptor, StatSignature.of(os.fstat(descriptor)), where)
    return Content(name, file, version, file.signature.mtime_ns / 1e9)


def too_large(where: str, limit: int) -> _errors.ContentTooLarge:
    """Return the error for a content above the limit, in bytes."""
    return _errors.ContentTooLarge(
        f"cannot publish {where}: the content is larger than the limit of {limit} bytes"
        " (raise max_size, or publish less)"
    )
