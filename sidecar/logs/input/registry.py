"""Which streams there are, and which file each of them reads now.

The steps between two states of that: a stream begins, goes on in another file, loses its last one.
Who takes which step is decided elsewhere; here the books stay right.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass, field, replace

from sidecar.logs.input import checkpoint, fingerprint
from sidecar.logs.input.ack_window import OffsetWindow
from sidecar.logs.input.discovery import Key, ScanIndex
from sidecar.logs.input.file_content import Content
from sidecar.logs.input.file_reader import LogStream, ReadPosition

_log = logging.getLogger(__name__)


_StreamsByName = dict[str, dict[LogStream, None]]
"""Streams by their names as they were before compression."""


@dataclass(slots=True)
class CopyCandidate:
    """A file that has so far repeated the beginning of another: a copy, most probably."""

    path: str
    of: LogStream
    seen: tuple[int, ...]
    since: float
    """Monotonic time at which it was met."""
    quiet_since: float
    """The same for its last change."""
    content: Content | None = None
    """Open: it may yet turn out to be a log, and lose its name before."""


@dataclass(slots=True)
class StreamRegistry:
    """The streams of one collection."""

    sinks: tuple[str, ...]
    wake: Callable[[LogStream], None]
    """Called for each stream that may have something to read."""
    record_loss: Callable[[str, int, str], None]
    """Called with reason, bytes and path for what can never be read."""
    index: ScanIndex = field(default_factory=ScanIndex)
    """What the last scan of the directories has found."""
    streams: list[LogStream] = field(default_factory=list)
    by_key: dict[Key, LogStream] = field(default_factory=dict)
    open_streams: dict[LogStream, None] = field(default_factory=dict)
    """Those whose file is open; the one that was not used for longest comes first."""
    aliases: dict[Key, LogStream] = field(default_factory=dict)
    """Archives that hold nothing but what a stream reads from its own file."""
    copy_candidates: dict[Key, CopyCandidate] = field(default_factory=dict)
    revision: int = 0
    """Grows whenever a stream begins, moves or ends."""
    archives: Collection[str] = ()
    """Directories to which rotation moves files."""
    by_base_name: dict[str, dict[str, _StreamsByName]] = field(default_factory=dict)
    """The streams by what rotation leaves of their names, and by directory."""

    def contains(self, key: Key) -> bool:
        """Whether somebody reads this file, or need not."""
        return key in self.by_key or key in self.aliases

    def related_streams(self, path: str) -> list[LogStream]:
        """Return the streams of which this file may be the rotated past, or the next home.

        Beside it, or a directory above; anywhere, if it lies in one that rotation moves files to.
        `app.log.2` may come from any of `app.log` and its past; but where there is no log of the bare name,
        `worker-1.log` and `worker-2.log` are two logs, and `worker-1.log.gz` comes from the first alone.
        """
        directory, name = os.path.split(path)
        by_base_name = self.by_base_name.get(_base_name(path), {})
        far = directory in self.archives
        near = by_base_name if far else [d for d in _directories(directory) if d in by_base_name]
        if self.has_bare_name(path):
            return [s for d in near for group in by_base_name[d].values() for s in group]
        plain = fingerprint.plain_name(name)
        return [s for d in near for s in by_base_name[d].get(plain, ())]

    def has_bare_name(self, path: str) -> bool:
        """Whether there is, or was, a log whose name is what rotation leaves of this one: `app.log` for `app.log.1`."""
        directory, core = os.path.dirname(path), _base_name(path)
        by_base_name = self.by_base_name.get(core, {})
        # What rotation moved far away may come from a log that nobody has met yet.
        far = directory in self.archives
        near = [*by_base_name, *self.index.directories] if far else _directories(directory)
        return any(
            core in by_base_name.get(d, ()) or os.path.join(d, core) in self.index.inode_by_path
            for d in near
        )

    # -- descriptors

    def mark_used(self, stream: LogStream) -> None:
        """Its file is open, and needed just now."""
        self.open_streams.pop(stream, None)
        self.open_streams[stream] = None

    def close_file(self, stream: LogStream) -> None:
        """Close its file, if it is open. The stream goes on when it is opened again."""
        stream.detach()
        self.open_streams.pop(stream, None)

    # -- steps

    def add(self, stream: LogStream) -> None:
        """Take in a stream, with or without a file."""
        self.streams.append(stream)
        self._index_name(stream)
        if stream.content is not None and stream.key is not None:
            self.by_key[stream.key] = stream
            self.mark_used(stream)

    def remove(self, stream: LogStream) -> None:
        """Forget a stream altogether."""
        self.streams.remove(stream)
        self.open_streams.pop(stream, None)
        self._unindex_name(stream)
        self.unlink(stream)

    def rename(self, stream: LogStream, path: str) -> None:
        """Its file has another name now."""
        self._unindex_name(stream)
        stream.path = path
        self._index_name(stream)

    def add_new(
        self, stream: LogStream, *, at_end: bool = False, known_size: int = fingerprint.HEAD_BYTES
    ) -> None:
        """Take in a new stream, with its file open. `known_size` is the size of the file when it was found to be new."""
        content = stream.content
        if content is None:
            return
        # No more of it than was known_size: a copy that was empty a moment ago may be complete by now.
        known = (
            fingerprint.HEAD_BYTES
            if content.compressed
            else min(known_size, fingerprint.HEAD_BYTES)
        )
        stream.head_bytes = stream.read_head(known)
        stream.head = fingerprint.Fingerprint.of(stream.head_bytes)
        offset, mark = 0, b""
        if at_end:
            offset = content.length()
            if content.compressed:
                stream.size = offset
            else:  # from the beginning of the last line on, if it is not complete
                offset = _after_last_newline(content, offset)
            start = max(offset - fingerprint.TAIL_BYTES, 0)
            mark = content.read(start, offset - start)
        for sink in self.sinks:
            stream.cursors[sink] = ReadPosition(offset, mark)
            stream.windows[sink] = OffsetWindow(fingerprint.Position.of(offset, mark))
        self.add(stream)
        if stream.key is not None:
            self.unmark_copy(stream.key)
        self.revision += 1

    def attach(self, stream: LogStream, content: Content, key: Key, path: str, now: float) -> None:
        """Let a stream go on in this file."""
        level = logging.DEBUG if (key, path) == (stream.key, stream.path) else logging.INFO
        self.unlink(stream)
        self.rename(stream, path)
        stream.attach(content, key, path)
        self.mark_used(stream)
        stream.unresolved = stream.search_deadline = None
        stream.live = path in self.index.files
        stream.last_growth = now
        self.by_key[key] = stream
        self.aliases.pop(key, None)
        self.unmark_copy(key)
        self.revision += 1
        _log.log(level, "the rest of it is read from %s, from byte %d on", path, stream.read_by_all)
        self.wake(stream)

    def mark_copy(self, key: Key, candidate: CopyCandidate) -> None:
        """Leave a file alone while it only repeats another."""
        self.unmark_copy(key)
        self.copy_candidates[key] = candidate

    def unmark_copy(self, key: Key) -> None:
        """It is known by now what the file is."""
        candidate = self.copy_candidates.pop(key, None)
        if candidate is not None and candidate.content is not None:
            candidate.content.close()

    def retire(self, stream: LogStream) -> None:
        """There is no file any more. The stream is remembered, to recognise a copy of it that appears later."""
        self.close_file(stream)
        self.unlink(stream)
        stream.live, stream.deleted = False, True
        stream.retired_at = time.time()
        self.revision += 1

    def prune(self, there: Container[Key]) -> None:
        """Forget what was known of files that are not there any more."""
        self.aliases = {key: s for key, s in self.aliases.items() if key in there}
        # One that is held open is known_size on without a name: somebody may still write to it.
        gone = [k for k, s in self.copy_candidates.items() if k not in there and s.content is None]
        for key in gone:
            self.unmark_copy(key)

    def close(self) -> None:
        """Close all files."""
        for stream in self.streams:
            self.close_file(stream)
        for key in list(self.copy_candidates):
            self.unmark_copy(key)

    def _index_name(self, stream: LogStream) -> None:
        directory, name = os.path.split(stream.path)
        family = self.by_base_name.setdefault(_base_name(stream.path), {}).setdefault(directory, {})
        family.setdefault(fingerprint.plain_name(name), {})[stream] = None

    def _unindex_name(self, stream: LogStream) -> None:
        directory, name = os.path.split(stream.path)
        by_base_name = self.by_base_name[_base_name(stream.path)]
        del by_base_name[directory][fingerprint.plain_name(name)][stream]
        # Groups stay as long as the family: that there was a log of the bare name is remembered.
        if not any(by_base_name[directory].values()):
            del by_base_name[directory]
        if not by_base_name:
            del self.by_base_name[_base_name(stream.path)]

    def unlink(self, stream: LogStream) -> None:
        """It has no file now."""
        if stream.key is not None and self.by_key.get(stream.key) is stream:
            del self.by_key[stream.key]

    # -- over a restart

    def restore(self, state: checkpoint.State) -> None:
        """Take over the streams of a checkpoint. Their files have to be looked for."""
        for entry in state.entries:
            stream = LogStream(
                entry.path,
                (entry.device, entry.inode),
                head=entry.head,
                size=entry.size,
                live=False,
            )
            stream.file_id, stream.retired_at = entry.file_id, entry.retired_at
            stream.modified_ns = stream.last_complete_scan_ns = entry.modified_ns
            for sink in self.sinks:
                place = entry.positions.get(sink) or min(
                    entry.positions.values(),
                    key=lambda p: p.offset,
                    default=fingerprint.Position(0),
                )
                stream.cursors[sink] = ReadPosition(place.offset)
                stream.windows[sink] = OffsetWindow(place)
            # Until its bytes are at hand it is recognised by what the checkpoint knows of them.
            stream.unresolved = entry.furthest
            self.add(stream)

    def entries(self) -> Iterator[checkpoint.FileState]:
        """Yield what a checkpoint should keep."""
        return map(_entry, self.streams)

    # -- over a new configuration

    def nameless(self) -> Iterator[LogStream]:
        """Yield the streams whose open file nobody finds any more: deleted, or moved out of sight."""
        for stream in self.streams:
            content = stream.content
            if content is None:
                continue
            deleted = stream.deleted or os.fstat(content.fd).st_nlink == 0
            if deleted or stream.key not in self.index.paths_by_inode:
                yield stream

    def release(self, stream: LogStream) -> tuple[checkpoint.FileState, Content]:
        """Let another roster have a stream's open file. The stream has none any more."""
        content, stream.content = stream.content, None
        if content is None:
            raise ValueError(f"{stream.path} is not open")
        self.open_streams.pop(stream, None)
        return _entry(stream), content

    def adopt(self, entry: checkpoint.FileState, content: Content, now: float) -> None:
        """Go on with a file that another roster has surrendered, at the position that was restored.

        A content that the checkpoint does not know is new to its sinks, and read from its beginning.
        """
        key = (entry.device, entry.inode)
        known = (s for s in self.streams if s.key == key and s.file_id == entry.file_id)
        stream = next((s for s in known if s.unresolved is not None), None)
        if stream is None:
            self.restore(checkpoint.State([replace(entry, positions={})]))
            stream = self.streams[-1]
        self.attach(stream, content, key, entry.path, now)


def _entry(stream: LogStream) -> checkpoint.FileState:
    key = stream.key or (0, 0)
    return checkpoint.FileState(
        file_id=stream.file_id,
        path=stream.path,
        device=key[0],
        inode=key[1],
        head=stream.head,
        size=stream.size,
        positions={sink: window.position for sink, window in stream.windows.items()},
        modified_ns=stream.last_complete_scan_ns or stream.modified_ns,
        retired_at=stream.retired_at,
    )


@functools.lru_cache(maxsize=10_000)
def _base_name(path: str) -> str:
    return fingerprint.base_log_name(os.path.basename(path))


def _directories(directory: str) -> tuple[str, str]:
    """Return where the log lies that has its past in this directory."""
    return directory, os.path.dirname(directory)


def _after_last_newline(content: Content, size: int) -> int:
    step = 1 << 16
    end = size
    while end > 0:
        start = max(end - step, 0)
        found = content.read(start, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
