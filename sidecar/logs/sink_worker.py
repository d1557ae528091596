"""The worker of one sink: fill a batch, run the stages, write, acknowledge. Each has its own queue and byte budget."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sidecar.logs.records import MAX_BLOCK_RECORDS, Batch, Block, Record, Stage
from sidecar.logs.sinks.base import Receipt, Rejected, Sink, SinkUnavailable
from sidecar.process import retry

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MIN_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 30.0
_REPEAT_WARNING_SECONDS = 300.0
"""How often the log repeats that a sink is unavailable."""


class DeadLetters(Protocol):
    """Where rejected records are written before the position passes them."""

    async def write(self, sink: str, rejected: Sequence[Rejected]) -> None:
        """Write rejected records; return when they are durable.

        Raises:
            SinkUnavailable: they cannot be written now; the position must not pass them.
        """


class SinkWorker:
    """Delivers the blocks of one sink."""

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
        self.pending_bytes = 0
        """Bytes that were read and are not acknowledged."""
        self.failure: str | None = None
        """Why the sink is unavailable at present; None if it is not."""
        self.failing_since: float | None = None
        self._logged_at = 0.0
        self._stages, self._labels = tuple(stages), labels
        batching = sink.batching
        self._max_lines = batching.max_lines
        if stages or not sink.takes_blocks:  # each line becomes a record
            limits = (batching.max_lines, batching.max_records, MAX_BLOCK_RECORDS)
            self._max_lines = min(one for one in limits if one is not None)
        self._dead_letters = dead_letters
        self._acknowledged, self._refused = acknowledged, refused
        self._queue: deque[Block] = deque()
        self._queued_bytes = 0
        self._linger_start = 0.0
        self._queue_changed = asyncio.Event()
        self._batch_lock = asyncio.Lock()
        self._expedited = asyncio.Event()

    def __repr__(self) -> str:
        state = f"waits: {self.failure}" if self.failure else f"{self.pending_bytes} bytes pending"
        return f"<SinkWorker {self.name} {state}>"

    @property
    def free_bytes(self) -> int:
        """How many more bytes may be read for this sink (backpressure)."""
        return self.budget - self.pending_bytes

    @property
    def has_dead_letters(self) -> bool:
        """Whether rejected records are written to a dead-letter file."""
        return self._dead_letters is not None

    @property
    def idle(self) -> bool:
        return self.pending_bytes == 0

    def enqueue(self, blocks: Sequence[Block]) -> None:
        """Queue blocks. They count against the budget until they are acknowledged."""
        if not blocks:
            return
        if not self._queue:
            self._linger_start = time.monotonic()
        for block in blocks:
            self._queue.append(block)
            self._queued_bytes += len(block.data)
            self.pending_bytes += len(block.data)
        self._queue_changed.set()

    def expedite(self) -> None:
        """Stop waiting for fuller batches, and cut the present backoff short."""
        self._expedited.set()
        self._queue_changed.set()

    async def run(self) -> None:
        """Deliver until cancelled. Raises the error of a stage or of the sink."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.sink.batching.concurrency):
                group.create_task(self._deliver(), name=f"logs-{self.name}-{number}")

    async def _deliver(self) -> None:
        while True:
            async with self._batch_lock:
                blocks = await self._next_blocks()
                batch = await self._run_stages(blocks)
            receipt = await self._write(batch)
            if receipt.rejected:
                await self._dead_letter(receipt.rejected)
            size = sum(len(block.data) for block in blocks)
            self._acknowledged(self, blocks, receipt.resume)
            self.pending_bytes -= size

    async def _next_blocks(self) -> list[Block]:
        batching = self.sink.batching
        while True:
            while not self._queue:
                self._queue_changed.clear()
                await self._queue_changed.wait()
            missing = self._linger_start + batching.linger - time.monotonic()
            if (
                self._expedited.is_set()
                or missing <= 0
                or self._queued_bytes >= batching.max_bytes
                or self.free_bytes <= 0
            ):
                break
            self._queue_changed.clear()
            try:
                async with asyncio.timeout(missing):
                    await self._queue_changed.wait()
            except TimeoutError:
                break
        blocks = [self._queue.popleft()]
        max_lines = self._max_lines
        size, lines = len(blocks[0].data), 0 if max_lines is None else blocks[0].lines
        while self._queue:
            following = self._queue[0]
            size += len(following.data)
            lines += 0 if max_lines is None else following.lines
            if size > batching.max_bytes or (max_lines is not None and lines > max_lines):
                break
            blocks.append(self._queue.popleft())
        self._queued_bytes -= sum(len(block.data) for block in blocks)
        self._linger_start = time.monotonic()
        return blocks

    async def _run_stages(self, blocks: Sequence[Block]) -> Batch:
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
            # Yield to other tasks, such as probes, between blocks.
            await asyncio.sleep(0)
        return Batch(blocks, kept, labels)

    async def _write(self, batch: Batch) -> Receipt:
        return await self._retry(lambda: self.sink.write(batch))

    async def _dead_letter(self, rejected: Sequence[Rejected]) -> None:
        dead_letters = self._dead_letters
        if dead_letters is not None:
            await self._retry(lambda: dead_letters.write(self.name, rejected))
        self._refused(self, rejected)

    async def _retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Retry while the call raises `SinkUnavailable`; other errors end the worker."""
        attempts = 0
        while True:
            try:
                result = await attempt()
            except SinkUnavailable as error:
                reason = str(error).removeprefix(f"{self.name}: ")
                self._log_failure(reason)
                self.failure = reason
                attempts = await self._back_off(error.retry_after, attempts)
                continue
            if self.failure is not None:
                _log.info("%s takes lines again", self.name, extra={"event": "logs.sink_recovered"})
                self.failure, self.failing_since = None, None
            return result

    def _log_failure(self, reason: str) -> None:
        """Log why the sink is unavailable: at once, and again at intervals, so that the end of the log shows it as well."""
        now = time.monotonic()
        if self.failing_since is None:
            self.failing_since = self._logged_at = now
            _log.warning(
                "%s takes nothing now: %s; trying again",
                self.name,
                reason,
                extra={"event": "logs.sink_failing"},
            )
        elif now - self._logged_at >= _REPEAT_WARNING_SECONDS:
            self._logged_at = now
            since = now - self.failing_since
            _log.warning(
                "%s has taken nothing for %.0f s: %s; trying again",
                self.name,
                since,
                reason,
                extra={"event": "logs.sink_failing"},
            )

    async def _back_off(self, asked: float | None, attempts: int) -> int:
        """Wait before the next attempt; return the number of attempts that the backoff after it counts."""
        delay = asked or retry.exponential_backoff(
            attempts, _MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS
        )
        if asked or self._expedited.is_set():
            await asyncio.sleep(delay)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._expedited.wait()
                    return 0  # draining: little time is left, so start again with short waits
        return attempts + 1
