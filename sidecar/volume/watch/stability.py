"""Decide which part of a look may be shown, and when to look again.

What came by rename is whole. What is rewritten in place is whole once its writer has closed it,
and only events tell of that, so they are kept here as evidence for each name.
Evidence counts if it was there before the look began and nothing came after it:
a file that was closed while it was being read may have been read half.
Where there is no evidence, a file must have been still for a second,
or the disk itself proves that it is whole: see `WriteProofs`. Nothing else here does I/O.
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
#: What may happen to a name while it is read without any doubt about the bytes: old and new ones are whole.
_HARMLESS = _CLOSED | _CAME

#: Seconds without a change after which a file that was rewritten in place is taken to be complete.
QUIET_PERIOD = 1.0
#: The same where events say that its writer has closed it: the next one's first bytes show before their event.
CLOSE_CONFIRM = 0.005
#: The same where events say that its writer still has it open; longer than that is told as a problem.
MAX_WAIT = 10.0
#: A directory in which a file is closed is still for so long before it is shown: a tree may be on its way into it.
QUIET = 0.1
#: How long at most files wait for each other: those that are there already, and those that are new.
_MAX_QUIET = 1.0
_MAX_QUIET_NEW = 5.0
#: Names that vanish one after the other are `rm -rf` at work: it must be over before the rest is shown.
DELETION_QUIET = 0.1
_MAX_DELETION_QUIET = 2.0


class Need(NamedTuple):
    """How long a file must be still to be believed."""

    seconds: float
    from_now: bool = False
    """So much is left of it; else it is counted from when the file was first found in its present state."""


#: No stillness is enough: only the next look, which follows at once, can tell.
_AGAIN = Need(-1.0)
#: Its writer has closed it.
_CONFIRMED = Need(CLOSE_CONFIRM)


def _left(seconds: float) -> Need | None:
    return Need(seconds, from_now=True) if seconds > 0 else None


class WriteProofs(Protocol):
    """What the disk says of a file when no event has told of it."""

    def is_open_for_writing(self, name: str, signature: openat.StatSignature) -> bool | None:
        """Return whether anybody writes to a file that was found in that state, None if nobody can tell."""

    def has_published(self, name: str, signature: openat.StatSignature, version: str) -> bool:
        """Whether the history holds this very file under that version."""


@dataclass
class PendingFile:
    """Since when names have been waited for, in monotonic seconds."""

    grown: float = 0.0
    """When the last name came to those that are waited for."""
    version: str = ""
    """What was found last by one who waits for a whole directory to be quiet, and since when, and since when he waits."""
    version_since: float = 0.0
    waiting_since: float | None = None

    still: dict[str, tuple[openat.StatSignature, float]] = field(default_factory=dict)
    """For each name the state in which it was last found, since when."""
    since: dict[str, float] = field(default_factory=dict)
    """For each name since when it has not been accepted."""
    gone: frozenset[str] = frozenset()
    gone_still: float = 0.0
    gone_since: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What a look is worth: the part that may be shown, and when to look again."""

    accept: ScanResult | None
    pause: float | None
    """Seconds until a look will tell more; None if there is nothing to wait for."""
    problem: str | None = None
    """Why the newest content cannot be shown although it has been waited for long enough."""


