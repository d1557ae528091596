"""How far each file of a checkpoint is delivered, and where it is now."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from sidecar.logs.input import checkpoint


def rows(entry: checkpoint.FileState) -> list[dict[str, Any]]:
    """Return position and lag of a file, for each sink. Blocking."""
    path, size, state = _whereabouts(entry)
    return [
        {
            "file": path,
            "sink": sink,
            "position": position.offset,
            "size": size,
            "lag": max(size - position.offset, 0),
            "state": state,
        }
        for sink, position in sorted(entry.positions.items())
    ]


def _whereabouts(entry: checkpoint.FileState) -> tuple[str, int, str]:
    """Find a file by its inode, under its name or another one in the same directory."""
    if entry.retired_at is not None:
        return entry.path, entry.size, "gone, delivered"
    if (size := _size_if_same(entry.path, entry)) is not None:
        return entry.path, size, "there"
    directory = os.path.dirname(entry.path)
    with contextlib.suppress(OSError), os.scandir(directory) as neighbours:
        for one in neighbours:
            if one.inode() == entry.inode and (size := _size_if_same(one.path, entry)) is not None:
                return one.path, size, "rotated"
    return entry.path, entry.size, "not found"


def _size_if_same(path: str, entry: checkpoint.FileState) -> int | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    same = (found.st_dev, found.st_ino) == (entry.device, entry.inode)
    # For a compressed file only the compressed size is known.
    return max(found.st_size, entry.size) if same else None
