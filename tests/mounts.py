"""File systems with other rules, for tests that run as root: small, slow to take, cut off from power."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

FileSystem = Literal["ext4", "xfs"]

#: The smallest that mkfs makes.
_SIZES: dict[FileSystem, int] = {"ext4": 24 << 20, "xfs": 320 << 20}
#: FS_IOC_SHUTDOWN and its flag for "do not flush the log": what a power cut leaves (include/uapi/linux/fs.h).
_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, 2


@contextmanager
def mounted(directory: Path, *arguments: object) -> Iterator[Path]:
    """Mount something on a directory, which is made, for the time of a test."""
    directory.mkdir(parents=True, exist_ok=True)
    _run("mount", *arguments, directory)
    try:
        yield directory
    finally:
        try:
            _run("umount", directory)
        except subprocess.CalledProcessError:
            # A test has left something open: the next one must not find this mount.
            _run("umount", "-l", directory)


@contextmanager
def tmpfs(directory: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory with a limit: `size=200k`, `nr_inodes=10`."""
    with mounted(directory, "-t", "tmpfs", "-o", options, "sidecar-test") as path:
        yield path


def image(path: Path, kind: FileSystem, size: int | None = None) -> Path:
    """Make a sparse image of a file system."""
    with path.open("wb") as file:
        file.truncate(size or _SIZES[kind])
    quiet = ["mkfs.ext4", "-q", "-F"] if kind == "ext4" else ["mkfs.xfs", "-q", "-f"]
    _run(*quiet, path)
    return path


@contextmanager
def loop(directory: Path, image_path: Path, options: str = "") -> Iterator[Path]:
    """Mount an image; its loop device goes with the mount."""
    chosen = ["loop", options] if options else ["loop"]
    with mounted(directory, "-o", ",".join(chosen), image_path) as path:
        yield path


def cut_power(mount_point: Path) -> None:
    """Let a mounted file system stop as it would when the machine loses power: nothing is flushed any more."""
    fd = os.open(mount_point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
    finally:
        os.close(fd)


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