@dataclass
class StabilityFilter:
    """Decides for one path, look after look."""

    path: str
    disk: WriteProofs | None = None
    quiet: float | None = None
    """Seconds for which a directory must be still after any change; None: `QUIET` after what was written in place."""
    evidence: EventLog = field(default_factory=EventLog)
    held: PendingFile = field(default_factory=PendingFile)

    def decide(self, sighting: ScanResult, before: ScanResult | None, now: float) -> Decision:
        """Return what of a look may be shown; `before` is what was accepted last."""
        first = before is None or before.mark.directory != sighting.mark.directory
        waits = self._waits(sighting, before, first=first, now=now)
        if pause := self._vanishing(sighting, before, first=first, now=now):
            return Decision(None, pause)
        if pause := self._unrest(sighting, before, first=first, now=now):
            return Decision(None, min(pause, *waits.values()) if waits else pause)
        if not waits:
            self.evidence.settle(sighting.mark.signatures, waits)
            return Decision(sighting, None)
        pause, problem = min(waits.values()), self._impatience(now)
        in_writing = all(self.evidence.last.get(name) == _WRITTEN for name in waits)
        if sighting.snapshot.name is not None or (first and not in_writing):
            return Decision(None, pause, problem)
        shown = sighting.without(frozenset(waits), before)
        if not shown.snapshot:
            return Decision(None, pause, problem)
        self.evidence.settle(sighting.mark.signatures, waits)
        return Decision(shown, pause, problem)

    def _waits(
        self, sighting: ScanResult, before: ScanResult | None, *, first: bool, now: float
    ) -> dict[str, float]:
        """Return the names that must not be shown yet, and for how many seconds more."""
        held, since = self.held, self.held.since
        doubts = self._doubts(sighting, before, first=first)
        held.still, still = {}, held.still
        held.since = {name: since.get(name, now) for name in doubts}
        waits: dict[str, float] = {}
        for name, need in doubts.items():
            signature = sighting.mark.signatures[name]
            known = still.get(name)
            begun = known[1] if known is not None and known[0] == signature else now
            held.still[name] = signature, begun
            left = need.seconds if need.from_now else begun + need.seconds - now
            if need is _AGAIN or (name in sighting.unsettled and left <= 0):
                waits[name] = 0.0
            elif left > 0:
                waits[name] = left
        if sighting.snapshot.name is None:
            old: Collection[str] = before.snapshot.keys() if before is not None else ()
            self._wait_for_company(
                doubts, waits, old, grown=not doubts.keys() <= since.keys(), now=now
            )
        for name in doubts.keys() - waits.keys():
            self.evidence.close(name)
        return waits

    def _wait_for_company(
        self,
        doubts: Mapping[str, Need],
        waits: dict[str, float],
        old: Collection[str],
        *,
        grown: bool,
        now: float,
    ) -> None:
        """Let files of a directory that were written in place wait for others that are on their way with them."""
        held = self.held
        if grown or any(name not in old and doubts[name] is not _CONFIRMED for name in waits):
            held.grown = now
        quiet = held.grown + (QUIET if self.quiet is None else self.quiet)
        for name, need in doubts.items():
            most = _MAX_QUIET if name in old else _MAX_QUIET_NEW
            left = min(quiet, held.since[name] + most) - now
            # What has been still for long enough, as an empty file, waits too if it is new.
            if left > 0 and (need is _CONFIRMED or (name not in old and name not in waits)):
                waits[name] = max(left, waits.get(name, 0.0))

    def _unrest(
        self, sighting: ScanResult, before: ScanResult | None, *, first: bool, now: float
    ) -> float | None:
        """Return how long a directory must still be quiet, where that was asked for."""
        held, version = self.held, sighting.snapshot.version
        loose = sighting.snapshot.name is None and sighting.mark.generation is None
        same = before is None or first or before.snapshot.version == version
        if not self.quiet or not loose or same:
            held.waiting_since = None
            return None
        if held.waiting_since is None:
            held.waiting_since, held.version = now, ""
        if held.version != version:
            held.version, held.version_since = version, now
        most = max(_MAX_QUIET_NEW, 10 * self.quiet)
        end = min(held.version_since + self.quiet, held.waiting_since + most)
        return end - now if end > now else None

    def _doubts(
        self, sighting: ScanResult, before: ScanResult | None, *, first: bool
    ) -> dict[str, Need]:
        """Return the names that may be in the middle of a rewrite, and how long they must be still."""
        mark = sighting.mark
        # A generation is complete before `..data` points at it.
        fresh = mark.generation is not None and (
            first or before is None or before.mark.generation != mark.generation
        )
        if fresh or (first and self.evidence.arrived):
            return dict.fromkeys(sighting.unread, _AGAIN)
        old = {} if before is None or first else before.mark.signatures
        doubts: dict[str, Need] = {}
        for name in sighting.altered(before):
            if name not in mark.signatures:
                continue  # it cannot be read, and its last good content stands in
            if name not in sighting.unsettled and _is_shown(name, sighting, before):
                continue  # whatever is going on, these bytes are good: they were accepted before
            if need := self._needed(name, old.get(name), sighting, first=first):
                doubts[name] = need
        return doubts

    def _needed(
        self, name: str, old: openat.StatSignature | None, sighting: ScanResult, *, first: bool
    ) -> Need | None:
        """Return how long a file that is new or altered must be still to be believed, None if it is believed."""
        signature, evidence = sighting.mark.signatures[name], self.evidence
        known, last = evidence.known.get(name), evidence.last.get(name)
        late = evidence.late.get(name, 0)
        proven = known in (_CLOSED, _CAME) and not late & ~_HARMLESS
        if last == _WRITTEN:
            # No close will come if nobody has it open: truncate(2) by a path does not open it.
            closed = self._writing(name, signature) is False
            return _left(_youth(signature)) if closed else Need(MAX_WAIT)
        if name in sighting.unsettled or (late and not proven):
            return _AGAIN if last in (_CLOSED, _CAME) else Need(QUIET_PERIOD)
        if proven and known == _CAME:
            return None
        if proven:
            # Truncating shows long before its event on a busy disk: an empty file is nearly always the first half.
            return _CONFIRMED if signature.size else Need(QUIET_PERIOD)
        if last == _MADE:
            if not _was_linked(name, sighting):
                return Need(QUIET_PERIOD)
            # A copy whose times were set after it was closed looks the same, and more of its tree may follow.
            alone = sighting.snapshot.name is not None or name in sighting.linked
            return None if alone else _CONFIRMED
        if self._came_with_directory(name, sighting):
            return None
        return self._needed_without_events(name, old, sighting, first=first)

    def _needed_without_events(
        self, name: str, old: openat.StatSignature | None, sighting: ScanResult, *, first: bool
    ) -> Need | None:
        signature = sighting.mark.signatures[name]
        young = first or (old is not None and old.identity != signature.identity)
        left = _youth(signature) if young else QUIET_PERIOD
        if not left or self._is_published(name, sighting):
            return None
        match self._writing(name, signature):
            case None:
                return Need(left, young)
            case True:
                return Need(MAX_WAIT - QUIET_PERIOD + left, young)
            case False if not signature.size and not first:
                return Need(left, young)
            case False if sighting.snapshot.name is None:
                # More may be on its way: a tree that is copied.
                return _left(_youth(signature, QUIET)) if first else _CONFIRMED
            case False:
                return None

    def _is_published(self, name: str, sighting: ScanResult) -> bool:
        """Whether our history proves that a file is as it was published."""
        if self.disk is None or name not in sighting.linked:
            return False
        version = sighting.snapshot.content(name).version
        return self.disk.has_published(name, sighting.mark.signatures[name], version)

    def _writing(self, name: str, signature: openat.StatSignature) -> bool | None:
        return self.disk.is_open_for_writing(name, signature) if self.disk is not None else None

    def _came_with_directory(self, name: str, sighting: ScanResult) -> bool:
        """Whether a file lay in a directory when that came by rename, and has not been touched since."""
        folder, evidence = name, self.evidence
        while folder := folder.rpartition("/")[0]:
            came = evidence.known.get(folder) == _CAME and not evidence.late.get(folder, 0) & ~_CAME
            if came and folder in sighting.mark.folders:
                changed = sighting.mark.signatures[name].ctime_ns
                return changed < sighting.mark.folders[folder].ctime_ns
        return False

    def _vanishing(
        self, sighting: ScanResult, before: ScanResult | None, *, first: bool, now: float
    ) -> float | None:
        """Return how long to wait for a removal to be over, None where nothing is being removed."""
        gone: frozenset[str] = frozenset()
        if before is not None and not first and sighting.mark.generation is None:
            gone = sighting.gone(before)
        held = self.held
        if not held.gone:
            held.gone_since = now
        if held.gone != gone:
            held.gone, held.gone_still = gone, now
        if not gone:
            return None
        end = min(held.gone_still + DELETION_QUIET, held.gone_since + _MAX_DELETION_QUIET)
        return end - now if end > now else None

    def _impatience(self, now: float) -> str | None:
        """Say which name has been waited for in vain."""
        late = [name for name, since in self.held.since.items() if now - since >= MAX_WAIT]
        if not late:
            return None
        return (
            f"cannot read {self.path}: {min(late)} has been rewritten in place for more than"
            f" {MAX_WAIT:g} s without an end (replace it by rename, or close it after writing)"
        )


