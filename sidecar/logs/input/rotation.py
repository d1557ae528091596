"""Track which file holds which stream: discovery, rotation, truncation, copies, restarts.

Every decision comes from a scan, never from an event: `scan` compares the disk with the registry,
and may be called at any time.

The cases, and how each is recognised:

    renamed                same device and inode, another name
    copytruncate           the file no longer contains what was read, but a related file does: continue there
    deleted while open     no name left: read to the end, then close after `rotate_wait` seconds without a write
    compressed             the decompressed content contains what was read: continue at the same offset
    inode reused, replaced same inode, other bytes: a new stream begins, and the old one's next file is searched
    copy of a live log     a new file with a rotated name that repeats the beginning of another file:
                           not read while it does so, for a limited time

This module scans and delegates: `registry` lists the streams, `opener` opens files, `relocate` finds the next file of
a stream, `classify` tells new logs from copies and rotated files, `close_policy` decides what is closed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable

from sidecar.logs.input import close_policy, deletion
from sidecar.logs.input.archives import Unreadable
from sidecar.logs.input.checkpoint import CheckpointState
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
"""New files that one scan opens: it takes some 10 ms."""


class RotationTracker:
    """Attaches the streams of one collection to the files that hold them.

    Args:
        wake: called for each stream that may have data.
        record_loss: called with reason, bytes and path for data that can never be read.
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
        """Files that could not be opened because they were being renamed: the next scan tries again."""
        self._without_base_log: set[Key] = set()
        """Rotated files without a known log, found while another file could not be opened: that one may be their log."""
        self._first, self._resumed = True, False
        self._present_at_first_start: set[Key] = set()
        """Files that existed at the very first start."""
        self._previous_index = self.registry.index
        self._changed_directories: set[str] = set()
        self._restoring = False
        self._to_open: list[tuple[str, Key]] = []
        """Files that the present scan still has to open, the next one last."""

    @property
    def errors(self) -> LogOnce:
        """The files that could not be opened."""
        return self._opener.errors

    def restore(self, state: CheckpointState) -> None:
        """Take over the streams of a checkpoint. The next `scan` finds their files."""
        self._resumed = state.from_checkpoint
        self.registry.restore(state)

    @property
    def incomplete(self) -> bool:
        """Whether the last scan stopped at its limit, so that another one is due at once."""
        return self._restoring or bool(self._to_open)

    def scan(self, now: float, changed_directories: Iterable[str] = ()) -> None:
        """Compare all streams with the disk. `now` is monotonic time.

        One call opens at most `_MAX_OPENS_PER_SCAN` new files, so that reading and signals are not delayed.
        """
        self._changed_directories.update(changed_directories)
        if not self.incomplete:
            self._list_files(now)
        self._restoring = not self._relocator.locate_restored(now, _MAX_OPENS_PER_SCAN)
        if not self._restoring and self._open_new_files(now):
            self._finish_scan(now)

    def _list_files(self, now: float) -> None:
        """List all directories, and check the known files."""
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
            else:  # no name has changed: idle files must cost nothing
                self.check(stream, now)
        self._to_open = self._unknown_files()

    def _finish_scan(self, now: float) -> None:
        """Finish a scan after all new files were opened."""
        self._find_rotated(self._previous_index, now)
        if not self._unopened:
            for stream in self.registry.streams:
                stream.last_complete_scan_ns = stream.scan_started_ns or stream.modified_ns
        self._close_finished(now)
        self._first, self._present_at_first_start = False, set()

    def check(self, stream: LogStream, now: float) -> None:
        """Check one stream, after an event or in a scan."""
        content = stream.content
        if content is None:
            return
        try:
            status = os.fstat(content.fd)
        except OSError as error:
            _log.warning(
                "cannot stat %s: %s", stream.path, error, extra={"event": "logs.file_unreadable"}
            )
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
        except Unreadable as error:  # it was empty when found, and is compressed
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
        """Open the file of a stream if it was closed. Return False if it has no file at present."""
        return self._relocator.reopen(stream)

    def on_truncated(self, stream: LogStream, now: float) -> None:
        """Handle a file whose bytes were replaced: start a new stream there, and search the file of the old one."""
        self._relocator.on_truncated(stream, now)

    def warn_if_truncated(self, stream: LogStream) -> None:
        """Log once that an archive ends in the middle: it may be cut off, or still being written."""
        content = stream.content
        if content is not None and not content.reported and content.is_truncated:
            content.reported = True
            _log.warning(
                "%s is cut off, or still being written: its compressed data ends in the middle, after %d bytes of lines; reading continues if it grows",
                stream.path,
                stream.size,
                extra={"event": "logs.file_damaged"},
            )

    def release_copies(self, now: float) -> None:
        """Deliver files that may be copies as well: no later scan will decide it."""
        self._classifier.defers_copies = False
        self._recheck_copies(now)

    def remove_delivered(self, now: float) -> None:
        """Delete files that are delivered completely, if `remove_after` is set. Later writes to them are still read."""
        wait = self._policy.remove_after
        if wait is None:
            return
        for stream in close_policy.removable(self.registry.streams, wait, now):
            path, key = stream.path, stream.key
            # Keep it open, so that later writes of a process that has it open are not lost.
            if path not in self.registry.index.files or key is None or not self.reopen(stream):
                continue
            if stream.has_writer():
                continue
            try:
                if deletion.delete_delivered(path, key, stream.size_and_mtime):
                    stream.deleted = True
                    _log.info(
                        "deleted %s: all of it is delivered",
                        path,
                        extra={"event": "logs.file_deleted"},
                    )
            except OSError as error:
                self._delete_errors.log(path, error)

    # -- known files

    def _refresh(self, stream: LogStream, now: float) -> None:
        """Update the names of a file, and check it."""
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
        """Drop a stream that was empty when found and now turns out to be a copy. Return whether it is one."""
        content, key = stream.content, stream.key
        if content is None or key is None or not stream.read_by_none:
            return False
        self.registry.remove(stream)
        self.registry.revision += 1
        if self._classifier.is_known_content(NewFile(stream.path, key, content, status), now):
            # The content belongs to another stream or is closed: a pending read must not use it.
            stream.content = None
            return True
        self.registry.add(stream)
        return False

    def _reopen_if_grown(self, stream: LogStream, now: float) -> None:
        """Open a closed file again if it has changed."""
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
        # A file that was empty is classified by its first bytes now.
        self.check(stream, now)

    # -- new files

    def _unknown_files(self) -> list[tuple[str, Key]]:
        registry = self.registry
        unknown = [
            (p, key) for p, key in registry.index.files.items() if not registry.contains(key)
        ]
        # The original comes before its copy: it is longer, or has the shorter name. (The list is taken from its end.)
        return sorted(unknown, key=lambda one: (_size(one[0]), -len(one[0])))

    def _open_new_files(self, now: float) -> bool:
        """Open files that belong to no stream. Return whether all were opened."""
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
                # It was deleted before it was classified.
                content, candidate.content = candidate.content, None
                self._classify(NewFile(candidate.path, key, content, os.fstat(content.fd)), now)

    def _open_and_classify(self, path: str, key: Key, now: float) -> None:
        """Open a file that belongs to no stream, and classify it: new log, copy, archive, or next file of a stream."""
        if self._classifier.is_unchanged_copy(path, key, now):
            return
        opened = self._opener.open(path)
        if opened is None:
            self._unopened.add(key)
            return
        content, status = opened
        actual = (status.st_dev, status.st_ino)
        if actual != key:
            # Renamed since the directory was listed: the next scan finds its new name.
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
        _log.info("reading %s", new_file.path, extra={"event": "logs.file_found"})
        self.check(stream, now)

    def _skips_existing(self, status: os.stat_result) -> bool:
        """Whether a file that existed at the very first start is read from its end."""
        oldest = self._policy.ignore_older
        too_old = oldest is not None and time.time() - status.st_mtime > oldest
        return self._policy.from_end or too_old

    def _find_rotated(self, before: ScanIndex, now: float) -> None:
        """Open files that were rotated between two scans, or while the collector was down, to names outside the patterns.

        Such a file appeared since the last scan (at the first scan: is not older than the checkpoint),
        and its name belongs to a log that is followed.
        """
        registry = self.registry
        if registry.index is before and not self._unopened and not self._without_base_log:
            return
        unopened, self._unopened = self._unopened, set()
        for path, key in self._rotated_since(before, unopened):
            if path in registry.index.files:
                if key in unopened:
                    self._unopened.add(key)  # this scan has tried that name already
            elif key not in registry.by_key:
                self._open_and_classify(path, key, now)

    def _rotated_since(self, before: ScanIndex, unopened: set[Key]) -> list[tuple[str, Key]]:
        """Return the unread files that rotation may have created since the last scan, oldest first."""
        registry = self.registry
        appeared = []
        earlier, self._without_base_log = self._without_base_log, set()
        for key in (
            unopened
            | earlier
            | (registry.index.paths_by_inode.keys() - before.paths_by_inode.keys())
        ):
            if key not in registry.index.paths_by_inode:
                continue  # it counts as new when it is listed again
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
            # An empty file may be a copy that was just started.
            known = min(
                [stream.scan_started_ns or stream.modified_ns for stream in related_streams],
                default=0,
            )
            young = status.st_mtime_ns >= known or not status.st_size
            if not self._first or key in unopened or young:
                appeared.append((status.st_mtime_ns, path, key))
        return [(path, key) for _, path, key in sorted(appeared)]

    # -- closing

    def _close_finished(self, now: float) -> None:
        """Flush timed-out partial lines, close finished files, and remove expired streams."""
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
                    registry.close_file(stream)  # later scans check it by its path
        self._enforce_held_limit()
        for stream in close_policy.expired(registry.streams, time.time()):
            registry.remove(stream)
        registry.prune(registry.index.paths_by_inode)
        for stream in close_policy.unlinked(registry.streams, registry.index.paths_by_inode):
            if (unread := stream.written - stream.read_by_all) > 0:
                registry.record_loss("deleted", unread, stream.path)
            registry.retire(stream)

    def _enforce_held_limit(self) -> None:
        """Close deleted files beyond `held_limit`: their space must not fill the volume."""
        limit = self._policy.held_limit
        for stream, unread in close_policy.over_held_limit(self.registry.streams, limit):
            _log.error(
                "giving up %d unread bytes of the deleted file %s: more than %d bytes of deleted files"
                " would be kept in use (raise held_limit, or repair the sink)",
                unread,
                stream.path,
                limit,
                extra={"event": "logs.bytes_lost"},
            )
            self.registry.record_loss("deleted", unread, stream.path)
            self.registry.retire(stream)

    def _close_idle(self) -> bool:
        """Close the files that were not used for longest; they are opened again when they have data."""
        closed = close_policy.idle(self.registry.open_streams, self.registry.index.paths_by_inode)
        for stream in closed:
            self.registry.close_file(stream)
        return bool(closed)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
