"""`collect`: from a source through stages to sinks, until it is told to stop.

One task reads, one task for each sink delivers, one saves the checkpoint.
The reader stops at the budget of a sink, so the files themselves are the buffer;
the checkpoint follows what the sinks have acknowledged, and nothing else.
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

_READ_BATCH = 2 << 20
"""Bytes that one hop to the disk reads for a sink. Each hop costs a fifth of a millisecond of CPU."""
_MIN_INTERVAL = 0.02
"""Seconds between two rounds for events: a writer of single lines must not cost a core, and nobody waits longer."""
_POLL = 0.25
_SAVE_EVERY = 1.0
_SAVE_SOON = 0.05
"""Seconds to the second save. Pauses double from there: who is killed every second must get on all the same."""
_LOCK_POLL = 0.5
"""Seconds between two looks whether the checkpoint is free."""
_TIDY_EVERY = 10.0
"""Seconds between two returns of freed memory to the kernel, where lines have moved: a few milliseconds each."""
_DEAD_LETTERS = ".dead-letters.ndjson"
_figures: dict[int, TailStats] = {}
"""Of each collection that runs in this process."""


@dataclass(slots=True)
class Summary:
    """What a collection did.

    >>> Summary(lines=2, size=8).refused
    0
    """

    lines: int = 0
    size: int = 0
    """Bytes, as they came."""
    refused: int = 0
    """Records that a sink has refused for good."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Files and directories that could not be read, or not to their end, when it ended by itself; with the reasons."""


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
    """Ship every line of the source through the stages to the sinks, for ever.

    The position of a file moves only past what all its sinks have acknowledged,
    so a line is delivered again rather than lost; each sink has its own progress, and none waits for another.
    When the call is cancelled (SIGTERM under `sidecar.run`) it reads to the end, delivers, saves, and then ends:
    after `drain_quiet` seconds without a new line, at once where no writer has the files open,
    at the latest after `drain_timeout`. What is not delivered by then is delivered after the next start.
    A second cancellation ends it without draining.

    Args:
        source: what to read; one collection for each.
        stages: plain functions from a record to a record, or to None to drop it; in this order.
        sink: where to, or several; a `Route` gives one stages of its own.
        labels: what is the same for all lines (the Pod). A callable is asked for each batch.
        dead_letters: where refused records go; by default a file beside the checkpoint.
        budget: bytes in flight, over all sinks. When they are used up, reading stops.
        until_end: end when everything has been delivered that was there at the beginning,
            also while a program goes on writing. `unreadable` says what could not be read.
        until: asked each second, in a thread: once it returns True, end when no writer has a file open any more
            (where the kernel does not tell: after `drain_quiet` seconds) and all is delivered, however long that takes.
        drain_timeout: seconds; stay below the Pod's `terminationGracePeriodSeconds`.
        drain_quiet: seconds.

    Raises:
        ConfigError: no sink, two of the same name, or another argument that makes no sense.
        RuntimeError: the source is in use, or it was when this process was forked: make one here.
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
    """A collection with a state that probes can ask for. `collect` is one of these, run at once.

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
            dead_letters = DeadLetterFile(source.checkpoint_path + _DEAD_LETTERS)
        self.source = source
        source.leave_out(_own_files(source, [route.sink for route in routes], dead_letters))
        self.summary = Summary()
        made: Callable[[], Mapping[str, str]] = labels if callable(labels) else lambda: labels or {}
        self.lanes = [
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
        self._hints: DirectoryWatcher | None = None
        self._wake = asyncio.Event()
        self._dirty = asyncio.Event()
        self._idle = asyncio.Event()
        self._started = self._draining = False
        self._until_end = False
        self._until = until
        self._finishing = False
        """`until` has said that no more is to come."""
        self._waits_for: list[str] = []
        self._limited = self._patience_ended = False
        self._quiet = 0.0
        self._moved = False
        self._tidied_at = time.monotonic()
        self._reported: dict[str, int] = {}
        self._save_failure: str | None = None
        self._leave_at: float | None = None
        self._leave_timeout = 0.0
        self._successor: Tail | None = None
        self._deleted = 0, 0.0
        """How many bytes of deleted files there were to deliver, and since when it has been so many."""
        self.last_state: State | None = None
        """What the last checkpoint holds, or would hold if there were one."""

    def __repr__(self) -> str:
        return f"<Collector {self.source!r} → {', '.join(lane.name for lane in self.lanes)}>"

    @property
    def started(self) -> bool:
        """The files have been looked for, and the sinks are open. For a startup probe."""
        return self._started

    def trouble(self, patience: float = 60.0) -> str | None:
        """Return what keeps lines from being delivered for longer than `patience` seconds. For a readiness probe."""
        if self.source.failure is not None:
            return self.source.failure
        for lane in self.lanes:
            if lane.trouble_since is not None and time.monotonic() - lane.trouble_since > patience:
                return f"{lane.name} has taken nothing for more than {patience:g} s: {lane.trouble}"
        return self._save_failure

    def leave(self, timeout: float, successor: Tail | None = None) -> None:
        """End `run` for another collection, which goes on where this one ends: without reading to the end.

        What is on its way is waited for, at most so many seconds; it is read again otherwise.
        Files that were deleted and are still open are handed over to the successor. Without one they are delivered
        before, as long as the sinks take lines; after so many seconds without an acknowledgement they are lost,
        with an error in the log, and counted.
        """
        self._leave_at, self._leave_timeout = time.monotonic() + timeout, timeout
        self._successor = successor
        self._wake.set()
        for lane in self.lanes:
            lane.expedite()

    async def run(
        self,
        *,
        until_end: bool = False,
        drain_timeout: float = 20.0,
        drain_quiet: float = 0.5,
    ) -> Summary:
        """Collect. See `collect`."""
        self._until_end, self._quiet = until_end and self._until is None, drain_quiet
        memory.use_single_arena()
        if all(lane.sink.takes_blocks for lane in self.lanes):
            memory.raise_mmap_threshold()
        self.source.take()
        try:
            if await self._claim():
                await self._run(drain_timeout)
            else:
                self.source.hand_over(self._successor)
        finally:
            self.source.release()
        return self.summary

    async def _claim(self) -> bool:
        """Wait while another collection has the checkpoint: the one before us, as a rule, that still drains.

        Return False if this one has been told to leave meanwhile.
        """
        waiting = False
        while not await run_in_thread(self.source.claim):
            if not waiting:
                _log.warning(
                    "another collector uses the checkpoint %s: waiting for its end",
                    self.source.checkpoint_path,
                )
            waiting = True
            if self._leave_at is not None:
                return False
            await asyncio.sleep(_LOCK_POLL)
        return True

    async def _run(self, drain_timeout: float) -> None:
        opened: list[SinkWorker] = []
        try:
            await run_in_thread(self.source.open, [lane.name for lane in self.lanes])
            if not self.source.matched:
                _log.warning("no file matches %s yet", " ".join(self.source.patterns))
                for name in await run_in_thread(self.source.directories_named):
                    _log.warning("%s is a directory: name the files in it, as %s/*", name, name)
            self._hints = await run_in_thread(DirectoryWatcher)
            for lane in self.lanes:
                begun = await lane.sink.open(self.source.resume.get(lane.name))
                opened.append(lane)
                if begun is not None:
                    self.source.resume[lane.name] = begun
            # Before the first line is delivered: a kill right after it must find where it began.
            await self._save()
            self._started = True
            await self._work(drain_timeout)
        finally:
            await self._end(opened)

    # -- the tasks

    async def _work(self, drain_timeout: float) -> None:
        tasks = [
            asyncio.create_task(self._read(), name="logs-read"),
            asyncio.create_task(self._keep_saving(), name="logs-save"),
            *(asyncio.create_task(lane.run(), name=f"logs-{lane.name}") for lane in self.lanes),
        ]
        try:
            try:
                await self._until_finished(tasks, None)
            except asyncio.CancelledError:
                self._draining = True
                self._wake.set()
                for lane in self.lanes:
                    lane.expedite()
                await self._until_finished(tasks, drain_timeout)
                raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _until_finished(self, tasks: list[asyncio.Task[None]], timeout: float | None) -> None:
        """Wait for the reader's end, or the first error."""
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            left = "; ".join(
                f"{lane.held} bytes to {lane.name} ({lane.trouble or 'it is slow'})"
                for lane in self.lanes
                if not lane.idle
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
        """Read, whenever there may be something and a sink has room; end when there is no more to come."""
        source, last_look, last_round = self.source, 0.0, 0.0
        turns = source.turns
        news_at = time.monotonic()
        while True:
            now = time.monotonic()
            if self._leave_at is not None and not self._waits_for_deleted(now):
                await self._until_acknowledged(self._leave_at)
                return
            due = last_look + (_POLL if self._hints and self._hints.polling else source.recheck)
            hurried = self._draining or (self._finishing and not self._waits_for)
            look = now >= due or hurried or source.incomplete
            look = look or (self._until_end and self._all_idle())
            through = self._limited and source.present_is_read
            open_lanes = [lane for lane in self.lanes if lane.room > 0 and not through]
            wanted = {lane.name: min(lane.room, _READ_BATCH) for lane in open_lanes}
            self._wake.clear()
            last_round = now
            blocks = await run_in_thread(self._round, wanted, look)
            if source.turns != turns:
                turns = source.turns
                self._dirty.set()
            if look:
                last_look = now
                await self._after_look(now)
            self._listen()
            for lane in self.lanes:
                lane.offer(blocks.get(lane.name, ()))
            if any(blocks.values()):
                news_at, self._moved = time.monotonic(), True
            ready = any(source.ready(lane.name) for lane in self.lanes) and not through
            ending = look and not ready and not source.incomplete
            ending = ending and (self._draining or self._finishing or self._until_end)
            if ending and self._all_idle() and await self._is_end(news_at, through):
                return
            wanting = any(source.ready(lane.name) and lane.room > 0 for lane in self.lanes)
            if source.incomplete or (wanting and not through):
                continue
            await self._pause(now + _MIN_INTERVAL if hurried else due, last_round)

    async def _after_look(self, now: float) -> None:
        source = self.source
        if source.removes_files:
            await run_in_thread(source.remove_delivered)
        if self._until_end and not self._limited and not source.incomplete:
            source.limit_to_present()
            self._limited = True
        source.flush_present(self._quiet)
        self._report()
        await self._tidy(now)

    async def _until_acknowledged(self, end: float) -> None:
        """Wait until nothing is on its way any more, at most until then."""
        while not self._all_idle() and time.monotonic() < end:
            self._wake.clear()
            await self._pause(min(time.monotonic() + _POLL, end), 0.0)

    def _waits_for_deleted(self, now: float) -> bool:
        """Whether deleted files hold bytes that nobody else could deliver, and the sinks take some now and then."""
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

    async def _tidy(self, now: float) -> None:
        """Give back what moving lines has left in the heap: a burst must not be kept for ever."""
        if self._moved and now - self._tidied_at >= _TIDY_EVERY:
            self._moved, self._tidied_at = False, now
            await run_in_thread(memory.trim_heap)

    async def _is_end(self, news_at: float, through: bool) -> bool:
        ends_itself = (self._until_end or self._finishing) and not self._draining
        if ends_itself and not self._patience_ended:
            self._patience_ended = True
            await run_in_thread(self.source.end_patience)
            return False
        if through:
            return True
        if self._finishing and ends_itself and not await self._is_complete(news_at):
            return False
        await run_in_thread(self.source.flush, everything=ends_itself)
        if any(self.source.ready(lane.name) for lane in self.lanes):
            return False
        if ends_itself or time.monotonic() - news_at >= self._quiet:
            return True
        return await run_in_thread(self.source.is_abandoned)

    async def _is_complete(self, news_at: float) -> bool:
        """Whether no program writes any more: none has a file open, or, where nobody knows, nothing has come for a while."""
        files = await run_in_thread(self.source.written_by_others)
        if files and files != self._waits_for:
            _log.info("no end yet: open for writing are %s", ", ".join(files[:10]))
        self._waits_for = files
        if files:
            return False
        quiet = time.monotonic() - news_at >= self._quiet
        return quiet or await run_in_thread(self.source.is_abandoned)

    async def _pause(self, due: float, last_round: float) -> None:
        timeout = due - time.monotonic()
        if self._until_end:
            timeout = min(timeout, _MIN_INTERVAL)
        if timeout > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
        rest = last_round + _MIN_INTERVAL - time.monotonic()
        if rest > 0 and not self._draining:
            await asyncio.sleep(rest)

    def _round(self, wanted: Mapping[str, int], look: bool) -> dict[str, list[Block]]:
        """One hop to the disk: take the hints, look where they point, read what there is room for."""
        hints = self._hints
        noticed = hints.drain() if hints is not None else DirEvents()
        source = self.source
        if look and self._until is not None and not self._finishing and self._until():
            self._finishing = True
            _log.info("no more is to come: delivering what is there")
        if look or noticed.changed or noticed.overflow:
            if noticed.overflow:
                metrics.WATCH_ERRORS_TOTAL.inc()
                source.hint_all()
            source.look(suspicious=noticed.changed)
            if hints is not None:
                hints.watch(source.directories)
        if noticed.written and not source.hint(noticed.written):
            source.look()
        return {name: source.read(name, limit) for name, limit in wanted.items()}

    def _listen(self) -> None:
        """Be woken by the next event; not before the round that takes them all."""
        if self._hints is None or self._hints.fd is None:
            return
        loop, fd = asyncio.get_running_loop(), self._hints.fd

        def woken() -> None:
            loop.remove_reader(fd)
            self._wake.set()

        loop.add_reader(fd, woken)

    async def _keep_saving(self) -> None:
        pause = _SAVE_SOON
        while True:
            await self._dirty.wait()
            await self._save()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _SAVE_EVERY)

    async def _save(self) -> None:
        self._dirty.clear()
        try:
            state = await run_in_thread(self.source.state)
            self.last_state = state
            # What the checkpoint says must be durable in the sinks before the checkpoint says so.
            for lane in self.lanes:
                await lane.sink.flush()
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

    async def _end(self, opened: Sequence[SinkWorker]) -> None:
        if self._hints is not None:
            if self._hints.fd is not None:
                asyncio.get_running_loop().remove_reader(self._hints.fd)
            self._hints.close()
        if (self._until_end or self._finishing) and self._started:
            self.summary.unreadable = self.source.unreadable
        async with contextlib.AsyncExitStack() as stack:  # whatever fails, all are closed
            stack.push_async_callback(run_in_thread, self.source.close)
            for lane in opened:
                stack.push_async_callback(lane.sink.close)
            if len(opened) == len(self.lanes):
                await self._save()
                await run_in_thread(self.source.remove_delivered)
            if self._leave_at is not None:
                await run_in_thread(self.source.hand_over, self._successor)
            self._report()
        _figures.pop(id(self), None)

    # -- what the lanes say

    def _all_idle(self) -> bool:
        return all(lane.idle for lane in self.lanes)

    def _acknowledged(self, lane: SinkWorker, blocks: Sequence[Block], resume: Any) -> None:
        self.source.acknowledge(lane.name, blocks, resume)
        if lane is self.lanes[0]:
            size, count = sum(len(b.data) for b in blocks), sum(b.lines for b in blocks)
            self.summary.lines += count
            self.summary.size += size
            metrics.LOGS_LINES_TOTAL.inc(count)
            metrics.LOGS_BYTES_TOTAL.inc(size)
        self._dirty.set()
        self._wake.set()

    def _refused(self, lane: SinkWorker, rejected: Sequence[Rejected]) -> None:
        self.summary.refused += len(rejected)
        if lane.has_dead_letters:
            return
        size = sum(len(one.record.raw) for one in rejected)
        _log.error(
            "%s refused %d records for good: %s", lane.name, len(rejected), rejected[0].reason
        )
        metrics.LOGS_LOST_BYTES_TOTAL.labels("refused").inc(size)

    def _report(self) -> None:
        source = self.source
        _figures[id(self)] = source.figures()
        _show_figures()
        for reason, size in source.lost.items():
            if news := size - self._reported.get(reason, 0):
                metrics.LOGS_LOST_BYTES_TOTAL.labels(reason).inc(news)
                self._reported[reason] = size


def _show_figures() -> None:
    """Show the sum of all collections of this process; of seconds the most."""
    shown = list(_figures.values())
    metrics.LOGS_LAG_BYTES.set(sum(one.lag_bytes for one in shown))
    metrics.LOGS_LAG_SECONDS.set(max(one.lag_seconds for one in shown))
    metrics.LOGS_UNACKED_BYTES.set(sum(one.unacknowledged_bytes for one in shown))
    metrics.LOGS_POSSIBLE_COPIES.set(sum(one.possible_copies for one in shown))


def _own_files(
    source: Tail, sinks: Sequence[Sink], dead_letters: DeadLetters | None
) -> Iterator[str]:
    """Yield what this collection itself writes to."""
    for sink in sinks:
        if isinstance(sink, BaseSink):
            yield from sink.own_files
    if isinstance(dead_letters, DeadLetterFile):
        yield dead_letters.path
    yield from source.own_files
