"""`collect`: move log lines from a source through stages to sinks, until cancelled.

One task reads, one task per sink delivers, and one saves the checkpoint.
The reader stops at the byte budget of a sink (backpressure), so the files themselves are the buffer.
The checkpoint contains only positions that the sinks have acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar import _errors
from sidecar.fs import oserrors
from sidecar.logs.input.checkpoint import CheckpointState
from sidecar.logs.input.tail import Tail
from sidecar.logs.read_loop import ReadLoop
from sidecar.logs.records import Block, Stage
from sidecar.logs.sink_worker import DeadLetters, SinkWorker
from sidecar.logs.sinks.base import BaseSink, Rejected, Route, Sink
from sidecar.logs.sinks.deadletter import DeadLetterFile
from sidecar.logs.source_metrics import SourceMetrics
from sidecar.logs.stages.limiting import copy_for_sink
from sidecar.process import arguments, memory, metrics
from sidecar.process.executor import run_in_thread

_log = logging.getLogger(__name__)

_MAX_SAVE_INTERVAL_SECONDS = 1.0
_FIRST_SAVE_INTERVAL_SECONDS = 0.05
_LOCK_POLL_SECONDS = 0.5
"""How often a locked checkpoint is tried again."""
_DEAD_LETTER_SUFFIX = ".dead-letters.ndjson"


@dataclass(slots=True)
class Summary:
    """What a collection did.

    >>> Summary(lines=2, size=8).refused
    0
    """

    lines: int = 0
    size: int = 0
    """Bytes that were read."""
    refused: int = 0
    """Records that a sink has rejected permanently."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Files and directories that could not be read completely, with the reasons. Set when the collection ended by itself."""


async def collect(
    source: Tail,
    *stages: Stage,
    sink: Sink | Route | Sequence[Sink | Route],
    labels: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
    dead_letters: DeadLetters | None = None,
    budget: int | str = 8 << 20,
    until_end: bool = False,
    until: Callable[[], bool] | None = None,
    drain_timeout: float = 20.0,
    drain_quiet: float = 0.5,
) -> Summary:
    """Deliver every line of the source through the stages to the sinks, until cancelled.

    Delivery is at least once: the saved position of a sink moves only past what that sink has acknowledged.
    Each sink has its own position, and none waits for another.
    A cancellation (SIGTERM under `sidecar.run`) starts a drain: `collect` reads to the end of the files, delivers,
    saves, and returns after `drain_quiet` seconds without a new line, at once if no process has the files open for
    writing, and after `drain_timeout` at the latest. Lines that are not delivered by then follow after the next start.
    A second cancellation ends it without draining.

    Args:
        source: what to read. Each collection needs a source of its own.
        stages: functions that return a record, or None to drop it; applied in this order.
        sink: one sink, or several. A `Route` gives a sink stages of its own.
        labels: labels of all lines (of the Pod). A callable is called for each batch.
        dead_letters: where rejected records are written; by default a file next to the checkpoint.
        budget: bytes in flight over all sinks. Reading stops while it is used up.
        until_end: end when everything that existed at the start is delivered, even while a program continues to write.
            `unreadable` lists what could not be read.
        until: called once a second, in a thread. Once it returns True, the collection ends when no process has a file
            open for writing (where the kernel does not report that: after `drain_quiet` seconds without a new line)
            and everything is delivered, however long that takes.
        drain_timeout: seconds; keep it below the Pod's `terminationGracePeriodSeconds`.
        drain_quiet: seconds.

    Raises:
        ConfigError: no sink, two sinks of the same name, or another invalid argument.
        RuntimeError: the source is in use, or was in use when this process was forked: create one in this process.
        Exception: whatever a stage or a sink raises. What was acknowledged before is saved.

    >>> import asyncio, tempfile
    >>> from sidecar import logs, testing
    >>> async def main(directory: str) -> list[str]:
    ...     testing.LogFile(f"{directory}/app.log").write("one", "two")
    ...     sink = testing.MemorySink()
    ...     await logs.collect(logs.tail(f"{directory}/*.log"), sink=sink, until_end=True)
    ...     return sink.lines
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     asyncio.run(main(directory))
    ['one', 'two']
    """
    arguments.check_seconds("drain_timeout", drain_timeout)
    arguments.check_seconds("drain_quiet", drain_quiet)
    collector = Collector(
        source,
        stages,
        sink if isinstance(sink, Sequence) else [sink],
        labels=labels,
        dead_letters=dead_letters,
        budget=budget,
        until=until,
    )
    return await collector.run(
        until_end=until_end, drain_timeout=drain_timeout, drain_quiet=drain_quiet
    )


