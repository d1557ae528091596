"""Decide which part of a scan may be shown, and when to scan again.

A file that arrived by rename is complete. A file that is rewritten in place is complete once its writer has closed it.
Only events report that, so they are recorded for each name (`EventLog`).
An event counts if it arrived before the scan started and no other followed:
a file that was closed during the scan may have been read partially.
Without events, a file must be unchanged for a quiet period of one second,
unless the disk proves that it is complete: see `WriteProofs`, the only I/O of this module.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sidecar.fs import openat
from sidecar.fs.notify.inotify import Inotify
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.watch.event_log import EventLog

_MADE = Inotify.CREATE
_WRITTEN = Inotify.MODIFY
_CLOSED = Inotify.CLOSE_WRITE
_CAME = Inotify.MOVED_TO
#: Events that may occur during a read: the old and the new content are both complete.
_HARMLESS = _CLOSED | _CAME

#: Seconds without a change after which a file that was rewritten in place counts as complete.
QUIET_PERIOD = 1.0
#: The same after a close event: the first bytes of the next write are visible before their event.
CLOSE_CONFIRM = 0.005
#: The same while the writer still has the file open; after that, the file is reported as a problem.
MAX_WAIT = 10.0
#: Quiet period of a directory after a file in it was closed: more files of a copied tree may follow.
DIRECTORY_QUIET = 0.1
#: Maximum seconds that existing files, and new files, wait for other files of the directory.
_MAX_QUIET = 1.0
_MAX_QUIET_NEW = 5.0
#: Quiet period after deletions: `rm -rf` deletes names one by one, and must end before the rest is shown.
DELETION_QUIET = 0.1
_MAX_DELETION_QUIET = 2.0


class QuietNeed(NamedTuple):
    """How long a file must be unchanged before it is accepted."""

    seconds: float
    from_now: bool = False
    """Whether `seconds` count from now; else from the first scan that found the file in its present state."""


#: No quiet period suffices: scan again immediately.
_RESCAN = QuietNeed(-1.0)
#: The writer has closed the file.
_CONFIRMED = QuietNeed(CLOSE_CONFIRM)


def _left(seconds: float) -> QuietNeed | None:
    return QuietNeed(seconds, from_now=True) if seconds > 0 else None


class WriteProofs(Protocol):
    """Checks on the disk for files without events."""

    def is_open_for_writing(self, name: str, signature: openat.StatSignature) -> bool | None:
        """Return whether a process has the file open for writing; None if that is unknown or the file has changed."""

    def is_archived(self, name: str, signature: openat.StatSignature, version: str) -> bool:
        """Whether the history holds this inode under that version."""


@dataclass
class PendingFile:
    """The state of files that are not accepted yet; times are in monotonic seconds."""

    last_added: float = 0.0
    """When the last name was added to the pending names."""
    version: str = ""
    """For `quiet`: the last version found, since when it is unchanged, and the start of the wait."""
    version_since: float = 0.0
    waiting_since: float | None = None

    observed: dict[str, tuple[openat.StatSignature, float]] = field(default_factory=dict)
    """For each name, its last signature, and since when it is unchanged."""
    since: dict[str, float] = field(default_factory=dict)
    """For each name, since when it is pending."""
    gone: frozenset[str] = frozenset()
    gone_still: float = 0.0
    gone_since: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The result of the filter: the part of the scan to show, and when to scan again."""

    show: ScanResult | None
    retry_after: float | None
    """Seconds until the next scan; None if nothing is pending."""
    problem: str | None = None
    """Why the newest content cannot be shown after `MAX_WAIT`."""


