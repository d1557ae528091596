"""Where does a content live on whose file is gone, truncated or overwritten, or was seen before a restart?"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from sidecar.logs.input import fingerprint
from sidecar.logs.input.file_content import open_content
from sidecar.logs.input.file_reader import LogStream
from sidecar.logs.input.opener import Opener
from sidecar.logs.input.registry import StreamRegistry

_log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds to search: names move while a rotation is under way."""


@dataclass(frozen=True, slots=True)
class Relocator:
    """Finds streams another file."""

    roster: StreamRegistry
    opener: Opener

    def reopen(self, stream: LogStream) -> bool:
        """Open the file of a stream, if it was closed. False if it cannot be, or lies under another name by now."""
        if stream.content is not None:
            self.roster.used(stream)
            return True
        if stream.key is None or self.roster.by_key.get(stream.key) is not stream:
            return False  # it has no file now, or is another's
        opened = self.opener.open(stream.path)
        if opened is not None and (opened[1].st_dev, opened[1].st_ino) == stream.key:
            stream.content = opened[0]
            self.roster.used(stream)
            return True
        if opened is not None:
            opened[0].close()
        stream.changed = ()  # the next look tries again
        return False

    def replaced(self, stream: LogStream, now: float) -> None:
        """The file holds other bytes than those that were read: begin anew there, and search for the old ones."""
        content, key, path = stream.content, stream.key, stream.path
        if content is None or key is None:
            return
        stream.content = None
        self.roster.recent.pop(stream, None)
        fresh = LogStream(path, key, live=stream.live, deleted=stream.deleted, grew_at=now)
        fresh.parent_id = stream.file_id or stream.parent_id
        try:
            fresh.content = open_content(content.fd)
        except OSError as error:
            content.close()
            self.opener.refusals.note(path, error)
            self.roster.unlink(stream)
        self.roster.begin(fresh)
        stream.key, stream.live = None, False
        stream.restored, stream.sought = stream.furthest, "truncated"
        _log.info("%s was truncated or replaced; reading it from the beginning", path)
        self.go_on_elsewhere(stream, now)
        self.roster.wake(fresh)

    def place_restored(self, now: float, most: int) -> bool:
        """Find the files of restored streams: first where they were, then where rotation may have put them.

        Return False if there were more than `most` that are where they were: the others come next time.
        """
        waiting = [s for s in self.roster.streams if s.restored is not None and s.gone is None]
        # Who has read most can be told from others best, and chooses first.
        waiting.sort(key=lambda s: s.read_by_all, reverse=True)
        elsewhere, found = [], 0
        for stream in waiting:
            if not self._find_by_key(stream, now):
                elsewhere.append(stream)
            elif (found := found + 1) == most:
                return False
        for stream in elsewhere:
            self.go_on_elsewhere(stream, now)
        return True

    def go_on_elsewhere(self, stream: LogStream, now: float) -> None:
        """Search for the file in which the content of `stream` lives on, and go on there."""
        # Nothing read, and hardly anything known: what fits fits by chance, and is read from its beginning anyway.
        unknown = stream.read_by_none and stream.head.length < fingerprint.MIN_EVIDENCE
        if not unknown and self._settle_in_a_relative(stream, now):
            return
        if stream.sought_until is None:
            stream.sought_until = now + _PATIENCE
        if now < stream.sought_until and not unknown:
            return
        missing = stream.written - stream.read_by_all
        if missing > 0:
            self.roster.lose(stream.sought, missing, stream.path)
        self.roster.bury(stream)

    def _settle_in_a_relative(self, stream: LogStream, now: float) -> bool:
        paths, taken = self._relatives(stream.path), self.roster.by_key
        home = self.opener.find_first(stream.is_continued_by, paths, taken)
        if home is None:
            home = self.opener.find_first(stream.ends_early_in, paths, taken)
            if home is None:
                return False
            stream.shorten(home[0])
        self.roster.settle(stream, *home, now)
        return True

    def _relatives(self, path: str) -> list[str]:
        """The files that may be the rotated past of `path`, the youngest first; the one that has its name now is last."""
        name, bare = os.path.basename(path), self.roster.has_bare_name(path)
        siblings = self.opener.discovery.siblings(path)
        names = [p for p in siblings if _may_continue(name, os.path.basename(p), bare)]
        return sorted(names, key=lambda p: (p != path, _modified_ns(p)), reverse=True)

    def _find_by_key(self, stream: LogStream, now: float) -> bool:
        """Look under the device and inode it had. True also if that has to be done once more."""
        key, places = stream.key, self.roster.found.places
        if key is None or key in self.roster.by_key or key not in places:
            return False
        path = places[key][0]
        opened = self.opener.open(path)
        if opened is not None:
            content, status = opened
            if (status.st_dev, status.st_ino) == key:
                # One that was empty then may be anything by now, a copy for example: it is met as if for the first time.
                if stream.is_continued_by(content):
                    self.roster.settle(stream, content, key, path, now)
                    return True
                content.close()
                return False
            content.close()
        # Renamed since the names were listed: the next look knows its new one.
        if stream.sought_until is None:
            stream.sought_until = now + _PATIENCE
        return now < stream.sought_until


def _may_continue(name: str, other: str, bare: bool) -> bool:
    """Whether rotation may have moved a content from one name to the other. `bare`: there is a log of the bare name."""
    if bare:
        return fingerprint.same_log_family(name, other)
    return fingerprint.plain_name(name) == fingerprint.plain_name(other)


def _modified_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
