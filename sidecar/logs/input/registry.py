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


_Family = dict[str, dict[LogStream, None]]
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

    lanes: tuple[str, ...]
    wake: Callable[[LogStream], None]
    """Called for each stream that may have something to read."""
    lose: Callable[[str, int, str], None]
    """Called with reason, bytes and path for what can never be read."""
    found: ScanIndex = field(default_factory=ScanIndex)
    """What the last scan of the directories has found."""
    streams: list[LogStream] = field(default_factory=list)
    by_key: dict[Key, LogStream] = field(default_factory=dict)
    recent: dict[LogStream, None] = field(default_factory=dict)
    """Those whose file is open; the one that was not used for longest comes first."""
    aliases: dict[Key, LogStream] = field(default_factory=dict)
    """Archives that hold nothing but what a stream reads from its own file."""
    suspects: dict[Key, CopyCandidate] = field(default_factory=dict)
    turns: int = 0
    """Grows whenever a stream begins, moves or ends."""
    archives: Collection[str] = ()
    """Directories to which rotation moves files."""
    families: dict[str, dict[str, _Family]] = field(default_factory=dict)
    """The streams by what rotation leaves of their names, and by directory."""

    def knows(self, key: Key) -> bool:
        """Whether somebody reads this file, or need not."""
        return key in self.by_key or key in self.aliases

    def relatives(self, path: str) -> list[LogStream]:
        """Return the streams of which this file may be the rotated past, or the next home.

        Beside it, or a directory above; anywhere, if it lies in one that rotation moves files to.
        `app.log.2` may come from any of `app.log` and its past; but where there is no log of the bare name,
        `worker-1.log` and `worker-2.log` are two logs, and `worker-1.log.gz` comes from the first alone.
        """
        directory, name = os.path.split(path)
        families = self.families.get(_core(path), {})
        far = directory in self.archives
        near = families if far else [d for d in _directories(directory) if d in families]
        if self.has_bare_name(path):
            return [s for d in near for group in families[d].values() for s in group]
        plain = fingerprint.plain_name(name)
        return [s for d in near for s in families[d].get(plain, ())]

    def has_bare_name(self, path: str) -> bool:
        """Whether there is, or was, a log whose name is what rotation leaves of this one: `app.log` for `app.log.1`."""
        directory, core = os.path.dirname(path), _core(path)
        families = self.families.get(core, {})
        # What rotation moved far away may come from a log that nobody has met yet.
        far = directory in self.archives
        near = [*families, *self.found.directories] if far else _directories(directory)
        return any(
            core in families.get(d, ()) or os.path.join(d, core) in self.found.keys for d in near
        )

    # -- descriptors

    def used(self, stream: LogStream) -> None:
        """Its file is open, and needed just now."""
        self.recent.pop(stream, None)
        self.recent[stream] = None

    def close_file(self, stream: LogStream) -> None:
        """Close its file, if it is open. The stream goes on when it is opened again."""
        stream.detach()
        self.recent.pop(stream, None)

    # -- steps

    def add(self, stream: LogStream) -> None:
        """Take in a stream, with or without a file."""
        self.streams.append(stream)
        self._join_family(stream)
        if stream.content is not None and stream.key is not None:
            self.by_key[stream.key] = stream
            self.used(stream)

    def remove(self, stream: LogStream) -> None:
        """Forget a stream altogether."""
        self.streams.remove(stream)
        self.recent.pop(stream, None)
        self._leave_family(stream)
        self.unlink(stream)

    def rename(self, stream: LogStream, path: str) -> None:
        """Its file has another name now."""
        self._leave_family(stream)
        stream.path = path
        self._join_family(stream)

    def begin(
        self, stream: LogStream, *, at_end: bool = False, judged: int = fingerprint.HEAD_BYTES
    ) -> None:
        """Take in a new stream, with its file open. `judged` is the size of the file when it was found to be new."""
        content = stream.content
        if content is None:
            return
        # No more of it than was judged: a copy that was empty a moment ago may be complete by now.
        known = (
            fingerprint.HEAD_BYTES if content.compressed else min(judged, fingerprint.HEAD_BYTES)
        )
        stream.head_bytes = stream.head_now(known)
        stream.head = fingerprint.Fingerprint.of(stream.head_bytes)
        offset, mark = 0, b""
        if at_end:
            offset = content.measure()
            if content.compressed:
                stream.size = offset
            else:  # from the beginning of the last line on, if it is not complete
                offset = _after_last_newline(content, offset)
            start = max(offset - fingerprint.TAIL_BYTES, 0)
            mark = content.read(start, offset - start)
        for lane in self.lanes:
            stream.cursors[lane] = ReadPosition(offset, mark)
            stream.windows[lane] = OffsetWindow(fingerprint.Position.of(offset, mark))
        self.add(stream)
        if stream.key is not None:
            self.clear_of_suspicion(stream.key)
        self.turns += 1

    def settle(self, stream: LogStream, content: Content, key: Key, path: str, now: float) -> None:
        """Let a stream go on in this file."""
        level = logging.DEBUG if (key, path) == (stream.key, stream.path) else logging.INFO
        self.unlink(stream)
        self.rename(stream, path)
        stream.attach(content, key, path)
        self.used(stream)
        stream.restored = stream.sought_until = None
        stream.live = path in self.found.files
        stream.grew_at = now
        self.by_key[key] = stream
        self.aliases.pop(key, None)
        self.clear_of_suspicion(key)
        self.turns += 1
        _log.log(level, "the rest of it is read from %s, from byte %d on", path, stream.read_by_all)
        self.wake(stream)

    def suspect(self, key: Key, suspect: CopyCandidate) -> None:
        """Leave a file alone while it only repeats another."""
        self.clear_of_suspicion(key)
        self.suspects[key] = suspect

    def clear_of_suspicion(self, key: Key) -> None:
        """It is known by now what the file is."""
        suspect = self.suspects.pop(key, None)
        if suspect is not None and suspect.content is not None:
            suspect.content.close()

    def bury(self, stream: LogStream) -> None:
        """There is no file any more. The stream is remembered, to recognise a copy of it that appears later."""
        self.close_file(stream)
        self.unlink(stream)
        stream.live, stream.deleted = False, True
        stream.gone = time.time()
        self.turns += 1

    def tidy(self, there: Container[Key]) -> None:
        """Forget what was known of files that are not there any more."""
        self.aliases = {key: s for key, s in self.aliases.items() if key in there}
        # One that is held open is judged on without a name: somebody may still write to it.
        gone = [k for k, s in self.suspects.items() if k not in there and s.content is None]
        for key in gone:
            self.clear_of_suspicion(key)

    def close(self) -> None:
        """Close all files."""
        for stream in self.streams:
            self.close_file(stream)
        for key in list(self.suspects):
            self.clear_of_suspicion(key)

    def _join_family(self, stream: LogStream) -> None:
        directory, name = os.path.split(stream.path)
        family = self.families.setdefault(_core(stream.path), {}).setdefault(directory, {})
        family.setdefault(fingerprint.plain_name(name), {})[stream] = None

    def _leave_family(self, stream: LogStream) -> None:
        directory, name = os.path.split(stream.path)
        families = self.families[_core(stream.path)]
        del families[directory][fingerprint.plain_name(name)][stream]
        # Groups stay as long as the family: that there was a log of the bare name is remembered.
        if not any(families[directory].values()):
            del families[directory]
        if not families:
            del self.families[_core(stream.path)]

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
            stream.file_id, stream.gone = entry.file_id, entry.gone
            stream.modified_ns = stream.met_ns = entry.modified_ns
            for lane in self.lanes:
                place = entry.places.get(lane) or min(
                    entry.places.values(), key=lambda p: p.offset, default=fingerprint.Position(0)
                )
                stream.cursors[lane] = ReadPosition(place.offset)
                stream.windows[lane] = OffsetWindow(place)
            # Until its bytes are at hand it is recognised by what the checkpoint knows of them.
            stream.restored = entry.furthest
            self.add(stream)

    def entries(self) -> Iterator[checkpoint.FileState]:
        """Yield what a checkpoint should keep."""
        return map(_entry, self.streams)

    # -- over a new configuration

    def unnamed(self) -> Iterator[LogStream]:
        """Yield the streams whose open file nobody finds any more: deleted, or moved out of sight."""
        for stream in self.streams:
            content = stream.content
            if content is None:
                continue
            deleted = stream.deleted or os.fstat(content.fd).st_nlink == 0
            if deleted or stream.key not in self.found.places:
                yield stream

    def surrender(self, stream: LogStream) -> tuple[checkpoint.FileState, Content]:
        """Let another roster have a stream's open file. The stream has none any more."""
        content, stream.content = stream.content, None
        if content is None:
            raise ValueError(f"{stream.path} is not open")
        self.recent.pop(stream, None)
        return _entry(stream), content

    def adopt(self, entry: checkpoint.FileState, content: Content, now: float) -> None:
        """Go on with a file that another roster has surrendered, at the position that was restored.

        A content that the checkpoint does not know is new to its sinks, and read from its beginning.
        """
        key = (entry.device, entry.inode)
        known = (s for s in self.streams if s.key == key and s.file_id == entry.file_id)
        stream = next((s for s in known if s.restored is not None), None)
        if stream is None:
            self.restore(checkpoint.State([replace(entry, places={})]))
            stream = self.streams[-1]
        self.settle(stream, content, key, entry.path, now)


def _entry(stream: LogStream) -> checkpoint.FileState:
    key = stream.key or (0, 0)
    return checkpoint.FileState(
        file_id=stream.file_id,
        path=stream.path,
        device=key[0],
        inode=key[1],
        head=stream.head,
        size=stream.size,
        places={lane: window.place for lane, window in stream.windows.items()},
        modified_ns=stream.met_ns or stream.modified_ns,
        gone=stream.gone,
    )


@functools.lru_cache(maxsize=10_000)
def _core(path: str) -> str:
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
