"""The mounts of this process: the mount of a path or a file, and single-file mounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple


def mount_point(path: str) -> tuple[str, str]:
    """Return the mount point that contains `path`, and its file system type.

    This is the longest mount point in `/proc/self/mountinfo` that is a prefix of the path as written; see proc(5).
    Without that file, `("/", "unknown")`.
    """
    wanted = os.path.abspath(path)
    best, kind = "/", "unknown"
    for mount in _mounts():
        # A later line for the same mount point covers an earlier one.
        holds = wanted == mount.point or wanted.startswith(mount.point.rstrip("/") + "/")
        if holds and len(mount.point) >= len(best):
            best, kind = mount.point, mount.kind
    return best, kind


def filesystem(fd: int) -> str:
    """Return the type of the file system of an open file, `unknown` if the kernel does not report it.

    Uses the mount ID in `/proc/self/fdinfo`, which does not depend on links or other mounts.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
            number = next((line.split()[1] for line in lines if line.startswith(b"mnt_id:")), None)
    except OSError:
        return "unknown"
    return next((mount.kind for mount in _mounts() if mount.number == number), "unknown")


def is_file_mount(path: str) -> bool:
    """Whether `path` is a mount point and not a directory (`subPath` in a Pod).

    Such a file cannot be replaced, and does not show updates of its source.
    """
    return is_mount_point(path) and not os.path.isdir(path)


def is_mount_point(path: str) -> bool:
    """Whether `path` itself is a mount point, so that nothing can be renamed over it (`EBUSY`)."""
    directory, name = os.path.split(os.path.abspath(path))
    # The kernel lists the mount under its real name.
    real = os.path.join(os.path.realpath(directory), name)
    return any(mount.point == real for mount in _mounts())


class _Mount(NamedTuple):
    number: bytes
    point: str
    kind: str


def _mounts() -> Iterator[_Mount]:
    """Yield the mounts of this process, in mount order."""
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            lines = list(table)  # not `splitlines`: only a line feed is escaped in names
    except OSError:
        return
    for line in lines:
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ", 5)
        yield _Mount(fields[0], _unescape(fields[4]), os.fsdecode(right.split(b" ", 1)[0]))


def _unescape(field: bytes) -> str:
    """Undo the octal escapes of mountinfo: space, tab, newline and backslash."""
    if b"\\" in field:
        for code in (b"040", b"011", b"012", b"134"):
            field = field.replace(b"\\" + code, bytes([int(code, 8)]))
    return os.fsdecode(field)