def _is_shown(name: str, sighting: ScanResult, before: ScanResult | None) -> bool:
    """Whether the bytes are those that were accepted last. Signatures do not tell: a clock may stand still."""
    if before is None or name not in before.snapshot:
        return False
    return before.snapshot.content(name).version == sighting.snapshot.content(name).version


def _was_linked(name: str, sighting: ScanResult) -> bool:
    """Whether a name that was made, and not written to since, is a link to a file that was complete before.

    While a file is being written, both of its times go together.
    """
    signature = sighting.mark.signatures[name]
    if not signature.size:
        return False
    return (
        name in sighting.linked
        or signature.mtime_ns != signature.ctime_ns
        or _age(signature) >= QUIET_PERIOD
    )


def _age(signature: openat.StatSignature) -> float:
    """Seconds since the last change of the bytes, by the wall clock: negative for a file from the future."""
    return _now() - signature.mtime_ns / 1e9


def _youth(signature: openat.StatSignature, old: float = QUIET_PERIOD) -> float:
    """Return the seconds until a file has not been touched for `old` seconds, 0 if it has not.

    Whoever writes sets both of its times; one that lies in the future tells nothing.
    """
    now = _now()
    past = [s / 1e9 for s in (signature.mtime_ns, signature.ctime_ns) if s / 1e9 <= now]
    return max(0.0, max(past) + old - now) if past else old


def _now() -> float:
    return time.time()
