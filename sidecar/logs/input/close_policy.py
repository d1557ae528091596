"""Decide which files are flushed, closed, deleted or forgotten, from the state of the streams alone.

Functions without I/O that return the streams concerned; `sidecar.logs.input.rotation` acts on the result.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass

from sidecar.logs.input.discovery import Key
from sidecar.logs.input.file_reader import LogStream, ReadPosition

MAX_RETIRED_STREAMS = 1000
"""Streams without a file that are kept, to recognise a copy that appears later …"""
RETIRED_TTL_SECONDS = 86400.0
"""… and for how long."""


@dataclass(frozen=True, slots=True)
class TailPolicy:
    """When files are closed, and where reading begins."""

    from_end: bool = False
    ignore_older: float | None = None
    rotate_wait: float = 30.0
    partial_timeout: float | None = 10.0
    group_timeout: float | None = None
    held_limit: int = 1 << 30
    max_open: int = 4096
    remove_after: float | None = None


def timed_out_partials(stream: LogStream, policy: TailPolicy, now: float) -> list[ReadPosition]:
    """Return the cursors whose incomplete last line (or group) has timed out."""
    quiet = now - stream.last_growth
    past = stream.deleted or not stream.live
    of_line = policy.rotate_wait if past else policy.partial_timeout
    of_group = policy.group_timeout

    def has_timed_out(cursor: ReadPosition) -> bool:
        if of_line is not None and quiet >= of_line:
            return True
        # A group may be complete without a new line after it; a line without a newline is not.
        return of_group is not None and quiet >= of_group and not cursor.unterminated

    return [c for c in stream.cursors.values() if c.partial and not c.flush and has_timed_out(c)]


def is_finished(stream: LogStream, policy: TailPolicy, now: float) -> bool:
    """Whether a rotated or deleted file was not written for `rotate_wait`, and is read and acknowledged completely."""
    if stream.live and not stream.deleted:
        return False
    return now - stream.last_growth >= policy.rotate_wait and _is_finished(stream)


def _is_finished(stream: LogStream) -> bool:
    cursors = stream.cursors.values()
    if not stream.is_fully_acknowledged or any(cursor.partial for cursor in cursors):
        return False
    return _is_read(stream)


def removable(streams: Iterable[LogStream], wait: float, now: float) -> list[LogStream]:
    """Return the streams whose file may be deleted: delivered completely, saved, and not written for `wait` seconds."""
    return [
        s
        for s in streams
        if s.live
        and not s.deleted
        and s.retired_at is None
        and s.head.length
        and now - s.last_growth >= wait
        and _is_finished(s)
        and s.saved_offset == s.acknowledged_by_all
    ]


def over_held_limit(streams: Iterable[LogStream], limit: int) -> Iterator[tuple[LogStream, int]]:
    """Yield the deleted files to close, with their unread bytes, until the total is within the limit."""
    deleted = [s for s in streams if s.deleted and s.content is not None]
    held = [(s, unread) for s in deleted if (unread := s.written - s.read_by_all) > 0]
    total = sum(unread for _, unread in held)
    for stream, unread in held:
        if total <= limit:
            return
        total -= unread
        yield stream, unread


def expired(streams: Iterable[LogStream], unix_time: float) -> list[LogStream]:
    """Return the streams without a file that need not be kept any more."""
    gone = [s for s in streams if s.retired_at is not None and s.is_fully_acknowledged]
    surplus, old = len(gone) - MAX_RETIRED_STREAMS, unix_time - RETIRED_TTL_SECONDS
    return [s for index, s in enumerate(gone) if index < surplus or (s.retired_at or 0) < old]


def unlinked(streams: Iterable[LogStream], there: Container[Key]) -> list[LogStream]:
    """Return the streams whose closed file has no name any more."""
    closed = (
        s for s in streams if s.content is None and s.retired_at is None and s.unresolved is None
    )
    return [s for s in closed if s.key not in there]


def idle(open_streams: Collection[LogStream], there: Container[Key]) -> list[LogStream]:
    """Return up to a quarter of the open files, to be closed. They are opened again when they have data.

    `open_streams` is in least recently used order. Files that were read completely come first:
    an unread one might be deleted before it is opened again.
    Files without a name, and archives that are half read (they would be decompressed again), stay open.
    """
    named = [s for s in open_streams if not s.deleted and s.key in there and s.size_and_mtime]
    read = [s for s in named if _is_read(s)]
    unread = [s for s in named if not _is_read(s) and not (s.content and s.content.compressed)]
    return (read + unread)[: max(len(open_streams) // 4, 1)]


def _is_read(stream: LogStream) -> bool:
    if stream.content is not None and stream.content.compressed:
        return all(cursor.at_end for cursor in stream.cursors.values())
    return stream.read_by_all >= stream.written
