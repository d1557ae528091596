"""Follow a file or a directory: every version once, the newest first for whoever is slow.

The truth is on the disk; events are only hints to look, and a slow re-check looks without them.
So the watch heals by itself: a directory that is removed and comes back, a queue that overflows,
a limit that is reached, a file system that sends no events.
The last good content is kept in memory for ever; what happened to its source is told by `stale`.

Looking and judging is the work of a `WatchThread`, in a thread of its own.
Here is what users hold in their hands: what it has told, in their event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Generic, Unpack

from sidecar.fs.notify import base
from sidecar.process import arguments, metrics
from sidecar.volume import change_log
from sidecar.volume.content.snapshot import Snapshot, T
from sidecar.volume.watch import thread
from sidecar.volume.watch.options import Options, check
from sidecar.volume.watch.session import Session
from sidecar.volume.watch.thread import WatchThread, WatchUpdate

logger = logging.getLogger(__name__)

WatchMode = thread.WatchMode

#: Seconds after which a look that is still going on is told as a failure.
_SCAN_STALL = 30.0


class Watch(Generic[T]):
    """A file or a directory that is being followed.

    Iterate over it for the versions: the present one first, then each distinct one as it appears;
    a slow consumer gets the newest, not a backlog.
    Or enter it with `async with`, and read `snapshot` whenever it is needed.

    It belongs to the event loop and the process in which it is entered: any other one is told so by `RuntimeError`,
    and a process that is forked meanwhile by `failure` and `stale`. There it can be entered anew.

    A file that is rewritten in place is read after its writer has closed it.
    Where no events arrive, it is read once it has not changed for a second.

    Args:
        path: the file, or the directory for a set; a directory that does not exist yet ends with `/`.
        schema: called with each snapshot, in the event loop; what it returns becomes `snapshot.value`,
            and a version for which it raises is refused, so the last good one stays.
            Where it raised is logged at level DEBUG. It is a plain function: nothing it returns is awaited.
        watch: where hints come from; `auto` knows which file systems send no events.
        recheck: seconds between looks without a hint, in every mode.
        max_size: bytes that are read (`"64Mi"` is understood); what is larger is refused. Files of more than 1 MiB stay on the disk:
            see `sidecar.Snapshot`.
        include: patterns of the files of a directory that count, as shells have them (`"*.conf"`); none means all.
            One with a `/` is compared with the whole relative name, any other one with its last part.
        exclude: patterns of those that do not count, and of directories that are not looked into;
            without it what editors leave beside their files (`*.swp`, `*~`, `#*#`, `4913`, …).
            A set of generations and a single file are what they are: neither pattern is asked there.
        quiet: seconds for which a directory of loose files must be still before any change of it is shown,
            at most ten times as long, or 5 seconds.
            Without it only what was written in place waits, for 0.1 s, so that a tree that is copied is one version.
        stop_event: ends each iteration when it is set.

    Raises:
        ConfigError: an argument makes no sense.

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
        stop_event: asyncio.Event | None = None,
        **options: Unpack[Options],
    ) -> None:
        checked = check(path, schema=schema, **options)
        self._path = checked.path
        if stop_event is not None:
            arguments.check_instance("stop_event", stop_event, asyncio.Event, "an asyncio.Event")
        self._schema = schema
        self._stop_event = stop_event
        self._make_thread = partial(
            WatchThread,
            checked.path,
            requested=checked.watch,
            recheck=checked.recheck,
            limit=checked.limit,
            wanted_names=checked.wanted_names,
            quiet=checked.quiet,
        )
        self._snapshot: Snapshot[T] | None = None
        self._problem: str | None = None
        self._schema_error: str | None = None
        self._crash: str | None = None
        self._users = 0
        self._session: Session | None = None
        self._stop_tracking: Callable[[], None] | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._subscribers: dict[object, Callable[[], None]] = {}

    def __repr__(self) -> str:
        version = self._snapshot.version[:8] if self._snapshot is not None else None
        state = f" stale={self.stale!r}" if self.stale else ""
        return f"<Watch {self.path} mode={self.mode} version={version}{state}>"

    @property
    def path(self) -> str:
        """The path as it was given."""
        return self._path

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
        """When the last good content was changed, in Unix seconds; None where there is no file."""
        return self._snapshot.modified if self._snapshot else None

    @property
    def stale(self) -> str | None:
        """Why `snapshot` is not what the disk holds now, in words; None while it is."""
        return self.problem if self._snapshot is not None else None

    @property
    def problem(self) -> str | None:
        """What the last look found wrong, whether there is an older content or not."""
        if self._session is not None and self._session.is_forked:
            return self.failure
        return self._problem or self._schema_error

    @property
    def refused(self) -> bool:
        """Whether the last content that was found is one that the schema refuses."""
        return self._schema_error is not None

    @property
    def has_looked(self) -> bool:
        """Whether the first look is over, whatever it found."""
        return self._session is not None and self._session.first_scan_done

    @property
    def mode(self) -> base.Mode:
        """Where hints come from at present."""
        return self._session.thread.mode if self._session is not None else "poll"

    @property
    def fallback(self) -> str | None:
        """Why the path is polled although events are wanted, None while there are events."""
        return self._session.thread.fallback if self._session is not None else None

    @property
    def in_use(self) -> bool:
        """Whether anybody has entered it."""
        return self._users > 0

    @property
    def failure(self) -> str | None:
        """Why nothing is being watched, None while all is well: what a liveness probe asks.

        An absent file or directory is no failure. In a process that was forked since, a watch is dead.
        """
        if self._crash is not None or self._session is None:
            return self._crash
        if self._session.is_forked:
            return (
                f"nothing follows {self.path} in this process: it was forked after the watch had begun"
                " (begin it after the fork, as when a worker starts, or use sidecar.sync)"
            )
        since = self._session.thread.busy_since
        if since is not None and (hanging := time.monotonic() - since) > _SCAN_STALL:
            return (
                f"a look at {self.path} has been hanging for {hanging:.0f} s (is its storage gone?)"
            )
        return None

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each change of `snapshot` or `stale`; return what ends that."""
        key = object()
        self._subscribers[key] = callback

        def end() -> None:
            self._subscribers.pop(key, None)

        return end

    async def looked(self) -> None:
        """Wait for the first look to be over, whatever it found.

        Raises:
            RuntimeError: it was entered in another event loop, or before this process was forked; see `failure`.
        """
        while not self.has_looked:
            await self._next_change()

    async def changed(self, etag: str | None, timeout: float) -> Snapshot[T] | None:
        """Return the content as soon as its entity tag is not `etag`, None after `timeout` seconds.

        Raises:
            RuntimeError: it was entered in another event loop, or before this process was forked; see `failure`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._snapshot is None or self._snapshot.etag == etag:
                    await self._next_change()
        found = self._snapshot
        return None if found is None or found.etag == etag else found

    async def __aenter__(self) -> Watch[T]:
        if self._session is not None:
            self._check_session(self._session)
        if self._session is None:
            self._crash = None
            self._session = Session(self._make_thread, self._receive)
            self._stop_tracking = metrics.track_content(self)
        self._users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if self._users or self._session is None:
            return
        # Whoever enters while this run is ending begins with another one.
        session, self._session = self._session, None
        if self._stop_tracking is not None:
            self._stop_tracking()
        if not session.is_forked:
            await session.end()

    def _check_session(self, session: Session) -> None:
        """Let a run go that is over without having been left: with its loop, or in the process before a fork."""
        if not session.is_forked and not session.is_over:
            session.check(self.path)
            return
        if not session.is_forked:
            session.thread.stop()
        self._session, self._users = None, 0
        self._waiting.clear()
        if self._stop_tracking is not None:
            self._stop_tracking()

    async def __aiter__(self) -> AsyncGenerator[Snapshot[T], None]:
        last: str | None = None
        async with self:
            # What an earlier run has left behind may be old.
            while not self.has_looked and not self._is_stopped():
                await self._next_change_or_stop()
            while not self._is_stopped():
                while self._snapshot is None or self._snapshot.version == last:
                    await self._next_change_or_stop()
                    if self._is_stopped():
                        return
                last = self._snapshot.version
                yield self._snapshot

    def _is_stopped(self) -> bool:
        return self._stop_event is not None and self._stop_event.is_set()

    async def _next_change_or_stop(self) -> None:
        if self._stop_event is None:
            await self._next_change()
            return
        stopped = asyncio.ensure_future(self._stop_event.wait())
        try:
            await self._next_change(stopped)
        finally:
            stopped.cancel()
            await asyncio.gather(stopped, return_exceptions=True)

    async def _next_change(self, stopped: asyncio.Future[Any] | None = None) -> None:
        if self._session is not None:
            self._session.check(self.path)
        # Noted at once, and not in a task that begins later: what is told in between must not be missed.
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            if stopped is None:
                await future
            else:
                await asyncio.wait({future, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiting.discard(future)

    def _notify(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        for callback in list(self._subscribers.values()):
            try:
                callback()
            except Exception:  # one subscriber's fault must not reach the others, nor the watch
                logger.exception("a subscriber of %s failed", self.path)

    def _receive(self, session: Session, update: WatchUpdate) -> None:
        """Take over what the lookout has found, in the event loop."""
        if session is not self._session:
            return  # it is ending, and another one may have begun
        before, problem = self._snapshot, self.problem
        state = (self._crash, session.first_scan_done)
        self._crash = update.crash
        if update.crash is None:
            session.first_scan_done = True
            self._problem = update.problem
            if update.snapshot is not None:
                self._accept(update.snapshot)
        if (before, problem, *state) != (
            self._snapshot,
            self.problem,
            self._crash,
            session.first_scan_done,
        ):
            self._notify()
        # Whoever waits for the content comes first, and the books after that.
        if self.problem != problem:
            self._log_problem(first=before is None, missing=update.missing)
        if before is not None and self._snapshot != before:
            self._count(before, rescued=not update.by_event)

    def _accept(self, found: Snapshot[None]) -> None:
        """Make what was found the content that users see, if it is another one and the schema accepts it."""
        self._schema_error = None
        known = self._snapshot
        if known is not None and found == known:
            if found.has_new_files(known):
                self._snapshot = found.with_value(lambda _: known.value)
            return
        accepted: Snapshot[Any] = found
        if self._schema is not None:
            try:
                accepted = found.with_value(self._schema)
                _reject_awaitable(accepted.value)
            except Exception as error:
                message = str(error) or type(error).__name__
                self._schema_error = (
                    f"the schema refuses version {found.version[:8]} of {self.path}: {message}"
                )
                logger.debug("%s", self._schema_error, exc_info=error)
                return
        self._snapshot = accepted
        files = "" if accepted.name is not None else f" in {len(accepted)} files"
        detail = f"{accepted.version}, {accepted.size} bytes{files}"
        change_log.note("new version of", self.path, detail)

    def _count(self, before: Snapshot[T], *, rescued: bool) -> None:
        # What has gone away leaves no time behind, and a file that came by `mv` may have an old one.
        if self.modified is not None and self.modified > before.modified:
            metrics.PROPAGATION_SECONDS.observe(max(0.0, time.time() - self.modified))
        if rescued and self.mode != "poll":
            metrics.POLL_RESCUES_TOTAL.inc()

    def _log_problem(self, *, first: bool, missing: bool) -> None:
        """Write one line for each new problem and each recovery, and count what is one."""
        problem = self.problem
        if problem is None:
            logger.info("%s can be read%s", self.path, "" if first else " again")
        elif first and missing:
            logger.info("%s; waiting for it", problem)
        else:
            metrics.WATCH_ERRORS_TOTAL.inc()
            logger.warning("%s%s", problem, "" if first else "; the last good content stays")


def _reject_awaitable(value: object) -> None:
    """Refuse what a schema returned to be awaited: its value would be a promise, and its check never run."""
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError("it returned something to await; a schema is a plain function")


_shared: dict[tuple[Any, ...], Watch[None]] = {}


@asynccontextmanager
async def shared(
    path: str | os.PathLike[str], **options: Unpack[Options]
) -> AsyncIterator[Watch[None]]:
    """Enter the one watch of this path and these options (see `Watch`) that the running loop has."""
    key = (asyncio.get_running_loop(), os.fspath(path), *map(repr, sorted(options.items())))
    if key not in _shared:
        _shared[key] = Watch(path, **options)
    entry = _shared[key]
    try:
        async with entry:
            yield entry
    finally:
        if not entry.in_use:
            _shared.pop(key, None)
