"""Which file holds which content, now: discovery, rotation, truncation, copies, restarts.

Everything here is decided by looking, never by an event: `look` compares what lies on the disk with what is known,
and may be called at any time, as often as one likes.

The cases, and what tells them apart:

    renamed                another name for the same device and inode
    copytruncate           the file does not hold any more what was read; a related file does: go on there
    deleted while open     no name left: read to the end, then forget after `rotate_wait` quiet seconds
    compressed             the decompressed content holds what was read: go on at the same offset
    inode reused, replaced same inode, other bytes: a new content, and the old one is searched for
    a copy of a living log a new file that repeats the beginning of one that is there: left alone while it does
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sidecar import _errors
from sidecar.logs import checkpoint, identity
from sidecar.logs import content as contents
from sidecar.logs.discovery import Discovery, Found, Key
from sidecar.logs.stream import Cursor, Stream
from sidecar.logs.window import AckWindow

_log = logging.getLogger(__name__)

_MOST_REMEMBERED = 1000
_REMEMBER = 86400.0
_GZIP_PATIENCE = 10.0
_FD_RESERVE = 64
_SEARCH = 5.0


@dataclass(frozen=True, slots=True)
class Habits:
    """When files are given up, and where reading begins."""

    from_end: bool = False
    rotate_wait: float = 30.0
    partial_timeout: float | None = 10.0
    group_timeout: float | None = None
    held_limit: int = 1 << 30
    max_open: int = 4096


@dataclass(slots=True)
class _Suspect:
    """A file that has so far repeated the beginning of another: a copy, most probably."""

    path: str
    of: Stream
    seen: tuple[int, ...]


@dataclass(slots=True)
class Tracker:
    """The streams of one collection."""

    discovery: Discovery
    lanes: tuple[str, ...]
    habits: Habits
    wake: Callable[[Stream], None]
    """Called for each stream that may have something to read."""
    lose: Callable[[str, int, str], None]
    """Called with reason, bytes and path for what can never be read."""
    streams: list[Stream] = field(default_factory=list)
    by_key: dict[Key, Stream] = field(default_factory=dict)
    found: Found = field(default_factory=Found)
    turns: int = 0
    """Grows whenever a stream begins, moves or ends: then a checkpoint is due even if nothing was acknowledged."""
    _aliases: dict[Key, Stream] = field(default_factory=dict)
    _suspects: dict[Key, _Suspect] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)
    _unmet: set[Key] = field(default_factory=set)
    _first: bool = True
    _resumed: bool = False

    # -- what is known from before

    def restore(self, state: checkpoint.State) -> None:
        """Take over the streams of a checkpoint. Their files are looked for by the next `look`."""
        self._resumed = bool(state.entries)
        for entry in state.entries:
            stream = Stream(
                entry.path,
                (entry.device, entry.inode),
                head=entry.head,
                size=entry.size,
                live=False,
            )
            stream.file_id, stream.gone = entry.file_id, entry.gone
            stream.modified_ns = entry.modified_ns
            for lane in self.lanes:
                place = entry.places.get(lane) or min(
                    entry.places.values(), key=lambda p: p.offset, default=identity.Place(0)
                )
                stream.cursors[lane] = Cursor(place.offset)
                stream.windows[lane] = AckWindow(place)
            self.streams.append(stream)
            # Until its bytes are at hand it is recognised by what the checkpoint knows of them.
            stream.restored = entry.furthest

    def entries(self) -> Iterator[checkpoint.Entry]:
        """Yield what a checkpoint should keep."""
        for stream in self.streams:
            key = stream.key or (0, 0)
            yield checkpoint.Entry(
                file_id=stream.file_id,
                path=stream.path,
                device=key[0],
                inode=key[1],
                head=stream.head,
                size=stream.size,
                places={lane: window.place for lane, window in stream.windows.items()},
                modified_ns=stream.modified_ns,
                gone=stream.gone,
            )

    # -- looking

    def look(self, now: float, suspicious: Iterable[str] = ()) -> None:
        """Compare everything with the disk. `now` is monotonic time."""
        before, self.found = self.found, self.discovery.scan(suspicious=suspicious)
        for stream in list(self.by_key.values()):
            if self.found is before and stream.content is not None:
                self._stat(
                    stream, now
                )  # no name has changed: a thousand quiet files must cost nothing
            else:
                self._refresh(stream, now)
        self._place_restored(now)
        strange = [
            (path, key)
            for path, key in self.found.files.items()
            if key not in self.by_key and key not in self._aliases
        ]
        for path, key in strange:
            if key not in self.by_key and key not in self._aliases:
                self._meet(path, key, now)
        for key in [key for key in self._suspects if key in self.found.places]:
            if key not in self.by_key:
                self._meet(self.found.places[key][0], key, now)
        self._catch_up(before, now)
        self._give_up(now)
        self._first = False

    def check(self, stream: Stream, now: float) -> None:
        """Look at one stream alone, after a hint that its file was written."""
        if stream.content is not None:
            self._stat(stream, now)

    def replaced(self, stream: Stream, now: float) -> None:
        """The file holds other bytes than those that were read: begin anew there, and search for the old ones."""
        content, key, path = stream.content, stream.key, stream.path
        if content is None or key is None:
            return
        stream.content = None
        fresh = Stream(path, key, live=stream.live, deleted=stream.deleted, grew_at=now)
        fresh.parent_id = stream.file_id or stream.parent_id
        fresh.content = contents.recognise(content.fd)
        self._begin(fresh, at_end=False)
        self.by_key[key] = fresh
        stream.key, stream.live = None, False
        stream.restored, stream.sought = stream.furthest, "truncated"
        _log.info("%s was truncated or replaced; reading it from the beginning", path)
        self._continue_elsewhere(stream, now)
        self._touch(fresh)

    # -- one stream

    def _refresh(self, stream: Stream, now: float) -> None:
        key = stream.key
        names = self.found.places.get(key, []) if key is not None else []
        if names and stream.path not in names:
            globbed = [name for name in names if name in self.found.files]
            stream.path = (globbed or names)[0]
        stream.live = any(name in self.found.files for name in names)
        if stream.content is None:
            stream.deleted = not names
            self._reopen_if_grown(stream, now)
        else:
            self._stat(stream, now)

    def _stat(self, stream: Stream, now: float) -> None:
        content = stream.content
        if content is None:
            return
        try:
            status = os.fstat(content.fd)
        except OSError as error:
            _log.warning("cannot look at %s: %s", stream.path, error)
            return
        stream.deleted = status.st_nlink == 0
        changed = (status.st_size, status.st_mtime_ns)
        if changed == stream.changed:
            return
        stream.changed, stream.grew_at = changed, now
        if not content.compressed:
            stream.modified_ns = max(stream.modified_ns, status.st_mtime_ns)
            if any(status.st_size < cursor.offset for cursor in stream.cursors.values()):
                self.replaced(stream, now)
                return
            stream.size = status.st_size
        was_empty = stream.head.length == 0
        if not stream.learn_head(status.st_size):
            self.replaced(stream, now)
            return
        if was_empty and stream.head.length and self._turns_out_a_copy(stream, status, now):
            return
        self._touch(stream)

    def _turns_out_a_copy(self, stream: Stream, status: os.stat_result, now: float) -> bool:
        """Empty when it was met, and now it begins to repeat another file: give it up again, unread."""
        content, key = stream.content, stream.key
        if content is None or key is None or not stream.read_by_none:
            return False
        self.streams.remove(stream)
        del self.by_key[key]
        if self._is_past(stream.path, key, content, status, now):
            stream.content = (
                None  # it is another's now, or closed: who was woken already must find nothing here
            )
            self.turns += 1
            return True
        self.streams.append(stream)
        self.by_key[key] = stream
        return False

    def _reopen_if_grown(self, stream: Stream, now: float) -> None:
        """A file that was closed for want of descriptors, or because it was quiet, has it grown?"""
        try:
            status = os.stat(stream.path)
            if (status.st_dev, status.st_ino) != stream.key:
                return
            changed = (status.st_size, status.st_mtime_ns)
            if changed == stream.changed:
                return
            opened = self._open(stream.path)
        except OSError:
            return
        if opened is None:
            return
        content, status = opened
        if (status.st_dev, status.st_ino) != stream.key:
            content.close()
            return
        stream.content = content
        stream.changed, stream.grew_at = changed, now
        if not stream.is_intact():
            self.replaced(stream, now)
            return
        stream.size = max(stream.size, status.st_size)
        self._touch(stream)

    def _continue_elsewhere(self, stream: Stream, now: float) -> None:
        """Search for the file in which the content of `stream` lives on, and go on there."""
        # Nothing read, and hardly anything known: what fits fits by chance, and is read from its beginning anyway.
        unknown = stream.read_by_none and stream.head.length < identity.EVIDENCE
        related = [] if unknown else self._related(stream.path)
        found = self._first_that(related, stream.is_continued_by)
        if found is None and (found := self._first_that(related, stream.ends_early_in)):
            stream.shorten(found[0])
        if found is not None:
            self._settle(stream, *found, now)
            return
        if stream.sought_until is None:
            stream.sought_until = now + _SEARCH
        if now < stream.sought_until and not unknown:
            return
        missing = stream.size - stream.read_by_all
        if missing > 0:
            self.lose(stream.sought, missing, stream.path)
        self._bury(stream)

    def _first_that(
        self, paths: Iterable[str], fits: Callable[[contents.Content], bool]
    ) -> tuple[contents.Content, Key, str] | None:
        """Open the files that no stream has, one after the other, until one fits."""
        for path in paths:
            key = self._key_of(path)
            if key is None or key in self.by_key or (opened := self._open(path)) is None:
                continue
            content, status = opened
            key = (status.st_dev, status.st_ino)
            if key not in self.by_key and fits(content):
                return content, key, path
            content.close()
        return None

    def _related(self, path: str) -> list[str]:
        """The files that may be the rotated past of `path`, the youngest first."""
        name = os.path.basename(path)
        names = [
            p
            for p in self.discovery.siblings(path)
            if identity.are_related(name, os.path.basename(p))
        ]
        return sorted(names, key=_modified_ns, reverse=True)

    def _settle(
        self, stream: Stream, content: contents.Content, key: Key, path: str, now: float
    ) -> None:
        self.turns += 1
        stream.attach(content, key, path)
        stream.restored = stream.sought_until = None
        stream.live = path in self.found.files
        stream.grew_at = now
        self.by_key[key] = stream
        self._aliases.pop(key, None)
        self._suspects.pop(key, None)
        _log.info("the rest of it is read from %s, from byte %d on", path, stream.read_by_all)
        self._touch(stream)

    def _touch(self, stream: Stream) -> None:
        self.wake(stream)

    # -- files that are not known yet

    def _place_restored(self, now: float) -> None:
        """Find the files of restored streams: first where they were, then where rotation may have put them."""
        waiting = [s for s in self.streams if s.restored is not None and s.gone is None]
        # Who has read most can be told from others best, and chooses first.
        waiting.sort(key=lambda s: s.read_by_all, reverse=True)
        strangers = [stream for stream in waiting if not self._find_by_key(stream, now)]
        for stream in strangers:
            self._continue_elsewhere(stream, now)

    def _find_by_key(self, stream: Stream, now: float) -> bool:
        """Look under the device and inode it had. True also if that has to be done once more."""
        key = stream.key
        if key is None or key in self.by_key or key not in self.found.places:
            return False
        opened = self._open(self.found.places[key][0])
        if opened is not None:
            content, status = opened
            if (status.st_dev, status.st_ino) == key:
                if self._is_itself(stream, content):
                    self._settle(stream, content, key, self.found.places[key][0], now)
                    return True
                content.close()
                return False
            content.close()
        # Renamed since the names were listed: the next look knows its new one.
        if stream.sought_until is None:
            stream.sought_until = now + _SEARCH
        return now < stream.sought_until

    def _is_itself(self, stream: Stream, content: contents.Content) -> bool:
        """Whether the file under the restored device and inode still holds the restored content."""
        # One that was empty then may be anything by now, a copy for example: it is met as if for the first time.
        return stream.head.length > 0 and stream.is_continued_by(content)

    def _is_next_home(self, stream: Stream, path: str, content: contents.Content) -> bool:
        """Whether a file that just appeared holds the content of a stream that has lost its own."""
        if path == stream.path and not content.compressed and stream.size < identity.EVIDENCE:
            # Deleted and begun again with the same few bytes: rather read them twice than never.
            return False
        return stream.is_held_by(content)

    def _meet(self, path: str, key: Key, now: float) -> None:
        """A file that belongs to no stream: a new log, a copy, a compressed past, or a stream's next home."""
        suspect = self._suspects.get(key)
        if (
            suspect is not None
            and suspect.seen == self._seen(path)
            and suspect.of.content is not None
        ):
            return
        opened = self._open(path)
        if opened is None:
            self._unmet.add(key)
            return
        content, status = opened
        actual = (status.st_dev, status.st_ino)
        if actual != key:
            # Renamed since the names were listed: under its next name, then.
            self._unmet.add(key)
            content.close()
            self.discovery.compare(path, actual)
            return
        if self._is_past(path, key, content, status, now):
            return
        self._suspects.pop(key, None)
        stream = Stream(path, key, content=content, grew_at=now)
        at_end = self.habits.from_end and self._first and not self._resumed
        self._begin(stream, at_end=at_end, judged=status.st_size)
        self.by_key[key] = stream
        _log.info("reading %s", path)
        self._stat(stream, now)

    def _is_past(
        self, path: str, key: Key, content: contents.Content, status: os.stat_result, now: float
    ) -> bool:
        """Whether the file is (or may soon turn out to be) what another stream has read. Takes `content` if so."""
        if content.compressed and self._compressing(path, content, status):
            content.close()
            return True
        name = os.path.basename(path)
        related = [s for s in self.streams if identity.are_related(name, os.path.basename(s.path))]
        for stream in related:
            if not stream.is_intact():
                # Truncated unnoticed: this may be its copy, and there is a new stream to compare with.
                self.replaced(stream, now)
                if key in self.by_key:
                    content.close()
                    return True
                return self._is_past(path, key, content, status, now)
        if any(self._takes_over(stream, path, key, content, now) for stream in related):
            return True
        if any(self._repeats(stream, path, key, content, status) for stream in related):
            return True
        if all(stream.is_intact() for stream in related):
            return False
        # Truncated while we compared: once more.
        return self._is_past(path, key, content, status, now)

    def _takes_over(
        self, stream: Stream, path: str, key: Key, content: contents.Content, now: float
    ) -> bool:
        """Whether the stream has lost its file, and goes on in this one."""
        homeless = stream.gone is not None or stream.deleted or stream.restored is not None
        if not homeless or not self._is_next_home(stream, path, content):
            return False
        if stream.key is not None and self.by_key.get(stream.key) is stream:
            del self.by_key[stream.key]
        self._settle(stream, content, key, path, now)
        return True

    def _repeats(
        self,
        stream: Stream,
        path: str,
        key: Key,
        content: contents.Content,
        status: os.stat_result,
    ) -> bool:
        """Whether the file only repeats what the stream reads from its own."""
        original = stream.content
        if original is None:
            return False
        if content.compressed:
            if not stream.is_held_by(content) and not _is_archived_copy(content, original):
                return False
            self._aliases[key] = stream
        elif stream.deleted and path == stream.path:
            return False
        elif identity.is_copy(content, status.st_size, original):
            self._suspects[key] = _Suspect(path, stream, _signature(status))
        else:
            return False
        content.close()
        return True

    def _catch_up(self, before: Found, now: float) -> None:
        """Rotated between two looks (or while we were away): what rotation put outside the patterns is read too.

        Such a file appeared since the last look, or, at the first one, is not older than what the checkpoint knows,
        and its name says that it belongs to a log that we follow.
        """
        if self.found is before and not self._unmet:
            return
        known: dict[str, int] = {}
        for stream in self.streams:
            core = identity.core_name(os.path.basename(stream.path))
            known[core] = min(known.get(core, stream.modified_ns), stream.modified_ns)
        appeared = []
        unmet, self._unmet = self._unmet, set()
        for key in unmet | (self.found.places.keys() - before.places.keys()):
            if key not in self.found.places:
                continue  # when it is listed again, it appears again
            path = self.found.places[key][0]
            core = identity.core_name(os.path.basename(path))
            if core in known and key not in self.by_key and key not in self._aliases:
                try:
                    status = os.stat(path)
                except OSError:
                    self._unmet.add(key)  # renamed since it was listed
                    continue
                # An empty one may be a copy that has just been begun: nothing in it can be read twice.
                young = status.st_mtime_ns >= known[core] or not status.st_size
                if not self._first or key in unmet or young:
                    appeared.append((status.st_mtime_ns, path, key))
        for _, path, key in sorted(appeared):
            if path in self.found.files:
                if key in unmet:
                    self._unmet.add(key)  # tried under that name in this very look
            elif key not in self.by_key:
                self._meet(path, key, now)

    def _compressing(self, path: str, content: contents.Content, status: os.stat_result) -> bool:
        """Whether the archive may still be in the making: it is young, and its source is there."""
        plain, extension = os.path.splitext(path)
        if not extension or time.time() - status.st_mtime > _GZIP_PATIENCE:
            return False
        if self._key_of(plain) is None or (opened := self._open(plain)) is None:
            return False
        source = opened[0]
        try:
            head = content.read(0, identity.HEAD)
            return source.read(0, len(head)) == head
        finally:
            source.close()

    def _begin(self, stream: Stream, *, at_end: bool, judged: int = identity.HEAD) -> None:
        content = stream.content
        if content is None:
            return
        size = os.fstat(content.fd).st_size
        # No more of it than was judged: a copy that was empty a moment ago may be complete by now.
        known = identity.HEAD if content.compressed else min(judged, identity.HEAD)
        stream.head_bytes = content.read(0, known)
        stream.head = identity.Print.of(stream.head_bytes)
        offset, mark = 0, b""
        if at_end and not content.compressed:
            # From the beginning of the last line on, if it is not complete.
            offset = _after_last_newline(content, size)
            start = max(offset - identity.MARK, 0)
            mark = content.read(start, offset - start)
        for lane in self.lanes:
            stream.cursors[lane] = Cursor(offset, mark)
            stream.windows[lane] = AckWindow(identity.Place.of(offset, mark))
        self.streams.append(stream)
        self.turns += 1

    # -- letting go

    def _give_up(self, now: float) -> None:
        """Flush what waits for no one, close what is finished, forget what is long gone."""
        for stream in list(self.streams):
            if stream.content is None:
                continue
            quiet = now - stream.grew_at
            self._flush_held(stream, quiet)
            if stream.live and not stream.deleted:
                continue
            if quiet < self.habits.rotate_wait or not self._is_finished(stream):
                continue
            if stream.deleted or stream.key not in self.found.places:
                self._bury(stream)
            else:
                stream.detach()  # looked at by its path from now on
        self._limit_held()
        self._forget()
        self._limit_open()

    def _flush_held(self, stream: Stream, quiet: float) -> None:
        for cursor in stream.cursors.values():
            if not cursor.held or cursor.flush:
                continue
            past = stream.deleted or not stream.live
            limit = self.habits.rotate_wait if past else self.habits.partial_timeout
            group = self.habits.group_timeout
            if (limit is not None and quiet >= limit) or (group is not None and quiet >= group):
                cursor.flush = True
                self._touch(stream)

    def _is_finished(self, stream: Stream) -> bool:
        if not stream.settled or any(c.held for c in stream.cursors.values()):
            return False
        content = stream.content
        if content is not None and content.compressed:
            return all(cursor.at_end for cursor in stream.cursors.values())
        return stream.read_by_all >= stream.size

    def _bury(self, stream: Stream) -> None:
        """There is no file any more. Remembered for a day, to recognise a copy of it that appears later."""
        self.turns += 1
        stream.detach()
        if stream.key is not None and self.by_key.get(stream.key) is stream:
            del self.by_key[stream.key]
        stream.live, stream.deleted = False, True
        stream.gone = time.time()

    def _limit_held(self) -> None:
        """Deleted files whose space only we keep in use must not fill the volume."""
        held = [s for s in self.streams if s.deleted and s.content is not None]
        total = sum(s.size - s.read_by_all for s in held)
        for stream in held:
            if total <= self.habits.held_limit:
                return
            unread = stream.size - stream.read_by_all
            total -= unread
            _log.error(
                "giving up %d unread bytes of the deleted file %s: more than %d bytes of deleted files"
                " would be kept in use (raise held_limit, or mend the sink)",
                unread,
                stream.path,
                self.habits.held_limit,
            )
            self.lose("deleted", unread, stream.path)
            self._bury(stream)

    def _forget(self) -> None:
        gone = [s for s in self.streams if s.gone is not None and s.settled]
        old = time.time() - _REMEMBER
        surplus = len(gone) - _MOST_REMEMBERED
        for index, stream in enumerate(gone):
            if index < surplus or (stream.gone or 0) < old:
                self.streams.remove(stream)
        there = self.found.places
        self._aliases = {key: s for key, s in self._aliases.items() if key in there}
        self._suspects = {key: s for key, s in self._suspects.items() if key in there}
        for stream in [s for s in self.streams if s.content is None and s.gone is None]:
            if stream.key not in there and stream.restored is None:
                self._bury(stream)

    def _limit_open(self) -> None:
        opened = [s for s in self.streams if s.content is not None]
        if len(opened) > self.habits.max_open:
            self._make_room(len(opened) - self.habits.max_open)

    def _make_room(self, count: int) -> bool:
        """Close files that are quiet and read; they are opened again when they grow."""
        idle = [
            s
            for s in self.streams
            if s.content is not None
            and not s.deleted
            and s.key in self.found.places
            and not s.content.compressed
            and s.read_by_all >= s.size
            and s.changed
        ]
        idle.sort(key=lambda s: s.grew_at)
        for stream in idle[:count]:
            stream.detach()
        return bool(idle)

    # -- the disk

    def _open(self, path: str) -> tuple[contents.Content, os.stat_result] | None:
        """Open a file, or say once why it cannot be."""
        try:
            fd = self._open_fd(path)
        except (OSError, _errors.ReadError) as error:
            if not isinstance(error, FileNotFoundError):
                self._refuse(path, str(error))
            return None
        self._refused.pop(path, None)
        try:
            return contents.recognise(fd), os.fstat(fd)
        except OSError as error:
            os.close(fd)
            self._refuse(path, str(error))
            return None

    def _open_fd(self, path: str) -> int:
        try:
            return self.discovery.open(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._make_room(_FD_RESERVE):
                raise
        return self.discovery.open(path)

    def _refuse(self, path: str, reason: str) -> None:
        if self._refused.get(path) != reason:
            self._refused[path] = reason
            _log.warning("cannot read %s: %s; trying again later", path, reason)

    def _key_of(self, path: str) -> Key | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None

    def _seen(self, path: str) -> tuple[int, ...] | None:
        try:
            return _signature(os.stat(path))
        except OSError:
            return None


def _is_archived_copy(archive: contents.Content, original: contents.Content) -> bool:
    """Whether an archive holds the beginning of a living log (`copy` with `compress`)."""
    if not isinstance(archive, contents.Gzip) or original.compressed:
        return False
    head = archive.read(0, identity.HEAD)
    if not head or original.read(0, len(head)) != head:
        return False
    return identity.is_copy(archive, archive.measure(), original)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _modified_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _after_last_newline(content: contents.Content, size: int) -> int:
    step = 1 << 16
    end = size
    while end > 0:
        start = max(end - step, 0)
        found = content.read(start, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
