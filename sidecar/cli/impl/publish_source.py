"""The source of `sidecar publish`: a file, a directory, standard input or a FIFO."""

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
from sidecar.cli.escape import one_line
from sidecar.fs import dirs, layout, openat, visible_links
from sidecar.process import executor
from sidecar.volume.content import listing, loader
from sidecar.volume.content.snapshot import VERSION_DIGITS, Content
from sidecar.volume.publish import models

_log = logging.getLogger(__name__)

#: Attempts to read a source that changes, and the seconds in between.
READ_ATTEMPTS = 3
RETRY_DELAY = 0.2
#: A source changed within this time is read twice, with this many seconds in between.
_RECENT_CHANGE_NS = 2_000_000_000
_SECOND_READ_DELAY = 0.1
_MAX_NAMES_SHOWN = 5
_CHUNK_SIZE = 1 << 20
#: With O_NONBLOCK Linux opens a FIFO without a writer, and reports the first writer; elsewhere it would look empty.
_NONBLOCK = os.O_NONBLOCK if sys.platform == "linux" else 0


@contextmanager
def open_source(source: str | None) -> Iterator[int]:
    """Open a source for reading, None for standard input; does not wait for a writer."""
    if source is None:
        with _source_errors("standard input"):
            yield 0
        return
    with _source_errors(source):
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | _NONBLOCK)
        try:
            yield fd
        finally:
            os.close(fd)


async def read_chunks(fd: int) -> AsyncGenerator[bytes, None]:
    """Yield the data of a source.

    Data of another program is awaited on the event loop, where a signal ends the wait:
    a blocked read in a thread cannot be interrupted.
    """
    mode = os.fstat(fd).st_mode
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
    while True:
        if waits:
            await _wait_readable(fd)
        try:
            piece = await executor.run_in_thread(os.read, fd, _CHUNK_SIZE)
        except BlockingIOError:
            continue  # another process has read it
        if not piece:
            return
        yield piece


async def _wait_readable(fd: int) -> None:
    """Wait until data or the end of file is available."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


class ChangeDetector:
    """Detects whether a source has changed while it was read.

    A regular file is compared with its earlier state. One that was modified in the last seconds is read a second time,
    because timestamps of file systems are coarse, and because a program may write again after a pause.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before = os.fstat(fd)
        self._started = time.time_ns()
        self._regular = stat.S_ISREG(self._before.st_mode)
        self._start = os.lseek(fd, 0, os.SEEK_CUR) if self._regular else 0

    def restart(self) -> None:
        """Seek to where reading started."""
        self._before, self._started = os.fstat(self._fd), time.time_ns()
        os.lseek(self._fd, self._start, os.SEEK_SET)

    def is_unchanged(self, size: int, version: str) -> bool:
        """Return whether the data read, of this size and version, is what the file held all the time. Blocking."""
        if not self._regular:
            return True  # data of a pipe cannot change
        after = os.fstat(self._fd)
        # Files of /proc have data although their size is 0.
        if _state(after) != _state(self._before) or size < after.st_size - self._start:
            return False
        if self._started - after.st_mtime_ns > _RECENT_CHANGE_NS or not after.st_size:
            return True
        time.sleep(_SECOND_READ_DELAY)
        return _version_of(self._fd, self._start) == version


def changed_error(source: str) -> _errors.PublishError:
    """Return the error for a source that changes each time it is read."""
    return _errors.PublishError(
        f"{source} is not published: it changed while it was read, {READ_ATTEMPTS} times"
        " (publish it once it is complete, or publish a copy)"
    )


def read_set(source: str, max_size: int) -> dict[str, Content]:
    """Read a consistent state of a directory, also of a ConfigMap. Blocking.

    Raises:
        ConfigError: it cannot be read.
        PublishError: it changes while it is read.
        SidecarError: it has no file, or something that cannot be published.
    """
    for attempt in range(READ_ATTEMPTS):
        if attempt:
            time.sleep(RETRY_DELAY)
        with _source_errors(source):
            fd = openat.open_directory(source)
        try:
            files = _read_once(fd, source, max_size)
        finally:
            os.close(fd)
        if files is not None:
            return files
    raise changed_error(source)


def _read_once(fd: int, source: str, max_size: int) -> dict[str, Content] | None:
    """Return the files of a directory, None if they changed while they were read."""
    try:
        scan = loader.read_directory(fd, source, limit=max_size, before=None)
        if not loader.is_unchanged(
            fd, scan
        ):  # or changed so recently that only a second scan can tell
            time.sleep(_SECOND_READ_DELAY)
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
    with _source_errors(source):
        _check_nothing_left_out(fd, source, files)
    return {name: files.content(name) for name in files}


def _check_nothing_left_out(fd: int, source: str, files: Collection[str]) -> None:
    """Raise if the directory contains something that cannot be published: nothing is omitted silently."""
    generation = layout.active_generation(fd)
    with listing.open_content_dir(fd, generation) as set_fd:
        left_out = [f"{one_line(name)} ({why})" for name, why in _left_out(set_fd, files)]
    if left_out:
        more = (
            f", and {len(left_out) - _MAX_NAMES_SHOWN} more"
            if len(left_out) > _MAX_NAMES_SHOWN
            else ""
        )
        raise _errors.SidecarError(
            f"{source} is not published: it holds what cannot be in a set: {', '.join(left_out[:_MAX_NAMES_SHOWN])}{more}"
            " (replace or remove it)"
        )
    beside = visible_links.loose_names_beside_set(fd) if generation is not None else []
    if beside:
        _log.warning(
            "%s holds a set; the files beside it are not published: %s",
            source,
            ", ".join(map(one_line, beside[:_MAX_NAMES_SHOWN])),
            extra={"event": "set.files_beside"},
        )


def _left_out(fd: int, files: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each entry that is neither a file that was read nor a directory, and the reason."""
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
                yield whole, _reason_left_out(folder, whole, name)
        _drop_hidden(directories)


def _reason_left_out(folder: int, whole: str, name: str) -> str:
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
    """Whether a name is never part of a set, see docs/cli.md."""
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
    while piece := os.pread(fd, _CHUNK_SIZE, start):
        digest.update(piece)
        start += len(piece)
    return digest.hexdigest()[:VERSION_DIGITS]


@contextmanager
def _source_errors(source: str) -> Iterator[None]:
    """Map errors of the source to ConfigError, so that they differ from those of the volume."""
    try:
        yield
    except OSError as error:
        if isinstance(error, _errors.SidecarError):
            raise
        why = (error.strerror or str(error)).lower()
        raise _errors.ConfigError(f"cannot read {source}: {why}") from error