@dataclass
class StabilityFilter:
    """Filters the scans of one path: holds back files that may be incomplete."""

    path: str
    disk: WriteProofs | None = None
    quiet: float | None = None
    """Quiet period of a directory after any change, in seconds; None: `DIRECTORY_QUIET`, only after in-place writes."""
    events: EventLog = field(default_factory=EventLog)
    pending: PendingFile = field(default_factory=PendingFile)

    def decide(self, scan: ScanResult, before: ScanResult | None, now: float) -> Decision:
        """Return which part of a scan may be shown; `before` is the last accepted scan."""
        first = before is None or before.states.directory != scan.states.directory
        waits = self._waits(scan, before, first=first, now=now)
        if retry_after := self._deletion_delay(scan, before, first=first, now=now):
            return Decision(None, retry_after)
        if retry_after := self._directory_quiet_delay(scan, before, first=first, now=now):
            return Decision(None, min(retry_after, *waits.values()) if waits else retry_after)
        if not waits:
            self.events.prune(scan.states.signatures, waits)
            return Decision(scan, None)
        retry_after, problem = min(waits.values()), self._timeout_problem(now)
        in_writing = all(self.events.last.get(name) == _WRITTEN for name in waits)
        if scan.snapshot.name is not None or (first and not in_writing):
            return Decision(None, retry_after, problem)
        shown = scan.excluding(frozenset(waits), before)
        if not shown.snapshot:
            return Decision(None, retry_after, problem)
        self.events.prune(scan.states.signatures, waits)
        return Decision(shown, retry_after, problem)

    def _waits(
        self, scan: ScanResult, before: ScanResult | None, *, first: bool, now: float
    ) -> dict[str, float]:
        """Return the names that must not be shown yet, with the remaining seconds."""
        pending, since = self.pending, self.pending.since
        unstable = self._unstable_names(scan, before, first=first)
        pending.observed, observed = {}, pending.observed
        pending.since = {name: since.get(name, now) for name in unstable}
        waits: dict[str, float] = {}
        for name, need in unstable.items():
            signature = scan.states.signatures[name]
            known = observed.get(name)
            begun = known[1] if known is not None and known[0] == signature else now
            pending.observed[name] = signature, begun
            left = need.seconds if need.from_now else begun + need.seconds - now
            if need is _RESCAN or (name in scan.changed_while_read and left <= 0):
                waits[name] = 0.0
            elif left > 0:
                waits[name] = left
        if scan.snapshot.name is None:
            old: Collection[str] = before.snapshot.keys() if before is not None else ()
            self._wait_for_siblings(
                unstable, waits, old, last_added=not unstable.keys() <= since.keys(), now=now
            )
        for name in unstable.keys() - waits.keys():
            self.events.mark_closed(name)
        return waits

    def _wait_for_siblings(
        self,
        unstable: Mapping[str, QuietNeed],
        waits: dict[str, float],
        old: Collection[str],
        *,
        last_added: bool,
        now: float,
    ) -> None:
        """Let files that were written in place wait for other files that arrive in the same directory."""
        pending = self.pending
        if last_added or any(
            name not in old and unstable[name] is not _CONFIRMED for name in waits
        ):
            pending.last_added = now
        quiet = pending.last_added + (DIRECTORY_QUIET if self.quiet is None else self.quiet)
        for name, need in unstable.items():
            most = _MAX_QUIET if name in old else _MAX_QUIET_NEW
            left = min(quiet, pending.since[name] + most) - now
            # A new file that has been unchanged for long enough, such as an empty one, waits too.
            if left > 0 and (need is _CONFIRMED or (name not in old and name not in waits)):
                waits[name] = max(left, waits.get(name, 0.0))

    def _directory_quiet_delay(
        self, scan: ScanResult, before: ScanResult | None, *, first: bool, now: float
    ) -> float | None:
        """Return the remaining quiet period of the directory if `quiet` is set, else None."""
        pending, version = self.pending, scan.snapshot.version
        loose = scan.snapshot.name is None and scan.states.generation is None
        same = before is None or first or before.snapshot.version == version
        if not self.quiet or not loose or same:
            pending.waiting_since = None
            return None
        if pending.waiting_since is None:
            pending.waiting_since, pending.version = now, ""
        if pending.version != version:
            pending.version, pending.version_since = version, now
        most = max(_MAX_QUIET_NEW, 10 * self.quiet)
        end = min(pending.version_since + self.quiet, pending.waiting_since + most)
        return end - now if end > now else None

    def _unstable_names(
        self, scan: ScanResult, before: ScanResult | None, *, first: bool
    ) -> dict[str, QuietNeed]:
        """Return the names that may be incomplete, and how long they must be unchanged."""
        states = scan.states
        # A generation is complete before `..data` points at it.
        fresh = states.generation is not None and (
            first or before is None or before.states.generation != states.generation
        )
        if fresh or (first and self.events.renamed_in):
            return dict.fromkeys(scan.incomplete, _RESCAN)
        old = {} if before is None or first else before.states.signatures
        unstable: dict[str, QuietNeed] = {}
        for name in scan.changed_names(before):
            if name not in states.signatures:
                continue  # unreadable; its last good content is used instead
            if name not in scan.changed_while_read and _is_shown(name, scan, before):
                continue  # these bytes were accepted before
            if need := self._quiet_needed(name, old.get(name), scan, first=first):
                unstable[name] = need
        return unstable

    def _quiet_needed(
        self, name: str, old: openat.StatSignature | None, scan: ScanResult, *, first: bool
    ) -> QuietNeed | None:
        """Return how long a new or changed file must be unchanged; None if it is complete."""
        signature, events = scan.states.signatures[name], self.events
        known, last = events.before_scan.get(name), events.last.get(name)
        late = events.during_scan.get(name, 0)
        proven = known in (_CLOSED, _CAME) and not late & ~_HARMLESS
        if last == _WRITTEN:
            return self._quiet_needed_after_write(name, scan)
        if name in scan.changed_while_read or (late and not proven):
            return _RESCAN if last in (_CLOSED, _CAME) else QuietNeed(QUIET_PERIOD)
        if proven and known == _CAME:
            return None
        if proven:
            # On a busy disk a truncation is visible long before its event: an empty file is rarely the final content.
            return _CONFIRMED if signature.size else QuietNeed(QUIET_PERIOD)
        if last == _MADE:
            if not _was_linked(name, scan):
                return QuietNeed(QUIET_PERIOD)
            # A copy with timestamps set after close looks the same, and more files of its tree may follow.
            alone = scan.snapshot.name is not None or name in scan.linked
            return None if alone else _CONFIRMED
        if self._came_with_directory(name, scan):
            return None
        return self._quiet_needed_without_events(name, old, scan, first=first)

    def _quiet_needed_after_write(self, name: str, scan: ScanResult) -> QuietNeed | None:
        """Return what a file needs whose last event is a write without a close."""
        signature = scan.states.signatures[name]
        # No close event follows if the file is not open: truncate(2) on a path does not open it.
        if self._open_for_writing(name, signature) is not False:
            return QuietNeed(MAX_WAIT)
        # More files of a copied tree may follow, however old this one is.
        single = scan.snapshot.name is not None
        return _left(_seconds_until_quiet(signature)) or (None if single else _CONFIRMED)

    def _quiet_needed_without_events(
        self, name: str, old: openat.StatSignature | None, scan: ScanResult, *, first: bool
    ) -> QuietNeed | None:
        signature = scan.states.signatures[name]
        young = first or (old is not None and old.identity != signature.identity)
        left = _seconds_until_quiet(signature) if young else QUIET_PERIOD
        if not left or self._is_published(name, scan):
            return None
        match self._open_for_writing(name, signature):
            case None:
                return QuietNeed(left, young)
            case True:
                return QuietNeed(MAX_WAIT - QUIET_PERIOD + left, young)
            case False if not signature.size and not first:
                return QuietNeed(left, young)
            case False if scan.snapshot.name is None:
                # More files of a copied tree may follow.
                return (
                    _left(_seconds_until_quiet(signature, DIRECTORY_QUIET)) if first else _CONFIRMED
                )
            case False:
                return None

    def _is_published(self, name: str, scan: ScanResult) -> bool:
        """Whether the history proves that the file is unchanged since it was published."""
        if self.disk is None or name not in scan.linked:
            return False
        version = scan.snapshot.content(name).version
        return self.disk.is_archived(name, scan.states.signatures[name], version)

    def _open_for_writing(self, name: str, signature: openat.StatSignature) -> bool | None:
        return self.disk.is_open_for_writing(name, signature) if self.disk is not None else None

    def _came_with_directory(self, name: str, scan: ScanResult) -> bool:
        """Whether the file was in a directory when that directory was renamed in, and is unchanged since."""
        folder, events = name, self.events
        while folder := folder.rpartition("/")[0]:
            came = (
                events.before_scan.get(folder) == _CAME
                and not events.during_scan.get(folder, 0) & ~_CAME
            )
            if came and folder in scan.states.folders:
                changed = scan.states.signatures[name].ctime_ns
                return changed < scan.states.folders[folder].ctime_ns
        return False

    def _deletion_delay(
        self, scan: ScanResult, before: ScanResult | None, *, first: bool, now: float
    ) -> float | None:
        """Return how long to wait for deletions to end; None if nothing is being deleted."""
        gone: frozenset[str] = frozenset()
        if before is not None and not first and scan.states.generation is None:
            gone = scan.removed_names(before)
        pending = self.pending
        if not pending.gone:
            pending.gone_since = now
        if pending.gone != gone:
            pending.gone, pending.gone_still = gone, now
        if not gone:
            return None
        end = min(pending.gone_still + DELETION_QUIET, pending.gone_since + _MAX_DELETION_QUIET)
        return end - now if end > now else None

    def _timeout_problem(self, now: float) -> str | None:
        """Return the problem text if a name has been pending for `MAX_WAIT`, else None."""
        late = [name for name, since in self.pending.since.items() if now - since >= MAX_WAIT]
        if not late:
            return None
        return (
            f"cannot read {self.path}: {min(late)} has been rewritten in place for more than"
            f" {MAX_WAIT:g} s without an end (replace it by rename, or close it after writing)"
        )


