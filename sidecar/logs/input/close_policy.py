"""What may be let go: decided from what is known of the streams, without a look at the disk.

Plain functions that return whom it concerns; `sidecar.logs.input.rotation` then flushes, closes and forgets.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass

from sidecar.logs.input.discovery import Key
from sidecar.logs.input.file_reader import LogStream, ReadPosition

MAX_RETIRED_STREAMS = 1000
"""Contents without a file that are kept in mind, to recognise a copy that appears later …"""
RETIRED_TTL_SECONDS = 86400.0
"""… and for how many seconds."""


@dataclass(frozen=True, slots=True)
class TailPolicy:
    """When files are given up, and where reading begins."""

    from_end: bool = False
    ignore_older: float | None = None
    rotate_wait: float = 30.0
    partial_timeout: float | None = 10.0
    group_timeout: float | None = None
    held_limit: int = 1 << 30
    max_open: int = 4096
    remove_after: float | None = None


def timed_out_partials(stream: LogStream, policy: TailPolicy, now: float) -> list[ReadPosition]:
    """Return the cursors whose last line (or group) has waited long enough for its end."""
    quiet = now - stream.last_growth
    past = stream.deleted or not stream.live
    of_line = policy.rotate_wait if past else policy.partial_timeout
    of_group = policy.group_timeout

    def has_timed_out(cursor: ReadPosition) -> bool:
        if of_line is not None and quiet >= of_line:
            return True
        # A group can be complete while its file is quiet; a line without its end is not.
        return of_group is not None and quiet >= of_group and not cursor.unterminated

    return [c for c in stream.cursors.values() if c.partial and not c.flush and has_timed_out(c)]


def is_finished(stream: LogStream, policy: TailPolicy, now: float) -> bool:
    """Whether a rotated or deleted file has been quiet for long, and all of it has been read and acknowledged."""
    if stream.live and not stream.deleted:
        return False
    return now - stream.last_growth >= policy.rotate_wait and _is_finished(stream)


def _is_finished(stream: LogStream) -> bool:
    cursors = stream.cursors.values()
    if not stream.is_fully_acknowledged or any(cursor.partial for cursor in cursors):
        return False
    return _is_read(stream)


def removable(streams: Iterable[LogStream], wait: float, now: float) -> list[LogStream]:
    """Return whose file may be deleted: all of it is delivered and saved, and it was quiet for so many seconds."""
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
    """Yield the deleted files, with their unread bytes, that keep more space in use than is permitted."""
    deleted = [s for s in streams if s.deleted and s.content is not None]
    held = [(s, unread) for s in deleted if (unread := s.written - s.read_by_all) > 0]
    total = sum(unread for _, unread in held)
    for stream, unread in held:
        if total <= limit:
            return
        total -= unread
        yield stream, unread


def expired(streams: Iterable[LogStream], unix_time: float) -> list[LogStream]:
    """Return the contents without a file of which nobody needs to know any more."""
    gone = [s for s in streams if s.retired_at is not None and s.is_fully_acknowledged]
    surplus, old = len(gone) - MAX_RETIRED_STREAMS, unix_time - RETIRED_TTL_SECONDS
    return [s for index, s in enumerate(gone) if index < surplus or (s.retired_at or 0) < old]


def unlinked(streams: Iterable[LogStream], there: Container[Key]) -> list[LogStream]:
    """Return the closed files that have lost their last name."""
    closed = (
        s for s in streams if s.content is None and s.retired_at is None and s.unresolved is None
    )
    return [s for s in closed if s.key not in there]


def idle(open_streams: Collection[LogStream], there: Container[Key]) -> list[LogStream]:
    """Return a quarter of the open files, which may be closed: they are opened again when there is something to read.

    `open_streams` has the one that was not used for longest at its beginning. Those that were read go first:
    what has a name now may have none by then, and with it what has not been read.
    Not those that have no name any more, and no archive in the middle, which would be decompressed again.
    """
    named = [s for s in open_streams if not s.deleted and s.key in there and s.size_and_mtime]
    read = [s for s in named if _is_read(s)]
    unread = [s for s in named if not _is_read(s) and not (s.content and s.content.compressed)]
    return (read + unread)[: max(len(open_streams) // 4, 1)]


def _is_read(stream: LogStream) -> bool:
    if stream.content is not None and stream.content.compressed:
        return all(cursor.at_end for cursor in stream.cursors.values())
    return stream.read_by_all >= stream.written
