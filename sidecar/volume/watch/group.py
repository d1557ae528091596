"""`sidecar.watch`: watch one path, or several paths together."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Generic, Unpack, overload

from sidecar.volume.content.snapshot import Snapshot, T
from sidecar.volume.watch.options import Options
from sidecar.volume.watch.watch import Watch


class WatchGroup(Generic[T]):
    """Several watched paths; created by `sidecar.watch`.

    Iterate over it to get the snapshots of all paths as a mapping: the current ones first,
    then again whenever one of them has a new version; a slow consumer gets the newest.
    Paths without published content are omitted.
    Or enter it with `async with`, and read `snapshots` at any time.
    Like a watch, it belongs to the event loop and the process in which it is entered.

    >>> async def main(group: WatchGroup) -> None:
    ...     async with group:
    ...         print(group.snapshots, [watch.stale for watch in group.watches.values()])
    """

    def __init__(self, watches: Iterable[Watch[T]], stop_event: asyncio.Event | None) -> None:
        self.watches: Mapping[str, Watch[T]] = MappingProxyType({w.path: w for w in watches})
        """The watch of each path: its `stale`, `problem`, `mode` and so on."""
        self._stop_event = stop_event

    def __repr__(self) -> str:
        return f"<WatchGroup {list(self.watches.values())}>"

    @property
    def snapshots(self) -> dict[str, Snapshot[T]]:
        """The last good content of each path that has one."""
        return {p: w.snapshot for p, w in self.watches.items() if w.snapshot is not None}

    @property
    def failure(self) -> str | None:
        """Why one of the paths is not being watched, None while all are; for liveness probes, see `Watch.failure`."""
        return next((w.failure for w in self.watches.values() if w.failure is not None), None)

    async def __aenter__(self) -> WatchGroup[T]:
        # Each watch counts its users and checks its process and event loop.
        async with contextlib.AsyncExitStack() as stack:
            for watch in self.watches.values():
                await stack.enter_async_context(watch)
            stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for watch in self.watches.values():
                stack.push_async_exit(watch)

    async def __aiter__(self) -> AsyncGenerator[dict[str, Snapshot[T]], None]:
        changed = asyncio.Event()
        async with self, contextlib.AsyncExitStack() as stack:
            for watch in self.watches.values():
                stack.callback(watch.subscribe(changed.set))
            last: dict[str, str] = {}
            while not self._is_stopped():
                changed.clear()
                found = self.snapshots
                versions = {path: snapshot.version for path, snapshot in found.items()}
                if versions != last and all(w.has_looked for w in self.watches.values()):
                    last = versions
                    yield found
                else:
                    await self._changed_or_stopped(changed)

    def _is_stopped(self) -> bool:
        return self._stop_event is not None and self._stop_event.is_set()

    async def _changed_or_stopped(self, changed: asyncio.Event) -> None:
        events = [changed] if self._stop_event is None else [changed, self._stop_event]
        tasks = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@overload
def watch(
    path: str | os.PathLike[str],
    *,
    schema: None = None,
    stop_event: asyncio.Event | None = None,
    **options: Unpack[Options],
) -> Watch[None]: ...
@overload
def watch(
    path: str | os.PathLike[str],
    *,
    schema: Callable[[Snapshot[Any]], T],
    stop_event: asyncio.Event | None = None,
    **options: Unpack[Options],
) -> Watch[T]: ...
@overload
def watch(
    path: str | os.PathLike[str],
    second: str | os.PathLike[str],
    /,
    *more: str | os.PathLike[str],
    schema: None = None,
    stop_event: asyncio.Event | None = None,
    **options: Unpack[Options],
) -> WatchGroup[None]: ...
@overload
def watch(
    path: str | os.PathLike[str],
    second: str | os.PathLike[str],
    /,
    *more: str | os.PathLike[str],
    schema: Callable[[Snapshot[Any]], T],
    stop_event: asyncio.Event | None = None,
    **options: Unpack[Options],
) -> WatchGroup[T]: ...
def watch(
    path: str | os.PathLike[str],
    *more: str | os.PathLike[str],
    schema: Callable[[Snapshot[Any]], Any] | None = None,
    stop_event: asyncio.Event | None = None,
    **options: Unpack[Options],
) -> Watch[Any] | WatchGroup[Any]:
    """Watch a file or a directory: `async for snapshot in sidecar.watch(path)`.

    The current version comes first, then each new version once; a slow consumer gets the newest.
    While there is nothing to read, the loop waits and nothing is raised. See `Watch` for the arguments.

    With several paths, `async for snapshots in sidecar.watch(a, b)` yields a mapping of each path to its snapshot,
    without paths that have none yet, whenever one of them has a new version.

    Raises:
        ConfigError: an argument is invalid.

    >>> async def first(path: str) -> str:
    ...     async for snapshot in watch(path):
    ...         return snapshot.text()
    ...     return ""
    >>> async def both() -> None:
    ...     async for snapshots in watch("/config/app.json", "/tls/"):
    ...         print(snapshots["/config/app.json"].text())
    """
    watches = [
        Watch(item, schema=schema, stop_event=stop_event, **options) for item in (path, *more)
    ]
    return WatchGroup(watches, stop_event) if more else watches[0]
