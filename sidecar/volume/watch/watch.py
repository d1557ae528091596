"""Watch a file or a directory: each version once; a slow consumer gets the newest.

Events only trigger a scan of the disk, and a slow re-check scans without them.
So a watch recovers from a directory that is removed and re-created, an overflow of the event queue,
an exhausted limit, and a file system that sends no events.
The last good content stays in memory; `stale` says why it is not current.

A `WatchThread` scans the path and filters unstable files in its own thread.
`Watch` is the public object, which receives the results in the event loop of its user.
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
from sidecar.process import arguments, metrics, tracing
from sidecar.volume import change_log
from sidecar.volume.content.snapshot import Snapshot, T
from sidecar.volume.watch import thread
from sidecar.volume.watch.options import Options, check
from sidecar.volume.watch.session import Session
from sidecar.volume.watch.thread import WatchThread, WatchUpdate

logger = logging.getLogger(__name__)

WatchMode = thread.WatchMode

#: Seconds after which a scan without progress is reported as a failure.
_SCAN_STALL = 30.0


class Watch(Generic[T]):
    """A watched file or directory.

    Iterate over it to get the versions: the current one first, then each new one;
    a slow consumer gets the newest, not a backlog.
    Or enter it with `async with`, and read `snapshot` at any time.

    It belongs to the event loop and the process in which it is entered. Use in another event loop raises `RuntimeError`.
    In a process that is forked later, `failure` and `stale` report that nothing is watched; it can be entered again there.

    A file that is rewritten in place is read after its writer has closed it.
    Without events, it is read after it has been unchanged for one second.

    Args:
        path: the file, or the directory for a set; end the path with `/` for a directory that does not exist yet.
        schema: called in the event loop with each snapshot; its result becomes `snapshot.value`.
            If it raises, the version is rejected and the last good one stays; the traceback is logged at DEBUG.
            It must be a plain function: its result is not awaited.
        watch: the source of events; `auto` selects polling for file systems that send no events.
        recheck: seconds between scans without an event, in every mode.
        max_size: maximum bytes to read (also `"64Mi"`); larger content is rejected. Files of more than 1 MiB
            stay on the disk: see `sidecar.Snapshot`.
        include: shell patterns of the files of a directory to include (`"*.conf"`); empty means all.
            A pattern with a `/` is compared with the whole relative name, any other pattern with the last component.
        exclude: patterns of files to exclude, and of directories to skip;
            the default excludes the temporary files of editors (`*.swp`, `*~`, `#*#`, `4913`, …).
            `include` and `exclude` do not apply to a set of generations or to a single file.
        quiet: quiet period in seconds: a directory of loose files must be unchanged for that long before a change
            is shown; after ten times as long, or 5 seconds if that is more, it is shown anyway.
            By default only in-place writes wait, for 0.1 s, so that a copied tree appears as one version.
        verify_key: the path of a file with ed25519 public keys (PEM), or several: only content that one of them
            has signed is shown (extra `sign`); the last one that was stays. The files are reloaded when they change.
        stop_event: ends each iteration when it is set.

    Raises:
        ConfigError: an argument is invalid.

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
            verifier=checked.verifier,
        )
        self._snapshot: Snapshot[T] | None = None
        self._problem: str | None = None
        self._schema_error: str | None = None
        self._crash: str | None = None
        self._traceparent: str | None = None
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
        """The path as passed to the constructor."""
        return self._path

    @property
    def snapshot(self) -> Snapshot[T] | None:
        """The last good content; None if there has been none yet."""
        return self._snapshot

    @property
    def etag(self) -> str | None:
        """The entity tag of the last good content."""
        return self._snapshot.etag if self._snapshot is not None else None

    @property
    def traceparent(self) -> str | None:
        """The trace context (W3C) of the last good content: of its load here, if there are spans, else of its publish."""
        return self._traceparent

    @property
    def modified(self) -> float | None:
        """The modification time of the last good content, in Unix seconds; None if there is no file."""
        return self._snapshot.modified if self._snapshot else None

    @property
    def stale(self) -> str | None:
        """Why `snapshot` is not current, in words; None while it is."""
        return self.problem if self._snapshot is not None else None

    @property
    def problem(self) -> str | None:
        """The problem that the last scan found, whether or not there is older content."""
        if self._session is not None and self._session.is_forked:
            return self.failure
        return self._problem or self._schema_error

    @property
    def refused(self) -> bool:
        """Whether the schema rejects the latest content."""
        return self._schema_error is not None

    @property
    def has_looked(self) -> bool:
        """Whether the first scan is complete, whatever it found."""
        return self._session is not None and self._session.first_scan_done

    @property
    def mode(self) -> base.Mode:
        """The current source of events."""
        return self._session.thread.mode if self._session is not None else "poll"

    @property
    def fallback(self) -> str | None:
        """Why the path is polled although events were requested, None while events work."""
        return self._session.thread.fallback if self._session is not None else None

    @property
    def in_use(self) -> bool:
        """Whether the watch is entered at least once."""
        return self._users > 0

    @property
    def failure(self) -> str | None:
        """Why nothing is being watched, None while the watch works; for liveness probes.

        A missing file or directory is not a failure. In a process forked after the start, the watch does not run.
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
                f"a scan of {self.path} has been hanging for {hanging:.0f} s (is its storage gone?)"
            )
        return None

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each change of `snapshot` or `stale`; return a function that unsubscribes."""
        key = object()
        self._subscribers[key] = callback

        def end() -> None:
            self._subscribers.pop(key, None)

        return end

    async def looked(self) -> None:
        """Wait until the first scan is complete, whatever it found.

        Raises:
            RuntimeError: the watch was entered in another event loop, or before this process was forked; see `failure`.
        """
        while not self.has_looked:
            await self._next_change()

    async def changed(self, etag: str | None, timeout: float) -> Snapshot[T] | None:
        """Return the content as soon as its entity tag differs from `etag`; None after `timeout` seconds.

        Raises:
            RuntimeError: the watch was entered in another event loop, or before this process was forked; see `failure`.
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
        # A user who enters while this session is ending starts a new one.
        session, self._session = self._session, None
        if self._stop_tracking is not None:
            self._stop_tracking()
        if not session.is_forked:
            await session.end()

    def _check_session(self, session: Session) -> None:
        """Drop a session whose event loop is closed or that belongs to the process before a fork; else check the loop."""
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
            # The snapshot of an earlier session may be outdated.
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
        # Registered immediately, not in a task that starts later: a notification in between must not be missed.
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
            except Exception:  # an error in one subscriber must not affect the others or the watch
                logger.exception("a subscriber of %s failed", self.path)

    def _receive(self, session: Session, update: WatchUpdate) -> None:
        """Apply an update of the watch thread, in the event loop."""
        if session is not self._session:
            return  # the session is ending, and another one may have started
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
        ) or (before and self._snapshot and self._snapshot.has_new_metadata(before)):
            self._notify()
        # Waiting consumers are notified first; logs and metrics follow.
        if self.problem != problem:
            self._log_problem(first=before is None, missing=update.missing)
        if before is not None and self._snapshot != before:
            self._count(before, rescued=not update.by_event)
        if self._snapshot is not before:
            known = None if before is None else before.version
            self._trace(self._snapshot, known, update.began, at_start=not state[1])

    def _trace(
        self,
        snapshot: Snapshot[T] | None,
        known: str | None,
        began: float | None,
        *,
        at_start: bool,
    ) -> None:
        """Note the trace context of the content, and have a span for its load.

        That is a child of the publish, so that there is one trace of both, as the conventions for messaging allow.
        What was there at the start was published at any time before: it begins a trace, which links to that of the publish.
        """
        metadata = None if snapshot is None else snapshot.metadata
        self._traceparent = None if metadata is None else metadata.traceparent
        if snapshot is None or snapshot.version == known:
            return
        attributes: tracing.Attributes = {
            "file.path": self.path,
            "file.size": snapshot.size,
            "sidecar.version": snapshot.version,
        }
        parent, link = (None, self._traceparent) if at_start else (self._traceparent, None)
        context = tracing.context_of(parent)
        with tracing.span(
            "load", attributes, kind="consumer", context=context, link=link, start=began
        ):
            self._traceparent = tracing.traceparent() or self._traceparent

    def _accept(self, found: Snapshot[None]) -> None:
        """Publish the new content to users, if it differs from the current one and the schema accepts it."""
        self._schema_error = None
        known = self._snapshot
        if known is not None and found == known:
            if found.has_new_files(known) or found.has_new_metadata(known):
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
        # A deleted file has no modification time, and a file that arrived by `mv` may have an old one.
        if self.modified is not None and self.modified > before.modified:
            metrics.PROPAGATION_SECONDS.observe(max(0.0, time.time() - self.modified))
        if rescued and self.mode != "poll":
            metrics.POLL_RESCUES_TOTAL.inc()

    def _log_problem(self, *, first: bool, missing: bool) -> None:
        """Log each new problem and each recovery once, and count the problems."""
        problem = self.problem
        if problem is None:
            logger.info(
                "%s can be read%s",
                self.path,
                "" if first else " again",
                extra={"event": "content.readable"},
            )
        elif first and missing:
            logger.info("%s; waiting for it", problem, extra={"event": "content.missing"})
        else:
            metrics.WATCH_ERRORS_TOTAL.inc()
            logger.warning(
                "%s%s",
                problem,
                "" if first else "; the last good content stays",
                extra={"event": "content.stale"},
            )


def _reject_awaitable(value: object) -> None:
    """Raise `TypeError` if a schema returned an awaitable, which would never run."""
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError("it returned something to await; a schema is a plain function")


_shared: dict[tuple[Any, ...], Watch[None]] = {}


@asynccontextmanager
async def shared(
    path: str | os.PathLike[str], **options: Unpack[Options]
) -> AsyncIterator[Watch[None]]:
    """Enter the watch that all users of this path and these options (see `Watch`) share in the running event loop."""
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
