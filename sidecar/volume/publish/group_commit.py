"""Group commit: of the contents that wait for one name, the last is published, then all are acknowledged.

A publish costs two syncs of the disk, and while they run further contents arrive.
Each of these would be replaced by the next one before anybody could read it,
so only the last is written: with 64 clients one pair of syncs serves them all.
An acknowledgement keeps its meaning: this content, or one that was published after it, is visible and durable.

Contents with conditions, and those of a dry run, are never grouped: each of them asks for the state before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from sidecar.volume.content import snapshot
from sidecar.volume.publish.models import Publication

_log = logging.getLogger(__name__)

Publish = Callable[[str, bytes], Coroutine[Any, Any, Publication]]
PublishInline = Callable[[str, bytes], Publication | None]
"""Publishes without a wait, where that is possible; None: it has to be waited for, and nothing has begun."""
_MAX_LOOP_TURNS = 32

Outcome: TypeAlias = Publication | BaseException
"""What became of a content; `CancelledError` if it was withdrawn, or given up with the whole program."""


class PendingWrite:
    """A content that is to be published, and who is told what became of it."""

    __slots__ = ("callback", "cancelled", "data", "name")

    def __init__(self, name: str, data: bytes, callback: Callable[[Outcome], None]) -> None:
        self.name = name
        self.data = data
        self.callback = callback
        self.cancelled = False


class GroupCommit:
    """The contents that wait, by name, and the one publish a name that is under way."""

    def __init__(self, publish: Publish, publish_inline: PublishInline = lambda *_: None) -> None:
        self._publish = publish
        self._publish_inline = publish_inline
        self._waiting: dict[str, list[PendingWrite]] = {}
        self._batches: dict[str, _Batch] = {}

    def __repr__(self) -> str:
        return f"<GroupCommit waiting={sum(map(len, self._waiting.values()))}>"

    def submit(self, name: str, data: bytes, callback: Callable[[Outcome], None]) -> PendingWrite:
        """Publish a content, or let a later one do for it, and `callback` what became of it, once, on the loop."""
        write = PendingWrite(name, data, callback)
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = []
        waiting.append(write)
        if name not in self._batches:
            self._begin(name)
        return write

    def cancel(self, write: PendingWrite) -> None:
        """Give a wish up. One that still waits is never written, and told at once that it was cancelled.

        So is one under way that nobody else waits for, unless it is visible by then: it is told when that is known.
        """
        waiting = self._waiting.get(write.name, [])
        if write in waiting:
            waiting.remove(write)
            write.callback(asyncio.CancelledError())
            return
        write.cancelled = True
        batch = self._batches.get(write.name)
        # It may have been told already, and the next round have begun.
        if (
            batch is not None
            and write in batch.writes
            and all(other.cancelled for other in batch.writes)
        ):
            batch.publish.cancel()

    async def put(self, name: str, data: bytes) -> Publication:
        """Publish a content, or let a later one do for it. If this is cancelled, it is withdrawn."""
        future: asyncio.Future[Publication] = asyncio.get_running_loop().create_future()
        write = self.submit(name, data, lambda outcome: _set_future(future, outcome))
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
        """Publish what waits, and tell what became of it: a turn of the loop earlier than once the task is done."""
        outcome: Outcome | None
        try:
            outcome = await self._publish_last(name, batch)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer)
            outcome = error
        self._end(name, batch, outcome)

    async def _publish_last(self, name: str, batch: _Batch) -> Publication | None:
        """Publish what waits, once a turn of the loop has brought no more.

        Clients that have just been answered come back within a few turns, and are served by the same pair of syncs;
        one that is alone waits for one turn, some hundredths of a millisecond.
        """
        known = 0
        for _ in range(_MAX_LOOP_TURNS):
            if known == (known := len(self._waiting.get(name, ()))):
                break
            await asyncio.sleep(0)
        batch.writes = self._waiting.pop(name, [])
        if not batch.writes:
            return None
        data = batch.writes[-1].data
        # Where many come, the loop goes on to read what comes next while a thread publishes: the groups are larger for it.
        done = self._publish_inline(name, data) if len(batch.writes) == 1 else None
        return done or await self._publish(name, data)

    def _on_done(self, name: str, batch: _Batch, task: asyncio.Task[None]) -> None:
        """End a round that was cancelled."""
        if self._batches.get(name) is not batch:
            return
        # With the whole program, before it began: nothing has been taken from those who wait.
        batch.writes = batch.writes or self._waiting.pop(name, [])
        outcome: Outcome | None = None
        try:
            task.result()
        except asyncio.CancelledError as cancelled:
            outcome = cancelled.__cause__ or cancelled
        self._end(name, batch, outcome)

    def _end(self, name: str, batch: _Batch, outcome: Outcome | None) -> None:
        _notify(batch.writes, outcome)
        # Only now: whoever was told may have wished again.
        del self._batches[name]
        if self._waiting.get(name):
            self._begin(name)


class _Batch:
    """The wishes that one publish fulfils: all that wait when it begins."""

    __slots__ = ("publish", "writes")

    publish: asyncio.Task[None]

    def __init__(self) -> None:
        self.writes: list[PendingWrite] = []


def _notify(writes: list[PendingWrite], done: Outcome | None) -> None:
    """Tell everybody what became of a publish; None: that it was cancelled."""
    for write in writes:
        if isinstance(done, Publication):
            outcome: Outcome = done if write is writes[-1] else _superseded(write.data, done)
        else:
            outcome = done or asyncio.CancelledError()
        try:
            write.callback(outcome)
        except Exception:  # noqa: BLE001 (logged)
            # One who stumbles over the answer must not keep it from the others.
            _log.exception("cannot answer a publish of %s", write.name)


def _set_future(future: asyncio.Future[Publication], outcome: Outcome) -> None:
    if isinstance(outcome, Publication):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
        future.exception()


def _superseded(data: bytes, by: Publication) -> Publication:
    """Return the publication of a content that another one has replaced at once."""
    version = snapshot.version_of(data)
    return Publication(version, version != by.version, False, by.modified, len(data))
