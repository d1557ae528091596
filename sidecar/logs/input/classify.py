"""A file that nobody reads yet: is it new, or what another stream has read (or will read) from its own?"""

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
"""Seconds without a change after which a file that repeats another is no copy in the making …"""
_COPY_MAX_SECONDS = 60.0
"""… and seconds after which it is none, whatever happens to it."""
_MAX_OPEN_CANDIDATES = 64
"""Files that are held open while they may be copies: what is deleted meanwhile may have turned out to be a log."""
_ARCHIVE_QUIET_SECONDS = 10.0
"""Seconds after the last write in which an archive beside its source may still be in the making."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that was opened, and what was known of it then."""

    path: str
    key: Key
    content: Content
    status: os.stat_result

    @property
    def signature(self) -> tuple[int, ...]:
        return signature(self.status)


@dataclass(slots=True)
class FileClassifier:
    """Tells what is new from what is not."""

    registry: StreamRegistry
    opener: Opener
    relocator: Relocator
    defers_copies: bool = True
    """A file that may be a copy is left alone for a while."""

    def is_known_content(self, new_file: NewFile, now: float) -> bool:
        """Whether the file is (or may soon turn out to be) what another stream has read. Takes the content if so."""
        if new_file.content.compressed and self._is_compressing(new_file):
            new_file.content.close()
            return True
        if not new_file.status.st_size:
            return False  # known_size by its first bytes, once there are some
        beginning = new_file.content.read(0, fingerprint.MIN_EVIDENCE)
        related = [
            s for s in self.registry.related_streams(new_file.path) if s.may_start_with(beginning)
        ]
        for stream in related:
            # One that was closed for want of descriptors is compared as all others.
            self.relocator.reopen(stream)
            if not stream.is_intact():
                # Truncated unnoticed: this may be its copy, and there is a new stream to compare with.
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
        # Truncated while we compared: once more.
        return self.is_known_content(new_file, now)

    def is_unchanged_copy(self, path: str, key: Key, now: float) -> bool:
        """Whether it is as it was when it was found to be a copy, not for too long, and the original is still there."""
        candidate = self.registry.copy_candidates.get(key)
        if candidate is None or self._has_expired(candidate, now):
            return False
        of = candidate.of
        if of.key is None or self.registry.by_key.get(of.key) is not of:
            return False
        try:
            return candidate.seen == signature(os.stat(path))
        except OSError:
            return False

    def _continues(self, stream: LogStream, new_file: NewFile, now: float) -> bool:
        """Whether the stream has lost its file, and goes on in this one."""
        lost_file = stream.retired_at is not None or stream.deleted or stream.unresolved is not None
        if not lost_file:
            return False
        same_path = new_file.path == stream.path and not new_file.content.compressed
        if same_path and stream.size < fingerprint.MIN_EVIDENCE:
            # Deleted and begun again with the same few bytes: rather read them twice than never.
            return False
        if not stream.is_contained_in(new_file.content):
            return False
        whole = self._final_size(stream)
        if not same_path and whole is not None and new_file.content.length() > whole:
            return False  # another log that has begun with the same lines
        self.registry.attach(stream, new_file.content, new_file.key, new_file.path, now)
        return True

    @staticmethod
    def _final_size(stream: LogStream) -> int | None:
        """Return the length of a content whose file is deleted, None where nobody knows it."""
        if stream.content is not None:
            return None if stream.content.compressed else stream.content.length()
        return None if stream.retired_at is None else stream.size

    def _is_copy(self, stream: LogStream, new_file: NewFile, now: float) -> bool:
        """Whether the file only repeats what the stream reads from its own."""
        original, content = stream.content, new_file.content
        if original is None:
            return False
        if content.compressed:
            if not _is_archive_of(content, stream) and not _is_archived_copy(content, original):
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
        """Whether a file that may be a copy has to wait. Keeps its content open, or closes it, if so."""
        nameless = new_file.status.st_nlink == 0
        if nameless and self._has_waited(candidate, now):
            # All that was in it, and all that its last writer added, is read from the other file.
            self.registry.unmark_copy(new_file.key)
            new_file.content.close()
            return True
        if self._has_expired(candidate, now):
            _log.warning(
                "%s still repeats the beginning of %s, which was not truncated: it is delivered, too",
                new_file.path,
                candidate.of.path,
            )
            return False
        if candidate.content is None and candidate.path in self.registry.index.files:
            _log.warning(
                "%s repeats the beginning of %s, and %d files are watched for that already: it is delivered, too",
                new_file.path,
                candidate.of.path,
                _MAX_OPEN_CANDIDATES,
            )
            return False
        self.registry.mark_copy(new_file.key, candidate)
        if candidate.content is None:
            new_file.content.close()
        return True

    def _make_candidate(self, stream: LogStream, new_file: NewFile, now: float) -> CopyCandidate:
        """Return what is known of a file that repeats a stream, from now or from earlier looks."""
        # One that nobody has asked for is only needed while it may be the past of a log.
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
            )
        else:
            changed = known.seen != new_file.signature
            since, quiet_since = known.since, now if changed else known.quiet_since
        return CopyCandidate(
            new_file.path,
            stream,
            new_file.signature,
            since,
            quiet_since,
            new_file.content if held else None,
        )

    def _has_expired(self, candidate: CopyCandidate, now: float) -> bool:
        """Whether a file has repeated another for so long that it is delivered: twice is better than never."""
        if candidate.path not in self.registry.index.files:
            return False  # nobody has asked for it
        return self._has_waited(candidate, now) or not self.defers_copies

    @staticmethod
    def _has_waited(candidate: CopyCandidate, now: float) -> bool:
        """Whether a copy in the making would have been completed by now."""
        return (
            now - candidate.quiet_since >= _COPY_QUIET_SECONDS
            or now - candidate.since >= _COPY_MAX_SECONDS
        )

    def _count_open_candidates(self, but: Key) -> int:
        """Return how many other files are held open because they may be copies."""
        copy_candidates = self.registry.copy_candidates.items()
        return sum(
            candidate.content is not None and key != but for key, candidate in copy_candidates
        )

    def _is_compressing(self, new_file: NewFile) -> bool:
        """Whether the archive may still be in the making: it is young, and its source is there."""
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
    """Return what changes when a file does."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _is_original(new_file: NewFile, stream: LogStream) -> bool:
    """Whether the file has the name that rotation leaves to the log itself, beside the other: no copy gets that one."""
    directory, name = os.path.split(new_file.path)
    return name == fingerprint.base_log_name(name) and directory == os.path.dirname(stream.path)


def _is_archive_of(archive: Content, stream: LogStream) -> bool:
    """Whether an archive holds all of a stream whose file is still there, and nothing else."""
    return stream.is_contained_in(archive) and archive.length() <= stream.size


def _is_archived_copy(archive: Content, original: Content) -> bool:
    """Whether an archive holds the beginning of a living log (`copy` with `compress`)."""
    if not archive.compressed or original.compressed:
        return False
    head = archive.read(0, fingerprint.HEAD_BYTES)
    if not head or original.read(0, len(head)) != head:
        return False
    return fingerprint.is_copy(archive, archive.length(), original)
