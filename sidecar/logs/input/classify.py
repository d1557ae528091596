"""Classify a new file: is it a new log, or a copy, an archive or the next file of a known stream?"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

from sidecar.logs.input import fingerprint
from sidecar.logs.input.discovery import Key
from sidecar.logs.input.file_content import Content
from sidecar.logs.input.file_reader import LogStream
from sidecar.logs.input.opener import Opener, file_key
from sidecar.logs.input.registry import CopyCandidate, StreamRegistry
from sidecar.logs.input.relocate import Relocator

_log = logging.getLogger(__name__)

_COPY_QUIET_SECONDS = 10.0
"""A file that repeats another counts as a log of its own after this many seconds without a change …"""
_COPY_MAX_SECONDS = 60.0
"""… or this many seconds after it was found."""
_MAX_OPEN_CANDIDATES = 64
"""Possible copies that are kept open: one that is deleted meanwhile may turn out to be a log."""
_ARCHIVE_QUIET_SECONDS = 10.0
"""An archive next to its source may still be being written for this many seconds after its last write."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that was just opened, with its status at that time."""

    path: str
    key: Key
    content: Content
    status: os.stat_result

    @property
    def signature(self) -> tuple[int, ...]:
        return signature(self.status)


@dataclass(slots=True)
class FileClassifier:
    """Tells new logs from content that is known already."""

    registry: StreamRegistry
    opener: Opener
    relocator: Relocator
    defers_copies: bool = True
    """Whether a possible copy is deferred for a while."""

    def is_known_content(self, new_file: NewFile, now: float) -> bool:
        """Whether the file holds, or may turn out to hold, content of a known stream. If so, this takes over its descriptor."""
        if new_file.content.compressed and self._is_compressing(new_file):
            new_file.content.close()
            return True
        if not new_file.status.st_size:
            return False  # classified once it has content
        beginning = new_file.content.read(0, fingerprint.MIN_EVIDENCE)
        related = [
            s for s in self.registry.related_streams(new_file.path) if s.may_start_with(beginning)
        ]
        for stream in related:
            # Files that were closed to save descriptors are compared as well.
            self.relocator.reopen(stream)
            if not stream.is_intact():
                # It was truncated: the new file may be its copy, and there is a new stream to compare with.
                self.relocator.on_truncated(stream, now)
                if new_file.key in self.registry.by_key:
                    new_file.content.close()
                    return True
                return self.is_known_content(new_file, now)
        if any(self._continues(stream, new_file, now) for stream in related):
            return True
        if any(self._is_copy(stream, new_file, now) for stream in related):
            return True
        if all(stream.is_intact() for stream in related):
            return False
        # One was truncated during the comparison: repeat it.
        return self.is_known_content(new_file, now)

    def is_unchanged_copy(self, path: str, key: Key, now: float) -> bool:
        """Whether a possible copy is unchanged and not expired, and its original still exists."""
        candidate = self.registry.copy_candidates.get(key)
        if candidate is None or self._has_expired(candidate, now):
            return False
        original = candidate.original
        if original.key is None or self.registry.by_key.get(original.key) is not original:
            return False
        try:
            return candidate.signature == signature(os.stat(path))
        except OSError:
            return False

    def _continues(self, stream: LogStream, new_file: NewFile, now: float) -> bool:
        """Whether a stream that has lost its file continues in this one; attaches it if so."""
        lost_file = stream.retired_at is not None or stream.deleted or stream.unresolved is not None
        if not lost_file:
            return False
        same_path = new_file.path == stream.path and not new_file.content.compressed
        if same_path and stream.size < fingerprint.MIN_EVIDENCE:
            # Deleted and created again with the same few bytes: better read twice than never.
            return False
        if not stream.is_contained_in(new_file.content):
            return False
        whole = self._final_size(stream)
        if not same_path and whole is not None and new_file.content.length() > whole:
            return False  # another log that begins with the same lines
        self.registry.attach(stream, new_file.content, new_file.key, new_file.path, now)
        return True

    @staticmethod
    def _final_size(stream: LogStream) -> int | None:
        """Return the length of a stream whose file is deleted, None if unknown."""
        if stream.content is not None:
            return None if stream.content.compressed else stream.content.length()
        return None if stream.retired_at is None else stream.size

    def _is_copy(self, stream: LogStream, new_file: NewFile, now: float) -> bool:
        """Whether the file only repeats what the stream reads from its own file."""
        original, content = stream.content, new_file.content
        if original is None:
            return False
        if content.compressed:
            if not _archive_equals_stream(content, stream) and not _is_archived_copy(
                content, original
            ):
                return False
            self.registry.aliases[new_file.key] = stream
        elif (stream.deleted and new_file.path == stream.path) or _is_original(new_file, stream):
            return False
        elif fingerprint.is_copy(content, new_file.status.st_size, original):
            return self._defer_copy(self._make_candidate(stream, new_file, now), new_file, now)
        else:
            return False
        content.close()
        return True

    def _defer_copy(self, candidate: CopyCandidate, new_file: NewFile, now: float) -> bool:
        """Whether a possible copy is deferred. If so, its file is kept open or closed here."""
        nameless = new_file.status.st_nlink == 0
        if nameless and self._has_waited(candidate, now):
            # All its content is read from the other file.
            self.registry.unmark_copy(new_file.key)
            new_file.content.close()
            return True
        if self._has_expired(candidate, now):
            _log.warning(
                "%s still repeats the beginning of %s, which was not truncated: delivering it as well",
                new_file.path,
                candidate.original.path,
                extra={"event": "logs.possible_copy"},
            )
            return False
        if candidate.content is None and candidate.path in self.registry.index.files:
            _log.warning(
                "%s repeats the beginning of %s, and %d files are watched for that already: delivering it as well",
                new_file.path,
                candidate.original.path,
                _MAX_OPEN_CANDIDATES,
                extra={"event": "logs.possible_copy"},
            )
            return False
        self.registry.mark_copy(new_file.key, candidate)
        if candidate.content is None:
            new_file.content.close()
        return True

    def _make_candidate(self, stream: LogStream, new_file: NewFile, now: float) -> CopyCandidate:
        """Return the candidate for a file that repeats a stream, with the times of earlier scans."""
        # A file outside the patterns is needed only while it may be a rotated log.
        wanted = new_file.path in self.registry.index.files or new_file.status.st_nlink == 0
        unsure = new_file.status.st_size < fingerprint.MIN_EVIDENCE
        held = (wanted or unsure) and self._count_open_candidates(
            new_file.key
        ) < _MAX_OPEN_CANDIDATES
        known = self.registry.copy_candidates.get(new_file.key)
        if known is None:
            written = max(new_file.status.st_mtime, new_file.status.st_ctime)
            since, quiet_since = now, now - max(time.time() - written, 0.0)
            _log.info(
                "%s has repeated the beginning of %s so far: it is read once it differs, or has been quiet for %g s",
                new_file.path,
                stream.path,
                _COPY_QUIET_SECONDS,
                extra={"event": "logs.possible_copy"},
            )
        else:
            changed = known.signature != new_file.signature
            since, quiet_since = known.first_seen, now if changed else known.quiet_since
        return CopyCandidate(
            new_file.path,
            stream,
            new_file.signature,
            since,
            quiet_since,
            new_file.content if held else None,
        )

    def _has_expired(self, candidate: CopyCandidate, now: float) -> bool:
        """Whether a possible copy was deferred long enough and is delivered: better twice than never."""
        if candidate.path not in self.registry.index.files:
            return False  # outside the patterns
        return self._has_waited(candidate, now) or not self.defers_copies

    @staticmethod
    def _has_waited(candidate: CopyCandidate, now: float) -> bool:
        """Whether a copy would be complete by now."""
        return (
            now - candidate.quiet_since >= _COPY_QUIET_SECONDS
            or now - candidate.first_seen >= _COPY_MAX_SECONDS
        )

    def _count_open_candidates(self, but: Key) -> int:
        """Return how many other possible copies are kept open."""
        copy_candidates = self.registry.copy_candidates.items()
        return sum(
            candidate.content is not None and key != but for key, candidate in copy_candidates
        )

    def _is_compressing(self, new_file: NewFile) -> bool:
        """Whether the archive may still be being written: it is recent, and its source exists."""
        plain, extension = os.path.splitext(new_file.path)
        if not extension or time.time() - new_file.status.st_mtime > _ARCHIVE_QUIET_SECONDS:
            return False
        if file_key(plain) is None or (opened := self.opener.open(plain)) is None:
            return False
        source = opened[0]
        try:
            head = new_file.content.read(0, fingerprint.HEAD_BYTES)
            return source.read(0, len(head)) == head
        finally:
            source.close()


def signature(status: os.stat_result) -> tuple[int, ...]:
    """Return the values of stat(2) that change with the file."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _is_original(new_file: NewFile, stream: LogStream) -> bool:
    """Whether the file has the base name of the log and lies next to the stream's file: no copy has that name."""
    directory, name = os.path.split(new_file.path)
    return name == fingerprint.base_log_name(name) and directory == os.path.dirname(stream.path)


def _archive_equals_stream(archive: Content, stream: LogStream) -> bool:
    """Whether an archive holds exactly the content of a stream whose file still exists."""
    return stream.is_contained_in(archive) and archive.length() <= stream.size


def _is_archived_copy(archive: Content, original: Content) -> bool:
    """Whether an archive holds the beginning of a live log (logrotate: `copy` with `compress`)."""
    if not archive.compressed or original.compressed:
        return False
    head = archive.read(0, fingerprint.HEAD_BYTES)
    if not head or original.read(0, len(head)) != head:
        return False
    return fingerprint.is_copy(archive, archive.length(), original)
