"""Watches without an event loop, and a function to read a path once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar, Unpack, overload

from sidecar import _errors
from sidecar.process import arguments
from sidecar.sync.background import run
from sidecar.volume.content.snapshot import MAX_SIZE, Snapshot, T
from sidecar.volume.watch import watch as watches
from sidecar.volume.watch.options import Options

R = TypeVar("R")

FIRST_SCAN_TIMEOUT = 1.5
"""Seconds for which the first access to a watch waits for its first scan."""
_STOP_POLL_INTERVAL = 1.0
"""Seconds between two checks of the stop event of an iteration."""
_STABLE_TIMEOUT = 15.0
"""Maximum seconds to wait until existing content is accepted as complete."""


class Watch(Generic[T]):
    """A file or a directory that is watched in the background. Created by `sidecar.sync.watch`.

    Watching starts at the first use, separately in each process, so it can be created at module level.
    It ends with the program, or with `close` or the end of a `with` block.

    >>> from sidecar import sync
    >>> settings = sync.watch("/shared/settings.json")
    >>> def handler() -> str:
    ...     return settings.latest.text()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        schema: Callable[[Snapshot[Any]], T] | None = None,
        stop_event: threading.Event | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._make: Callable[[], watches.Watch[T]] = partial(
            watches.Watch, path, schema=schema, **options
        )
        self._path = self._make().path
        if stop_event is not None:
            what = "a threading.Event (not one of asyncio)"
            arguments.check_instance("stop_event", stop_event, threading.Event, what)
        self._lock = threading.Lock()
        self._entered: tuple[int, watches.Watch[T]] | None = None
        self._closed = False
        self._stop_event = stop_event

    def __repr__(self) -> str:
        inner = self._entered[1] if self._entered is not None else None
        return f"<sync.Watch {self._path} {inner!r}>"

    def __enter__(self) -> Watch[T]:
        self._inner()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Snapshot[T]]:
        """Yield the current content, then each new one, until the watch is closed; blocks in between.

        A `stop_event` that is set ends the iteration within a second.
        """
        last: str | None = None
        while not self._is_stopped():
            try:
                found = self.changed(last, _STOP_POLL_INTERVAL)
            except RuntimeError:
                if self._closed:
                    return
                raise
            if found is not None and not self._is_stopped():
                last = found.etag
                yield found

    def _is_stopped(self) -> bool:
        return self._closed or (self._stop_event is not None and self._stop_event.is_set())

    @property
    def path(self) -> str:
        """The path as passed to the constructor."""
        return self._path

    @property
    def snapshot(self) -> Snapshot[T] | None:
        """The last good content; None if there has been none yet."""
        return self._inner().snapshot

    @property
    def latest(self) -> Snapshot[T]:
        """The last good content. Raises `NothingPublished` if there has been none yet."""
        inner = self._inner()
        if inner.snapshot is None:
            raise _no_content_error(inner)
        return inner.snapshot

    @property
    def etag(self) -> str | None:
        """The entity tag of the last good content."""
        return self._inner().etag

    @property
    def stale(self) -> str | None:
        """Why `snapshot` is not current, in words; None while it is."""
        return self._inner().stale

    @property
    def problem(self) -> str | None:
        """The problem that the last scan found, whether or not there is older content."""
        return self._inner().problem

    @property
    def failure(self) -> str | None:
        """Why nothing is being watched, None while the watch works; for liveness probes."""
        return self._inner().failure

    def changed(self, etag: str | None = None, timeout: float = 60.0) -> Snapshot[T] | None:
        """Return the content as soon as its entity tag differs from `etag`; None after `timeout` seconds."""
        arguments.check_seconds("timeout", timeout)
        return run(self._inner().changed(etag, timeout))

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each change of `snapshot` or `stale`, in the background thread; return a function that unsubscribes.

        The subscription applies to this process only. The callback must not block.
        """
        inner = self._inner()
        return run(_call(lambda: inner.subscribe(callback)))

    def close(self) -> None:
        """Stop watching. Snapshots that were read remain valid; the watch cannot be used again."""
        with self._lock:
            self._closed = True
            entered, self._entered = self._entered, None
        if entered is not None and entered[0] == os.getpid():
            run(entered[1].__aexit__(None, None, None))

    def _inner(self) -> watches.Watch[T]:
        """Return the watch of this process; start it if necessary."""
        entered = self._entered
        if entered is not None and entered[0] == os.getpid():
            return entered[1]
        if entered is not None:
            self._lock = threading.Lock()  # its holder may exist only in the parent process
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the watch of {self._path} is closed (make another one)")
            if self._entered is None or self._entered[0] != os.getpid():
                inner = self._make()
                run(_enter(inner))
                self._entered = os.getpid(), inner
            return self._entered[1]


class WatchGroup(Generic[T]):
    """Several paths that are watched in the background; created by `sidecar.sync.watch`.

    Iterate over it to get the snapshots of all paths as a mapping: the current ones first,
    then again whenever one of them has a new version; a slow consumer gets the newest.
    Paths without published content are omitted. Or read `snapshots` at any time.
    Watching starts at the first use, as for `Watch`.

    >>> from sidecar import sync
    >>> def handler(group: sync.WatchGroup) -> str:
    ...     return group.snapshots["/config/app.json"].text()
    """

    def __init__(self, watches: Iterable[Watch[T]], stop_event: threading.Event | None) -> None:
        self.watches: Mapping[str, Watch[T]] = MappingProxyType({w.path: w for w in watches})
        """The watch of each path: its `stale`, `problem`, `etag` and so on."""
        self._stop_event = stop_event
        self._closed = False

    def __repr__(self) -> str:
        return f"<sync.WatchGroup {list(self.watches.values())}>"

    def __enter__(self) -> WatchGroup[T]:
        for item in self.watches.values():
            item.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Snapshot[T]]]:
        """Yield the current contents, then all again after each change, until the group is closed; blocks in between.

        A `stop_event` that is set ends the iteration within a second.
        """
        changed = threading.Event()
        last: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            try:
                for item in self.watches.values():
                    stack.callback(item.subscribe(changed.set))
                while not self._is_stopped():
                    changed.clear()
                    found, scanned = self.snapshots, self._first_scans_done()
                    versions = {path: snapshot.version for path, snapshot in found.items()}
                    if versions != last and scanned:
                        last = versions
                        yield found
                    else:
                        changed.wait(_STOP_POLL_INTERVAL)
            except RuntimeError:
                if not self._closed:
                    raise

    @property
    def snapshots(self) -> dict[str, Snapshot[T]]:
        """The last good content of each path that has one."""
        found = {path: item.snapshot for path, item in self.watches.items()}
        return {path: snapshot for path, snapshot in found.items() if snapshot is not None}

    @property
    def failure(self) -> str | None:
        """Why one of the paths is not being watched, None while all are; for liveness probes."""
        return next((w.failure for w in self.watches.values() if w.failure is not None), None)

    def close(self) -> None:
        """Stop all watches; they cannot be used again."""
        self._closed = True
        for item in self.watches.values():
            item.close()

    def _first_scans_done(self) -> bool:
        return all(item._inner().has_looked for item in self.watches.values())  # noqa: SLF001 (of this module)

    def _is_stopped(self) -> bool:
        return self._closed or (self._stop_event is not None and self._stop_event.is_set())


async def _enter(inner: watches.Watch[Any]) -> None:
    """Enter the watch, and wait for its first scan, at most `FIRST_SCAN_TIMEOUT` seconds; the watch continues."""
    await inner.__aenter__()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_SCAN_TIMEOUT):
            await inner.looked()
            if inner.problem is None:
                await inner.changed(None, FIRST_SCAN_TIMEOUT)


async def _call(make: Callable[[], R]) -> R:
    return make()


@overload
def watch(
    path: str | os.PathLike[str],
    *,
    schema: None = None,
    stop_event: threading.Event | None = None,
    **options: Unpack[Options],
) -> Watch[None]: ...
@overload
def watch(
    path: str | os.PathLike[str],
    *,
    schema: Callable[[Snapshot[Any]], T],
    stop_event: threading.Event | None = None,
    **options: Unpack[Options],
) -> Watch[T]: ...
@overload
def watch(
    path: str | os.PathLike[str],
    second: str | os.PathLike[str],
    /,
    *more: str | os.PathLike[str],
    schema: None = None,
    stop_event: threading.Event | None = None,
    **options: Unpack[Options],
) -> WatchGroup[None]: ...
@overload
def watch(
    path: str | os.PathLike[str],
    second: str | os.PathLike[str],
    /,
    *more: str | os.PathLike[str],
    schema: Callable[[Snapshot[Any]], T],
    stop_event: threading.Event | None = None,
    **options: Unpack[Options],
) -> WatchGroup[T]: ...
def watch(
    path: str | os.PathLike[str],
    *more: str | os.PathLike[str],
    schema: Callable[[Snapshot[Any]], Any] | None = None,
    stop_event: threading.Event | None = None,
    **options: Unpack[Options],
) -> Watch[Any] | WatchGroup[Any]:
    """Watch a file or a directory in the background; see `sidecar.watch` for the arguments.

    `stop_event` is a `threading.Event` and ends each iteration within a second.
    While there is nothing to read, `snapshot` is None and nothing is raised.
    `schema` is called in the background thread.
    For several paths, a `WatchGroup` is returned.

    Raises:
        ConfigError: an argument is invalid.

    >>> from sidecar import sync
    >>> settings = sync.watch("/shared/settings.json", schema=lambda snapshot: snapshot.json())
    >>> both = sync.watch("/config/app.json", "/tls/")
    """
    watches = [
        Watch(item, schema=schema, stop_event=stop_event, **options) for item in (path, *more)
    ]
    return WatchGroup(watches, stop_event) if more else watches[0]


@overload
def load(
    path: str | os.PathLike[str],
    *,
    schema: None = None,
    timeout: float = 0.0,
    max_size: int | str = MAX_SIZE,
) -> Snapshot[None]: ...
@overload
def load(
    path: str | os.PathLike[str],
    *,
    schema: Callable[[Snapshot[Any]], T],
    timeout: float = 0.0,
    max_size: int | str = MAX_SIZE,
) -> Snapshot[T]: ...
def load(
    path: str | os.PathLike[str],
    *,
    schema: Callable[[Snapshot[Any]], Any] | None = None,
    timeout: float = 0.0,
    max_size: int | str = MAX_SIZE,
) -> Snapshot[Any]:
    """Read a file or a directory as it is now; wait for content that is being written.

    Args:
        path: the file or the directory.
        schema: called with the snapshot; its result becomes `snapshot.value`, and its exceptions are raised.
        timeout: seconds to wait for content if there is none yet.
        max_size: maximum bytes to read (also `"64Mi"`).

    Raises:
        NothingPublished: there was no content within `timeout` seconds.
        ReadError: the content cannot be read.
        ConfigError: an argument is invalid.

    >>> import tempfile
    >>> from sidecar import sync
    >>> with tempfile.TemporaryDirectory() as shared:
    ...     _ = sync.publish_file(f"{shared}/config", "debug: true")
    ...     sync.load(f"{shared}/config").text()
    'debug: true'
    """
    arguments.check_seconds("timeout", timeout)
    if schema is not None:
        arguments.check_plain_function("schema", schema, "a function from a snapshot to a value")
    found = run(_load(watches.Watch(path, max_size=max_size), timeout))
    return found if schema is None else found.with_value(schema)


async def _load(item: watches.Watch[None], timeout: float) -> Snapshot[None]:
    limit = time.monotonic() + timeout
    async with item:
        await item.looked()
        # Without a problem, there is content that is not accepted as complete yet.
        while item.snapshot is None and item.problem is None:
            if await item.changed(None, _STABLE_TIMEOUT) is None:
                break
        if item.snapshot is None and timeout:
            await item.changed(None, max(limit - time.monotonic(), 0.0))
        if item.snapshot is None:
            raise _no_content_error(item)
        return item.snapshot


def _no_content_error(item: watches.Watch[Any]) -> _errors.ReadError:
    """Return the error for a path without content: missing or unreadable."""
    reason = item.problem or f"nothing has been published to {item.path} yet"
    if item.problem is None or not os.path.lexists(item.path):
        return _errors.NothingPublished(errno.ENOENT, reason)
    return _errors.ReadError(errno.EIO, reason)
