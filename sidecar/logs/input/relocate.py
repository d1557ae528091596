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

_SEARCH_SECONDS = 5.0
"""Seconds to search: names move while a rotation is under way."""


@dataclass(frozen=True, slots=True)
class Relocator:
    """Finds streams another file."""

    registry: StreamRegistry
    opener: Opener

    def reopen(self, stream: LogStream) -> bool:
        """Open the file of a stream, if it was closed. False if it cannot be, or lies under another name by now."""
        if stream.content is not None:
            self.registry.mark_used(stream)
            return True
        if stream.key is None or self.registry.by_key.get(stream.key) is not stream:
            return False  # it has no file now, or is another's
        opened = self.opener.open(stream.path)
        if opened is not None and (opened[1].st_dev, opened[1].st_ino) == stream.key:
            stream.content = opened[0]
            self.registry.mark_used(stream)
            return True
        if opened is not None:
            opened[0].close()
        stream.size_and_mtime = ()  # the next look tries again
        return False

    def on_truncated(self, stream: LogStream, now: float) -> None:
        """The file holds other bytes than those that were read: begin anew there, and search for the old ones."""
        content, key, path = stream.content, stream.key, stream.path
        if content is None or key is None:
            return
        stream.content = None
        self.registry.open_streams.pop(stream, None)
        fresh = LogStream(path, key, live=stream.live, deleted=stream.deleted, last_growth=now)
        fresh.parent_id = stream.file_id or stream.parent_id
        try:
            fresh.content = open_content(content.fd)
        except OSError as error:
            content.close()
            self.opener.errors.log(path, error)
            self.registry.unlink(stream)
        self.registry.add_new(fresh)
        stream.key, stream.live = None, False
        stream.unresolved, stream.loss_reason = stream.furthest, "truncated"
        _log.info("%s was truncated or replaced; reading it from the beginning", path)
        self.find_continuation(stream, now)
        self.registry.wake(fresh)

    def locate_restored(self, now: float, most: int) -> bool:
        """Find the files of restored streams: first where they were, then where rotation may have put them.

        Return False if there were more than `most` that are where they were: the others come next time.
        """
        waiting = [
            s for s in self.registry.streams if s.unresolved is not None and s.retired_at is None
        ]
        # Who has read most can be told from others best, and chooses first.
        waiting.sort(key=lambda s: s.read_by_all, reverse=True)
        elsewhere, found = [], 0
        for stream in waiting:
            if not self._find_by_inode(stream, now):
                elsewhere.append(stream)
            elif (found := found + 1) == most:
                return False
        for stream in elsewhere:
            self.find_continuation(stream, now)
        return True

    def find_continuation(self, stream: LogStream, now: float) -> None:
        """Search for the file in which the content of `stream` lives on, and go on there."""
        # Nothing read, and hardly anything known: what fits fits by chance, and is read from its beginning anyway.
        unknown = stream.read_by_none and stream.head.length < fingerprint.MIN_EVIDENCE
        if not unknown and self._attach_to_related_file(stream, now):
            return
        if stream.search_deadline is None:
            stream.search_deadline = now + _SEARCH_SECONDS
        if now < stream.search_deadline and not unknown:
            return
        missing = stream.written - stream.read_by_all
        if missing > 0:
            self.registry.record_loss(stream.loss_reason, missing, stream.path)
        self.registry.retire(stream)

    def _attach_to_related_file(self, stream: LogStream, now: float) -> bool:
        paths, taken = self._related_paths(stream.path), self.registry.by_key
        home = self.opener.find_first(stream.is_continued_by, paths, taken)
        if home is None:
            home = self.opener.find_first(stream.is_truncated_copy_in, paths, taken)
            if home is None:
                return False
            stream.truncate(home[0])
        self.registry.attach(stream, *home, now)
        return True

    def _related_paths(self, path: str) -> list[str]:
        """The files that may be the rotated past of `path`, the youngest first; the one that has its name now is last."""
        name, bare = os.path.basename(path), self.registry.has_bare_name(path)
        siblings = self.opener.discovery.siblings(path)
        names = [p for p in siblings if _may_continue(name, os.path.basename(p), bare)]
        return sorted(names, key=lambda p: (p != path, _modified_ns(p)), reverse=True)

    def _find_by_inode(self, stream: LogStream, now: float) -> bool:
        """Look under the device and inode it had. True also if that has to be done once more."""
        key, places = stream.key, self.registry.index.paths_by_inode
        if key is None or key in self.registry.by_key or key not in places:
            return False
        path = places[key][0]
        opened = self.opener.open(path)
        if opened is not None:
            content, status = opened
            if (status.st_dev, status.st_ino) == key:
                # One that was empty then may be anything by now, a copy for example: it is met as if for the first time.
                if stream.is_continued_by(content):
                    self.registry.attach(stream, content, key, path, now)
                    return True
                content.close()
                return False
            content.close()
        # Renamed since the names were listed: the next look knows its new one.
        if stream.search_deadline is None:
            stream.search_deadline = now + _SEARCH_SECONDS
        return now < stream.search_deadline


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
