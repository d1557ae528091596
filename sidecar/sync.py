"""The same without an event loop: for Flask, Django, Celery, scripts, and threads of your own.

    settings = sync.load("/shared/settings.json")        once, as it is now
    settings = sync.watch("/shared/settings.json")       kept up to date in the background: settings.snapshot
    sync.publish_file("/shared/report.txt", text)        one file, whole and durable
    volume = sync.Volume("/shared")                      files, sets, history

Each of these does what its namesake in `sidecar` does, by that: one event loop of this process, in a thread of its own.
Everything may be called from any thread, and blocks until it is done.
In a process that is forked (gunicorn --preload, Celery, multiprocessing) all of it begins anew by itself.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar, overload

from sidecar import _errors
from sidecar.runtime import arguments
from sidecar.volume import gate as gates
from sidecar.volume import terms, upload
from sidecar.volume import volume as volumes
from sidecar.volume import watch as watches
from sidecar.volume.history import Version
from sidecar.volume.snapshot import MAX_SIZE, Content, Snapshot, T
from sidecar.volume.terms import Publication
from sidecar.volume.volume import Durability
from sidecar.volume.watch import WatchMode

__all__ = ["Upload", "Volume", "Watch", "load", "publish_file", "watch"]

R = TypeVar("R")

FIRST_LOOK = 1.0
"""Seconds for which the first access to a watch waits for its first look."""
_SETTLED = 15.0
"""Seconds within which a content that lies still is believed: the longest that is waited for one."""
_END_TIMEOUT = 2.0


class _Background:
    """The event loop of this process, and the thread in which it runs."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="sidecar-sync", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def end(self) -> None:
        """Stop it, at the end of the program."""
        if os.getpid() == self.pid and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(_END_TIMEOUT)
            if not self.thread.is_alive():
                self.loop.close()


class _Process:
    """What there is one of in each process."""

    lock = threading.Lock()
    background: _Background | None = None


def _renew() -> None:
    """Begin anew in a process that was forked: the thread was left behind, and the lock may be somebody's."""
    _Process.lock = threading.Lock()
    _Process.background = None


os.register_at_fork(after_in_child=_renew)


def _background() -> _Background:
    with _Process.lock:
        if _Process.background is None:
            _Process.background = _Background()
            atexit.register(_Process.background.end)
        return _Process.background


def _call(work: Coroutine[Any, Any, R]) -> R:
    """Run it in the background and wait for it; a KeyboardInterrupt cancels it, and is raised after its end."""
    background = _background()
    if threading.current_thread() is background.thread:
        work.close()
        raise RuntimeError(
            "sidecar.sync was called from its own event loop, which it would block for ever"
            " (a schema, a check or a callback that runs there uses sidecar itself, with await)"
        )
    call = _Call(background.loop, work)
    try:
        return call.outcome.result()
    except BaseException:
        if not call.outcome.done():
            call.cancel()
            futures.wait({call.outcome})
        raise


class _Call(Generic[R]):
    """A coroutine that runs in the background, and what became of it once its last line has run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, R]) -> None:
        self.outcome: futures.Future[R] = futures.Future()
        self._loop, self._work = loop, work
        self._task: asyncio.Task[R] | None = None
        loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[R]) -> None:
        if task.cancelled():
            self.outcome.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


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
        watch: WatchMode = "auto",
        recheck: float = 1.0,
        max_size: int | str = MAX_SIZE,
    ) -> None:
        self._make: Callable[[], watches.Watch[T]] = partial(
            watches.Watch, path, schema=schema, watch=watch, recheck=recheck, max_size=max_size
        )
        self._path = self._make().path
        self._lock = threading.Lock()
        self._entered: tuple[int, watches.Watch[T]] | None = None
        self._closed = False

    def __repr__(self) -> str:
        inner = self._entered[1] if self._entered is not None else None
        return f"<sync.Watch {self._path} {inner!r}>"

    def __enter__(self) -> Watch[T]:
        self._inner()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Snapshot[T]]:
        """Yield the present content, then each new one, until the watch is closed; blocks in between."""
        last: str | None = None
        while not self._closed:
            try:
                found = self.changed(last, 1.0)
            except RuntimeError:
                if self._closed:
                    return
                raise
            if found is not None:
                last = found.etag
                yield found

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
            raise _nothing(inner)
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
        arguments.seconds("timeout", timeout)
        return _call(self._inner().changed(etag, timeout))

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each change of `snapshot` or `stale`, in the thread of the background; return what ends that.

        It ends with the process, and must not block.
        """
        inner = self._inner()
        return _call(_returning(lambda: inner.subscribe(callback)))

    def close(self) -> None:
        """End it. What was seen last stays in `snapshot` of those who hold it; the watch cannot be used again."""
        with self._lock:
            self._closed = True
            entered, self._entered = self._entered, None
        if entered is not None and entered[0] == os.getpid():
            _call(entered[1].__aexit__(None, None, None))

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
                _call(_begin(inner))
                self._entered = os.getpid(), inner
            return self._entered[1]


