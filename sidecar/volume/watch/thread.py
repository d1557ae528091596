"""The watch thread of one path: waits for an event or a timeout, scans, filters unstable files, and notifies.

The thread owns all its resources, including file descriptors, and shares only the callback `notify` with its creator.
So a new watch thread can start while the old one still ends, and a thread that hangs in the kernel blocks nothing else.

It is a dedicated thread instead of a task with calls into a pool: the thread that the event wakes also reads the file,
which saves two of three thread switches before new content is delivered.
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
from sidecar.volume.validation.signature_filter import SignatureFilter
from sidecar.volume.validation.signatures import SignedList, Verifier
from sidecar.volume.watch.changes import Changes
from sidecar.volume.watch.scanner import PathScanner, WatchPlan
from sidecar.volume.watch.stability import DELETION_QUIET, QUIET_PERIOD, Decision, StabilityFilter

logger = logging.getLogger(__name__)

WatchMode = Literal["auto", "inotify", "watchfiles", "poll"]

_REARM_DELAY = 5.0
#: Seconds between two scans without an event, at least.
_MIN_RESCAN_DELAY = 0.001
_GIL_YIELD_SECONDS = 0.0005
#: While events work, comparing the signatures of all files takes at most this share of the time.
#: Files that were added, removed or replaced are still found at each re-check.
_COMPARE_TIME_SHARE = 0.001
#: Seconds after which all signatures are compared in any case.
_MAX_FULL_SCAN_INTERVAL = 60.0
#: The same limits for loose files and their directories, for each of which events are received.
_LOOSE_COMPARE_TIME_SHARE = 0.0005
_LOOSE_MAX_FULL_SCAN_INTERVAL = 300.0
#: Wake-ups per second by irrelevant names, above which events are batched.
_MAX_NOISE_WAKEUPS = 200
_NOISE_DELAY = 0.005


@dataclass(frozen=True)
class WatchUpdate:
    """A notification of the watch thread; sent only if something differs from the previous one."""

    snapshot: Snapshot[None] | None = None
    """The content, if it differs from the last one reported, has other metadata or is held in other large files."""
    problem: str | None = None
    """The current problem."""
    missing: bool = False
    """Whether the problem is that nothing has been published."""
    by_event: bool = True
    """Whether an event announced the change; if not, a timed re-check found it."""
    crash: str | None = None
    """Why the last iteration failed; the next one starts from scratch."""
    began: float | None = None
    """When the scan began, in Unix seconds."""


class _StopRequested(Exception):
    """The watch was stopped during a read."""


class WatchThread:
    """Watches a path from `start` until `stop`; `notify` is called in the watch thread."""

    def __init__(
        self,
        path: str,
        *,
        requested: WatchMode,
        recheck: float,
        limit: int,
        wanted_names: Filter = EVERYTHING,
        quiet: float | None = None,
        verifier: Verifier | None = None,
        notify: Callable[[WatchUpdate], None],
        ended: Callable[[], None],
    ) -> None:
        self.path = path
        self.busy_since: float | None = None
        """Start of the current scan, or of the last progress in a large file, in monotonic seconds; None if idle."""
        self.fallback: str | None = None
        """Why the path is polled although events were requested."""
        self._requested = requested
        self._recheck = recheck
        self._notify = notify
        self._ended = ended
        self._wakeup = wakeup.WakeupPipe()
        self._notifier: base.Notifier = base.PollNotifier(self._wakeup)
        self._scanner = PathScanner(path, limit, self._on_progress, wanted_names)
        self._filter = StabilityFilter(path, self._scanner, quiet)
        self._signed = None
        if verifier is not None:
            self._signed = SignatureFilter(
                path, verifier, beside=self._list_beside, on_progress=self._on_progress
            )
        self._stopping = False
        self._thread = threading.Thread(target=self.run, name=f"sidecar-watch {path}", daemon=True)
        self._armed: WatchPlan | None = None
        self._rearm_at = 0.0
        self._last_scan: ScanResult | None = None
        self._unstable = True
        self._urgent = True
        self._by_event = True
        self._changes = Changes(everything=True)
        self._full_at = 0.0
        self._quick_at = 0.0
        self._remote = False
        self._missing_since: float | None = None
        self._reported: tuple[str | None, str | None] | None = None
        self._shown: Snapshot[None] | None = None
        self._scan_began = 0.0
        self._event_count = 0
        self._noise = 0
        self._noise_until = 0.0

    @property
    def mode(self) -> base.Mode:
        """The current source of events."""
        return self._notifier.mode

    def start(self) -> None:
        """Start the thread, a daemon thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, from any other thread. The last thing it does is call `ended`."""
        self._stopping = True
        self._wakeup.wake()

    def join(self) -> None:
        """Join the thread after it has called `ended`."""
        self._thread.join()

    def run(self) -> None:
        """Scan, filter, notify and wait, repeatedly until `stop`."""
        try:
            while not self._stopping:
                self._run_iteration()
        finally:
            self._notifier.close()
            self._scanner.close()
            self._wakeup.close()
            self._ended()

    def _run_iteration(self) -> None:
        """Run one iteration and wait for the next. An exception is counted and reported once; then the watch restarts."""
        self.busy_since = time.monotonic()
        try:
            retry_after = self._iterate()
            self.busy_since = None
            self._sleep(retry_after)
        except _StopRequested:
            return
        except Exception as error:
            crash = f"the watch of {self.path} fails: {error!r}"
            if self._reported != (None, crash):
                metrics.WATCH_ERRORS_TOTAL.inc()
                logger.exception(
                    "the watch of %s failed and begins again",
                    self.path,
                    extra={"event": "watch.failed"},
                )
                self._reported = (None, crash)
                self._notify(WatchUpdate(crash=crash))
            self._armed, self._last_scan, self._unstable = None, None, True
            self._changes.everything = True
            self.busy_since = None
            self._wakeup.wait(self._recheck, None)

    def _on_progress(self) -> None:
        """Record progress in a large file, so that the scan does not count as stalled; raise `_StopRequested` after `stop`."""
        if self._stopping:
            raise _StopRequested
        self.busy_since = time.monotonic()

    def _iterate(self) -> float:
        """Scan once and report the result; return the seconds until the next scan without an event."""
        by_event, self._urgent = self._urgent, False
        # New content in the watched directory is reported first; the path to it is resolved afterwards.
        at_once = by_event and self._armed is not None
        if not at_once:
            self._update_plan()
        retry_after = self._scan_and_report(by_event=by_event)
        if at_once:
            # Yield the GIL: the event loop now delivers the content, and must not wait for the rest of this method.
            time.sleep(_GIL_YIELD_SECONDS)
            if self._update_plan():
                self._urgent = True
        metrics.WATCH_EVENTS_TOTAL.inc(self._event_count)
        self._event_count = 0
        return retry_after

    def _update_plan(self) -> bool:
        """Resolve the path again and re-arm the events if needed; return whether they were re-armed."""
        plan = self._scanner.resolve()
        if plan == self._armed and time.monotonic() < self._rearm_at:
            return False
        self._arm(plan)
        return True

    def _scan_and_report(self, *, by_event: bool) -> float:
        self._by_event = self._by_event or by_event
        self._scan_began = time.time()
        self._filter.events.scan_started()
        changes, self._changes = self._changes, Changes()
        try:
            scan = self._scan(changes, thoroughly=by_event or self._unstable)
        except _errors.ReadError as error:
            self._changes.everything = True
            return self._on_missing(error)
        finally:
            self._check_coverage()
            self._drain()
        self._missing_since = None
        if scan is None:
            self._by_event = False
            before = self._last_scan
            self._report(None, next(iter(before.problems.values()), None) if before else None)
            return self._recheck
        retry_after = self._apply(scan)
        if self._unstable:
            self._changes.join(changes)  # files that were not accepted are scanned again
        return retry_after

    def _scan(self, changes: Changes, *, thoroughly: bool) -> ScanResult | None:
        """Scan only the changed files if events cover every file, else everything."""
        before = self._last_scan
        if before is not None and self._is_covered() and self._scanner.can_rescan(before):
            if not changes:
                changes = self._find_candidates(before)
                if not changes and time.monotonic() < self._full_at:
                    return None
            if changes and not changes.everything:
                found = self._scanner.rescan(before, changes.names, changes.folders)
                if found is not None:
                    return found
        return self._scan_all(before, thoroughly=thoroughly)

    def _find_candidates(self, before: ScanResult) -> Changes:
        """Return the candidates for a scan without an event: unreliable signatures, problems and changed directories."""
        started = time.monotonic()
        top = started < self._quick_at
        names = before.states.unreliable.keys() | before.problems.keys()
        found = Changes(False, names, self._scanner.changed_folders(before, top=top))
        if not top:
            now = time.monotonic()
            self._quick_at = now + min(
                (now - started) / _LOOSE_COMPARE_TIME_SHARE, _MAX_FULL_SCAN_INTERVAL
            )
        return found

    def _scan_all(self, before: ScanResult | None, *, thoroughly: bool) -> ScanResult | None:
        """Scan everything. If comparing takes long and events work, compare all signatures less often."""
        started = time.monotonic()
        sparing = before is not None and self._is_covered() and not before.problems
        quick = sparing and not thoroughly and started < self._full_at
        scan = self._scanner.scan(before, thoroughly=thoroughly, quick=quick)
        now = time.monotonic()
        if scan is not None:
            self._full_at = 0.0
        elif not quick:
            share, max_interval = _COMPARE_TIME_SHARE, _MAX_FULL_SCAN_INTERVAL
            if before is not None and self._scanner.can_rescan(before):
                share, max_interval = _LOOSE_COMPARE_TIME_SHARE, _LOOSE_MAX_FULL_SCAN_INTERVAL
            self._full_at = now + min((now - started) / share, max_interval)
        return scan

    def _is_covered(self) -> bool:
        """Whether events cover every watched file; only then may a scan skip files."""
        coverage = self._scanner.coverage
        return (
            self._notifier.mode != "poll"
            and not self._remote
            and not coverage.unsupported
            and coverage.failure is None
        )

    def _check_coverage(self) -> None:
        """Fall back to polling if a directory cannot be watched; log the fallback and the recovery once each."""
        failure = self._scanner.coverage.failure
        if failure is not None:
            self._fall_back(failure)
        elif self.fallback is not None and self._notifier.mode != "poll":
            logger.info(
                "%s is watched by %s again",
                self.path,
                self._notifier.mode,
                extra={"event": "watch.recovered"},
            )
            self.fallback = None

    def _apply(self, scan: ScanResult) -> float:
        decision = self._filter.decide(scan, self._last_scan, time.monotonic())
        shown = decision.show
        problem = decision.problem or next(iter(scan.problems.values()), None)
        self._unstable = decision.retry_after is not None
        if shown is not None:
            self._last_scan = shown
            self._report(shown.snapshot, problem)
            self._by_event = self._by_event and self._unstable
        elif decision.problem is not None or (
            self._reported is None and not self._settles_soon(decision)
        ):
            self._report(None, decision.problem)
        if decision.retry_after is None:
            return self._recheck
        return min(self._recheck, max(decision.retry_after, _MIN_RESCAN_DELAY))

    @staticmethod
    def _settles_soon(decision: Decision) -> bool:
        """Whether the first content is expected within the quiet period, so that the first scan is not over yet."""
        return decision.retry_after is not None and decision.retry_after <= QUIET_PERIOD

    def _on_missing(self, error: _errors.ReadError) -> float:
        """Report why nothing can be read. A short gap between deletion and re-creation is not reported."""
        self._unstable = True
        missing = isinstance(error, _errors.NothingPublished)
        now = time.monotonic()
        if not missing:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = now
        if missing and self._last_scan is not None and self._missing_since is not None:
            left = self._missing_since + DELETION_QUIET - now
            if left > 0:
                return left
        problem = str(error)
        if missing and self._last_scan is not None:
            problem = (
                f"cannot read {self.path}: what was published there is gone"
                " (deleted, or its volume is not mounted any more)"
            )
        self._report(None, problem, missing=missing)
        return self._recheck

    def _report(
        self, snapshot: Snapshot[None] | None, problem: str | None, *, missing: bool = False
    ) -> None:
        if self._signed is not None:
            is_set = self._last_scan is not None and self._last_scan.states.generation is not None
            snapshot, unsigned = self._signed.verify(snapshot, is_set=is_set)
            problem = problem or unsigned
        problem = problem or self._scanner.source_problem()
        version = snapshot.version if snapshot is not None else None
        old = self._reported
        new_files = (
            snapshot is not None and self._shown is not None and snapshot.has_new_files(self._shown)
        )
        same = version is None or (old is not None and version == old[0])
        if same and snapshot is not None and self._shown is not None:
            new_files = new_files or snapshot.has_new_metadata(self._shown)
        if old is not None and same and not new_files and problem == old[1]:
            return
        known = old[0] if old is not None else None
        self._reported = (version or known, problem)
        if version == known and not new_files:
            snapshot = None
        if snapshot is not None:
            self._shown = snapshot
        self._notify(
            WatchUpdate(snapshot, problem, missing, self._by_event, began=self._scan_began)
        )

    def _list_beside(self) -> SignedList | None:
        last = self._last_scan
        return self._scanner.signed_list(last.states.generation) if last is not None else None

    def _sleep(self, seconds: float) -> None:
        """Wait for a relevant event, for `stop`, or until the timeout."""
        end = min(time.monotonic() + seconds, self._rearm_at)
        while not self._stopping and not self._urgent:
            left = end - time.monotonic()
            if left <= 0:
                return
            self._wakeup.wait(left, self._notifier.fd)
            if not self._drain():
                self._throttle_noise()

    def _drain(self) -> bool:
        """Read the pending events; return whether any is relevant."""
        aliases = self._armed.aliases if self._armed is not None else {}
        try:
            batch = self._notifier.drain()
        except OSError as error:
            self._fall_back(error)
            batch = base.EventBatch(urgent=True)
        self._event_count += batch.count
        if batch.lost:
            metrics.WATCH_ERRORS_TOTAL.inc()
            logger.warning(
                "events of %s were lost: everything is scanned again",
                self.path,
                extra={"event": "watch.events_lost"},
            )
        if batch.lost or batch.moved:
            self._armed = None
        self._scanner.coverage.mark_unfollowed(batch.ended)
        self._changes.add(batch, aliases)
        self._filter.events.add(batch, aliases)
        self._urgent = self._urgent or batch.urgent
        matters = batch.urgent or batch.count > 0
        self._by_event = self._by_event or matters
        return matters

    def _throttle_noise(self) -> None:
        """Sleep briefly if irrelevant events arrive too often, so that they are read in batches."""
        now = time.monotonic()
        if now > self._noise_until:
            self._noise, self._noise_until = 0, now + 1.0
        self._noise += 1
        if self._noise > _MAX_NOISE_WAKEUPS:
            time.sleep(_NOISE_DELAY)

    def _arm(self, plan: WatchPlan) -> None:
        """Watch the directories of the new plan; fall back to polling if that fails."""
        self._rearm_at = float("inf")
        try:
            requested, filesystem = self._requested, self._scanner.filesystem()
            self._remote = select.is_remote(filesystem)
            if requested == "auto":
                requested = select.best_mode(filesystem)
            if self._notifier.mode != requested:
                self._replace_notifier(requested)
            with self._scanner.watch_targets(plan) as watch_targets:
                self._notifier.arm(watch_targets)
            self._scanner.coverage.attach(self._notifier)
        except OSError as error:
            self._fall_back(error)
        self._armed = plan
        # Changes before this point have sent no event.
        self._filter.events.forget()
        self._changes.everything = True
        self._unstable = self._by_event = True

    def _replace_notifier(self, mode: base.Mode) -> None:
        self._notifier.close()
        self._notifier = base.PollNotifier(self._wakeup)
        self._notifier = select.open_notifier(mode, self._wakeup)

    def _fall_back(self, error: OSError) -> None:
        """Poll, and retry events after `_REARM_DELAY`; log the fallback once."""
        self._replace_notifier("poll")
        self._scanner.coverage.attach(self._notifier)
        self._rearm_at = time.monotonic() + _REARM_DELAY
        if self.fallback is None:
            metrics.WATCH_ERRORS_TOTAL.inc()
            logger.warning(
                "cannot watch %s by events: %s; it is polled every %g s instead",
                self.path,
                _explain_limit(error),
                self._recheck,
                extra={"event": "watch.polling"},
            )
        self.fallback = _explain_limit(error)


def _explain_limit(error: OSError) -> str:
    match error.errno:
        case errno.EMFILE:
            return "no inotify instance is left for this user (raise fs.inotify.max_user_instances)"
        case errno.ENOSPC:
            return "no inotify watch is left for this user (raise fs.inotify.max_user_watches)"
        case errno.EACCES:
            return "a directory may be passed through, but not be read, as inotify must (chmod +r)"
        case _:
            return error.strerror or str(error)
