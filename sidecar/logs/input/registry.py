"""The registry of streams: which streams exist, and which file each one reads.

It performs the transitions of a stream (new, attached to another file, without a file) and keeps its indexes consistent.
Other modules decide which transition is due.
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
"""Streams by file name without the extension of a compression."""


@dataclass(slots=True)
class CopyCandidate:
    """A file that repeats the beginning of another one so far: probably a copy."""

    path: str
    original: LogStream
    signature: tuple[int, ...]
    first_seen: float
    """Monotonic time at which it was found."""
    quiet_since: float
    """Monotonic time of its last change."""
    content: Content | None = None
    """Kept open, if possible: it may turn out to be a log after its name is removed."""


@dataclass(slots=True)
class StreamRegistry:
    """The streams of one collection."""

    sinks: tuple[str, ...]
    wake: Callable[[LogStream], None]
    """Called for each stream that may have data."""
    record_loss: Callable[[str, int, str], None]
    """Called with reason, bytes and path for data that can never be read."""
    index: ScanIndex = field(default_factory=ScanIndex)
    """The result of the last scan of the directories."""
    streams: list[LogStream] = field(default_factory=list)
    by_key: dict[Key, LogStream] = field(default_factory=dict)
    open_streams: dict[LogStream, None] = field(default_factory=dict)
    """Streams with an open file, least recently used first."""
    aliases: dict[Key, LogStream] = field(default_factory=dict)
    """Archives with the same content that a stream reads from its own file."""
    copy_candidates: dict[Key, CopyCandidate] = field(default_factory=dict)
    revision: int = 0
    """Increases when a stream is added, moved or retired."""
    archives: Collection[str] = ()
    """Directories to which rotation moves files (`archives`)."""
    by_base_name: dict[str, dict[str, _StreamsByName]] = field(default_factory=dict)
    """The streams by base name (without suffixes of rotation) and directory."""

    def contains(self, key: Key) -> bool:
        """Whether the file belongs to a stream, or holds the same content as one."""
        return key in self.by_key or key in self.aliases

    def related_streams(self, path: str) -> list[LogStream]:
        """Return the streams whose rotated file, or next file, this one may be.

        They lie in its directory or the one above; anywhere, if the file is in an archive directory.
        `app.log.2` may belong to `app.log` and to each of its rotated files. Without a log of the base name,
        `worker-1.log` and `worker-2.log` are two logs, and `worker-1.log.gz` belongs to the first only.
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
        """Whether a log with the base name of this path exists or existed: `app.log` for `app.log.1`."""
        directory, core = os.path.dirname(path), _base_name(path)
        by_base_name = self.by_base_name.get(core, {})
        # A file in an archive directory may belong to a log that was not found yet.
        far = directory in self.archives
        near = [*by_base_name, *self.index.directories] if far else _directories(directory)
        return any(
            core in by_base_name.get(d, ()) or os.path.join(d, core) in self.index.inode_by_path
            for d in near
        )

    # -- descriptors

    def mark_used(self, stream: LogStream) -> None:
        """Mark the open file of a stream as most recently used."""
        self.open_streams.pop(stream, None)
        self.open_streams[stream] = None

    def close_file(self, stream: LogStream) -> None:
        """Close the file of a stream, if it is open. Reading continues when it is opened again."""
        stream.detach()
        self.open_streams.pop(stream, None)

    # -- transitions

    def add(self, stream: LogStream) -> None:
        """Add a stream, with or without a file."""
        self.streams.append(stream)
        self._index_name(stream)
        if stream.content is not None and stream.key is not None:
            self.by_key[stream.key] = stream
            self.mark_used(stream)

    def remove(self, stream: LogStream) -> None:
        """Remove a stream."""
        self.streams.remove(stream)
        self.open_streams.pop(stream, None)
        self._unindex_name(stream)
        self.unlink(stream)

    def rename(self, stream: LogStream, path: str) -> None:
        """Record the new name of a stream's file."""
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
        # Only the bytes that were classified: a copy that was empty then may be complete by now.
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
            else:  # an incomplete last line is read from its beginning
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
        """Attach a stream to this file: reading continues there."""
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
        """Record a file as a possible copy: it is not read while it only repeats another one."""
        self.unmark_copy(key)
        self.copy_candidates[key] = candidate

    def unmark_copy(self, key: Key) -> None:
        """Remove a file from the possible copies, and close it if it is open there."""
        candidate = self.copy_candidates.pop(key, None)
        if candidate is not None and candidate.content is not None:
            candidate.content.close()

    def retire(self, stream: LogStream) -> None:
        """Mark a stream as without a file. It is kept for a while, to recognise a copy that appears later."""
        self.close_file(stream)
        self.unlink(stream)
        stream.live, stream.deleted = False, True
        stream.retired_at = time.time()
        self.revision += 1

    def prune(self, there: Container[Key]) -> None:
        """Remove aliases and possible copies whose files do not exist any more."""
        self.aliases = {key: s for key, s in self.aliases.items() if key in there}
        # An open one is still classified without a name: a process may still write to it.
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
        # Keep empty groups while the base name is in use: they record that a log of that name existed.
        if not any(by_base_name[directory].values()):
            del by_base_name[directory]
        if not by_base_name:
            del self.by_base_name[_base_name(stream.path)]

    def unlink(self, stream: LogStream) -> None:
        """Remove the stream from the index by file."""
        if stream.key is not None and self.by_key.get(stream.key) is stream:
            del self.by_key[stream.key]

    # -- restart

    def restore(self, state: checkpoint.CheckpointState) -> None:
        """Add the streams of a checkpoint. Their files are found by the next scan."""
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
            # Until its file is open, the stream is recognised by the fingerprints of the checkpoint.
            stream.unresolved = entry.furthest
            self.add(stream)

    def entries(self) -> Iterator[checkpoint.FileState]:
        """Yield the entries of a checkpoint."""
        return map(_entry, self.streams)

    # -- change of the configuration

    def nameless(self) -> Iterator[LogStream]:
        """Yield the streams whose open file cannot be found by name: deleted, or moved elsewhere."""
        for stream in self.streams:
            content = stream.content
            if content is None:
                continue
            deleted = stream.deleted or os.fstat(content.fd).st_nlink == 0
            if deleted or stream.key not in self.index.paths_by_inode:
                yield stream

    def release(self, stream: LogStream) -> tuple[checkpoint.FileState, Content]:
        """Return the state and the open file of a stream, for another registry. The stream has no file after that."""
        content, stream.content = stream.content, None
        if content is None:
            raise ValueError(f"{stream.path} is not open")
        self.open_streams.pop(stream, None)
        return _entry(stream), content

    def adopt(self, entry: checkpoint.FileState, content: Content, now: float) -> None:
        """Take over an open file that another registry has released, at the restored position.

        A file that the checkpoint does not contain is read from its beginning.
        """
        key = (entry.device, entry.inode)
        known = (s for s in self.streams if s.key == key and s.file_id == entry.file_id)
        stream = next((s for s in known if s.unresolved is not None), None)
        if stream is None:
            self.restore(checkpoint.CheckpointState([replace(entry, positions={})]))
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
    """Return the directories in which the log of a rotated file may lie: the same one, and the one above."""
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
