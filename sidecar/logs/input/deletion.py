"""Delete a log file that was delivered, and no other one that has taken its name meanwhile."""

from __future__ import annotations

import contextlib
import os

from sidecar.fs import atomic, layout
from sidecar.logs.input.discovery import Key


def delete_delivered(path: str, key: Key, changed: tuple[int, ...]) -> bool:
    """Delete a file, if it is still the one of this device and inode, with this size and modification time.

    Between a look and unlink(2) rotation may give the name to another file. So the file gets a name that nobody
    uses first, and is looked at under that; another one gets its name back.

    Raises:
        OSError: as rename(2) and unlink(2).
    """
    if not _is_it(path, key, changed):
        return False
    aside = os.path.join(os.path.dirname(path), layout.temporary_name())
    atomic.rename(path, aside)
    if _is_it(aside, key, changed):
        os.unlink(aside)
        return True
    with contextlib.suppress(
        FileExistsError
    ):  # it has been written again under that name; then this one stays
        os.link(aside, path, follow_symlinks=False)
        os.unlink(aside)
    return False


def _is_it(path: str, key: Key, changed: tuple[int, ...]) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    there = (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns)
    return there == (key, changed)
