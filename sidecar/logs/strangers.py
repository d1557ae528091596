"""A file that nobody reads yet: is it new, or what another stream has read (or will read) from its own?"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from sidecar.logs import identity
from sidecar.logs.content import Content, Gzip
from sidecar.logs.discovery import Key
from sidecar.logs.opening import Opener, key_of
from sidecar.logs.roster import Roster, Suspect
from sidecar.logs.searching import Search
from sidecar.logs.stream import Stream

_GZIP_PATIENCE = 10.0
"""Seconds after the last write in which an archive beside its source may still be in the making."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """A file that was opened, and what was known of it then."""

    path: str
    key: Key
    content: Content
    status: os.stat_result

    @property
    def signature(self) -> tuple[int, ...]:
        return signature(self.status)


@dataclass(frozen=True, slots=True)
class Strangers:
    """Tells what is new from what is not."""

    roster: Roster
    opener: Opener
    search: Search

    def is_past(self, stranger: Stranger, now: float) -> bool:
        """Whether the file is (or may soon turn out to be) what another stream has read. Takes the content if so."""
        if stranger.content.compressed and self._is_compressing(stranger):
            stranger.content.close()
            return True
        if not stranger.status.st_size:
            return False  # judged by its first bytes, once there are some
        beginning = stranger.content.read(0, identity.EVIDENCE)
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
        if any(self._is_repetition(stream, stranger) for stream in related):
            return True
        if all(stream.is_intact() for stream in related):
            return False
        # Truncated while we compared: once more.
        return self.is_past(stranger, now)

    def is_unchanged_suspect(self, path: str, key: Key) -> bool:
        """Whether it is as it was when it was found to be a copy, and the original is still there."""
        suspect = self.roster.suspects.get(key)
        if suspect is None or suspect.of.content is None:
            return False
        try:
            return suspect.seen == signature(os.stat(path))
        except OSError:
            return False

    def _is_next_home(self, stream: Stream, stranger: Stranger, now: float) -> bool:
        """Whether the stream has lost its file, and goes on in this one."""
        homeless = stream.gone is not None or stream.deleted or stream.restored is not None
        if not homeless:
            return False
        again = stranger.path == stream.path and not stranger.content.compressed
        if again and stream.size < identity.EVIDENCE:
            # Deleted and begun again with the same few bytes: rather read them twice than never.
            return False
        if not stream.is_held_by(stranger.content):
            return False
        self.roster.settle(stream, stranger.content, stranger.key, stranger.path, now)
        return True

    def _is_repetition(self, stream: Stream, stranger: Stranger) -> bool:
        """Whether the file only repeats what the stream reads from its own."""
        original, content = stream.content, stranger.content
        if original is None:
            return False
        if content.compressed:
            if not stream.is_held_by(content) and not _is_archived_copy(content, original):
                return False
            self.roster.aliases[stranger.key] = stream
        elif stream.deleted and stranger.path == stream.path:
            return False
        elif identity.is_copy(content, stranger.status.st_size, original):
            unsure = stranger.status.st_size < identity.EVIDENCE
            suspect = Suspect(
                stranger.path, stream, stranger.signature, content if unsure else None
            )
            self.roster.suspect(stranger.key, suspect)
            if unsure:
                return True
        else:
            return False
        content.close()
        return True

    def _is_compressing(self, stranger: Stranger) -> bool:
        """Whether the archive may still be in the making: it is young, and its source is there."""
        plain, extension = os.path.splitext(stranger.path)
        if not extension or time.time() - stranger.status.st_mtime > _GZIP_PATIENCE:
            return False
        if key_of(plain) is None or (opened := self.opener.open(plain)) is None:
            return False
        source = opened[0]
        try:
            head = stranger.content.read(0, identity.HEAD)
            return source.read(0, len(head)) == head
        finally:
            source.close()


def signature(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file does."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _is_archived_copy(archive: Content, original: Content) -> bool:
    """Whether an archive holds the beginning of a living log (`copy` with `compress`)."""
    if not isinstance(archive, Gzip) or original.compressed:
        return False
    head = archive.read(0, identity.HEAD)
    if not head or original.read(0, len(head)) != head:
        return False
    return identity.is_copy(archive, archive.measure(), original)
