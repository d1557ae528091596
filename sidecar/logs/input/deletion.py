"""Delete a delivered log file, but not another file that has taken its name meanwhile."""

from __future__ import annotations

import contextlib
import os

from sidecar.fs import atomic, layout
from sidecar.logs.input.discovery import Key


def delete_delivered(path: str, key: Key, changed: tuple[int, ...]) -> bool:
    """Delete a file if its device, inode, size and modification time are unchanged; return whether it was deleted.

    Between a check and unlink(2) rotation may give the name to another file. The file is therefore renamed to a
    temporary name first and checked under that name; another file gets its name back.

    Raises:
        OSError: as rename(2) and unlink(2).
    """
    if not _is_unchanged(path, key, changed):
        return False
    aside = os.path.join(os.path.dirname(path), layout.temporary_name())
    atomic.rename(path, aside)
    if _is_unchanged(aside, key, changed):
        os.unlink(aside)
        return True
    with contextlib.suppress(
        FileExistsError
    ):  # the name is in use again: keep this file under its temporary name
        os.link(aside, path, follow_symlinks=False)
        os.unlink(aside)
    return False


def _is_unchanged(path: str, key: Key, changed: tuple[int, ...]) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    there = (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns)
    return there == (key, changed)
