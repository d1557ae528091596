"""What has been read of the files of a listing, and which of it must be read again: for one look."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sidecar.fs import open_file, openat
from sidecar.volume.content.listing import ALL, Scope
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.content.snapshot import VERSION_DIGITS, Content, Large, version_of

#: File systems stamp in ticks, FAT in two seconds; so soon after a change an equal signature proves nothing.
_STAMP_DOUBT = 2.0


@dataclass(slots=True)
class ReadState:
    """What reading the names of a listing has brought."""

    before: ScanResult | None
    working: Callable[[], None]
    directory: open_file.Directory | None = None
    """The one that is read, held open: for large files that are not, because too many are already."""
    contents: dict[str, Content] = field(default_factory=dict)
    signatures: dict[str, openat.StatSignature] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    begun: dict[str, float] = field(default_factory=dict)
    """Since when large files have been read, in monotonic seconds: it may take longer than clocks are coarse."""
    linked: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    touched: set[str] | None = None
    """The names that were looked at, None for all."""
    scope: Scope = ALL

    def keep(self, name: str, signature: openat.StatSignature, content: Content) -> None:
        self.contents[name], self.signatures[name] = content, signature

    def read(self, dir_fd: int, name: str, limit: int, where: str) -> int:
        """Read a file, and return how many bytes it has."""
        begun = time.monotonic()
        found = open_file.read(dir_fd, name, limit, where, working=self.working)
        if found.links > 1:
            self.linked.add(name)
        if isinstance(found, open_file.LargeRead):
            self.begun[name] = begun
            self._take_large(name, found)
        else:
            self.keep(name, found.signature, _content(found, name, self.before))
            if not found.settled:
                self.unsettled.add(name)
        return self.contents[name].size

    def _take_large(self, name: str, found: open_file.LargeRead) -> None:
        if found.digest is None:
            self.unsettled.add(name)
            self.unread.add(name)
        file: Large = found.file
        if self.directory is not None and not open_file.can_hold():
            file = open_file.LazyFile(self.directory, name, found.signature, found.file.where)
        version = (found.digest or "")[:VERSION_DIGITS]
        modified = found.signature.mtime_ns / 1e9
        old = self.before.snapshot.get_content(name) if self.before is not None else None
        if old is not None and old.version == version and _is_same_file(old, found.signature):
            file = old.held  # type: ignore[assignment]  # only large ones are the same file
        self.keep(name, found.signature, Content(name, file, version, modified))


def kept(name: str, now: openat.StatSignature, before: ScanResult | None) -> Content | None:
    """Return the content read before, if the signature proves that it is still the same."""
    if before is None or name in before.mark.doubtful or before.mark.signatures.get(name) != now:
        return None
    return before.snapshot.content(name)


def doubtful(reading: ReadState) -> dict[str, float]:
    """Return the names that must be read again although their signature stays the same.

    A signature is sure once the file has been read two seconds after its last change,
    by the clock of the files where that is plausible, else by our own:
    a file dated in the future must not be read again for ever.
    What counts is when its reading began: a large one may have changed behind it since.
    """
    before, now = reading.before, time.monotonic()
    horizon = time.time_ns() - int(_STAMP_DOUBT * 1e9)
    found: dict[str, float] = {}
    names: Collection[str] = reading.signatures
    if before is not None and reading.touched is not None:
        # What was not looked at is as doubtful as it was.
        found = {n: s for n, s in before.mark.doubtful.items() if n not in reading.touched}
        names = reading.touched & reading.signatures.keys()
    for name in names:
        signature = reading.signatures[name]
        begun = reading.begun.get(name, now)
        then = horizon - int((now - begun) * 1e9)
        if signature.mtime_ns < then and signature.ctime_ns < then:
            continue
        since = begun
        if before is not None and before.mark.signatures.get(name) == signature:
            since = before.mark.doubtful.get(name, now - _STAMP_DOUBT)
        if begun - since < _STAMP_DOUBT:
            found[name] = since
    return found


def _is_same_file(old: Content, now: openat.StatSignature) -> bool:
    """Whether a large content lies in this very file, which was not written to since."""
    if isinstance(old.held, bytes):
        return False
    was = old.held.signature
    return (was.identity, was.size, was.mtime_ns) == (now.identity, now.size, now.mtime_ns)


def _content(found: openat.FileRead, name: str, before: ScanResult | None) -> Content:
    """Make the content; bytes that equal those before are compared, not hashed again."""
    modified = found.signature.mtime_ns / 1e9
    old = before.snapshot.get_content(name) if before is not None else None
    if old is not None and old.held == found.data:
        return Content(name, old.held, old.version, modified)
    return Content(name, found.data, version_of(found.data), modified)
