"""Group commit: of all pending writes to one name, the last is published, then all are acknowledged.

A publish needs two syncs, and more writes arrive while they run.
Each of these would be replaced before a reader could see it, so only the last one is written:
with 64 clients, one pair of syncs serves all of them.
An acknowledgement keeps its meaning: this content, or content published after it, is visible and durable.

Writes with preconditions and dry runs are never grouped, because each depends on the state before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from sidecar.volume.content import snapshot
from sidecar.volume.content.metadata import Metadata
from sidecar.volume.publish.models import Publication

_log = logging.getLogger(__name__)

Publish = Callable[[str, bytes, Metadata | None], Coroutine[Any, Any, Publication]]
PublishInline = Callable[[str, bytes, Metadata | None], Publication | None]
"""Publishes without blocking; returns None, without starting anything, if that is not possible."""
_MAX_LOOP_TURNS = 32

Outcome: TypeAlias = Publication | BaseException
"""The result of a write; `CancelledError` if it was cancelled, or abandoned at shutdown."""


class PendingWrite:
    """A content to publish with its metadata, and the callback for its result."""

    __slots__ = ("callback", "cancelled", "data", "metadata", "name")

    def __init__(
        self,
        name: str,
        data: bytes,
        callback: Callable[[Outcome], None],
        metadata: Metadata | None = None,
    ) -> None:
        self.name = name
        self.data = data
        self.metadata = metadata
        self.callback = callback
        self.cancelled = False


class GroupCommit:
    """The pending writes by name, and the running batch of each name."""

    def __init__(self, publish: Publish, publish_inline: PublishInline = lambda *_: None) -> None:
        self._publish = publish
        self._publish_inline = publish_inline
        self._waiting: dict[str, list[PendingWrite]] = {}
        self._batches: dict[str, _Batch] = {}

    def __repr__(self) -> str:
        return f"<GroupCommit waiting={sum(map(len, self._waiting.values()))}>"

    def submit(
        self,
        name: str,
        data: bytes,
        callback: Callable[[Outcome], None],
        metadata: Metadata | None = None,
    ) -> PendingWrite:
        """Publish a content, or a later one in its place, and call `callback` once with the result, in the event loop."""
        write = PendingWrite(name, data, callback, metadata)
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = []
        waiting.append(write)
        if name not in self._batches:
            self._begin(name)
        return write

    def cancel(self, write: PendingWrite) -> None:
        """Cancel a write. A pending write is dropped, and its callback is called immediately.

        A batch whose writes are all cancelled is cancelled, too, unless its content is already visible;
        the callbacks are called when the result is known.
        """
        waiting = self._waiting.get(write.name, [])
        if write in waiting:
            waiting.remove(write)
            write.callback(asyncio.CancelledError())
            return
        write.cancelled = True
        batch = self._batches.get(write.name)
        # The write may be finished already, and the next batch may be running.
        if (
            batch is not None
            and write in batch.writes
            and all(other.cancelled for other in batch.writes)
        ):
            batch.publish.cancel()

    async def put(self, name: str, data: bytes, metadata: Metadata | None = None) -> Publication:
        """Publish a content, or a later one in its place. Cancelling this call cancels the write."""
        future: asyncio.Future[Publication] = asyncio.get_running_loop().create_future()
        write = self.submit(name, data, lambda outcome: _set_future(future, outcome), metadata)
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as cancelled:
            self.cancel(write)
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({future})
            error = future.exception()
            raise cancelled from (None if isinstance(error, asyncio.CancelledError) else error)
        return future.result()

    def _begin(self, name: str) -> None:
        batch = self._batches[name] = _Batch()
        batch.publish = asyncio.create_task(self._run(name, batch), name=f"publish {name}")
        batch.publish.add_done_callback(lambda task: self._on_done(name, batch, task))

    async def _run(self, name: str, batch: _Batch) -> None:
        """Publish the pending writes and notify their callbacks, one loop iteration earlier than a done callback would."""
        outcome: Outcome | None
        try:
            outcome = await self._publish_last(name, batch)
        except Exception as error:  # noqa: BLE001 (any error is the result)
            outcome = error
        self._end(name, batch, outcome)

    async def _publish_last(self, name: str, batch: _Batch) -> Publication | None:
        """Publish the last pending write, after a loop iteration in which no more writes arrived.

        Clients that have just been answered send their next write within a few iterations, so one pair of syncs
        serves all of them. A single write waits for one iteration, some hundredths of a millisecond.
        """
        known = 0
        for _ in range(_MAX_LOOP_TURNS):
            if known == (known := len(self._waiting.get(name, ()))):
                break
            await asyncio.sleep(0)
        batch.writes = self._waiting.pop(name, [])
        if not batch.writes:
            return None
        last = batch.writes[-1]
        data, metadata = last.data, last.metadata
        # With several writes, a thread publishes while the event loop reads more requests, so batches get larger.
        done = self._publish_inline(name, data, metadata) if len(batch.writes) == 1 else None
        return done or await self._publish(name, data, metadata)

    def _on_done(self, name: str, batch: _Batch, task: asyncio.Task[None]) -> None:
        """Finish a batch whose task was cancelled."""
        if self._batches.get(name) is not batch:
            return
        # Cancelled at shutdown before the task started: the writes are still pending.
        batch.writes = batch.writes or self._waiting.pop(name, [])
        outcome: Outcome | None = None
        try:
            task.result()
        except asyncio.CancelledError as cancelled:
            outcome = cancelled.__cause__ or cancelled
        self._end(name, batch, outcome)

    def _end(self, name: str, batch: _Batch, outcome: Outcome | None) -> None:
        _notify(batch.writes, outcome)
        # After the callbacks, because they may have submitted new writes.
        del self._batches[name]
        if self._waiting.get(name):
            self._begin(name)


class _Batch:
    """The writes that one publish completes: all that are pending when it starts."""

    __slots__ = ("publish", "writes")

    publish: asyncio.Task[None]

    def __init__(self) -> None:
        self.writes: list[PendingWrite] = []


def _notify(writes: list[PendingWrite], done: Outcome | None) -> None:
    """Call the callbacks of all writes with the result; None means cancelled."""
    for write in writes:
        if isinstance(done, Publication):
            outcome: Outcome = done if write is writes[-1] else _superseded(write.data, done)
        else:
            outcome = done or asyncio.CancelledError()
        try:
            write.callback(outcome)
        except Exception:  # noqa: BLE001 (logged)
            # An error in one callback must not prevent the others.
            _log.exception("cannot answer a publish of %s", write.name)


def _set_future(future: asyncio.Future[Publication], outcome: Outcome) -> None:
    if isinstance(outcome, Publication):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
        future.exception()


def _superseded(data: bytes, by: Publication) -> Publication:
    """Return the publication for a content that was superseded by a later one in the same batch."""
    version = snapshot.version_of(data)
    return Publication(version, version != by.version, False, by.modified, len(data))
