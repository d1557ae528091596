"""What `sidecar publish` takes: a file, a directory, standard input, or a FIFO that somebody writes to."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from sidecar import _errors
from sidecar.disk import beneath
from sidecar.runtime import threads
from sidecar.volume import loading
from sidecar.volume.snapshot import Content

_CHUNK = 1 << 20
#: Linux opens a FIFO that nobody writes to yet, and tells when somebody has; elsewhere it would look empty.
_AT_ONCE = os.O_NONBLOCK if sys.platform == "linux" else 0


@contextmanager
def opened(source: str | None) -> Iterator[int]:
    """Open a source for reading, None for standard input; nobody is waited for yet."""
    if source is None:
        with _reading("standard input"):
            yield 0
        return
    with _reading(source):
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | _AT_ONCE)
        try:
            yield fd
        finally:
            os.close(fd)


async def pieces(fd: int) -> AsyncGenerator[bytes, None]:
    """Yield what a source holds.

    What another program has yet to write is waited for in the event loop, where a signal ends that:
    a thread that reads could not be ended by anything.
    """
    mode = os.fstat(fd).st_mode
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
    while True:
        if waits:
            await _readable(fd)
        try:
            piece = await threads.in_thread(os.read, fd, _CHUNK)
        except BlockingIOError:
            continue  # somebody else has read it
        if not piece:
            return
        yield piece


async def _readable(fd: int) -> None:
    """Wait until there is something to read, or its end."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


def read_set(source: str, max_size: int) -> dict[str, Content]:
    """Read a directory as it is at one moment; a ConfigMap's, too."""
    with _reading(source):
        fd = beneath.open_directory(source)
    try:
        sighting = loading.load_directory(fd, source, limit=max_size, before=None)
    except _errors.NothingPublished:
        raise _errors.SidecarError(f"{source} is not published: it holds no file") from None
    finally:
        os.close(fd)
    for problem in sighting.problems.values():
        raise _errors.SidecarError(f"{source} is not published: {problem}")
    files = sighting.whole()
    return {name: files.content(name) for name in files}


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Tell an error of the source from one of the volume."""
    try:
        yield
    except OSError as error:
        if isinstance(error, _errors.SidecarError):
            raise
        why = (error.strerror or str(error)).lower()
        raise _errors.ConfigError(f"cannot read {source}: {why}") from error
