"""One thread that follows one path: waits for a hint or for the clock, looks, judges, and tells.

It owns everything it needs, its descriptors too, and shares nothing with whoever started it but `tell`:
so a new lookout can begin while an old one is still ending, and one that hangs in the kernel hurts nobody.

A thread, and no task with hops into a pool: the thread that is woken by the event is the one that reads the file,
which takes two of three changes of thread out of the way of a new content.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sidecar import _errors
from sidecar.fs.notify import base, select, wakeup
from sidecar.process import metrics
from sidecar.volume.content.filters import EVERYTHING, Filter
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.content.snapshot import Snapshot
from sidecar.volume.watch.changes import Changes
from sidecar.volume.watch.scanner import PathScanner, WatchPlan
from sidecar.volume.watch.stability import DELETION_QUIET, QUIET_PERIOD, Decision, StabilityFilter

logger = logging.getLogger(__name__)

WatchMode = Literal["auto", "inotify", "watchfiles", "poll"]

_REARM_AFTER = 5.0
#: Between two looks without a hint, however soon the second one is wanted.
_LEAST_PAUSE = 0.001
_AFTER_YOU = 0.0005
#: Comparing thousands of files must not take more than this part of the time while events work:
#: what came, went or was replaced is found all the same, at each re-check.
_SHARE_OF_TIME = 0.001
#: Seconds after which they are compared in any case.
_FULL_AT_LEAST = 60.0
#: The same for loose files, as events tell of each of them, and for the directories that they lie in.
_LOOSE_SHARE_OF_TIME = 0.0005
_LOOSE_FULL_AT_LEAST = 300.0
#: Wake-ups a second for names that do not matter, from where on they are taken together.
_NOISE = 200
_NOISE_PAUSE = 0.005


@dataclass(frozen=True)
class WatchUpdate:
    """What a lookout tells: only what is different from what it told before."""

    snapshot: Snapshot[None] | None = None
    """The content, if it is another one than that told last, or lies in other large files."""
    problem: str | None = None
    """What is wrong at present."""
    missing: bool = False
    """What is wrong is that there is nothing."""
    hinted: bool = True
    """Events have told of the change; if not, the clock has rescued it."""
    death: str | None = None
    """Why nothing is looked at any more."""


class _Stopped(Exception):
    """There is no point any more in what was being read."""


class WatchThread:
    """Follows a path from `start` until `stop`; `tell` is called in its thread."""

    def __init__(
        self,
        path: str,
        *,
        wanted: WatchMode,
        recheck: float,
        limit: int,
        wanted_names: Filter = EVERYTHING,
        quiet: float | None = None,
        tell: Callable[[WatchUpdate], None],
        ended: Callable[[], None],
    ) -> None:
        self.path = path
        self.busy_since: float | None = None
        """Since when a look has been going on, or has read the last piece of a large file, in monotonic seconds."""
        self.fallback: str | None = None
        """Why events that are wanted cannot be had."""
        self._wanted = wanted
        self._recheck = recheck
        self._tell = tell
        self._ended = ended
        self._bell = wakeup.WakeupPipe()
        self._hints: base.Notifier = base.PollNotifier(self._bell)
        self._eye = PathScanner(path, limit, self._get_on, wanted_names)
        self._judge = StabilityFilter(path, self._eye, quiet)
        self._stopping = False
        self._thread = threading.Thread(target=self.run, name=f"sidecar-watch {path}", daemon=True)
        self._armed: WatchPlan | None = None
        self._rearm_at = 0.0
        self._before: ScanResult | None = None
        self._unsure = True
        self._urgent = True
        self._hinted = True
        self._changes = Changes(everything=True)
        self._full_at = 0.0
        self._quick_at = 0.0
        self._remote = False
        self._missing_since: float | None = None
        self._told: tuple[str | None, str | None] | None = None
        self._shown: Snapshot[None] | None = None
        self._counted = 0
        self._noise = 0
        self._noise_until = 0.0

    @property
    def mode(self) -> base.Mode:
        """Where hints come from at present."""
        return self._hints.mode

    def start(self) -> None:
        """Begin, in a thread that does not keep the program alive."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end, from any other one; it calls `ended` as its last act."""
        self._stopping = True
        self._bell.ring()

    def join(self) -> None:
        """Wait for the thread, which has called `ended`: it is as good as gone."""
        self._thread.join()

    def run(self) -> None:
        """Look, judge, tell, and wait: one round after the other until `stop`."""
        try:
            while not self._stopping:
                self._round_or_death()
        finally:
            self._hints.close()
            self._eye.close()
            self._bell.close()
            self._ended()

    def _round_or_death(self) -> None:
        """Do one round, and wait for the next; whatever ends it is counted, told once, and it begins again."""
        self.busy_since = time.monotonic()
        try:
            pause = self._round()
            self.busy_since = None
            self._sleep(pause)
        except _Stopped:
            return
        except Exception as error:
            death = f"the watch of {self.path} fails: {error!r}"
            if self._told != (None, death):
                metrics.WATCH_ERRORS_TOTAL.inc()
                logger.exception("the watch of %s failed and begins again", self.path)
                self._told = (None, death)
                self._tell(WatchUpdate(death=death))
            self._armed, self._before, self._unsure = None, None, True
            self._changes.everything = True
            self.busy_since = None
            self._bell.wait(self._recheck, None)

    def _get_on(self) -> None:
        """Note that a large file is being read, and that nothing hangs; stop where nobody waits for it any more."""
        if self._stopping:
            raise _Stopped
        self.busy_since = time.monotonic()

    def _round(self) -> float:
        """Look once and act on it; return the seconds until the next look without a hint."""
        by_hint, self._urgent = self._urgent, False
        # A new content of the directory that is watched is told first, and the way there checked after that.
        at_once = by_hint and self._armed is not None
        if not at_once:
            self._turn()
        pause = self._observe(by_hint=by_hint)
        if at_once:
            # The event loop needs the interpreter now: what is left to do here would keep it waiting.
            time.sleep(_AFTER_YOU)
            if self._turn():
                self._urgent = True
        metrics.WATCH_EVENTS_TOTAL.inc(self._counted)
        self._counted = 0
        return pause

    def _turn(self) -> bool:
        """Turn to the directory that the path means now; return whether that is another one than before."""
        outlook = self._eye.turn()
        if outlook == self._armed and time.monotonic() < self._rearm_at:
            return False
        self._arm(outlook)
        return True

    def _observe(self, *, by_hint: bool) -> float:
        self._hinted = self._hinted or by_hint
        self._judge.evidence.scan_started()
        changes, self._changes = self._changes, Changes()
        try:
            sighting = self._look(changes, thoroughly=by_hint or self._unsure)
        except _errors.ReadError as error:
            self._changes.everything = True
            return self._miss(error)
        finally:
            self._check_coverage()
            self._drain()
        self._missing_since = None
        if sighting is None:
            self._hinted = False
            before = self._before
            self._report(None, next(iter(before.problems.values()), None) if before else None)
            return self._recheck
        pause = self._act(sighting)
        if self._unsure:
            self._changes.join(changes)  # what was not accepted is looked at once more
        return pause

    def _look(self, changes: Changes, *, thoroughly: bool) -> ScanResult | None:
        """Look at what has changed, where events tell of each file; else at everything."""
        before = self._before
        if before is not None and self._is_covered() and self._eye.can_mend(before):
            if not changes:
                changes = self._suspects(before)
                if not changes and time.monotonic() < self._full_at:
                    return None
            if changes and not changes.everything:
                found = self._eye.look_again(before, changes.names, changes.folders)
                if found is not None:
                    return found
        return self._look_at_all(before, thoroughly=thoroughly)

    def _suspects(self, before: ScanResult) -> Changes:
        """Return what is looked at without a hint: what a clock may hide, and what the directories tell."""
        started = time.monotonic()
        top = started < self._quick_at
        names = before.mark.doubtful.keys() | before.problems.keys()
        found = Changes(False, names, self._eye.changed_folders(before, top=top))
        if not top:
            now = time.monotonic()
            self._quick_at = now + min((now - started) / _LOOSE_SHARE_OF_TIME, _FULL_AT_LEAST)
        return found

    def _look_at_all(self, before: ScanResult | None, *, thoroughly: bool) -> ScanResult | None:
        """Look; where comparing takes long, and events work, compare all the files less often."""
        started = time.monotonic()
        sparing = before is not None and self._is_covered() and not before.problems
        quick = sparing and not thoroughly and started < self._full_at
        sighting = self._eye.look(before, thoroughly=thoroughly, quick=quick)
        now = time.monotonic()
        if sighting is not None:
            self._full_at = 0.0
        elif not quick:
            share, most = _SHARE_OF_TIME, _FULL_AT_LEAST
            if before is not None and self._eye.can_mend(before):
                share, most = _LOOSE_SHARE_OF_TIME, _LOOSE_FULL_AT_LEAST
            self._full_at = now + min((now - started) / share, most)
        return sighting

    def _is_covered(self) -> bool:
        """Whether events tell of every file that is followed: only then may a look leave any of them out."""
        coverage = self._eye.coverage
        return (
            self._hints.mode != "poll"
            and not self._remote
            and not coverage.blind
            and coverage.failure is None
        )

    def _check_coverage(self) -> None:
        """Poll where not every directory can be watched; say so once, and once that they can be again."""
        failure = self._eye.coverage.failure
        if failure is not None:
            self._fall_back(failure)
        elif self.fallback is not None and self._hints.mode != "poll":
            logger.info("%s is watched by %s again", self.path, self._hints.mode)
            self.fallback = None

    def _act(self, sighting: ScanResult) -> float:
        verdict = self._judge.decide(sighting, self._before, time.monotonic())
        accepted = verdict.accept
        problem = verdict.problem or next(iter(sighting.problems.values()), None)
        self._unsure = verdict.pause is not None
        if accepted is not None:
            self._before = accepted
            self._report(accepted.snapshot, problem)
            self._hinted = self._hinted and self._unsure
        elif verdict.problem is not None or (self._told is None and not self._briefly(verdict)):
            self._report(None, verdict.problem)
        if verdict.pause is None:
            return self._recheck
        return min(self._recheck, max(verdict.pause, _LEAST_PAUSE))

    @staticmethod
    def _briefly(verdict: Decision) -> bool:
        """Whether a first content is only a moment away: then the first look is not over yet."""
        return verdict.pause is not None and verdict.pause <= QUIET_PERIOD

    def _miss(self, error: _errors.ReadError) -> float:
        """Tell why nothing can be read; a gap between the old file and the new one is no reason yet."""
        self._unsure = True
        missing = isinstance(error, _errors.NothingPublished)
        now = time.monotonic()
        if not missing:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = now
        if missing and self._before is not None and self._missing_since is not None:
            left = self._missing_since + DELETION_QUIET - now
            if left > 0:
                return left
        problem = str(error)
        if missing and self._before is not None:
            problem = (
                f"cannot read {self.path}: what was published there is gone"
                " (deleted, or its volume is not mounted any more)"
            )
        self._report(None, problem, missing=missing)
        return self._recheck

    def _report(
        self, snapshot: Snapshot[None] | None, problem: str | None, *, missing: bool = False
    ) -> None:
        version = snapshot.version if snapshot is not None else None
        old = self._told
        moved = (
            snapshot is not None and self._shown is not None and snapshot.has_new_files(self._shown)
        )
        same = version is None or (old is not None and version == old[0])
        if old is not None and same and not moved and problem == old[1]:
            return
        known = old[0] if old is not None else None
        self._told = (version or known, problem)
        if version == known and not moved:
            snapshot = None
        if snapshot is not None:
            self._shown = snapshot
        self._tell(WatchUpdate(snapshot, problem, missing, self._hinted))

    def _sleep(self, seconds: float) -> None:
        """Wait for a hint that matters, for `stop`, or until the time is over."""
        end = min(time.monotonic() + seconds, self._rearm_at)
        while not self._stopping and not self._urgent:
            left = end - time.monotonic()
            if left <= 0:
                return
            self._bell.wait(left, self._hints.fd)
            if not self._drain():
                self._bear_noise()

    def _drain(self) -> bool:
        """Take over what the hints have seen; return whether any of it matters."""
        aliases = self._armed.aliases if self._armed is not None else {}
        try:
            activity = self._hints.drain()
        except OSError as error:
            self._fall_back(error)
            activity = base.EventBatch(urgent=True)
        self._counted += activity.count
        if activity.lost:
            metrics.WATCH_ERRORS_TOTAL.inc()
            logger.warning("events of %s were lost: everything is looked at", self.path)
        if activity.lost or activity.moved:
            self._armed = None
        self._eye.coverage.lose(activity.ended)
        self._changes.add(activity, aliases)
        self._judge.evidence.add(activity, aliases)
        self._urgent = self._urgent or activity.urgent
        matters = activity.urgent or activity.count > 0
        self._hinted = self._hinted or matters
        return matters

    def _bear_noise(self) -> None:
        """Let a neighbour who writes other files all the time not wake us each time."""
        now = time.monotonic()
        if now > self._noise_until:
            self._noise, self._noise_until = 0, now + 1.0
        self._noise += 1
        if self._noise > _NOISE:
            time.sleep(_NOISE_PAUSE)

    def _arm(self, outlook: WatchPlan) -> None:
        """Point the hints at the directories of now; fall back to polling where that fails."""
        self._rearm_at = float("inf")
        try:
            wanted, filesystem = self._wanted, self._eye.filesystem()
            self._remote = select.is_remote(filesystem)
            if wanted == "auto":
                wanted = select.best_mode(filesystem)
            if self._hints.mode != wanted:
                self._change_hints(wanted)
            with self._eye.targets(outlook) as targets:
                self._hints.arm(targets)
            self._eye.coverage.begin(self._hints)
        except OSError as error:
            self._fall_back(error)
        self._armed = outlook
        # What happened before the watch was armed has sent no event.
        self._judge.evidence.forget()
        self._changes.everything = True
        self._unsure = self._hinted = True

    def _change_hints(self, mode: base.Mode) -> None:
        self._hints.close()
        self._hints = base.PollNotifier(self._bell)
        self._hints = select.open_notifier(mode, self._bell)

    def _fall_back(self, error: OSError) -> None:
        """Poll until the limit is lifted; say so once."""
        self._change_hints("poll")
        self._eye.coverage.begin(self._hints)
        self._rearm_at = time.monotonic() + _REARM_AFTER
        if self.fallback is None:
            metrics.WATCH_ERRORS_TOTAL.inc()
            logger.warning(
                "cannot watch %s by events: %s; it is polled every %g s instead",
                self.path,
                _limit(error),
                self._recheck,
            )
        self.fallback = _limit(error)


def _limit(error: OSError) -> str:
    match error.errno:
        case errno.EMFILE:
            return "no inotify instance is left for this user (raise fs.inotify.max_user_instances)"
        case errno.ENOSPC:
            return "no inotify watch is left for this user (raise fs.inotify.max_user_watches)"
        case errno.EACCES:
            return "a directory may be passed through, but not be read, as inotify must (chmod +r)"
        case _:
            return error.strerror or str(error)
