"""Follow a file or a directory: every version once, the newest first for whoever is slow.

The truth is on the disk; events are only hints to look, and a slow re-check looks without them.
So the watch heals by itself: a directory that is removed and comes back, a queue that overflows,
a limit that is reached, a file system that sends no events.
The last good content is kept in memory for ever; what happened to its source is told by `stale`.

    Eye      blocking: opens the directory, looks, says what to watch
    _judge   decides, without I/O, what a look is worth
    Watch    the loop that joins them, and what users hold in their hands
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, overload

from sidecar import _errors
from sidecar.disk import atomic, beneath, events
from sidecar.runtime import metrics, threads
from sidecar.volume import snapshot as snapshots
from sidecar.volume.snapshot import MAX_SIZE, Sighting, Snapshot, T

logger = logging.getLogger(__name__)

WatchMode = Literal["auto", "inotify", "watchfiles", "poll"]

#: Seconds without events after which a file that was rewritten in place is taken to be complete.
_SETTLE = 1.0
#: The same where events say that its writer still has it open.
_PATIENCE = 10.0
#: At the start a file younger than this may still be in the hands of a plain writer.
_YOUNG = 0.2
_UNSETTLED_PAUSE = 0.002
_REARM_AFTER = 5.0
_HANGING = 30.0


class Watch(Generic[T]):
    """A file or a directory that is being followed.

    Iterate over it for the versions: the present one first, then each distinct one as it appears;
    a slow consumer gets the newest, not a backlog.
    Or enter it with `async with`, and read `snapshot` whenever it is needed.

    A file that is rewritten in place is read after its writer has closed it.
    Where no events arrive, it is read once it has not changed for a second.

    Args:
        path: the file, or the directory for a set; a directory that does not exist yet ends with `/`.
        schema: called with each snapshot; what it returns becomes `snapshot.value`,
            and a version for which it raises is refused, so the last good one stays.
        watch: where hints come from; `auto` knows which file systems send no events.
        recheck: seconds between looks without a hint, in every mode.
        max_size: bytes that may be held in memory; what is larger is refused.

    >>> async def latest(path: str) -> bytes:
    ...     async for snapshot in Watch(path):
    ...         return snapshot.data
    ...     return b""
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        schema: Callable[[Snapshot[Any]], T] | None = None,
        watch: WatchMode = "auto",
        recheck: float = 1.0,
        max_size: int = MAX_SIZE,
    ) -> None:
        if recheck <= 0:
            raise _errors.ConfigError(f"recheck must be more than 0 seconds, not {recheck!r}")
        self._eye = Eye(os.fspath(path), max_size)
        self._schema = schema
        self._wanted = watch
        self._recheck = recheck
        self._snapshot: Snapshot[T] | None = None
        self._problem: str | None = None
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        self._changed: asyncio.Future[None] | None = None
        self._subscribers: dict[object, Callable[[], None]] = {}
        self._hints: events.Hints = events.PollHints()
        self._busy_since: float | None = None
        self._stop_tracking: Callable[[], None] = lambda: None
        self._death: str | None = None

    def __repr__(self) -> str:
        version = self._snapshot.version[:8] if self._snapshot is not None else None
        state = f" stale={self.stale!r}" if self.stale else ""
        return f"<Watch {self.path} mode={self.mode} version={version}{state}>"

    @property
    def path(self) -> str:
        """The path as it was given."""
        return self._eye.path

    @property
    def snapshot(self) -> Snapshot[T] | None:
        """The last good content; None as long as there has been none."""
        return self._snapshot

    @property
    def etag(self) -> str | None:
        """The entity tag of the last good content."""
        return self._snapshot.etag if self._snapshot is not None else None

    @property
    def modified(self) -> float | None:
        """When the last good content was changed, in Unix seconds."""
        return self._snapshot.modified if self._snapshot is not None else None

    @property
    def stale(self) -> str | None:
        """Why `snapshot` is not what the disk holds now, in words; None while it is."""
        return self._problem if self._snapshot is not None else None

    @property
    def problem(self) -> str | None:
        """What the last look found wrong, whether there is an older content or not."""
        return self._problem

    @property
    def mode(self) -> events.Mode:
        """Where hints come from at present."""
        return self._hints.mode

    @property
    def failure(self) -> str | None:
        """Why nothing is being watched, None while all is well: what a liveness probe asks.

        An absent file or directory is no failure.
        """
        if self._death is not None:
            return self._death
        if self._busy_since is not None and time.monotonic() - self._busy_since > _HANGING:
            hanging = time.monotonic() - self._busy_since
            return (
                f"a look at {self.path} has been hanging for {hanging:.0f} s (is its storage gone?)"
            )
        return None

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each change of `snapshot` or `stale`; return what ends that."""
        key = object()
        self._subscribers[key] = callback
        return lambda: void(self._subscribers.pop(key, None))

    async def looked(self) -> None:
        """Wait for the first look to be over, whatever it found."""
        await self._looked.wait()

    async def changed(self, etag: str | None, timeout: float) -> Snapshot[T] | None:
        """Return the content as soon as its entity tag is not `etag`, None after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._snapshot is None or self._snapshot.etag == etag:
                    await self._next_change()
        found = self._snapshot
        return None if found is None or found.etag == etag else found

    async def __aenter__(self) -> Watch[T]:
        self._users += 1
        if self._task is None:
            self._death = None
            self._stop_tracking = metrics.track(self)
            self._task = asyncio.create_task(self._supervise(), name=f"watch {self.path}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if self._users:
            return
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if self._task is task:
                self._task = None
                self._stop_tracking()
        if self._users and self._task is None:
            # Somebody entered while the last one was leaving: begin again for them.
            self._users -= 1
            await self.__aenter__()

    async def __aiter__(self) -> AsyncIterator[Snapshot[T]]:
        last: str | None = None
        async with self:
            while True:
                while self._snapshot is None or self._snapshot.version == last:
                    await self._next_change()
                last = self._snapshot.version
                yield self._snapshot

    async def _next_change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
        for callback in list(self._subscribers.values()):
            try:
                callback()
            except Exception:  # one subscriber's fault must not reach the others, nor the watch
                logger.exception("a subscriber of %s failed", self.path)

    async def _supervise(self) -> None:
        """Keep the loop alive: whatever ends it is counted, told once, and it begins again."""
        while True:
            try:
                await self._follow()
            except Exception as error:
                metrics.WATCH_ERRORS_TOTAL.inc()
                logger.exception("the watch of %s failed and begins again", self.path)
                self._death = f"the watch of {self.path} fails: {error}"
                await asyncio.sleep(self._recheck)
            finally:
                self._hints.close()
                self._hints = events.PollHints()
                await threads.in_thread(self._eye.close)

    async def _follow(self) -> None:
        """Look, judge, tell, and wait for a hint or for the clock: one round after the other."""
        state = _State(seen=_Seen())
        wake = asyncio.Event()
        with self._listening(state, wake):
            while True:
                by_hint = state.seen.anything
                wake.clear()
                if self._rearm_is_due(state):
                    await self._rearm(state, wake)
                pause = await self._round(state, by_hint=by_hint)
                self._looked.set()
                self._death = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await wake.wait()

    async def _round(self, state: _State, *, by_hint: bool) -> float:
        """Look once and act on it; return the seconds until the next look without a hint."""
        before, state.seen.anything = state.before, False
        state.hinted = state.hinted or by_hint
        self._busy_since = time.monotonic()
        try:
            sighting = await threads.in_thread(self._eye.look, before, by_hint or state.unsure)
        except _errors.ReadError as error:
            state.unsure = True
            self._set_problem(str(error))
            return self._recheck
        finally:
            self._busy_since = None
            self._drain(state)
            if self._eye.moved:
                state.rearm_at = 0.0
        if sighting is None:
            if before is not None and not state.refused:
                self._set_problem(next(iter(before.problems.values()), None))
            return self._recheck
        verdict = _judge(sighting, state, self._hints.mode, time.monotonic())
        if verdict.accept is not None:
            state.accepted(verdict.accept)
            self._take(verdict.accept, state)
            state.hinted = False
        state.unsure = verdict.pause is not None
        return min(self._recheck, verdict.pause if verdict.pause is not None else self._recheck)

    def _take(self, sighting: Sighting, state: _State) -> None:
        """Make an accepted look the content that users see, if it is another one."""
        found = sighting.snapshot
        problem = next(iter(sighting.problems.values()), None)
        if self._snapshot is not None and found == self._snapshot:
            state.refused = None
            self._set_problem(problem)
            return
        if state.refused == found.version:
            return
        try:
            value: Any = self._schema(found) if self._schema is not None else None
        except Exception as error:
            state.refused = found.version
            metrics.WATCH_ERRORS_TOTAL.inc()
            self._set_problem(
                f"the schema refuses version {found.version[:8]} of {self.path}: {error}"
            )
            return
        state.refused = None
        first = self._snapshot is None
        self._snapshot = found.with_value(lambda _: value)
        if not first:
            metrics.PROPAGATION_SECONDS.observe(max(0.0, time.time() - found.modified))
            if not state.hinted and self._hints.mode != "poll":
                metrics.POLL_RESCUES_TOTAL.inc()
        logger.debug("%s is now version %s", self.path, found.version[:8])
        self._problem = None
        self._set_problem(problem, tell=False)
        self._tell()

    def _set_problem(self, problem: str | None, *, tell: bool = True) -> None:
        """Note what is wrong, with one line in the log for each new problem and each recovery."""
        if problem == self._problem:
            return
        if problem is None:
            logger.info("%s can be read again", self.path)
        else:
            metrics.WATCH_ERRORS_TOTAL.inc()
            logger.warning(
                "%s%s", problem, "; the last good content stays" if self._snapshot else ""
            )
        self._problem = problem
        if tell:
            self._tell()

    @contextmanager
    def _listening(self, state: _State, wake: asyncio.Event) -> Iterator[None]:
        try:
            yield
        finally:
            self._deafen(state)

    def _deafen(self, state: _State) -> None:
        if state.reader is not None:
            asyncio.get_running_loop().remove_reader(state.reader)
            state.reader = None

    def _rearm_is_due(self, state: _State) -> bool:
        return time.monotonic() >= state.rearm_at or self._eye.moved

    async def _rearm(self, state: _State, wake: asyncio.Event) -> None:
        """Point the hints at the directories of now; fall back to polling where that fails."""
        targets, filesystem = await threads.in_thread(self._eye.targets)
        wanted = events.best_mode(filesystem) if self._wanted == "auto" else self._wanted
        state.rearm_at = float("inf")
        try:
            if self._hints.mode != wanted:
                self._deafen(state)
                self._hints.close()
                self._hints = events.PollHints()
                self._hints = await threads.in_thread(events.source, wanted)
                self._listen(state, wake)
            await threads.in_thread(self._hints.arm, targets)
            if state.fallen_back:
                logger.info("%s is watched by %s again", self.path, wanted)
            state.fallen_back = False
        except OSError as error:
            self._fall_back(state, error)
        finally:
            for target in targets:
                os.close(target.fd)
        # Whatever happened before the watch was armed has sent no event.
        state.seen.lost()
        state.unsure = True

    def _fall_back(self, state: _State, error: OSError) -> None:
        """Poll until the limit is lifted; say so once."""
        self._deafen(state)
        self._hints.close()
        self._hints = events.PollHints()
        state.rearm_at = time.monotonic() + _REARM_AFTER
        metrics.WATCH_ERRORS_TOTAL.inc()
        if not state.fallen_back:
            logger.warning(
                "cannot watch %s by events: %s; it is polled every %g s instead",
                self.path,
                _limit(error),
                self._recheck,
            )
        state.fallen_back = True

    def _listen(self, state: _State, wake: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()

        def ready() -> None:
            if self._drain(state):
                wake.set()

        def ready_from_thread() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(ready)

        state.reader = self._hints.listen(ready_from_thread)
        if state.reader is not None:
            loop.add_reader(state.reader, ready)

    def _drain(self, state: _State) -> bool:
        """Take over what the hints have seen; return whether there was anything."""
        try:
            activity = self._hints.drain()
        except OSError as error:
            self._fall_back(state, error)
            return True
        if activity.count:
            metrics.WATCH_EVENTS_TOTAL.inc(activity.count)
        if activity.lost:
            metrics.WATCH_ERRORS_TOTAL.inc()
            state.rearm_at = 0.0
        state.seen.add(activity)
        return activity.relevant


@overload
def watch(
    path: str | os.PathLike[str],
    *,
    schema: None = None,
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int = MAX_SIZE,
) -> Watch[None]: ...
@overload
def watch(
    path: str | os.PathLike[str],
    *,
    schema: Callable[[Snapshot[Any]], T],
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int = MAX_SIZE,
) -> Watch[T]: ...
def watch(
    path: str | os.PathLike[str],
    *,
    schema: Callable[[Snapshot[Any]], Any] | None = None,
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int = MAX_SIZE,
) -> Watch[Any]:
    """Follow a file or a directory: `async for snapshot in sidecar.watch(path)`.

    The present state comes first, then each distinct version once; a slow consumer gets the newest.
    Nothing is raised while there is nothing to read: the loop waits. See `Watch` for the arguments.

    >>> async def first(path: str) -> str:
    ...     async for snapshot in watch(path):
    ...         return snapshot.text()
    ...     return ""
    """
    return Watch(path, schema=schema, watch=watch, recheck=recheck, max_size=max_size)


_shared: dict[tuple[Any, ...], Watch[None]] = {}


@asynccontextmanager
async def shared(
    path: str | os.PathLike[str],
    *,
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int = MAX_SIZE,
) -> AsyncIterator[Watch[None]]:
    """Enter the one watch of this path and these options that the running loop has."""
    key = (asyncio.get_running_loop(), os.fspath(path), watch, recheck, max_size)
    if key not in _shared:
        _shared[key] = Watch(path, watch=watch, recheck=recheck, max_size=max_size)
    one = _shared[key]
    try:
        async with one:
            yield one
    finally:
        if not one._users:
            _shared.pop(key, None)


class Eye:
    """Looks at one path, blocking: for use in a thread, one call at a time.

    It holds the directory open, notices when the path means another directory by now,
    and never follows a link out of the volume.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.moved = False
        """The path means another directory than the one that hints are armed for."""
        self._limit = limit
        self._whole = os.path.abspath(path)
        self._decided = path.endswith("/")
        self._single = not self._decided
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self._armed: object = None

    def look(self, before: Sighting | None, thoroughly: bool) -> Sighting | None:
        """Read what is there; None if it is what `before` saw. `thoroughly`: do not trust signatures.

        Raises:
            NothingPublished: there is nothing.
            ReadError: what is there is not fit to be read.
        """
        try:
            with beneath.reading(self.path):
                self._open()
            if before is not None and (before.snapshot.name is not None) is not self._single:
                before = None
            if before is not None and not thoroughly and snapshots.unchanged(self._fd, before):
                return None
            found = self._load(before)
            self._decided = True
            return found
        finally:
            self.moved = self._arming() != self._armed

    def targets(self) -> tuple[list[events.Target], str]:
        """Return what to watch, with descriptors that the caller closes, and the file system's type.

        The directory, for its files, and the directory above, for the directory itself.
        """
        with contextlib.suppress(OSError, _errors.ReadError):
            self._open()
        arming = self._arming()
        found: list[events.Target] = []
        above, own = os.path.split(self._directory())
        with contextlib.suppress(OSError):
            fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            found.append(events.Target(fd, above, frozenset((os.fsencode(own),))))
        if self._fd >= 0:
            found.append(events.Target(os.dup(self._fd), self._directory(), arming[1]))
        self._armed, self.moved = arming, False
        return found, beneath.mount_point(self._directory())[1]

    def close(self) -> None:
        """Give the descriptor back; the next look opens again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._identity, self._armed = -1, None, None

    def _load(self, before: Sighting | None) -> Sighting:
        if self._single:
            folder, name = os.path.split(self._whole)
            return snapshots.load_file(self._fd, folder, name, limit=self._limit, before=before)
        return snapshots.load_directory(self._fd, self._whole, limit=self._limit, before=before)

    def _directory(self) -> str:
        return os.path.dirname(self._whole) if self._single else self._whole

    def _open(self) -> None:
        """See to it that the descriptor is that of the directory which the path means now."""
        if not self._decided:
            # Until something good has been read, what lies there decides.
            single = not os.path.isdir(self._whole)
            if single is not self._single:
                self._single = single
                self._drop()
        directory = self._directory()
        try:
            status = os.stat(directory)
        except OSError:
            self._drop()
            raise
        if self._fd >= 0 and self._identity == (status.st_dev, status.st_ino):
            return
        self._drop()
        if self._single:
            self._fd = beneath.open_directory(directory)
        else:
            # The last component may be a link, as git-sync's: followed, but not out of its directory.
            above = beneath.open_directory(os.path.dirname(directory))
            try:
                own = os.path.basename(directory) or "."
                self._fd = beneath.open_beneath(above, own, os.O_RDONLY | os.O_DIRECTORY)
            finally:
                os.close(above)
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._identity = -1, None

    def _arming(self) -> tuple[tuple[int, int] | None, frozenset[bytes] | None]:
        """Describe what has to be watched: the directory, and the names in it (None: all of them)."""
        if not self._single or self._fd < 0:
            return self._identity, None
        name = os.path.basename(self._whole)
        link = atomic.link_target(self._fd, name)
        if link is not None and not link.startswith(atomic.DATA + "/"):
            return self._identity, None
        return self._identity, frozenset((os.fsencode(name), os.fsencode(atomic.DATA)))


@dataclass
class _Seen:
    """What events have told since the last content was accepted."""

    anything: bool = True
    begun: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    complete: set[str] = field(default_factory=set)

    def add(self, activity: events.Activity) -> None:
        if activity.lost:
            self.lost()
        self.anything = self.anything or activity.relevant
        for kind, raws in (
            (self.begun, activity.created),
            (self.open, activity.written),
            (self.complete, activity.closed | activity.replaced),
        ):
            for name in map(os.fsdecode, raws):
                self._forget(name)
                kind.add(name)

    def _forget(self, name: str) -> None:
        for kind in (self.begun, self.open, self.complete):
            kind.discard(name)

    def lost(self) -> None:
        """Events are missing: nothing is known of who writes what."""
        self.anything = True
        self.begun.clear()
        self.open.clear()
        self.complete.clear()


@dataclass
class _State:
    """What one run of the loop remembers between its rounds."""

    seen: _Seen
    before: Sighting | None = None
    unsure: bool = False
    hinted: bool = False
    """An event has come since the last content was accepted: if not, the clock has rescued it."""
    refused: str | None = None
    rearm_at: float = 0.0
    fallen_back: bool = False
    reader: int | None = None
    held: dict[str, tuple[beneath.Signature, float]] = field(default_factory=dict)

    def accepted(self, sighting: Sighting) -> None:
        self.before = sighting
        self.seen.complete.clear()


@dataclass(frozen=True)
class _Verdict:
    """What a look is worth: the part that may be shown, and when to look again."""

    accept: Sighting | None
    pause: float | None


def _judge(sighting: Sighting, state: _State, mode: events.Mode, now: float) -> _Verdict:
    """Decide which names of a look may be shown, and which may be in the middle of a rewrite.

    A name that came by rename is complete. One that was rewritten in place, or just made,
    is complete once its writer closed it; where no event told of that, once it has been still for a while.
    """
    if not sighting.settled:
        return _Verdict(None, _UNSETTLED_PAUSE)
    state.held, before = {}, state.held
    waits: dict[str, float] = {}
    for name, patience in _doubts(sighting, state, mode).items():
        signature = sighting.mark.signatures[name]
        known = before.get(name)
        since = known[1] if known is not None and known[0] == signature else now
        state.held[name] = (signature, since)
        if since + patience > now:
            waits[name] = since + patience - now
        else:
            state.seen.open.discard(name)
    if not waits:
        return _Verdict(sighting, None)
    pause = min(waits.values())
    alone = sighting.snapshot.name is not None
    if alone or (state.before is None and not waits.keys() <= state.seen.open):
        return _Verdict(None, pause)
    return _Verdict(sighting.without(frozenset(waits), state.before), pause)


def _doubts(sighting: Sighting, state: _State, mode: events.Mode) -> dict[str, float]:
    """Return the names that may be in the middle of a rewrite, and how long they must be still."""
    seen, signatures = state.seen, sighting.mark.signatures
    if state.before is not None:
        doubts = dict.fromkeys((sighting.in_place | sighting.appeared) - seen.complete, _SETTLE)
    elif mode == "poll":
        doubts = {}
    else:
        doubts = {name: _YOUNG for name in signatures if _is_young(signatures[name])}
    for name in seen.begun & signatures.keys():
        if signatures[name].size:
            doubts.pop(name, None)  # not written since it was made, and not empty: a link
        else:
            doubts[name] = _SETTLE
    return doubts | dict.fromkeys(seen.open & signatures.keys(), _PATIENCE)


def _is_young(signature: beneath.Signature) -> bool:
    return 0 <= time.time() - signature.mtime_ns / 1e9 < _YOUNG


def _limit(error: OSError) -> str:
    match error.errno:
        case errno.EMFILE:
            return "no inotify instance is left for this user (raise fs.inotify.max_user_instances)"
        case errno.ENOSPC:
            return "no inotify watch is left for this user (raise fs.inotify.max_user_watches)"
        case _:
            return str(error)


def void(_: object) -> None:
    """Drop a value where a callback must return None."""