async def _begin(inner: watches.Watch[Any]) -> None:
    """Enter it, and wait for the first look, but not for ever: it goes on looking."""
    await inner.__aenter__()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_LOOK):
            await inner.looked()
            if inner.problem is None:
                await inner.changed(None, FIRST_LOOK)


async def _returning(make: Callable[[], R]) -> R:
    return make()


@overload
def watch(
    path: str | os.PathLike[str],
    *,
    schema: None = None,
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int | str = MAX_SIZE,
) -> Watch[None]: ...
@overload
def watch(
    path: str | os.PathLike[str],
    *,
    schema: Callable[[Snapshot[Any]], T],
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int | str = MAX_SIZE,
) -> Watch[T]: ...
def watch(
    path: str | os.PathLike[str],
    *,
    schema: Callable[[Snapshot[Any]], Any] | None = None,
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int | str = MAX_SIZE,
) -> Watch[Any]:
    """Keep a file or a directory up to date in the background; see `sidecar.watch` for the arguments.

    Nothing is raised while there is nothing to read: `snapshot` is None.
    `schema` is called in the thread of the background.

    Raises:
        ConfigError: an argument makes no sense.

    >>> from sidecar import sync
    >>> settings = sync.watch("/shared/settings.json", schema=lambda snapshot: snapshot.json())
    """
    return Watch(path, schema=schema, watch=watch, recheck=recheck, max_size=max_size)


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
    arguments.seconds("timeout", timeout)
    if schema is not None:
        arguments.plain_function("schema", schema, "a function from a snapshot to a value")
    found = _call(_load(watches.Watch(path, max_size=max_size), timeout))
    return found if schema is None else found.with_value(schema)


async def _load(one: watches.Watch[None], timeout: float) -> Snapshot[None]:
    limit = time.monotonic() + timeout
    async with one:
        await one.looked()
        # Without a problem something is there that is not believed yet.
        while one.snapshot is None and one.problem is None:
            if await one.changed(None, _SETTLED) is None:
                break
        if one.snapshot is None and timeout:
            await one.changed(None, max(limit - time.monotonic(), 0.0))
        if one.snapshot is None:
            raise _nothing(one)
        return one.snapshot


def _nothing(one: watches.Watch[Any]) -> _errors.ReadError:
    """Return the error for a path that has no content: nothing is there, or it cannot be read."""
    reason = one.problem or f"nothing has been published to {one.path} yet"
    if one.problem is None or not os.path.lexists(one.path):
        return _errors.NothingPublished(errno.ENOENT, reason)
    return _errors.ReadError(errno.EIO, reason)


def publish_file(
    path: str | os.PathLike[str],
    content: volumes.Given,
    *,
    mode: int = volumes.FILE_MODE,
    group: int | None = None,
    keep: int = volumes.KEEP,
    durability: Durability = "full",
    if_match: str | Collection[str] | None = None,
    if_none_match: str | Collection[str] | None = None,
) -> Publication:
    """Publish one file, whole and durable, and return its version; see `sidecar.publish_file`.

    Raises:
        ConfigError, TypeError, PublishError, PublishUncertain: as that does.

    >>> import tempfile
    >>> from sidecar import sync
    >>> with tempfile.TemporaryDirectory() as shared:
    ...     sync.publish_file(f"{shared}/config", "debug: true").changed
    True
    """
    return _call(
        volumes.publish_file(
            path,
            content,
            mode=mode,
            group=group,
            keep=keep,
            durability=durability,
            if_match=if_match,
            if_none_match=if_none_match,
        )
    )