class Collector:
    """A collection whose state probes can query. `collect` creates one and runs it.

    >>> from sidecar import logs, testing
    >>> logs.Collector(logs.tail("/var/log/app/*.log"), [], [testing.MemorySink()]).summary
    Summary(lines=0, size=0, refused=0, unreadable={})
    """

    def __init__(
        self,
        source: Tail,
        stages: Sequence[Stage],
        sinks: Sequence[Sink | Route],
        *,
        labels: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        dead_letters: DeadLetters | None = None,
        budget: int | str = 8 << 20,
        until: Callable[[], bool] | None = None,
    ) -> None:
        arguments.check_instance("source", source, Tail, "what logs.tail returns")
        for stage in stages:
            arguments.check_plain_function(
                "stage", stage, "a function from a record to a record or None"
            )
        routes = [one if isinstance(one, Route) else Route(one) for one in sinks]
        for sink in (route.sink for route in routes):
            arguments.check_instance(
                "sink", sink, Sink, "a sink: name, batching, open, write, flush, close"
            )
        if dead_letters is not None and not callable(getattr(dead_letters, "write", None)):
            raise arguments.argument_error(
                "dead_letters", dead_letters, "a logs.DeadLetterFile, or None"
            )
        if labels is not None and not callable(labels):
            arguments.check_instance(
                "labels", labels, Mapping, "a mapping, or a function that returns one"
            )
        limit = arguments.check_size("budget", budget, least=1)
        names = [route.sink.name for route in routes]
        if not names:
            raise _errors.ConfigError("a collection needs a sink")
        if len(set(names)) < len(names):
            raise _errors.ConfigError(
                f"two sinks have the same name: {', '.join(names)} (each needs a name of its own)"
            )
        if dead_letters is None and source.checkpoint_path is not None:
            dead_letters = DeadLetterFile(source.checkpoint_path + _DEAD_LETTER_SUFFIX)
        self.source = source
        source.exclude_own(_own_files(source, [route.sink for route in routes], dead_letters))
        self.summary = Summary()
        self._dirty = asyncio.Event()
        made: Callable[[], Mapping[str, str]] = labels if callable(labels) else lambda: labels or {}
        self.workers = [
            SinkWorker(
                route.sink,
                [*(stages if number == 0 else map(copy_for_sink, stages)), *route.stages],
                budget=max(limit // len(routes), 1),
                labels=made,
                dead_letters=dead_letters,
                acknowledged=self._acknowledged,
                refused=self._refused,
            )
            for number, route in enumerate(routes)
        ]
        self._metrics = SourceMetrics(source)
        self._loop = ReadLoop(
            source,
            self.workers,
            until=until,
            on_revision=self._dirty.set,
            on_scan=self._metrics.export,
        )
        self._started = False
        self._save_failure: str | None = None
        self.last_state: CheckpointState | None = None
        """The state that was saved last, kept without a checkpoint as well."""

    def __repr__(self) -> str:
        return f"<Collector {self.source!r} → {', '.join(worker.name for worker in self.workers)}>"

    @property
    def started(self) -> bool:
        """Whether the first scan is done and the sinks are open. For a startup probe."""
        return self._started

    def failure(self, after: float = 60.0) -> str | None:
        """Return why no line could be delivered for more than `after` seconds, else None. For a readiness probe."""
        if self.source.failure is not None:
            return self.source.failure
        for worker in self.workers:
            if worker.failing_since is not None and time.monotonic() - worker.failing_since > after:
                return (
                    f"{worker.name} has taken nothing for more than {after:g} s: {worker.failure}"
                )
        return self._save_failure

    def trouble(self, patience: float = 60.0) -> str | None:
        """Do what `failure` does; deprecated, and removed in the release after the next."""
        warnings.warn(
            "Collector.trouble(patience=…) is failure(after=…)", DeprecationWarning, stacklevel=2
        )
        return self.failure(after=patience)

    def leave(self, timeout: float, successor: Tail | None = None) -> None:
        """End `run` without reading to the end; the successor continues at the same positions.

        Batches in flight are awaited for `timeout` seconds at most; the successor reads them again otherwise.
        Open files that were deleted are handed over to the successor. Without one they are delivered first;
        after `timeout` seconds without an acknowledgement the rest is lost, with an error in the log, and counted.
        """
        self._loop.leave(timeout, successor)
        for worker in self.workers:
            worker.expedite()

    async def run(
        self,
        *,
        until_end: bool = False,
        drain_timeout: float = 20.0,
        drain_quiet: float = 0.5,
    ) -> Summary:
        """Collect. See `collect`."""
        self._loop.set_end(until_end=until_end, drain_quiet=drain_quiet)
        memory.use_single_arena()
        if all(worker.sink.takes_blocks for worker in self.workers):
            memory.raise_mmap_threshold()
        self.source.acquire()
        try:
            if await self._lock_checkpoint():
                await self._run(drain_timeout)
            else:
                self.source.hand_over(self._loop.successor)
        finally:
            self.source.release()
        return self.summary

    async def _lock_checkpoint(self) -> bool:
        """Wait until the checkpoint is unlocked: usually the previous collector is still draining.

        Return False if `leave` was called meanwhile.
        """
        waiting = False
        while not await run_in_thread(self.source.lock_checkpoint):
            if not waiting:
                _log.warning(
                    "another collector uses the checkpoint %s: waiting for its end",
                    self.source.checkpoint_path,
                    extra={"event": "logs.checkpoint_locked"},
                )
            waiting = True
            if self._loop.leaving:
                return False
            await asyncio.sleep(_LOCK_POLL_SECONDS)
        return True

    async def _run(self, drain_timeout: float) -> None:
        opened: list[SinkWorker] = []
        try:
            await run_in_thread(self.source.open, [worker.name for worker in self.workers])
            if not self.source.has_matches:
                _log.warning(
                    "no file matches %s yet",
                    " ".join(self.source.patterns),
                    extra={"event": "logs.no_file"},
                )
                for name in await run_in_thread(self.source.directory_patterns):
                    _log.warning(
                        "%s is a directory: name the files in it, as %s/*",
                        name,
                        name,
                        extra={"event": "logs.no_file"},
                    )
            await self._loop.open()
            for worker in self.workers:
                begun = await worker.sink.open(self.source.resume.get(worker.name))
                opened.append(worker)
                if begun is not None:
                    self.source.resume[worker.name] = begun
            # Save the start positions before the first line is delivered, so that a restart after a kill knows them.
            await self._save()
            self._started = True
            await self._run_tasks(drain_timeout)
        finally:
            await self._close(opened)

    # -- the tasks

    async def _run_tasks(self, drain_timeout: float) -> None:
        tasks = [
            asyncio.create_task(self._loop.run(), name="logs-read"),
            asyncio.create_task(self._save_periodically(), name="logs-save"),
            *(
                asyncio.create_task(worker.run(), name=f"logs-{worker.name}")
                for worker in self.workers
            ),
        ]
        try:
            try:
                await self._wait_for_tasks(tasks, None)
            except asyncio.CancelledError:
                self._loop.drain()
                for worker in self.workers:
                    worker.expedite()
                await self._wait_for_tasks(tasks, drain_timeout)
                raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _wait_for_tasks(self, tasks: list[asyncio.Task[None]], timeout: float | None) -> None:
        """Wait until the reader ends, or a task fails; raise its error."""
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            left = "; ".join(
                f"{worker.pending_bytes} bytes to {worker.name} ({worker.failure or 'it is slow'})"
                for worker in self.workers
                if not worker.idle
            )
            _log.warning(
                "not everything was delivered within %g s: %s; the rest follows at the next start",
                timeout,
                left or "there is more to read",
                extra={"event": "logs.drain_timeout"},
            )
        for task in done:
            if (error := task.exception()) is not None:
                if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                    raise error.exceptions[0] from None
                raise error

    async def _save_periodically(self) -> None:
        for interval in save_intervals():
            await self._dirty.wait()
            await self._save()
            await asyncio.sleep(interval)

    async def _save(self) -> None:
        self._dirty.clear()
        try:
            state = await run_in_thread(self.source.state)
            self.last_state = state
            # Sinks make their data durable before the checkpoint that refers to it is written.
            for worker in self.workers:
                await worker.sink.flush()
            await run_in_thread(self.source.save, state)
        except OSError as error:
            self._dirty.set()
            why = str(error) if isinstance(error, _errors.SidecarError) else oserrors.hint(error)
            failure = f"cannot save the checkpoint {self.source.checkpoint_path}: {why}"
            if self._save_failure != failure:
                _log.error(
                    "%s; collecting goes on, a restart would deliver lines again",
                    failure,
                    extra={"event": "logs.checkpoint_unwritable"},
                )
            self._save_failure = failure
        else:
            self._save_failure = None

    async def _close(self, opened: Sequence[SinkWorker]) -> None:
        self._loop.close()
        if self._loop.ends_itself and self._started:
            self.summary.unreadable = self.source.unreadable
        async with contextlib.AsyncExitStack() as stack:  # all are closed, even if one fails
            stack.callback(self._metrics.remove)
            stack.push_async_callback(run_in_thread, self.source.close)
            for worker in opened:
                stack.push_async_callback(worker.sink.close)
            if len(opened) == len(self.workers):
                await self._save()
                await run_in_thread(self.source.remove_delivered)
            if self._loop.leaving:
                await run_in_thread(self.source.hand_over, self._loop.successor)
            self._metrics.export()

    # -- callbacks of the workers

    def _acknowledged(self, worker: SinkWorker, blocks: Sequence[Block], resume: Any) -> None:
        self.source.acknowledge(worker.name, blocks, resume)
        if worker is self.workers[0]:
            size, count = sum(len(b.data) for b in blocks), sum(b.lines for b in blocks)
            self.summary.lines += count
            self.summary.size += size
            metrics.LOGS_LINES_TOTAL.inc(count)
            metrics.LOGS_BYTES_TOTAL.inc(size)
        self._dirty.set()
        self._loop.wake()

    def _refused(self, worker: SinkWorker, rejected: Sequence[Rejected]) -> None:
        self.summary.refused += len(rejected)
        if worker.has_dead_letters:
            return
        size = sum(len(one.record.raw) for one in rejected)
        _log.error(
            "%s refused %d records for good: %s",
            worker.name,
            len(rejected),
            rejected[0].reason,
            extra={"event": "logs.records_refused"},
        )
        metrics.LOGS_LOST_BYTES_TOTAL.labels("refused").inc(size)


def save_intervals() -> Iterator[float]:
    """Yield the seconds between the saves of a run, from the first on.

    Short ones come first: a process that is killed every second must make progress as well.
    """
    interval = _FIRST_SAVE_INTERVAL_SECONDS
    while True:
        yield interval
        interval = min(interval * 2, _MAX_SAVE_INTERVAL_SECONDS)


def _own_files(
    source: Tail, sinks: Sequence[Sink], dead_letters: DeadLetters | None
) -> Iterator[str]:
    """Yield the files that this collection writes."""
    for sink in sinks:
        if isinstance(sink, BaseSink):
            yield from sink.own_files
    if isinstance(dead_letters, DeadLetterFile):
        yield dead_letters.path
    yield from source.own_files
