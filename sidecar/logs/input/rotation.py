"""Which file holds which content, now: discovery, rotation, truncation, copies, restarts.

Everything here is decided by looking, never by an event: `scan` compares what lies on the disk with what is known,
and may be called at any time, as often as one likes.

The cases, and what tells them apart:

    renamed                another name for the same device and inode
    copytruncate           the file does not hold any more what was read; a related file does: go on there
    deleted while open     no name left: read to the end, then forget after `rotate_wait` quiet seconds
    compressed             the decompressed content holds what was read: go on at the same offset
    inode reused, replaced same inode, other bytes: a new content, and the old one is searched for
    a copy of a living log a new file that repeats the beginning of one that is there, by a name that rotation gives:
                           left alone while it does, for a while

This file looks, and has the work done: `registry` keeps the books, `opening` opens, `searching` finds a content its next
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

_MAX_OPENS_PER_SCAN = 256
"""Files that one look opens for the first time: some hundredths of a second."""


class RotationTracker:
    """Keeps the streams of one collection to the files that hold them.

    `wake` is called for each stream that may have something to read, `record_loss` with reason, bytes and path
    for what can never be read.
    """

    def __init__(
        self,
        discovery: Discovery,
        sinks: tuple[str, ...],
        policy: TailPolicy,
        *,
        wake: Callable[[LogStream], None],
        record_loss: Callable[[str, int, str], None],
    ) -> None:
        self.registry = StreamRegistry(sinks, wake, record_loss, archives=discovery.archive_dirs)
        self._discovery, self._policy = discovery, policy
        self._opener = Opener(discovery, self._close_idle, policy.max_open)
        self._relocator = Relocator(self.registry, self._opener)
        self._classifier = FileClassifier(self.registry, self._opener, self._relocator)
        self._delete_errors = LogOnce(_log, "delete")
        self._unopened: set[Key] = set()
        """Files that could not be looked at, for their names were moving: the next look tries again."""
        self._without_base_log: set[Key] = set()
        """Files that appeared beside no log, while one could not be opened: it may be theirs."""
        self._first, self._resumed = True, False
        self._present_at_first_start: set[Key] = set()
        """What was there at the very first start."""
        self._previous_index = self.registry.index
        self._changed_directories: set[str] = set()
        self._restoring = False
        self._to_open: list[tuple[str, Key]] = []
        """What the present look has still to open, the next one at the end."""

    @property
    def errors(self) -> LogOnce:
        """The files that could not be opened."""
        return self._opener.errors

    def restore(self, state: State) -> None:
        """Take over the streams of a checkpoint. Their files are looked for by the next `scan`."""
        self._resumed = state.from_checkpoint
        self.registry.restore(state)

    @property
    def incomplete(self) -> bool:
        """The last look has left files for the next one, which is due at once."""
        return self._restoring or bool(self._to_open)

    def scan(self, now: float, changed_directories: Iterable[str] = ()) -> None:
        """Compare everything with the disk. `now` is monotonic time.

        A thousand new files are not met in one call: lines flow meanwhile, and a signal is heard.
        """
        self._changed_directories.update(changed_directories)
        if not self.incomplete:
            self._list_files(now)
        self._restoring = not self._relocator.locate_restored(now, _MAX_OPENS_PER_SCAN)
        if not self._restoring and self._open_new_files(now):
            self._finish_scan(now)

    def _list_files(self, now: float) -> None:
        """List all names, and look at the files that are known."""
        registry = self.registry
        for stream in registry.streams:
            stream.scan_started_ns = stream.modified_ns
        changed_directories, self._changed_directories = self._changed_directories, set()
        self._previous_index, registry.index = (
            registry.index,
            self._discovery.scan(changed_directories=changed_directories),
        )
        if self._first:
            self._present_at_first_start = (
                set() if self._resumed else set(registry.index.files.values())
            )
        for stream in list(registry.by_key.values()):
            if registry.index is not self._previous_index or stream.content is None:
                self._refresh(stream, now)
            else:  # no name has changed: a thousand quiet files must cost nothing
                self.check(stream, now)
        self._to_open = self._unknown_files()

    def _finish_scan(self, now: float) -> None:
        """Every file has been met."""
        self._find_rotated(self._previous_index, now)
        if not self._unopened:
            for stream in self.registry.streams:
                stream.last_complete_scan_ns = stream.scan_started_ns or stream.modified_ns
        self._close_finished(now)
        self._first, self._present_at_first_start = False, set()

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
        if changed == stream.size_and_mtime:
            return
        stream.size_and_mtime, stream.last_growth = changed, now
        if not content.compressed:
            stream.modified_ns = max(stream.modified_ns, status.st_mtime_ns)
            if any(status.st_size < cursor.offset for cursor in stream.cursors.values()):
                self.on_truncated(stream, now)
                return
            stream.size, stream.preallocated_from = status.st_size, None
        was_empty = stream.head.length == 0
        try:
            intact = stream.extend_fingerprint(status.st_size)
        except Unreadable as error:  # empty when it was met, and compressed
            self._opener.errors.log(stream.path, error)
            self.registry.close_file(stream)
            self.registry.remove(stream)
            return
        if not intact:
            self.on_truncated(stream, now)
            return
        if was_empty and stream.head.length and self._became_copy(stream, status, now):
            return
        self.registry.wake(stream)

    def reopen(self, stream: LogStream) -> bool:
        """Open the file of a stream, if it was closed. False if there is nothing to read from just now."""
        return self._relocator.reopen(stream)

    def on_truncated(self, stream: LogStream, now: float) -> None:
        """The file holds other bytes than those that were read: begin anew there, and search for the old ones."""
        self._relocator.on_truncated(stream, now)

    def warn_if_truncated(self, stream: LogStream) -> None:
        """Say once that an archive ends too early: what it lacks cannot be told from what was never written."""
        content = stream.content
        if content is not None and not content.reported and content.is_truncated:
            content.reported = True
            _log.warning(
                "%s is cut off, or still being written: its compressed data ends in the middle, after %d bytes of lines; it is read on if it grows",
                stream.path,
                stream.size,
            )

    def release_copies(self, now: float) -> None:
        """Deliver what may be a copy: there is no later look that could tell."""
        self._classifier.defers_copies = False
        self._recheck_copies(now)

    def remove_delivered(self, now: float) -> None:
        """Delete the files of which all is delivered, if that is wanted; what is written to one later is still read."""
        wait = self._policy.remove_after
        if wait is None:
            return
        for stream in close_policy.removable(self.registry.streams, wait, now):
            path, key = stream.path, stream.key
            # Open, so that nothing is lost of what a writer adds that has it open.
            if path not in self.registry.index.files or key is None or not self.reopen(stream):
                continue
            if stream.has_writer():
                continue
            try:
                if deletion.delete_delivered(path, key, stream.size_and_mtime):
                    stream.deleted = True
                    _log.info("deleted %s: all of it is delivered", path)
            except OSError as error:
                self._delete_errors.log(path, error)

    # -- files that are known

    def _refresh(self, stream: LogStream, now: float) -> None:
        """Learn the present names of a file, and look at it."""
        found = self.registry.index
        names = found.paths_by_inode.get(stream.key, []) if stream.key is not None else []
        if names and stream.path not in names:
            matching = [name for name in names if name in found.files]
            self.registry.rename(stream, (matching or names)[0])
        stream.live = any(name in found.files for name in names)
        if stream.content is None:
            stream.deleted = not names
            self._reopen_if_grown(stream, now)
        else:
            self.check(stream, now)

    def _became_copy(self, stream: LogStream, status: os.stat_result, now: float) -> bool:
        """Empty when it was met, and now it begins to repeat another file: give it up again, unread."""
        content, key = stream.content, stream.key
        if content is None or key is None or not stream.read_by_none:
            return False
        self.registry.remove(stream)
        self.registry.revision += 1
        if self._classifier.is_known_content(NewFile(stream.path, key, content, status), now):
            # It is another's now, or closed: who was woken already must find nothing here.
            stream.content = None
            return True
        self.registry.add(stream)
        return False

    def _reopen_if_grown(self, stream: LogStream, now: float) -> None:
        """A file that was closed for want of descriptors, or because it was quiet, has it grown?"""
        try:
            status = os.stat(stream.path)
        except OSError:
            return
        changed = (status.st_size, status.st_mtime_ns)
        if (status.st_dev, status.st_ino) != stream.key or changed == stream.size_and_mtime:
            return
        if not self._relocator.reopen(stream):
            return
        if not stream.is_intact():
            self.on_truncated(stream, now)
            return
        # As any that has grown: one that was empty is known_size by its first bytes now.
        self.check(stream, now)

    # -- files that are not known yet

    def _unknown_files(self) -> list[tuple[str, Key]]:
        registry = self.registry
        unknown = [
            (p, key) for p, key in registry.index.files.items() if not registry.contains(key)
        ]
        # The original before its copy: it is the longer one, or has the shorter name.
        return sorted(unknown, key=lambda one: (_size(one[0]), -len(one[0])))

    def _open_new_files(self, now: float) -> bool:
        """Open the files that belong to no stream. Return whether none is left."""
        registry = self.registry
        for _ in range(min(_MAX_OPENS_PER_SCAN, len(self._to_open))):
            path, key = self._to_open.pop()
            if not registry.contains(key):
                self._open_and_classify(path, key, now)
        if self._to_open:
            return False
        self._recheck_copies(now)
        return True

    def _recheck_copies(self, now: float) -> None:
        registry = self.registry
        for key, candidate in list(registry.copy_candidates.items()):
            if key in registry.by_key:
                continue
            if key in registry.index.paths_by_inode:
                self._open_and_classify(registry.index.paths_by_inode[key][0], key, now)
            elif candidate.content is not None:
                # It has lost its name before it was clear what it is.
                content, candidate.content = candidate.content, None
                self._classify(NewFile(candidate.path, key, content, os.fstat(content.fd)), now)

    def _open_and_classify(self, path: str, key: Key, now: float) -> None:
        """A file that belongs to no stream: a new log, a copy, a compressed past, or a stream's next home."""
        if self._classifier.is_unchanged_copy(path, key, now):
            return
        opened = self._opener.open(path)
        if opened is None:
            self._unopened.add(key)
            return
        content, status = opened
        actual = (status.st_dev, status.st_ino)
        if actual != key:
            # Renamed since the names were listed: under its next name, then.
            self._unopened.add(key)
            content.close()
            return
        self._classify(NewFile(path, key, content, status), now)

    def _classify(self, new_file: NewFile, now: float) -> None:
        if self._classifier.is_known_content(new_file, now):
            return
        stream = LogStream(new_file.path, new_file.key, content=new_file.content, last_growth=now)
        at_end = new_file.key in self._present_at_first_start and self._skips_existing(
            new_file.status
        )
        self.registry.add_new(stream, at_end=at_end, known_size=new_file.status.st_size)
        _log.info("reading %s", new_file.path)
        self.check(stream, now)

    def _skips_existing(self, status: os.stat_result) -> bool:
        """Whether nobody wants what a file held at the very first start."""
        oldest = self._policy.ignore_older
        too_old = oldest is not None and time.time() - status.st_mtime > oldest
        return self._policy.from_end or too_old

    def _find_rotated(self, before: ScanIndex, now: float) -> None:
        """Rotated between two looks (or while we were away): what rotation put outside the patterns is read too.

        Such a file appeared since the last look, or, at the first one, is not older than what the checkpoint knows,
        and its name says that it belongs to a log that we follow.
        """
        registry = self.registry
        if registry.index is before and not self._unopened and not self._without_base_log:
            return
        unopened, self._unopened = self._unopened, set()
        for path, key in self._rotated_since(before, unopened):
            if path in registry.index.files:
                if key in unopened:
                    self._unopened.add(key)  # tried under that name in this very look
            elif key not in registry.by_key:
                self._open_and_classify(path, key, now)

    def _rotated_since(self, before: ScanIndex, unopened: set[Key]) -> list[tuple[str, Key]]:
        """The files that nobody reads, and that rotation may have made since the last look, the oldest first."""
        registry = self.registry
        appeared = []
        earlier, self._without_base_log = self._without_base_log, set()
        for key in (
            unopened
            | earlier
            | (registry.index.paths_by_inode.keys() - before.paths_by_inode.keys())
        ):
            if key not in registry.index.paths_by_inode:
                continue  # when it is listed again, it appears again
            path = registry.index.paths_by_inode[key][0]
            related_streams = registry.related_streams(path)
            if registry.contains(key):
                continue
            if not related_streams and key not in unopened:
                if unopened:
                    self._without_base_log.add(key)
                continue
            try:
                status = os.stat(path)
            except OSError:
                self._unopened.add(key)  # renamed since it was listed
                continue
            # An empty one may be a copy that has just been begun: nothing in it can be read twice.
            known = min(
                [stream.scan_started_ns or stream.modified_ns for stream in related_streams],
                default=0,
            )
            young = status.st_mtime_ns >= known or not status.st_size
            if not self._first or key in unopened or young:
                appeared.append((status.st_mtime_ns, path, key))
        return [(path, key) for _, path, key in sorted(appeared)]

    # -- letting go

    def _close_finished(self, now: float) -> None:
        """Flush what waits for no one, close what is finished, forget what is long gone."""
        registry, policy = self.registry, self._policy
        for stream in [s for s in registry.streams if s.content is not None]:
            for cursor in close_policy.timed_out_partials(stream, policy, now):
                cursor.flush = True
                registry.wake(stream)
            if now - stream.last_growth >= policy.rotate_wait:
                self.warn_if_truncated(stream)
            if close_policy.is_finished(stream, policy, now):
                if stream.deleted or stream.key not in registry.index.paths_by_inode:
                    registry.retire(stream)
                else:
                    registry.close_file(stream)  # looked at by its path from now on
        self._enforce_held_limit()
        for stream in close_policy.expired(registry.streams, time.time()):
            registry.remove(stream)
        registry.prune(registry.index.paths_by_inode)
        for stream in close_policy.unlinked(registry.streams, registry.index.paths_by_inode):
            if (unread := stream.written - stream.read_by_all) > 0:
                registry.record_loss("deleted", unread, stream.path)
            registry.retire(stream)

    def _enforce_held_limit(self) -> None:
        """Deleted files whose space only we keep in use must not fill the volume."""
        limit = self._policy.held_limit
        for stream, unread in close_policy.over_held_limit(self.registry.streams, limit):
            _log.error(
                "giving up %d unread bytes of the deleted file %s: more than %d bytes of deleted files"
                " would be kept in use (raise held_limit, or mend the sink)",
                unread,
                stream.path,
                limit,
            )
            self.registry.record_loss("deleted", unread, stream.path)
            self.registry.retire(stream)

    def _close_idle(self) -> bool:
        """Close files that were not needed for long; they are opened again when there is something to read."""
        closed = close_policy.idle(self.registry.open_streams, self.registry.index.paths_by_inode)
        for stream in closed:
            self.registry.close_file(stream)
        return bool(closed)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
