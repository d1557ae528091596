"""What `sidecar publish` takes: a file, a directory, standard input, or a FIFO that somebody writes to."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import sys
import time
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import contextmanager

from sidecar import _errors
from sidecar.cli.escape import one_line as shown
from sidecar.fs import dirs, layout, openat, visible_links
from sidecar.process import executor
from sidecar.volume.content import listing, loader
from sidecar.volume.content.snapshot import VERSION_DIGITS, Content
from sidecar.volume.publish import models

_log = logging.getLogger(__name__)

#: How often a source that changes is read, and the seconds in between.
ATTEMPTS = 3
PAUSE = 0.2
#: A source that was changed so lately is read twice, with so many seconds in between.
_DOUBT_NS = 2_000_000_000
_QUIET = 0.1
_SHOWN = 5
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
            piece = await executor.run_in_thread(os.read, fd, _CHUNK)
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


class Steady:
    """Tells whether a source that has been read was the same all the time.

    A regular file is compared with its state before. One that was written to in the last seconds is read a second time,
    because clocks of file systems are coarse, and because a program that pauses may go on.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before = os.fstat(fd)
        self._begun = time.time_ns()
        self._regular = stat.S_ISREG(self._before.st_mode)
        self._start = os.lseek(fd, 0, os.SEEK_CUR) if self._regular else 0

    def begin_again(self) -> None:
        """Go back to where reading began."""
        self._before, self._begun = os.fstat(self._fd), time.time_ns()
        os.lseek(self._fd, self._start, os.SEEK_SET)

    def was_whole(self, size: int, version: str) -> bool:
        """Whether what was read, so many bytes of that version, is what the file held from the beginning. Blocking."""
        if not self._regular:
            return True  # nobody else has what was read from a pipe
        after = os.fstat(self._fd)
        # Files of /proc have bytes although their size is 0.
        if _state(after) != _state(self._before) or size < after.st_size - self._start:
            return False
        if self._begun - after.st_mtime_ns > _DOUBT_NS or not after.st_size:
            return True
        time.sleep(_QUIET)
        return _version_of(self._fd, self._start) == version


def changed(source: str) -> _errors.PublishError:
    """Return the error for a source that changes each time it is read."""
    return _errors.PublishError(
        f"{source} is not published: it changed while it was read, {ATTEMPTS} times"
        " (publish it once it is complete, or publish a copy)"
    )


def read_set(source: str, max_size: int) -> dict[str, Content]:
    """Read a directory as it is at one moment, all of it; a ConfigMap's, too. Blocking.

    Raises:
        ConfigError: it cannot be read.
        PublishError: it changes while it is read.
        SidecarError: it holds no file, or something that cannot be published.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        with _reading(source):
            fd = openat.open_directory(source)
        try:
            files = _read_once(fd, source, max_size)
        finally:
            os.close(fd)
        if files is not None:
            return files
    raise changed(source)


def _read_once(fd: int, source: str, max_size: int) -> dict[str, Content] | None:
    """Return the files of a directory, None if they changed while they were read."""
    try:
        scan = loader.read_directory(fd, source, limit=max_size, before=None)
        if not loader.is_unchanged(fd, scan):  # or so young that nothing but a second look can tell
            time.sleep(_QUIET)
            again = loader.read_directory(fd, source, limit=max_size, before=None)
            if again.incomplete or again.snapshot.version != scan.snapshot.version:
                return None
            scan = again
    except _errors.NothingPublished:
        raise _errors.SidecarError(f"{source} is not published: it holds no file") from None
    if scan.changed_while_read:
        return None
    for problem in scan.problems.values():
        raise _errors.SidecarError(f"{source} is not published: {problem}")
    files = scan.require_complete()
    with _reading(source):
        _refuse_left_out(fd, source, files)
    return {name: files.content(name) for name in files}


def _refuse_left_out(fd: int, source: str, files: Collection[str]) -> None:
    """Refuse a directory that holds more than can be published: nothing is left out in silence."""
    generation = layout.active_generation(fd)
    with listing.open_content_dir(fd, generation) as held:
        left_out = [f"{shown(name)} ({why})" for name, why in _left_out(held, files)]
    if left_out:
        more = f", and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        raise _errors.SidecarError(
            f"{source} is not published: it holds what cannot be in a set: {', '.join(left_out[:_SHOWN])}{more}"
            " (replace or remove it)"
        )
    beside = visible_links.loose_names_beside_set(fd) if generation is not None else []
    if beside:
        _log.warning(
            "%s holds a set; what lies beside it is not published: %s",
            source,
            ", ".join(map(shown, beside[:_SHOWN])),
        )


def _left_out(fd: int, files: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield what is neither a file that was read nor a directory, and why it was not read."""
    for path, directories, names, folder in dirs.walk(fd, "."):
        prefix = path[2:] + "/" if path != "." else ""
        if not prefix:
            _drop_hidden(directories)
        deepest = path.count("/") >= dirs.MAX_DEPTH
        for name in sorted((*names, *directories)):
            whole = prefix + name
            if whole in files or _is_hidden(whole):
                continue
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) or deepest:
                yield whole, _why(folder, whole, name)
        _drop_hidden(directories)


def _why(folder: int, whole: str, name: str) -> str:
    if not layout.is_text(whole):
        return "its name is not UTF-8"
    try:
        target = os.stat(name, dir_fd=folder)
    except OSError:
        return "a link that leads nowhere"
    if stat.S_ISDIR(target.st_mode) and layout.link_target(folder, name) is not None:
        return "a link to a directory"
    if whole.count("/") > models.MAX_DEPTH:
        return f"it lies more than {models.MAX_DEPTH} directories deep"
    return "a name that readers do not see"


def _is_hidden(name: str) -> bool:
    """Whether a name is of those that a set never has, which docs/cli.md says."""
    parts = name.split("/")
    return listing.was_removed(parts[-1]) or any(
        part.startswith(layout.HIDDEN) or part == "lost+found" for part in parts
    )


def _drop_hidden(directories: list[str]) -> None:
    directories[:] = [name for name in directories if not _is_hidden(name)]


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_mtime_ns, status.st_size


def _version_of(fd: int, start: int) -> str:
    digest = hashlib.sha256()
    while piece := os.pread(fd, _CHUNK, start):
        digest.update(piece)
        start += len(piece)
    return digest.hexdigest()[:VERSION_DIGITS]


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
