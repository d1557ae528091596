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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar import _errors
from sidecar.fs import oserrors
from sidecar.logs.input.checkpoint import State
from sidecar.logs.input.dir_watch import DirectoryWatcher, DirEvents
from sidecar.logs.input.tail import Tail, TailStats
from sidecar.logs.records import Block, Stage
from sidecar.logs.sink_worker import DeadLetters, SinkWorker
from sidecar.logs.sinks.base import BaseSink, Rejected, Route, Sink
from sidecar.logs.sinks.deadletter import DeadLetterFile
from sidecar.logs.stages.limiting import for_another_sink
from sidecar.process import arguments, memory, metrics
from sidecar.process.executor import run_in_thread

_log = logging.getLogger(__name__)

_READ_BATCH_BYTES = 2 << 20
"""Bytes that one call in a thread reads for a sink. Each call costs 0.2 ms of CPU."""
_MIN_ROUND_SECONDS = 0.02
"""Minimum time between two rounds: a program that writes single lines must not cost a core."""
_POLL_SECONDS = 0.25
_MAX_SAVE_INTERVAL_SECONDS = 1.0
_FIRST_SAVE_INTERVAL_SECONDS = 0.05
"""The interval doubles from here up to the maximum: a process that is killed every second must make progress as well."""
_LOCK_POLL_SECONDS = 0.5
"""How often a locked checkpoint is tried again."""
_TRIM_INTERVAL_SECONDS = 10.0
"""How often freed memory is returned to the kernel while lines are read: it takes a few milliseconds."""
_DEAD_LETTER_SUFFIX = ".dead-letters.ndjson"
_stats_by_collector: dict[int, TailStats] = {}
"""The statistics of each collection that runs in this process, by its `id`."""


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
        made: Callable[[], Mapping[str, str]] = labels if callable(labels) else lambda: labels or {}
        self.workers = [
            SinkWorker(
                route.sink,
                [*(stages if number == 0 else map(for_another_sink, stages)), *route.stages],
                budget=max(limit // len(routes), 1),
                labels=made,
                dead_letters=dead_letters,
                acknowledged=self._acknowledged,
                refused=self._refused,
            )
            for number, route in enumerate(routes)
        ]
        self._watcher: DirectoryWatcher | None = None
        self._wake = asyncio.Event()
        self._dirty = asyncio.Event()
        self._idle = asyncio.Event()
        self._started = self._draining = False
        self._until_end = False
        self._until = until
        self._finishing = False
        """`until` has returned True."""
        self._files_with_writers: list[str] = []
        self._limited_to_present = self._copies_released = False
        self._drain_quiet = 0.0
        self._has_read_data = False
        self._trimmed_at = time.monotonic()
        self._exported_losses: dict[str, int] = {}
        self._save_failure: str | None = None
        self._leave_deadline: float | None = None
        self._leave_timeout = 0.0
        self._successor: Tail | None = None
        self._deleted = 0, 0.0
        """Bytes of deleted files that are not delivered yet, and the monotonic time of the last change of that number."""
        self.last_state: State | None = None
        """The state that was saved last, kept without a checkpoint as well."""

    def __repr__(self) -> str:
        return f"<Collector {self.source!r} → {', '.join(worker.name for worker in self.workers)}>"

    @property
    def started(self) -> bool:
        """Whether the first scan is done and the sinks are open. For a startup probe."""
        return self._started

    def trouble(self, patience: float = 60.0) -> str | None:
        """Return why no line could be delivered for more than `patience` seconds, else None. For a readiness probe."""
        if self.source.failure is not None:
            return self.source.failure
        for worker in self.workers:
            if (
                worker.failing_since is not None
                and time.monotonic() - worker.failing_since > patience
            ):
                return f"{worker.name} has taken nothing for more than {patience:g} s: {worker.failure}"
        return self._save_failure

    def leave(self, timeout: float, successor: Tail | None = None) -> None:
        """End `run` without reading to the end; the successor continues at the same positions.

        Batches in flight are awaited for `timeout` seconds at most; the successor reads them again otherwise.
        Open files that were deleted are handed over to the successor. Without one they are delivered first;
        after `timeout` seconds without an acknowledgement the rest is lost, with an error in the log, and counted.
        """
        self._leave_deadline, self._leave_timeout = time.monotonic() + timeout, timeout
        self._successor = successor
        self._wake.set()
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
        self._until_end, self._drain_quiet = until_end and self._until is None, drain_quiet
        memory.use_single_arena()
        if all(worker.sink.takes_blocks for worker in self.workers):
            memory.raise_mmap_threshold()
        self.source.acquire()
        try:
            if await self._lock_checkpoint():
                await self._run(drain_timeout)
            else:
                self.source.hand_over(self._successor)
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
                )
            waiting = True
            if self._leave_deadline is not None:
                return False
            await asyncio.sleep(_LOCK_POLL_SECONDS)
        return True

    async def _run(self, drain_timeout: float) -> None:
        opened: list[SinkWorker] = []
        try:
            await run_in_thread(self.source.open, [worker.name for worker in self.workers])
            if not self.source.has_matches:
                _log.warning("no file matches %s yet", " ".join(self.source.patterns))
                for name in await run_in_thread(self.source.directory_patterns):
                    _log.warning("%s is a directory: name the files in it, as %s/*", name, name)
            self._watcher = await run_in_thread(DirectoryWatcher)
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
            asyncio.create_task(self._read(), name="logs-read"),
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
                self._draining = True
                self._wake.set()
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
            )
        for task in done:
            if (error := task.exception()) is not None:
                if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                    raise error.exceptions[0] from None
                raise error

    async def _read(self) -> None:
        """Read while there is data and a sink has budget; return when no more data can follow."""
        source, last_scan, last_round = self.source, 0.0, 0.0
        revision = source.revision
        last_data_at = time.monotonic()
        while True:
            now = time.monotonic()
            if self._leave_deadline is not None and not self._has_deleted_data(now):
                await self._wait_until_acknowledged(self._leave_deadline)
                return
            due = last_scan + (
                _POLL_SECONDS if self._watcher and self._watcher.polling else source.recheck
            )
            without_wait = self._draining or (self._finishing and not self._files_with_writers)
            scan = now >= due or without_wait or source.incomplete
            scan = scan or (self._until_end and self._all_idle())
            present_done = self._limited_to_present and source.present_is_read
            open_workers = [
                worker for worker in self.workers if worker.free_bytes > 0 and not present_done
            ]
            limits = {
                worker.name: min(worker.free_bytes, _READ_BATCH_BYTES) for worker in open_workers
            }
            self._wake.clear()
            last_round = now
            blocks = await run_in_thread(self._scan_and_read, limits, scan)
            if source.revision != revision:
                revision = source.revision
                self._dirty.set()
            if scan:
                last_scan = now
                await self._after_scan(now)
            self._arm_watcher()
            for worker in self.workers:
                worker.enqueue(blocks.get(worker.name, ()))
            if any(blocks.values()):
                last_data_at, self._has_read_data = time.monotonic(), True
            ready = (
                any(source.has_data(worker.name) for worker in self.workers) and not present_done
            )
            ending = scan and not ready and not source.incomplete
            ending = ending and (self._draining or self._finishing or self._until_end)
            if ending and self._all_idle() and await self._has_ended(last_data_at, present_done):
                return
            has_readable = any(
                source.has_data(worker.name) and worker.free_bytes > 0 for worker in self.workers
            )
            if source.incomplete or (has_readable and not present_done):
                continue
            await self._wait_for_event(
                now + _MIN_ROUND_SECONDS if without_wait else due, last_round
            )

    async def _after_scan(self, now: float) -> None:
        source = self.source
        if source.removes_files:
            await run_in_thread(source.remove_delivered)
        if self._until_end and not self._limited_to_present and not source.incomplete:
            source.limit_to_present()
            self._limited_to_present = True
        source.flush_present(self._drain_quiet)
        self._report()
        await self._trim_heap(now)

    async def _wait_until_acknowledged(self, end: float) -> None:
        """Wait until nothing is in flight, at most until the monotonic time `end`."""
        while not self._all_idle() and time.monotonic() < end:
            self._wake.clear()
            await self._wait_for_event(min(time.monotonic() + _POLL_SECONDS, end), 0.0)

    def _has_deleted_data(self, now: float) -> bool:
        """Whether to wait for deleted files: they hold undelivered bytes, no successor takes them over, and delivery progresses."""
        if self._successor is not None:
            return False
        size = self.source.deleted_unacknowledged()
        before, since = self._deleted
        if size and not before:
            _log.warning(
                "the new configuration has no pipeline of this name: it waits until %d bytes of deleted files"
                " are delivered, at most %g s without an acknowledgement",
                size,
                self._leave_timeout,
            )
        if size != before:
            self._deleted = size, now
            return size > 0
        return size > 0 and now - since < self._leave_timeout

    async def _trim_heap(self, now: float) -> None:
        """Return freed heap memory to the kernel after lines were read."""
        if self._has_read_data and now - self._trimmed_at >= _TRIM_INTERVAL_SECONDS:
            self._has_read_data, self._trimmed_at = False, now
            await run_in_thread(memory.trim_heap)

    async def _has_ended(self, last_data_at: float, present_done: bool) -> bool:
        ends_itself = (self._until_end or self._finishing) and not self._draining
        if ends_itself and not self._copies_released:
            self._copies_released = True
            await run_in_thread(self.source.release_copies)
            return False
        if present_done:
            return True
        if self._finishing and ends_itself and not await self._writers_done(last_data_at):
            return False
        await run_in_thread(self.source.flush, everything=ends_itself)
        if any(self.source.has_data(worker.name) for worker in self.workers):
            return False
        if ends_itself or time.monotonic() - last_data_at >= self._drain_quiet:
            return True
        return await run_in_thread(self.source.writers_gone)

    async def _writers_done(self, last_data_at: float) -> bool:
        """Whether no process writes any more: none has a file open, or, if that is unknown, no line came for `drain_quiet`."""
        files = await run_in_thread(self.source.files_with_writers)
        if files and files != self._files_with_writers:
            _log.info("no end yet: open for writing are %s", ", ".join(files[:10]))
        self._files_with_writers = files
        if files:
            return False
        quiet = time.monotonic() - last_data_at >= self._drain_quiet
        return quiet or await run_in_thread(self.source.writers_gone)

    async def _wait_for_event(self, due: float, last_round: float) -> None:
        timeout = due - time.monotonic()
        if self._until_end:
            timeout = min(timeout, _MIN_ROUND_SECONDS)
        if timeout > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
        rest = last_round + _MIN_ROUND_SECONDS - time.monotonic()
        if rest > 0 and not self._draining:
            await asyncio.sleep(rest)

    def _scan_and_read(self, limits: Mapping[str, int], scan: bool) -> dict[str, list[Block]]:
        """Apply the pending events, scan if due, and read up to the limits. Runs in a thread."""
        watcher = self._watcher
        events = watcher.drain() if watcher is not None else DirEvents()
        source = self.source
        if scan and self._until is not None and not self._finishing and self._until():
            self._finishing = True
            _log.info("no more is to come: delivering what is there")
        if scan or events.changed or events.overflow:
            if events.overflow:
                metrics.WATCH_ERRORS_TOTAL.inc()
                source.on_overflow()
            source.scan(changed_directories=events.changed)
            if watcher is not None:
                watcher.watch(source.directories)
        if events.written and not source.on_write(events.written):
            source.scan()
        return {name: source.read(name, limit) for name, limit in limits.items()}

    def _arm_watcher(self) -> None:
        """Wake the reader at the next event. Armed once per round, since each round takes all pending events."""
        if self._watcher is None or self._watcher.fd is None:
            return
        loop, fd = asyncio.get_running_loop(), self._watcher.fd

        def on_event() -> None:
            loop.remove_reader(fd)
            self._wake.set()

        loop.add_reader(fd, on_event)

    async def _save_periodically(self) -> None:
        pause = _FIRST_SAVE_INTERVAL_SECONDS
        while True:
            await self._dirty.wait()
            await self._save()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MAX_SAVE_INTERVAL_SECONDS)

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
                _log.error("%s; collecting goes on, a restart would deliver lines again", failure)
            self._save_failure = failure
        else:
            self._save_failure = None

    async def _close(self, opened: Sequence[SinkWorker]) -> None:
        if self._watcher is not None:
            if self._watcher.fd is not None:
                asyncio.get_running_loop().remove_reader(self._watcher.fd)
            self._watcher.close()
        if (self._until_end or self._finishing) and self._started:
            self.summary.unreadable = self.source.unreadable
        async with contextlib.AsyncExitStack() as stack:  # all are closed, even if one fails
            stack.callback(_stats_by_collector.pop, id(self), None)
            stack.push_async_callback(run_in_thread, self.source.close)
            for worker in opened:
                stack.push_async_callback(worker.sink.close)
            if len(opened) == len(self.workers):
                await self._save()
                await run_in_thread(self.source.remove_delivered)
            if self._leave_deadline is not None:
                await run_in_thread(self.source.hand_over, self._successor)
            self._report()

    # -- callbacks of the workers

    def _all_idle(self) -> bool:
        return all(worker.idle for worker in self.workers)

    def _acknowledged(self, worker: SinkWorker, blocks: Sequence[Block], resume: Any) -> None:
        self.source.acknowledge(worker.name, blocks, resume)
        if worker is self.workers[0]:
            size, count = sum(len(b.data) for b in blocks), sum(b.lines for b in blocks)
            self.summary.lines += count
            self.summary.size += size
            metrics.LOGS_LINES_TOTAL.inc(count)
            metrics.LOGS_BYTES_TOTAL.inc(size)
        self._dirty.set()
        self._wake.set()

    def _refused(self, worker: SinkWorker, rejected: Sequence[Rejected]) -> None:
        self.summary.refused += len(rejected)
        if worker.has_dead_letters:
            return
        size = sum(len(one.record.raw) for one in rejected)
        _log.error(
            "%s refused %d records for good: %s", worker.name, len(rejected), rejected[0].reason
        )
        metrics.LOGS_LOST_BYTES_TOTAL.labels("refused").inc(size)

    def _report(self) -> None:
        source = self.source
        _stats_by_collector[id(self)] = source.stats()
        _export_stats()
        for reason, size in source.lost.items():
            if news := size - self._exported_losses.get(reason, 0):
                metrics.LOGS_LOST_BYTES_TOTAL.labels(reason).inc(news)
                self._exported_losses[reason] = size


def _export_stats() -> None:
    """Export the sums over all collections of this process, and the maximum of the lag in seconds."""
    shown = list(_stats_by_collector.values())
    metrics.LOGS_LAG_BYTES.set(sum(one.lag_bytes for one in shown))
    metrics.LOGS_LAG_SECONDS.set(max(one.lag_seconds for one in shown))
    metrics.LOGS_UNACKED_BYTES.set(sum(one.unacknowledged_bytes for one in shown))
    metrics.LOGS_POSSIBLE_COPIES.set(sum(one.possible_copies for one in shown))


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
