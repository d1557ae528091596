"""Find the next file of a stream whose file is deleted, truncated or overwritten, or that was restored from a checkpoint."""

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
"""How long the file of a stream is searched: names change during a rotation."""


@dataclass(frozen=True, slots=True)
class Relocator:
    """Finds the file in which a stream continues."""

    registry: StreamRegistry
    opener: Opener

    def reopen(self, stream: LogStream) -> bool:
        """Open the file of a stream if it was closed. Return False if it cannot be opened, or has another name."""
        if stream.content is not None:
            self.registry.mark_used(stream)
            return True
        if stream.key is None or self.registry.by_key.get(stream.key) is not stream:
            return False  # it has no file, or its file belongs to another stream
        opened = self.opener.open(stream.path)
        if opened is not None and (opened[1].st_dev, opened[1].st_ino) == stream.key:
            stream.content = opened[0]
            self.registry.mark_used(stream)
            return True
        if opened is not None:
            opened[0].close()
        stream.size_and_mtime = ()  # the next scan tries again
        return False

    def on_truncated(self, stream: LogStream, now: float) -> None:
        """Handle a file whose bytes were replaced: start a new stream there, and search the file of the old one."""
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
        _log.info(
            "%s was truncated or replaced; reading it from the beginning",
            path,
            extra={"event": "logs.file_truncated"},
        )
        self.find_continuation(stream, now)
        self.registry.wake(fresh)

    def locate_restored(self, now: float, most: int) -> bool:
        """Find the files of restored streams: first by device and inode, then among rotated files.

        Return False if `most` of them were found by inode: the others follow with the next call.
        """
        waiting = [
            s for s in self.registry.streams if s.unresolved is not None and s.retired_at is None
        ]
        # The stream that was read furthest is the easiest to recognise, so it comes first.
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
        """Search the file in which `stream` continues, and attach it; retire the stream when the search times out."""
        # Nothing was read and hardly anything is known: a match would be chance, and such a file is read from its beginning anyway.
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
        match = self.opener.find_first(stream.is_continued_by, paths, taken)
        if match is None:
            match = self.opener.find_first(stream.is_truncated_copy_in, paths, taken)
            if match is None:
                return False
            stream.truncate(match[0])
        self.registry.attach(stream, *match, now)
        return True

    def _related_paths(self, path: str) -> list[str]:
        """Return the possible rotated files of `path`, newest first; the file with this very name comes last."""
        name, bare = os.path.basename(path), self.registry.has_bare_name(path)
        siblings = self.opener.discovery.siblings(path)
        names = [p for p in siblings if _may_continue(name, os.path.basename(p), bare)]
        return sorted(names, key=lambda p: (p != path, _modified_ns(p)), reverse=True)

    def _find_by_inode(self, stream: LogStream, now: float) -> bool:
        """Try the file with the same device and inode. Return True if it fits, or has to be tried again."""
        key, places = stream.key, self.registry.index.paths_by_inode
        if key is None or key in self.registry.by_key or key not in places:
            return False
        path = places[key][0]
        opened = self.opener.open(path)
        if opened is not None:
            content, status = opened
            if (status.st_dev, status.st_ino) == key:
                # A file that was empty may hold anything by now, such as a copy: it is classified as a new file.
                if stream.is_continued_by(content):
                    self.registry.attach(stream, content, key, path, now)
                    return True
                content.close()
                return False
            content.close()
        # Renamed since the directory was listed: the next scan knows its new name.
        if stream.search_deadline is None:
            stream.search_deadline = now + _SEARCH_SECONDS
        return now < stream.search_deadline


def _may_continue(name: str, other: str, bare: bool) -> bool:
    """Whether rotation may have moved a file from `name` to `other`. `bare`: a log with the base name exists."""
    if bare:
        return fingerprint.same_log_family(name, other)
    return fingerprint.plain_name(name) == fingerprint.plain_name(other)


def _modified_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
