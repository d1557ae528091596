"""A watch in the background, and what a path holds at this moment."""

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
"""Seconds for which the first access to a watch waits for its first look."""
_STOP_POLL_INTERVAL = 1.0
"""Seconds between two looks at the stop event of an iteration."""
_STABLE_TIMEOUT = 15.0
"""Seconds within which a content that lies still is believed: the longest that is waited for one."""


class Watch(Generic[T]):
    """A file or a directory that is kept up to date in the background. Made by `sidecar.sync.watch`.

    Looking begins with the first use, in each process anew, so it may be made at the top of a module.
    Leave it to the end of the program, or end it with `close`, or `with`.

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
        """Yield the present content, then each new one, until the watch is closed; blocks in between.

        A `stop_event` that is set ends it within a second.
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
        """The path as it was given."""
        return self._path

    @property
    def snapshot(self) -> Snapshot[T] | None:
        """The last good content; None as long as there has been none."""
        return self._inner().snapshot

    @property
    def latest(self) -> Snapshot[T]:
        """The last good content. Raises `NothingPublished` as long as there has been none."""
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
        """Why `snapshot` is not what the disk holds now, in words; None while it is."""
        return self._inner().stale

    @property
    def problem(self) -> str | None:
        """What the last look found wrong, whether there is an older content or not."""
        return self._inner().problem

    @property
    def failure(self) -> str | None:
        """Why nothing is being watched, None while all is well: what a liveness probe asks."""
        return self._inner().failure

    def changed(self, etag: str | None = None, timeout: float = 60.0) -> Snapshot[T] | None:
        """Return the content as soon as its entity tag is not `etag`, None after `timeout` seconds."""
        arguments.check_seconds("timeout", timeout)
        return run(self._inner().changed(etag, timeout))

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each change of `snapshot` or `stale`, in the thread of the background; return what ends that.

        It ends with the process, and must not block.
        """
        inner = self._inner()
        return run(_call(lambda: inner.subscribe(callback)))

    def close(self) -> None:
        """End it. What was seen last stays in `snapshot` of those who hold it; the watch cannot be used again."""
        with self._lock:
            self._closed = True
            entered, self._entered = self._entered, None
        if entered is not None and entered[0] == os.getpid():
            run(entered[1].__aexit__(None, None, None))

    def _inner(self) -> watches.Watch[T]:
        """Return the watch of this process, which is begun where it is not."""
        entered = self._entered
        if entered is not None and entered[0] == os.getpid():
            return entered[1]
        if entered is not None:
            self._lock = threading.Lock()  # whoever held it was left behind by a fork
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the watch of {self._path} is closed (make another one)")
            if self._entered is None or self._entered[0] != os.getpid():
                inner = self._make()
                run(_enter(inner))
                self._entered = os.getpid(), inner
            return self._entered[1]


class WatchGroup(Generic[T]):
    """Paths that are kept up to date together in the background; made by `sidecar.sync.watch`.

    Iterate over it for the snapshots of all of them, by path as it was given: the present ones first,
    then again whenever one of them has another version; a slow consumer gets the newest.
    Paths of which nothing has been published yet are left out. Or read `snapshots` whenever they are needed.
    Looking begins with the first use, as for `Watch`.

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
        """Yield the present contents, then all again after each change, until it is closed; blocks in between.

        A `stop_event` that is set ends it within a second.
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
        """Why one of them is not being watched, None while all is well: what a liveness probe asks."""
        return next((w.failure for w in self.watches.values() if w.failure is not None), None)

    def close(self) -> None:
        """End all of them; they cannot be used again."""
        self._closed = True
        for item in self.watches.values():
            item.close()

    def _first_scans_done(self) -> bool:
        return all(item._inner().has_looked for item in self.watches.values())  # noqa: SLF001 (of this module)

    def _is_stopped(self) -> bool:
        return self._closed or (self._stop_event is not None and self._stop_event.is_set())


async def _enter(inner: watches.Watch[Any]) -> None:
    """Enter it, and wait for the first look, but not for ever: it goes on looking."""
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
    """Keep a file or a directory up to date in the background; see `sidecar.watch` for the arguments.

    `stop_event` is a `threading.Event` here, and ends each iteration within a second.
    Nothing is raised while there is nothing to read: `snapshot` is None.
    `schema` is called in the thread of the background.
    Several paths are followed together, as a `WatchGroup`.

    Raises:
        ConfigError: an argument makes no sense.

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
    """Return a file, or a directory as a set, as it is now, whole: one that is being written is waited for.

    Args:
        path: the file, or the directory.
        schema: called with the snapshot; what it returns becomes `snapshot.value`, and what it raises is raised.
        timeout: seconds to wait for a content where there is none yet.
        max_size: bytes that are read (`"64Mi"` is understood).

    Raises:
        NothingPublished: there is nothing, for `timeout` seconds.
        ReadError: it cannot be read.
        ConfigError: an argument makes no sense.

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
        # Without a problem something is there that is not believed yet.
        while item.snapshot is None and item.problem is None:
            if await item.changed(None, _STABLE_TIMEOUT) is None:
                break
        if item.snapshot is None and timeout:
            await item.changed(None, max(limit - time.monotonic(), 0.0))
        if item.snapshot is None:
            raise _no_content_error(item)
        return item.snapshot


def _no_content_error(item: watches.Watch[Any]) -> _errors.ReadError:
    """Return the error for a path that has no content: nothing is there, or it cannot be read."""
    reason = item.problem or f"nothing has been published to {item.path} yet"
    if item.problem is None or not os.path.lexists(item.path):
        return _errors.NothingPublished(errno.ENOENT, reason)
    return _errors.ReadError(errno.EIO, reason)
