"""The task that reads: scan the files, read for each sink that has budget, and find out when everything is read.

A round is one hop into a thread: pending events, a scan if one is due, and reads up to the budgets.
Between rounds the task waits for events of the directories, for acknowledgements, and for the next scan.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from sidecar.logs.input.dir_watch import DirectoryWatcher, DirEvents
from sidecar.logs.input.tail import Tail
from sidecar.logs.records import Block
from sidecar.logs.sink_worker import SinkWorker
from sidecar.process import memory, metrics
from sidecar.process.executor import run_in_thread

_log = logging.getLogger(__name__)

_READ_BATCH_BYTES = 2 << 20
"""Bytes that one call in a thread reads for a sink. Each call costs 0.2 ms of CPU."""
_MIN_ROUND_SECONDS = 0.02
"""Minimum time between two rounds: a program that writes single lines must not cost a core."""
_POLL_SECONDS = 0.25
_TRIM_INTERVAL_SECONDS = 10.0
"""How often freed memory is returned to the kernel while lines are read: it takes a few milliseconds."""


class ReadLoop:
    """Reads a source for the workers of a collection.

    Args:
        until: see `collect`.
        on_revision: called when a file was found, moved or removed.
        on_scan: called after each scan.
    """

    def __init__(
        self,
        source: Tail,
        workers: Sequence[SinkWorker],
        *,
        until: Callable[[], bool] | None,
        on_revision: Callable[[], None],
        on_scan: Callable[[], None],
    ) -> None:
        self.source, self.workers = source, workers
        self.draining = False
        self.successor: Tail | None = None
        """The source that continues after `leave`."""
        self._until = until
        self._until_end = False
        self._drain_quiet = 0.0
        self._on_revision, self._on_scan = on_revision, on_scan
        self._watcher: DirectoryWatcher | None = None
        self._wake = asyncio.Event()
        self._finishing = False
        """`until` has returned True."""
        self._files_with_writers: list[str] = []
        self._limited_to_present = self._copies_released = False
        self._has_read_data = False
        self._trimmed_at = time.monotonic()
        self._leave_deadline: float | None = None
        self._leave_timeout = 0.0
        self._deleted = 0, 0.0
        """Bytes of deleted files that are not delivered yet, and the monotonic time of the last change of that number."""

    @property
    def ends_itself(self) -> bool:
        """Whether the loop returns once everything is delivered, even if it is not draining."""
        return self._until_end or self._finishing

    @property
    def leaving(self) -> bool:
        """Whether `leave` was called."""
        return self._leave_deadline is not None

    def set_end(self, *, until_end: bool, drain_quiet: float) -> None:
        """Set when `run` returns. See `collect`."""
        self._until_end, self._drain_quiet = until_end and self._until is None, drain_quiet

    def wake(self) -> None:
        """Start the next round now."""
        self._wake.set()

    def drain(self) -> None:
        """Read to the end of the files, then return."""
        self.draining = True
        self._wake.set()

    def leave(self, timeout: float, successor: Tail | None) -> None:
        """Return without reading to the end. See `Collector.leave`."""
        self._leave_deadline, self._leave_timeout = time.monotonic() + timeout, timeout
        self.successor = successor
        self._wake.set()

    async def open(self) -> None:
        """Start to watch the directories."""
        self._watcher = await run_in_thread(DirectoryWatcher)

    def close(self) -> None:
        """Stop to watch the directories."""
        if self._watcher is not None:
            if self._watcher.fd is not None:
                asyncio.get_running_loop().remove_reader(self._watcher.fd)
            self._watcher.close()

    async def run(self) -> None:
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
            draining = (
                self.draining
            )  # a scan that began before the drain may have missed the last lines
            without_wait = draining or (self._finishing and not self._files_with_writers)
            scan = now >= due or without_wait or source.incomplete
            scan = scan or (self._until_end and self._are_workers_idle())
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
                self._on_revision()
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
            ending = ending and (draining or self._finishing or self._until_end)
            if (
                ending
                and self._are_workers_idle()
                and await self._has_ended(last_data_at, present_done)
            ):
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
        self._on_scan()
        await self._trim_heap(now)

    async def _wait_until_acknowledged(self, end: float) -> None:
        """Wait until nothing is in flight, at most until the monotonic time `end`."""
        while not self._are_workers_idle() and time.monotonic() < end:
            self._wake.clear()
            await self._wait_for_event(min(time.monotonic() + _POLL_SECONDS, end), 0.0)

    def _has_deleted_data(self, now: float) -> bool:
        """Whether to wait for deleted files: they hold undelivered bytes, no successor takes them over, and delivery progresses."""
        if self.successor is not None:
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
        ends_itself = (self._until_end or self._finishing) and not self.draining
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
            _log.info("still open for writing: %s", ", ".join(files[:10]))
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
        if rest > 0 and not self.draining:
            await asyncio.sleep(rest)

    def _scan_and_read(self, limits: Mapping[str, int], scan: bool) -> dict[str, list[Block]]:
        """Apply the pending events, scan if due, and read up to the limits. Runs in a thread."""
        watcher = self._watcher
        events = watcher.drain() if watcher is not None else DirEvents()
        source = self.source
        if scan and self._until is not None and not self._finishing and self._until():
            self._finishing = True
            _log.info("the end condition is met: delivering what is left")
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

    def _are_workers_idle(self) -> bool:
        return all(worker.idle for worker in self.workers)
