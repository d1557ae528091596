"""One sink's way: fill a batch, run the stages, deliver, acknowledge. Its own progress, its own share of memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sidecar.logs.records import MOST_RECORDS, Batch, Block, Record, Stage
from sidecar.logs.sinks.base import Receipt, Rejected, Sink, SinkUnavailable

T = TypeVar("T")

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0
_REMIND_AFTER = 300.0
"""Seconds between two lines of the log about one receiver that takes nothing."""


class DeadLetters(Protocol):
    """Where refused records go before the position passes them."""

    async def write(self, sink: str, rejected: Sequence[Rejected]) -> None:
        """Return when they are durable.

        Raises:
            SinkUnavailable: not now; none of them may be passed.
        """


class SinkWorker:
    """The blocks on their way to one sink."""

    def __init__(
        self,
        sink: Sink,
        stages: Sequence[Stage],
        *,
        budget: int,
        labels: Callable[[], Mapping[str, str]],
        dead_letters: DeadLetters | None,
        acknowledged: Callable[[SinkWorker, Sequence[Block], Any], None],
        refused: Callable[[SinkWorker, Sequence[Rejected]], None],
    ) -> None:
        self.name, self.sink = sink.name, sink
        self.budget = budget
        self.held = 0
        """Bytes that were read and are not acknowledged."""
        self.trouble: str | None = None
        """Why nothing is delivered just now."""
        self.trouble_since: float | None = None
        self._told_at = 0.0
        self._stages, self._labels = tuple(stages), labels
        batching = sink.batching
        self._max_lines = batching.max_lines
        if stages or not sink.takes_blocks:  # each line becomes a record
            limits = (batching.max_lines, batching.max_records, MOST_RECORDS)
            self._max_lines = min(one for one in limits if one is not None)
        self._dead_letters = dead_letters
        self._acknowledged, self._refused = acknowledged, refused
        self._waiting: deque[Block] = deque()
        self._waiting_bytes = 0
        self._first_at = 0.0
        self._news = asyncio.Event()
        self._turn = asyncio.Lock()
        self._hurried = asyncio.Event()

    def __repr__(self) -> str:
        state = f"waits: {self.trouble}" if self.trouble else f"{self.held} bytes on their way"
        return f"<Lane {self.name} {state}>"

    @property
    def room(self) -> int:
        """How many more bytes may be read for this sink."""
        return self.budget - self.held

    @property
    def has_dead_letters(self) -> bool:
        """Whether refused records are kept somewhere."""
        return self._dead_letters is not None

    @property
    def idle(self) -> bool:
        return self.held == 0

    def offer(self, blocks: Sequence[Block]) -> None:
        """Take over blocks; they count against the budget until they are acknowledged."""
        if not blocks:
            return
        if not self._waiting:
            self._first_at = time.monotonic()
        for block in blocks:
            self._waiting.append(block)
            self._waiting_bytes += len(block.data)
            self.held += len(block.data)
        self._news.set()

    def expedite(self) -> None:
        """From now on wait for no fuller batch, and not for the end of a long pause of our own."""
        self._hurried.set()
        self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled. Ends with the error of a stage, or of the sink."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.sink.batching.concurrency):
                group.create_task(self._deliver(), name=f"logs-{self.name}-{number}")

    async def _deliver(self) -> None:
        while True:
            async with self._turn:
                blocks = await self._next_blocks()
                batch = await self._staged(blocks)
            receipt = await self._written(batch)
            if receipt.rejected:
                await self._buried(receipt.rejected)
            size = sum(len(block.data) for block in blocks)
            self._acknowledged(self, blocks, receipt.resume)
            self.held -= size

    async def _next_blocks(self) -> list[Block]:
        batching = self.sink.batching
        while True:
            while not self._waiting:
                self._news.clear()
                await self._news.wait()
            missing = self._first_at + batching.linger - time.monotonic()
            if (
                self._hurried.is_set()
                or missing <= 0
                or self._waiting_bytes >= batching.max_bytes
                or self.room <= 0
            ):
                break
            self._news.clear()
            try:
                async with asyncio.timeout(missing):
                    await self._news.wait()
            except TimeoutError:
                break
        blocks = [self._waiting.popleft()]
        most = self._max_lines
        size, lines = len(blocks[0].data), 0 if most is None else blocks[0].lines
        while self._waiting:
            following = self._waiting[0]
            size += len(following.data)
            lines += 0 if most is None else following.lines
            if size > batching.max_bytes or (most is not None and lines > most):
                break
            blocks.append(self._waiting.popleft())
        self._waiting_bytes -= sum(len(block.data) for block in blocks)
        self._first_at = time.monotonic()
        return blocks

    async def _staged(self, blocks: Sequence[Block]) -> Batch:
        labels = self._labels()
        if not self._stages:
            return Batch(blocks, labels=labels)
        kept: list[Record] = []
        for block in blocks:
            for made in block.records(labels):
                record = made
                for stage in self._stages:
                    passed = stage(record)
                    if passed is None:
                        break
                    record = passed
                else:
                    kept.append(record)
            # Other tasks (probes!) get their turn between blocks.
            await asyncio.sleep(0)
        return Batch(blocks, kept, labels)

    async def _written(self, batch: Batch) -> Receipt:
        return await self._persist(lambda: self.sink.write(batch))

    async def _buried(self, rejected: Sequence[Rejected]) -> None:
        dead_letters = self._dead_letters
        if dead_letters is not None:
            await self._persist(lambda: dead_letters.write(self.name, rejected))
        self._refused(self, rejected)

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works. `SinkUnavailable` is the only error that is waited out."""
        pause = _FIRST_PAUSE
        while True:
            try:
                result = await attempt()
            except SinkUnavailable as error:
                said = str(error).removeprefix(f"{self.name}: ")
                self._tell(said)
                self.trouble = said
                pause = await self._rest(error.retry_after, pause)
                continue
            if self.trouble is not None:
                _log.info("%s takes lines again", self.name)
                self.trouble, self.trouble_since = None, None
            return result

    def _tell(self, said: str) -> None:
        """Say why nothing is taken: at first, and again now and then, for who looks at the last lines of the log alone."""
        now = time.monotonic()
        if self.trouble_since is None:
            self.trouble_since = self._told_at = now
            _log.warning("%s takes nothing now: %s; trying again", self.name, said)
        elif now - self._told_at >= _REMIND_AFTER:
            self._told_at = now
            since = now - self.trouble_since
            _log.warning(
                "%s has taken nothing for %.0f s: %s; trying again", self.name, since, said
            )

    async def _rest(self, asked: float | None, pause: float) -> float:
        """Wait before the next try, and return how long to wait before the one after it."""
        # Spread out, so that a fleet does not come back in step.
        rest = asked or pause * random.uniform(0.5, 1.0)  # noqa: S311
        if asked or self._hurried.is_set():
            await asyncio.sleep(rest)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._hurried.wait()
                    return _FIRST_PAUSE  # the receiver may be back, and there are only seconds left
        return min(pause * 2, _LONGEST_PAUSE)
