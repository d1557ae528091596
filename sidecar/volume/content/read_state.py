"""The state of one read: the files of a listing that were read, and those that must be read again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from sidecar.fs import open_file, openat
from sidecar.volume.content import metadata
from sidecar.volume.content.listing import ALL, Scope
from sidecar.volume.content.metadata import HiddenMetadata
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.content.snapshot import VERSION_DIGITS, Content, Large, version_of

#: Seconds after a change during which an equal signature proves nothing: timestamps are coarse, two seconds on FAT.
_CLOCK_GRANULARITY = 2.0


@dataclass(slots=True)
class ReadState:
    """The files of a listing that have been read so far."""

    before: ScanResult | None
    on_progress: Callable[[], None]
    directory: open_file.Directory | None = None
    """The directory being read, kept open for large files that are opened on demand."""
    contents: dict[str, Content] = field(default_factory=dict)
    signatures: dict[str, openat.StatSignature] = field(default_factory=dict)
    changed_while_read: set[str] = field(default_factory=set)
    incomplete: set[str] = field(default_factory=set)
    started: dict[str, float] = field(default_factory=dict)
    """Start of the read of each large file, in monotonic seconds: it may take longer than the clock granularity."""
    linked: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    rescanned: set[str] | None = None
    """The names that were scanned, None for all."""
    scope: Scope = ALL
    hidden: HiddenMetadata = field(default_factory=lambda: HiddenMetadata(-1))

    def keep(self, name: str, signature: openat.StatSignature, content: Content) -> None:
        self.contents[name], self.signatures[name] = content, signature

    def read(self, dir_fd: int, name: str, limit: int, where: str) -> int:
        """Read a file and return its size in bytes."""
        started = time.monotonic()
        found = open_file.read(dir_fd, name, limit, where, on_progress=self.on_progress)
        if found.links > 1:
            self.linked.add(name)
        if isinstance(found, open_file.LargeRead):
            self.started[name] = started
            self._add_large(name, found)
        else:
            content = _content(found, name, self.before)
            attached = metadata.of_attribute(found.attribute, content.version, name, self.hidden)
            if attached is not None:
                content = replace(content, metadata=attached)
            self.keep(name, found.signature, content)
            if not found.stable:
                self.changed_while_read.add(name)
        return self.contents[name].size

    def _add_large(self, name: str, found: open_file.LargeRead) -> None:
        if found.digest is None:
            self.changed_while_read.add(name)
            self.incomplete.add(name)
        file: Large = found.file
        if self.directory is not None and not open_file.can_hold():
            file = open_file.LazyFile(self.directory, name, found.signature, found.file.where)
        version = (found.digest or "")[:VERSION_DIGITS]
        modified = found.signature.mtime_ns / 1e9
        old = self.before.snapshot.get_content(name) if self.before is not None else None
        if old is not None and old.version == version and _is_same_file(old, found.signature):
            file = old.held  # type: ignore[assignment]  # only large ones are the same file
        attached = metadata.of_attribute(found.attribute, version, name, self.hidden)
        self.keep(name, found.signature, Content(name, file, version, modified, attached))


def unchanged_content(
    name: str, now: openat.StatSignature, before: ScanResult | None
) -> Content | None:
    """Return the content of `before` if the signature proves that it is unchanged, else None."""
    if (
        before is None
        or name in before.states.unreliable
        or before.states.signatures.get(name) != now
    ):
        return None
    return before.snapshot.content(name)


def unreliable_names(reading: ReadState) -> dict[str, float]:
    """Return the names that must be read again although their signature is unchanged.

    A signature is reliable once the file has been read two seconds after its last change.
    The timestamps of the file are used if they are plausible, else the monotonic clock:
    a file dated in the future must not be read again forever.
    The start of the read counts, because a large file may change while it is read.
    """
    before, now = reading.before, time.monotonic()
    horizon = time.time_ns() - int(_CLOCK_GRANULARITY * 1e9)
    found: dict[str, float] = {}
    names: Collection[str] = reading.signatures
    if before is not None and reading.rescanned is not None:
        # Names that were not rescanned are as unreliable as before.
        found = {n: s for n, s in before.states.unreliable.items() if n not in reading.rescanned}
        names = reading.rescanned & reading.signatures.keys()
    for name in names:
        signature = reading.signatures[name]
        started = reading.started.get(name, now)
        then = horizon - int((now - started) * 1e9)
        if signature.mtime_ns < then and signature.ctime_ns < then:
            continue
        since = started
        if before is not None and before.states.signatures.get(name) == signature:
            since = before.states.unreliable.get(name, now - _CLOCK_GRANULARITY)
        if started - since < _CLOCK_GRANULARITY:
            found[name] = since
    return found


def _is_same_file(old: Content, now: openat.StatSignature) -> bool:
    """Whether a large content is held in this file, and the file was not written to since."""
    if isinstance(old.held, bytes):
        return False
    was = old.held.signature
    return (was.identity, was.size, was.mtime_ns) == (now.identity, now.size, now.mtime_ns)


def _content(found: openat.FileRead, name: str, before: ScanResult | None) -> Content:
    """Create the content; if the bytes equal the previous ones, reuse their version instead of hashing."""
    modified = found.signature.mtime_ns / 1e9
    old = before.snapshot.get_content(name) if before is not None else None
    if old is not None and old.held == found.data:
        return Content(name, old.held, old.version, modified)
    return Content(name, found.data, version_of(found.data), modified)
