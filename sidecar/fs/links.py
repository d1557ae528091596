"""Resolve a symbolic link step by step, to find the entries to watch for a change of its target.

This module does not decide what may be read: see `sidecar.fs.openat`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sidecar.fs import openat

#: As the kernel's own MAXSYMLINKS.
_MAX_LINKS = 40
_MAX_STEPS = 256
_FLAGS = getattr(os, "O_PATH", 0) | os.O_NOFOLLOW | os.O_CLOEXEC


class Step(NamedTuple):
    """An entry on the path of a link, in a directory that is open as `fd`."""

    fd: int
    entry: str

    def open(self) -> int:
        """Open the directory for reading, as needed for a watch. Raises `OSError`."""
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)

    @property
    def position(self) -> tuple[int, int, str]:
        """Device and inode of the directory, and the entry: the identity of the step."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino, self.entry


@contextmanager
def steps(dir_fd: int, path: str) -> Iterator[list[Step]]:
    """Yield the entries behind the first link in `path`, up to its target or the first missing entry.

    `path` is relative to the directory. The descriptors are closed at the end of the block.
    For a link that leads out of the directory, or a loop, the steps up to that point are yielded.
    """
    with contextlib.ExitStack() as stack:
        yield _LinkWalk(stack, dir_fd).resolve(path)


class _LinkWalk:
    def __init__(self, stack: contextlib.ExitStack, dir_fd: int) -> None:
        self._stack = stack
        self._fds = [dir_fd]
        self._links = 0
        self._steps: list[Step] = []

    def resolve(self, path: str) -> list[Step]:
        parts = _parts(path)
        with contextlib.suppress(OSError, ValueError):
            while parts and len(self._steps) < _MAX_STEPS:
                self._step(parts)
        return self._steps

    def _step(self, parts: deque[str]) -> None:
        part = parts.popleft()
        if part == "..":
            if len(self._fds) == 1:
                raise ValueError("it leads out of the directory")
            self._fds.pop()
            return
        if self._links:
            self._steps.append(Step(self._fds[-1], part))
        fd = os.open(part, _FLAGS, dir_fd=self._fds[-1])
        self._stack.callback(openat.close, fd)
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            self._fds.append(fd)
            return
        target = os.readlink("", dir_fd=fd)
        self._links += 1
        if self._links > _MAX_LINKS or target.startswith("/"):
            raise ValueError("it is not followed")
        parts.extendleft(reversed(_parts(target)))


def _parts(path: str) -> deque[str]:
    return deque(part for part in path.split("/") if part not in ("", "."))
