"""Run the collections of a configuration, and replace them when the configuration changes.

The files of the configuration are checked once a second. A change is used when they were unchanged for another second.
An invalid configuration is refused as a whole, with an error in the log, and the running collections continue.
Otherwise each collection stops reading, waits for the batches in flight, and the new one continues at its positions,
including files that were deleted and are still open.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sidecar import _errors
from sidecar.logs.collector import Collector, Summary
from sidecar.process import metrics
from sidecar.process.executor import run_in_thread

_log = logging.getLogger(__name__)

_CHECK_INTERVAL_SECONDS = 1.0

Signature = Mapping[str, object]


@dataclass(frozen=True)
class Plan:
    """The collections of one configuration."""

    collectors: Mapping[str, Collector]
    drain_timeout: float = 20.0
    config: object = None
    """The parsed configuration: an equal one is no change."""
    signature: Signature = field(default_factory=dict)
    """The signature of the configuration files when they were read. See `read_signature`."""


def read_signature(files: Iterable[str]) -> Signature:
    """Return a value that differs once one of these files is written or replaced."""
    return {path: _identity(path) for path in files}


class Topology:
    """Runs collections until they end, or until it is cancelled. Probes can query its state, as of a `Collector`.

    Args:
        plan: the first plan.
        make: creates the plan of the present configuration; None: the configuration is not reloaded.
    """

    def __init__(self, plan: Plan, make: Callable[[], Plan] | None = None) -> None:
        self._plan, self._make = plan, make

    @property
    def collectors(self) -> Mapping[str, Collector]:
        """The collections that run now, by the name of their pipeline."""
        return self._plan.collectors

    @property
    def started(self) -> bool:
        """Whether all collections have done their first scan and opened their sinks."""
        return all(one.started for one in self._plan.collectors.values())

    def failure(self, after: float = 60.0) -> str | None:
        """Return why a collection could not deliver for more than `after` seconds, else None. For a readiness probe."""
        for name, collector in self._plan.collectors.items():
            if (failure := collector.failure(after)) is not None:
                return f"{name}: {failure}" if name else failure
        return None

    @property
    def summaries(self) -> list[Summary]:
        """The summary of each collection."""
        return [one.summary for one in self._plan.collectors.values()]

    async def run(self, *, until_end: bool = False) -> None:
        """Collect until all collections have ended; the first error ends them all.

        A cancellation drains them, as `collect` says.
        """
        while (following := await self._run(until_end=until_end)) is not None:
            before = self._plan.collectors
            for name, collector in following.collectors.items():
                _pass_state(before.get(name), collector)
            self._plan = following
            _log.info("the new configuration is in use", extra={"event": "config.loaded"})
            metrics.RELOAD_TOTAL.labels("config", "ok").inc()
            metrics.RELOAD_LAST_SUCCESS_TIMESTAMP_SECONDS.set_to_current_time()

    async def _run(self, *, until_end: bool) -> Plan | None:
        """Run the plan; return the next plan, None if all collections have ended."""
        plan = self._plan
        tasks = {
            asyncio.create_task(
                one.run(until_end=until_end, drain_timeout=plan.drain_timeout),
                name=f"collect-{name}",
            )
            for name, one in plan.collectors.items()
        }
        watch = None
        if self._make is not None and not until_end:
            watch = asyncio.create_task(_next_plan(plan, self._make), name="watch-config")
        try:
            ended = await _wait_for_tasks(tasks, watch)
            if watch is None or not watch.done():
                return None
            following = watch.result()
            for name, collector in plan.collectors.items():
                successor = following.collectors.get(name)
                collector.leave(plan.drain_timeout, None if successor is None else successor.source)
            await _wait_for_tasks(tasks - ended, None)
            return following
        finally:
            await _cancel_and_wait({*tasks, *([watch] if watch is not None else [])})


async def _wait_for_tasks(
    tasks: set[asyncio.Task[Summary]], watch: asyncio.Task[Plan] | None
) -> set[asyncio.Task[Summary]]:
    """Wait until all tasks or `watch` have ended; return the tasks that have ended.

    Raises the error of the first task that fails.
    """
    pending = set(tasks)
    while pending and not (watch is not None and watch.done()):
        waited: set[asyncio.Task[object]] = {*pending, *([watch] if watch is not None else [])}
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        pending = {task for task in pending if not task.done()}
    return set(tasks) - pending


async def _cancel_and_wait(tasks: set[asyncio.Task[object]]) -> None:
    """Cancel running tasks, and wait while they drain. A second cancellation is passed on to them."""
    running = {task for task in tasks if not task.done()}
    for task in running:
        task.cancel()
    while left := {task for task in running if not task.done()}:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError:
            for task in left:
                task.cancel()
    for task in running:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _next_plan(plan: Plan, make: Callable[[], Plan]) -> Plan:
    """Wait for another valid configuration, and return its plan."""
    for result in ("ok", "refused"):
        metrics.RELOAD_TOTAL.labels("config", result)  # an alert needs the 0 before the first one
    known = plan.signature
    before = known
    while True:
        await asyncio.sleep(_CHECK_INTERVAL_SECONDS)
        now = await run_in_thread(read_signature, known)
        changed, quiet, before = now != known, now == before, now
        if not changed or not quiet:
            continue
        try:
            made = await run_in_thread(make)
        except _errors.ConfigError as error:
            known = before = now
            _log.error(
                "the new configuration is refused, the one before stays in use: %s",
                error,
                extra={"event": "config.refused"},
            )
            metrics.RELOAD_TOTAL.labels("config", "refused").inc()
            continue
        if made.config != plan.config:
            return made
        known = before = made.signature


def _pass_state(before: Collector | None, after: Collector) -> None:
    """Pass the positions on in memory, if there is no checkpoint."""
    if before is None or before.last_state is None:
        return
    if before.source.checkpoint_path is None and after.source.checkpoint_path is None:
        after.source.inherit(before.last_state)


def _identity(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
