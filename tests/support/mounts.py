"""File systems with other rules, for tests that run as root: small, slow to take, cut off from power."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
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
        _unmount(directory)


@contextmanager
def tmpfs(directory: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory with a limit: `size=200k`, `nr_inodes=10`."""
    with mounted(directory, "-t", "tmpfs", "-o", options, "sidecar-test") as path:
        yield path


@contextmanager
def bound(source: Path, target: Path) -> Iterator[Path]:
    """Mount a file over another one, as `subPath` does."""
    _run("mount", "--bind", source, target)
    try:
        yield target
    finally:
        _unmount(target)


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
    _until_detached(image_path)


def cut_power(mount_point: Path) -> None:
    """Let a mounted file system stop as it would when the machine loses power: nothing is flushed any more."""
    fd = os.open(mount_point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
    finally:
        os.close(fd)


def _unmount(directory: Path) -> None:
    """Unmount, also if somebody still looks into it for a moment; a second mount of one image would destroy it."""
    for _ in range(50):
        if subprocess.run(["umount", directory], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    _run("umount", directory)


def _until_detached(image_path: Path) -> None:
    """Wait until nobody has the image mounted any more.

    A mount namespace that was made meanwhile, for a container beside us, holds the mount as long as it lives;
    and who mounts the image again gets that very file system, with its power cut.
    """
    end = time.monotonic() + 60
    while subprocess.run(["losetup", "-j", image_path], capture_output=True, check=True).stdout:
        if time.monotonic() > end:
            raise TimeoutError(f"another mount namespace holds {image_path}")
        time.sleep(0.05)


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
