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

_COPY_PATIENCE = 10.0
"""Seconds without a change after which a file that repeats another is no copy in the making …"""
_COPY_LIMIT = 60.0
"""… and seconds after which it is none, whatever happens to it."""
_MOST_UNSURE = 64
"""Files that are held open while they may be copies: what is deleted meanwhile may have turned out to be a log."""
_ARCHIVE_PATIENCE = 10.0
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

    roster: StreamRegistry
    opener: Opener
    search: Relocator
    patient: bool = True
    """A file that may be a copy is left alone for a while."""

    def is_past(self, stranger: NewFile, now: float) -> bool:
        """Whether the file is (or may soon turn out to be) what another stream has read. Takes the content if so."""
        if stranger.content.compressed and self._is_compressing(stranger):
            stranger.content.close()
            return True
        if not stranger.status.st_size:
            return False  # judged by its first bytes, once there are some
        beginning = stranger.content.read(0, fingerprint.MIN_EVIDENCE)
        related = [s for s in self.roster.relatives(stranger.path) if s.may_begin_with(beginning)]
        for stream in related:
            # One that was closed for want of descriptors is compared as all others.
            self.search.reopen(stream)
            if not stream.is_intact():
                # Truncated unnoticed: this may be its copy, and there is a new stream to compare with.
                self.search.replaced(stream, now)
                if stranger.key in self.roster.by_key:
                    stranger.content.close()
                    return True
                return self.is_past(stranger, now)
        if any(self._is_next_home(stream, stranger, now) for stream in related):
            return True
        if any(self._is_repetition(stream, stranger, now) for stream in related):
            return True
        if all(stream.is_intact() for stream in related):
            return False
        # Truncated while we compared: once more.
        return self.is_past(stranger, now)

    def is_unchanged_suspect(self, path: str, key: Key, now: float) -> bool:
        """Whether it is as it was when it was found to be a copy, not for too long, and the original is still there."""
        suspect = self.roster.suspects.get(key)
        if suspect is None or self._is_overdue(suspect, now):
            return False
        of = suspect.of
        if of.key is None or self.roster.by_key.get(of.key) is not of:
            return False
        try:
            return suspect.seen == signature(os.stat(path))
        except OSError:
            return False

    def _is_next_home(self, stream: LogStream, stranger: NewFile, now: float) -> bool:
        """Whether the stream has lost its file, and goes on in this one."""
        homeless = stream.gone is not None or stream.deleted or stream.restored is not None
        if not homeless:
            return False
        again = stranger.path == stream.path and not stranger.content.compressed
        if again and stream.size < fingerprint.MIN_EVIDENCE:
            # Deleted and begun again with the same few bytes: rather read them twice than never.
            return False
        if not stream.is_held_by(stranger.content):
            return False
        whole = self._final_size(stream)
        if not again and whole is not None and stranger.content.measure() > whole:
            return False  # another log that has begun with the same lines
        self.roster.settle(stream, stranger.content, stranger.key, stranger.path, now)
        return True

    @staticmethod
    def _final_size(stream: LogStream) -> int | None:
        """Return the length of a content whose file is deleted, None where nobody knows it."""
        if stream.content is not None:
            return None if stream.content.compressed else stream.content.measure()
        return None if stream.gone is None else stream.size

    def _is_repetition(self, stream: LogStream, stranger: NewFile, now: float) -> bool:
        """Whether the file only repeats what the stream reads from its own."""
        original, content = stream.content, stranger.content
        if original is None:
            return False
        if content.compressed:
            if not _is_archive_of(content, stream) and not _is_archived_copy(content, original):
                return False
            self.roster.aliases[stranger.key] = stream
        elif (stream.deleted and stranger.path == stream.path) or _is_original(stranger, stream):
            return False
        elif fingerprint.is_copy(content, stranger.status.st_size, original):
            return self._is_left_alone(self._suspect(stream, stranger, now), stranger, now)
        else:
            return False
        content.close()
        return True

    def _is_left_alone(self, suspect: CopyCandidate, stranger: NewFile, now: float) -> bool:
        """Whether a file that may be a copy has to wait. Keeps its content open, or closes it, if so."""
        nameless = stranger.status.st_nlink == 0
        if nameless and self._has_waited(suspect, now):
            # All that was in it, and all that its last writer added, is read from the other file.
            self.roster.clear_of_suspicion(stranger.key)
            stranger.content.close()
            return True
        if self._is_overdue(suspect, now):
            _log.warning(
                "%s still repeats the beginning of %s, which was not truncated: it is delivered, too",
                stranger.path,
                suspect.of.path,
            )
            return False
        if suspect.content is None and suspect.path in self.roster.found.files:
            _log.warning(
                "%s repeats the beginning of %s, and %d files are watched for that already: it is delivered, too",
                stranger.path,
                suspect.of.path,
                _MOST_UNSURE,
            )
            return False
        self.roster.suspect(stranger.key, suspect)
        if suspect.content is None:
            stranger.content.close()
        return True

    def _suspect(self, stream: LogStream, stranger: NewFile, now: float) -> CopyCandidate:
        """Return what is known of a file that repeats a stream, from now or from earlier looks."""
        # One that nobody has asked for is only needed while it may be the past of a log.
        wanted = stranger.path in self.roster.found.files or stranger.status.st_nlink == 0
        unsure = stranger.status.st_size < fingerprint.MIN_EVIDENCE
        held = (wanted or unsure) and self._held(stranger.key) < _MOST_UNSURE
        known = self.roster.suspects.get(stranger.key)
        if known is None:
            written = max(stranger.status.st_mtime, stranger.status.st_ctime)
            since, quiet_since = now, now - max(time.time() - written, 0.0)
            _log.info(
                "%s has repeated the beginning of %s so far: it is read once it differs, or has been quiet for %g s",
                stranger.path,
                stream.path,
                _COPY_PATIENCE,
            )
        else:
            changed = known.seen != stranger.signature
            since, quiet_since = known.since, now if changed else known.quiet_since
        return CopyCandidate(
            stranger.path,
            stream,
            stranger.signature,
            since,
            quiet_since,
            stranger.content if held else None,
        )

    def _is_overdue(self, suspect: CopyCandidate, now: float) -> bool:
        """Whether a file has repeated another for so long that it is delivered: twice is better than never."""
        if suspect.path not in self.roster.found.files:
            return False  # nobody has asked for it
        return self._has_waited(suspect, now) or not self.patient

    @staticmethod
    def _has_waited(suspect: CopyCandidate, now: float) -> bool:
        """Whether a copy in the making would have been completed by now."""
        return now - suspect.quiet_since >= _COPY_PATIENCE or now - suspect.since >= _COPY_LIMIT

    def _held(self, but: Key) -> int:
        """Return how many other files are held open because they may be copies."""
        suspects = self.roster.suspects.items()
        return sum(suspect.content is not None and key != but for key, suspect in suspects)

    def _is_compressing(self, stranger: NewFile) -> bool:
        """Whether the archive may still be in the making: it is young, and its source is there."""
        plain, extension = os.path.splitext(stranger.path)
        if not extension or time.time() - stranger.status.st_mtime > _ARCHIVE_PATIENCE:
            return False
        if file_key(plain) is None or (opened := self.opener.open(plain)) is None:
            return False
        source = opened[0]
        try:
            head = stranger.content.read(0, fingerprint.HEAD_BYTES)
            return source.read(0, len(head)) == head
        finally:
            source.close()


def signature(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file does."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _is_original(stranger: NewFile, stream: LogStream) -> bool:
    """Whether the file has the name that rotation leaves to the log itself, beside the other: no copy gets that one."""
    directory, name = os.path.split(stranger.path)
    return name == fingerprint.base_log_name(name) and directory == os.path.dirname(stream.path)


def _is_archive_of(archive: Content, stream: LogStream) -> bool:
    """Whether an archive holds all of a stream whose file is still there, and nothing else."""
    return stream.is_held_by(archive) and archive.measure() <= stream.size


def _is_archived_copy(archive: Content, original: Content) -> bool:
    """Whether an archive holds the beginning of a living log (`copy` with `compress`)."""
    if not archive.compressed or original.compressed:
        return False
    head = archive.read(0, fingerprint.HEAD_BYTES)
    if not head or original.read(0, len(head)) != head:
        return False
    return fingerprint.is_copy(archive, archive.measure(), original)