def _is_shown(name: str, scan: ScanResult, before: ScanResult | None) -> bool:
    """Whether the content equals the one accepted last. Compares versions: a coarse clock makes signatures ambiguous."""
    if before is None or name not in before.snapshot:
        return False
    return before.snapshot.content(name).version == scan.snapshot.content(name).version


def _was_linked(name: str, scan: ScanResult) -> bool:
    """Whether a name that was created, but not written to, is a hard link to a file that was already complete.

    While a file is being written, its mtime and ctime are equal.
    """
    signature = scan.states.signatures[name]
    if not signature.size:
        return False
    return (
        name in scan.linked
        or signature.mtime_ns != signature.ctime_ns
        or _age(signature) >= QUIET_PERIOD
    )


def _age(signature: openat.StatSignature) -> float:
    """Return the seconds since mtime, by the wall clock; negative if mtime is in the future."""
    return _now() - signature.mtime_ns / 1e9


def _seconds_until_quiet(signature: openat.StatSignature, old: float = QUIET_PERIOD) -> float:
    """Return the seconds until the last change of a file is `old` seconds ago; 0 if it already is.

    A write sets both mtime and ctime. A time in the future is ignored.
    """
    now = _now()
    past = [s / 1e9 for s in (signature.mtime_ns, signature.ctime_ns) if s / 1e9 <= now]
    return max(0.0, max(past) + old - now) if past else old


def _now() -> float:
    return time.time()
