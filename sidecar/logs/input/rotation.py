"""Which file holds which content, now: discovery, rotation, truncation, copies, restarts.

Everything here is decided by looking, never by an event: `look` compares what lies on the disk with what is known,
and may be called at any time, as often as one likes.

The cases, and what tells them apart:

    renamed                another name for the same device and inode
    copytruncate           the file does not hold any more what was read; a related file does: go on there
    deleted while open     no name left: read to the end, then forget after `rotate_wait` quiet seconds
    compressed             the decompressed content holds what was read: go on at the same offset
    inode reused, replaced same inode, other bytes: a new content, and the old one is searched for
    a copy of a living log a new file that repeats the beginning of one that is there, by a name that rotation gives:
                           left alone while it does, for a while

This file looks, and has the work done: `roster` keeps the books, `opening` opens, `searching` finds a content its next
file, `strangers` tells a new log from an old one's past, `retiring` decides what may go.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable

from sidecar.logs.input import close_policy, deletion
from sidecar.logs.input.archives import Unreadable
from sidecar.logs.input.checkpoint import State
from sidecar.logs.input.classify import FileClassifier, NewFile
from sidecar.logs.input.close_policy import TailPolicy
from sidecar.logs.input.discovery import Discovery, Key, ScanIndex
from sidecar.logs.input.file_reader import LogStream
from sidecar.logs.input.log_once import LogOnce
from sidecar.logs.input.opener import Opener
from sidecar.logs.input.registry import StreamRegistry
from sidecar.logs.input.relocate import Relocator

_log = logging.getLogger(__name__)

_MOST_AT_ONCE = 256
"""Files that one look opens for the first time: some hundredths of a second."""


class RotationTracker:
    """Keeps the streams of one collection to the files that hold them.

    `wake` is called for each stream that may have something to read, `lose` with reason, bytes and path
    for what can never be read.
    """

    def __init__(
        self,
        discovery: Discovery,
        lanes: tuple[str, ...],
        habits: TailPolicy,
        *,
        wake: Callable[[LogStream], None],
        lose: Callable[[str, int, str], None],
    ) -> None:
        self.roster = StreamRegistry(lanes, wake, lose, archives=discovery.beside)
        self._discovery, self._habits = discovery, habits
        self._opener = Opener(discovery, self._make_room, habits.max_open)
        self._search = Relocator(self.roster, self._opener)
        self._strangers = FileClassifier(self.roster, self._opener, self._search)
        self._removals = LogOnce(_log, "delete")
        self._unmet: set[Key] = set()
        """Files that could not be looked at, for their names were moving: the next look tries again."""
        self._without_log: set[Key] = set()
        """Files that appeared beside no log, while one could not be opened: it may be theirs."""
        self._first, self._resumed = True, False
        self._there_at_first: set[Key] = set()
        """What was there at the very first start."""
        self._before = self.roster.found
        self._suspicious: set[str] = set()
        self._restoring = False
        self._to_meet: list[tuple[str, Key]] = []
        """What the present look has still to open, the next one at the end."""

    @property
    def refusals(self) -> LogOnce:
        """The files that could not be opened."""
        return self._opener.refusals

    def restore(self, state: State) -> None:
        """Take over the streams of a checkpoint. Their files are looked for by the next `look`."""
        self._resumed = state.saved
        self.roster.restore(state)

    @property
    def incomplete(self) -> bool:
        """The last look has left files for the next one, which is due at once."""
        return self._restoring or bool(self._to_meet)

    def look(self, now: float, suspicious: Iterable[str] = ()) -> None:
        """Compare everything with the disk. `now` is monotonic time.

        A thousand new files are not met in one call: lines flow meanwhile, and a signal is heard.
        """
        self._suspicious.update(suspicious)
        if not self.incomplete:
            self._survey(now)
        self._restoring = not self._search.place_restored(now, _MOST_AT_ONCE)
        if not self._restoring and self._meet_strangers(now):
            self._conclude(now)

    def _survey(self, now: float) -> None:
        """List all names, and look at the files that are known."""
        roster = self.roster
        for stream in roster.streams:
            stream.looked_ns = stream.modified_ns
        suspicious, self._suspicious = self._suspicious, set()
        self._before, roster.found = roster.found, self._discovery.scan(suspicious=suspicious)
        if self._first:
            self._there_at_first = set() if self._resumed else set(roster.found.files.values())
        for stream in list(roster.by_key.values()):
            if roster.found is not self._before or stream.content is None:
                self._refresh(stream, now)
            else:  # no name has changed: a thousand quiet files must cost nothing
                self.check(stream, now)
        self._to_meet = self._unknown_files()

    def _conclude(self, now: float) -> None:
        """Every file has been met."""
        self._catch_up(self._before, now)
        if not self._unmet:
            for stream in self.roster.streams:
                stream.met_ns = stream.looked_ns or stream.modified_ns
        self._let_go(now)
        self._first, self._there_at_first = False, set()

    def check(self, stream: LogStream, now: float) -> None:
        """Look at one stream alone, after a hint that its file was written."""
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
            stream.size, stream.reserved = status.st_size, None
        was_empty = stream.head.length == 0
        try:
            intact = stream.learn_head(status.st_size)
        except Unreadable as error:  # empty when it was met, and compressed
            self._opener.refusals.note(stream.path, error)
            self.roster.close_file(stream)
            self.roster.remove(stream)
            return
        if not intact:
            self.replaced(stream, now)
            return
        if was_empty and stream.head.length and self._turns_out_a_copy(stream, status, now):
            return
        self.roster.wake(stream)

    def reopen(self, stream: LogStream) -> bool:
        """Open the file of a stream, if it was closed. False if there is nothing to read from just now."""
        return self._search.reopen(stream)

    def replaced(self, stream: LogStream, now: float) -> None:
        """The file holds other bytes than those that were read: begin anew there, and search for the old ones."""
        self._search.replaced(stream, now)

    def tell_if_cut_off(self, stream: LogStream) -> None:
        """Say once that an archive ends too early: what it lacks cannot be told from what was never written."""
        content = stream.content
        if content is not None and not content.reported and content.cut_off:
            content.reported = True
            _log.warning(
                "%s is cut off, or still being written: its compressed data ends in the middle, after %d bytes of lines; it is read on if it grows",
                stream.path,
                stream.size,
            )

    def end_patience(self, now: float) -> None:
        """Deliver what may be a copy: there is no later look that could tell."""
        self._strangers.patient = False
        self._meet_suspects(now)

    def remove_delivered(self, now: float) -> None:
        """Delete the files of which all is delivered, if that is wanted; what is written to one later is still read."""
        wait = self._habits.remove_after
        if wait is None:
            return
        for stream in close_policy.removable(self.roster.streams, wait, now):
            path, key = stream.path, stream.key
            # Open, so that nothing is lost of what a writer adds that has it open.
            if path not in self.roster.found.files or key is None or not self.reopen(stream):
                continue
            if stream.has_writer():
                continue
            try:
                if deletion.delete_delivered(path, key, stream.changed):
                    stream.deleted = True
                    _log.info("deleted %s: all of it is delivered", path)
            except OSError as error:
                self._removals.note(path, error)

    # -- files that are known

    def _refresh(self, stream: LogStream, now: float) -> None:
        """Learn the present names of a file, and look at it."""
        found = self.roster.found
        names = found.places.get(stream.key, []) if stream.key is not None else []
        if names and stream.path not in names:
            matching = [name for name in names if name in found.files]
            self.roster.rename(stream, (matching or names)[0])
        stream.live = any(name in found.files for name in names)
        if stream.content is None:
            stream.deleted = not names
            self._reopen_if_grown(stream, now)
        else:
            self.check(stream, now)

    def _turns_out_a_copy(self, stream: LogStream, status: os.stat_result, now: float) -> bool:
        """Empty when it was met, and now it begins to repeat another file: give it up again, unread."""
        content, key = stream.content, stream.key
        if content is None or key is None or not stream.read_by_none:
            return False
        self.roster.remove(stream)
        self.roster.turns += 1
        if self._strangers.is_past(NewFile(stream.path, key, content, status), now):
            # It is another's now, or closed: who was woken already must find nothing here.
            stream.content = None
            return True
        self.roster.add(stream)
        return False

    def _reopen_if_grown(self, stream: LogStream, now: float) -> None:
        """A file that was closed for want of descriptors, or because it was quiet, has it grown?"""
        try:
            status = os.stat(stream.path)
        except OSError:
            return
        changed = (status.st_size, status.st_mtime_ns)
        if (status.st_dev, status.st_ino) != stream.key or changed == stream.changed:
            return
        if not self._search.reopen(stream):
            return
        if not stream.is_intact():
            self.replaced(stream, now)
            return
        # As any that has grown: one that was empty is judged by its first bytes now.
        self.check(stream, now)

    # -- files that are not known yet

    def _unknown_files(self) -> list[tuple[str, Key]]:
        roster = self.roster
        strange = [(p, key) for p, key in roster.found.files.items() if not roster.knows(key)]
        # The original before its copy: it is the longer one, or has the shorter name.
        return sorted(strange, key=lambda one: (_size(one[0]), -len(one[0])))

    def _meet_strangers(self, now: float) -> bool:
        """Open the files that belong to no stream. Return whether none is left."""
        roster = self.roster
        for _ in range(min(_MOST_AT_ONCE, len(self._to_meet))):
            path, key = self._to_meet.pop()
            if not roster.knows(key):
                self._meet(path, key, now)
        if self._to_meet:
            return False
        self._meet_suspects(now)
        return True

    def _meet_suspects(self, now: float) -> None:
        roster = self.roster
        for key, suspect in list(roster.suspects.items()):
            if key in roster.by_key:
                continue
            if key in roster.found.places:
                self._meet(roster.found.places[key][0], key, now)
            elif suspect.content is not None:
                # It has lost its name before it was clear what it is.
                content, suspect.content = suspect.content, None
                self._judge(NewFile(suspect.path, key, content, os.fstat(content.fd)), now)

    def _meet(self, path: str, key: Key, now: float) -> None:
        """A file that belongs to no stream: a new log, a copy, a compressed past, or a stream's next home."""
        if self._strangers.is_unchanged_suspect(path, key, now):
            return
        opened = self._opener.open(path)
        if opened is None:
            self._unmet.add(key)
            return
        content, status = opened
        actual = (status.st_dev, status.st_ino)
        if actual != key:
            # Renamed since the names were listed: under its next name, then.
            self._unmet.add(key)
            content.close()
            return
        self._judge(NewFile(path, key, content, status), now)

    def _judge(self, stranger: NewFile, now: float) -> None:
        if self._strangers.is_past(stranger, now):
            return
        stream = LogStream(stranger.path, stranger.key, content=stranger.content, grew_at=now)
        at_end = stranger.key in self._there_at_first and self._is_skipped(stranger.status)
        self.roster.begin(stream, at_end=at_end, judged=stranger.status.st_size)
        _log.info("reading %s", stranger.path)
        self.check(stream, now)

    def _is_skipped(self, status: os.stat_result) -> bool:
        """Whether nobody wants what a file held at the very first start."""
        oldest = self._habits.ignore_older
        too_old = oldest is not None and time.time() - status.st_mtime > oldest
        return self._habits.from_end or too_old

    def _catch_up(self, before: ScanIndex, now: float) -> None:
        """Rotated between two looks (or while we were away): what rotation put outside the patterns is read too.

        Such a file appeared since the last look, or, at the first one, is not older than what the checkpoint knows,
        and its name says that it belongs to a log that we follow.
        """
        roster = self.roster
        if roster.found is before and not self._unmet and not self._without_log:
            return
        unmet, self._unmet = self._unmet, set()
        for path, key in self._appeared(before, unmet):
            if path in roster.found.files:
                if key in unmet:
                    self._unmet.add(key)  # tried under that name in this very look
            elif key not in roster.by_key:
                self._meet(path, key, now)

    def _appeared(self, before: ScanIndex, unmet: set[Key]) -> list[tuple[str, Key]]:
        """The files that nobody reads, and that rotation may have made since the last look, the oldest first."""
        roster = self.roster
        appeared = []
        earlier, self._without_log = self._without_log, set()
        for key in unmet | earlier | (roster.found.places.keys() - before.places.keys()):
            if key not in roster.found.places:
                continue  # when it is listed again, it appears again
            path = roster.found.places[key][0]
            relatives = roster.relatives(path)
            if roster.knows(key):
                continue
            if not relatives and key not in unmet:
                if unmet:
                    self._without_log.add(key)
                continue
            try:
                status = os.stat(path)
            except OSError:
                self._unmet.add(key)  # renamed since it was listed
                continue
            # An empty one may be a copy that has just been begun: nothing in it can be read twice.
            known = min([stream.looked_ns or stream.modified_ns for stream in relatives], default=0)
            young = status.st_mtime_ns >= known or not status.st_size
            if not self._first or key in unmet or young:
                appeared.append((status.st_mtime_ns, path, key))
        return [(path, key) for _, path, key in sorted(appeared)]

    # -- letting go

    def _let_go(self, now: float) -> None:
        """Flush what waits for no one, close what is finished, forget what is long gone."""
        roster, habits = self.roster, self._habits
        for stream in [s for s in roster.streams if s.content is not None]:
            for cursor in close_policy.timed_out_partials(stream, habits, now):
                cursor.flush = True
                roster.wake(stream)
            if now - stream.grew_at >= habits.rotate_wait:
                self.tell_if_cut_off(stream)
            if close_policy.is_finished(stream, habits, now):
                if stream.deleted or stream.key not in roster.found.places:
                    roster.bury(stream)
                else:
                    roster.close_file(stream)  # looked at by its path from now on
        self._limit_held()
        for stream in close_policy.expired(roster.streams, time.time()):
            roster.remove(stream)
        roster.tidy(roster.found.places)
        for stream in close_policy.unlinked(roster.streams, roster.found.places):
            if (unread := stream.written - stream.read_by_all) > 0:
                roster.lose("deleted", unread, stream.path)
            roster.bury(stream)

    def _limit_held(self) -> None:
        """Deleted files whose space only we keep in use must not fill the volume."""
        limit = self._habits.held_limit
        for stream, unread in close_policy.over_held_limit(self.roster.streams, limit):
            _log.error(
                "giving up %d unread bytes of the deleted file %s: more than %d bytes of deleted files"
                " would be kept in use (raise held_limit, or mend the sink)",
                unread,
                stream.path,
                limit,
            )
            self.roster.lose("deleted", unread, stream.path)
            self.roster.bury(stream)

    def _make_room(self) -> bool:
        """Close files that were not needed for long; they are opened again when there is something to read."""
        closed = close_policy.idle(self.roster.recent, self.roster.found.places)
        for stream in closed:
            self.roster.close_file(stream)
        return bool(closed)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