class Upload:
    """A content that is being received: `write` it, then give it to `Volume.put`. Made by `Volume.stage`.

    >>> def receive(volume: Volume, chunks: list[bytes]) -> None:
    ...     with volume.stage("large.bin") as upload:
    ...         for chunk in chunks:
    ...             upload.write(chunk)
    ...         volume.put("large.bin", upload)
    """

    def __init__(self, inner: upload.Upload) -> None:
        self._inner = inner

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self._inner.size

    @property
    def version(self) -> str:
        """The version of what was received so far."""
        return self._inner.version

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes. Raises `ContentTooLarge`, `VolumeFull`, `VolumeUnavailable`."""
        _call(self._inner.write(chunk))


class Volume:
    """A directory that containers share, as `sidecar.Volume`, with the same arguments, methods, guarantees and errors.

    >>> import tempfile
    >>> from sidecar import sync
    >>> with tempfile.TemporaryDirectory() as shared:
    ...     volume = sync.Volume(shared)
    ...     _ = volume.publish({"index.html": "<h1>Hello</h1>", "at.txt": "noon"})
    ...     volume.snapshot().text("at.txt")
    'noon'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mode: int = volumes.FILE_MODE,
        group: int | None = None,
        keep: int = volumes.KEEP,
        keep_bytes: int | str = volumes.KEEP_BYTES,
        keep_deleted: int = volumes.KEEP_DELETED,
        volume_budget: int | str | None = None,
        grace: float = volumes.GRACE,
        max_size: int | str = MAX_SIZE,
        gate: gates.Gate | Mapping[str, Any] | gates.Validate | None = None,
        durability: Durability = "full",
    ) -> None:
        self._inner = volumes.Volume(
            path,
            mode=mode,
            group=group,
            keep=keep,
            keep_bytes=keep_bytes,
            keep_deleted=keep_deleted,
            volume_budget=volume_budget,
            grace=grace,
            max_size=max_size,
            gate=gate,
            durability=durability,
        )
        self._max_size = max_size

    def __repr__(self) -> str:
        return f"<sync.{repr(self._inner)[1:]}"

    @property
    def path(self) -> str:
        """The directory, as it was given."""
        return self._inner.path

    @property
    def published(self) -> Publication | None:
        """The last publication by this object: it tells after an interrupted publish whether that happened."""
        return self._inner.published

    def prepare(self, *, initial: Mapping[str, bytes | str] | None = None) -> None:
        """Create the directory, remove what killed writers left, and publish `initial` files that are missing."""
        _call(self._inner.prepare(initial=initial))

    def publish(
        self,
        files: Mapping[str, volumes.Given | Upload],
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish a whole set: readers see all of these files change at once, and no others remain in it."""
        arguments.mapping("publish", files)
        given = {name: _given(content) for name, content in files.items()}
        return _call(
            self._inner.publish(
                given, if_match=if_match, if_none_match=if_none_match, dry_run=dry_run
            )
        )

    def put(
        self,
        name: str,
        content: volumes.Given | Upload,
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish one file: readers see the old content or the new one, and the new one is durable."""
        return _call(
            self._inner.put(
                name,
                _given(content),
                if_match=if_match,
                if_none_match=if_none_match,
                dry_run=dry_run,
            )
        )

    def delete(
        self,
        name: str,
        *,
        if_match: str | Collection[str] | None = None,
        dry_run: bool = False,
        purge: bool = False,
    ) -> Publication | None:
        """Remove one file; return the set that is left, None for a loose file."""
        return _call(self._inner.delete(name, if_match=if_match, dry_run=dry_run, purge=purge))

    @contextmanager
    def stage(self, name: str | None = None, *, limit: int | str | None = None) -> Iterator[Upload]:
        """Receive a large content piece by piece, straight to the disk: `put` publishes it, else it is dropped."""
        staging = self._inner.stage(name, limit=limit)
        inner = _call(staging.__aenter__())
        try:
            yield Upload(inner)
        finally:
            _call(staging.__aexit__(None, None, None))

    def read(self, name: str) -> Content:
        """Return one file as it is now; a large one is held open and not in memory."""
        return _call(self._inner.read(name))

    def names(self) -> dict[str, int]:
        """Return the names of the files, with their sizes in bytes."""
        return _call(self._inner.names())

    def entries(self) -> list[terms.Entry]:
        """Return the files with version, size and time, sorted by name."""
        return _call(self._inner.entries())

    def snapshot(self) -> Snapshot[None]:
        """Return all files as they are at this moment."""
        return _call(self._inner.snapshot())

    def versions(self, name: str | None = None) -> list[Version]:
        """Return the history of a loose file, or of the set, newest first, the present content included."""
        return _call(self._inner.versions(name))

    def rollback(
        self,
        version: str,
        *,
        name: str | None = None,
        if_match: str | Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish an older content again. `version` may be an entity tag."""
        return _call(self._inner.rollback(version, name=name, if_match=if_match, dry_run=dry_run))

    def check_writable(self) -> None:
        """Try what a publish needs, and leave nothing behind. Raises `PublishError` if one would fail now."""
        _call(self._inner.check_writable())

    def watch(self, *, watch: WatchMode = "auto", recheck: float = 1.0) -> Watch[None]:
        """Keep the volume up to date in the background; see `sidecar.sync.watch`."""
        path = self.path if self.path.endswith("/") else self.path + "/"
        return Watch(path, watch=watch, recheck=recheck, max_size=self._max_size)


def _given(content: volumes.Given | Upload) -> volumes.Given:
    return content._inner if isinstance(content, Upload) else content  # noqa: SLF001 (of this module)
