"""Follow a path, run the actions for each version until they succeed, and know which version the application has."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Unpack

from sidecar import _errors
from sidecar.process import arguments, metrics
from sidecar.reload.change import Action, ActionFailed, Change
from sidecar.volume.content.snapshot import Snapshot
from sidecar.volume.watch.options import Options
from sidecar.volume.watch.watch import Watch

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_RESULTS = ("ok", "failed")


def exponential_backoff(attempt: int) -> float:
    """Return the seconds to wait after the attempt of this number, from 0 on: up to 0.5, 1, 2, … 30, and at least half of it.

    >>> 0.25 <= exponential_backoff(0) <= 0.5, 15 <= exponential_backoff(1000) <= 30
    (True, True)
    """
    longest = min(_FIRST_PAUSE * 2.0 ** min(attempt, 16), _LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 (it spreads a fleet, and hides nothing)


class Reloader:
    """What `run` does, as an object that can be asked how it is; see there for the arguments.

    >>> from sidecar.reload import Signal
    >>> reloader = Reloader("/config/", [Signal("HUP", process="nginx")])
    >>> reloader.problem is None
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        actions: Sequence[Action],
        *,
        parallel: bool = False,
        confirm_url: str | None = None,
        confirm_timeout: float = 10.0,
        initial: bool = True,
        once: bool = False,
        drain_timeout: float = 10.0,
        backoff: Callable[[int], float] = exponential_backoff,
        **options: Unpack[Options],
    ) -> None:
        self._watch = Watch(path, **options)
        self._actions = tuple(actions)
        if not self._actions:
            raise _errors.ConfigError("there is nothing to do: give at least one action")
        self._parallel = arguments.check_flag("parallel", parallel)
        self._initial = arguments.check_flag("initial", initial)
        self._once = arguments.check_flag("once", once)
        if once and not initial:
            raise _errors.ConfigError("once applies the present version: it needs initial")
        self._drain_timeout = arguments.check_seconds("drain_timeout", drain_timeout)
        arguments.check_plain_function("backoff", backoff, "a function from a number to seconds")
        self._backoff = backoff
        self._confirmation: Action | None = None
        if confirm_url is not None:
            # Imported here: who asks nobody needs no HTTP client.
            from sidecar.reload.confirmation import Confirmation

            self._confirmation = Confirmation(confirm_url, confirm_timeout)
        self._applied: Mapping[str, str] = {}
        self._current: str | None = None
        """The version that the application has; None while that is not known."""
        self._failures: dict[int, str] = {}
        """Of each action that has failed last, by its identity."""

    def __repr__(self) -> str:
        return f"<Reloader {self._watch.path} version={(self._current or '')[:8] or None}>"

    @property
    def started(self) -> bool:
        """Whether the path has been looked at, whatever was found."""
        return self._watch.has_looked

    @property
    def version(self) -> str | None:
        """The version that was applied last, None while another one is being applied, or before the first."""
        return self._current

    @property
    def problem(self) -> str | None:
        """Why the last version was not applied, None while all is well: what a readiness probe asks."""
        return next(iter(self._failures.values()), None)

    @property
    def failure(self) -> str | None:
        """Why the path is not followed any more, None while it is: what a liveness probe asks."""
        return self._watch.failure

    async def run(self) -> None:
        """Do it, until it is cancelled, or with `once` until the present version was applied."""
        for action in self._all_actions():
            for result in _RESULTS:
                metrics.RELOAD_TOTAL.labels(action.kind, result)
        async with self._watch as watch:
            await watch.looked()
            if watch.snapshot is not None and not self._initial:
                self._note_applied(watch.snapshot)
            while not await self._apply_next() or not self._once:
                pass

    def _all_actions(self) -> tuple[Action, ...]:
        return self._actions if self._confirmation is None else (*self._actions, self._confirmation)

    def _note_applied(self, snapshot: Snapshot[None]) -> None:
        self._applied, self._current = snapshot.versions(), snapshot.version

    async def _apply_next(self) -> bool:
        """Wait for another version than the application has, and apply it; False if a newer one came meanwhile."""
        while (snapshot := self._watch.snapshot) is None or snapshot.version == self._current:
            await self._next_change()
        names = {name for name, _ in self._applied.items() ^ snapshot.versions().items()}
        change = Change(self._watch.path, snapshot.version, tuple(sorted(names)))
        # From here on nobody knows what the application has: going back to the last version is a change, too.
        self._current = None
        if not await self._apply(change):
            return False
        self._note_applied(snapshot)
        metrics.RELOAD_LAST_SUCCESS_TIMESTAMP_SECONDS.set_to_current_time()
        return True

    async def _apply(self, change: Change) -> bool:
        """Run the actions, and have the version confirmed, until both succeed; False once there is a newer version."""
        for attempt in itertools.count():
            if not await self._run_actions(change):
                return False
            if self._confirmation is None or await self._is_confirmed(change, self._confirmation):
                return True
            if await self._newer_within(change, self._backoff(attempt)):
                return False
        raise AssertionError  # count() has no end

    async def _run_actions(self, change: Change) -> bool:
        if self._parallel:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(self._persist(one, change)) for one in self._actions]
            return all(task.result() for task in running)
        for action in self._actions:
            if not await self._persist(action, change):
                return False
        return True

    async def _persist(self, action: Action, change: Change) -> bool:
        """Run one action until it succeeds; False once there is a newer version."""
        for attempt in itertools.count():
            if self._is_superseded(change):
                return False
            running = asyncio.create_task(action.run(change), name=f"reload: {action.kind}")
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                await self._drain(running)
                if not running.cancelled():
                    self._note_outcome(action, change, running)
                raise
            if self._note_outcome(action, change, running):
                return True
            if await self._newer_within(change, self._backoff(attempt)):
                return False
        raise AssertionError  # count() has no end

    async def _drain(self, running: asyncio.Task[None]) -> None:
        """Let an action end that has begun, in the time there is for it."""
        await asyncio.wait({running}, timeout=self._drain_timeout)
        if not running.done():
            running.cancel()
            await asyncio.wait({running})

    async def _is_confirmed(self, change: Change, confirmation: Action) -> bool:
        asking = asyncio.create_task(confirmation.run(change), name="reload: confirm")
        newer = asyncio.create_task(self._newer_within(change, None), name="reload: newer")
        try:
            await asyncio.wait({asking, newer}, return_when=asyncio.FIRST_COMPLETED)
            # A question does no harm where it is cut off; for a newer version it is not worth the time.
            return asking.done() and self._note_outcome(confirmation, change, asking)
        finally:
            for task in (asking, newer):
                task.cancel()
            await asyncio.wait({asking, newer})

    def _note_outcome(self, action: Action, change: Change, ended: asyncio.Task[None]) -> bool:
        """Count and log how an action has ended; whether it has succeeded. Errors that are not its own are raised."""
        try:
            ended.result()
        except ActionFailed as error:
            metrics.RELOAD_TOTAL.labels(action.kind, "failed").inc()
            said = f"version {change.version} of {change.path} was not applied: {error}"
            self._failures[id(action)] = said
            _log.warning("%s; trying again", said)
            return False
        metrics.RELOAD_TOTAL.labels(action.kind, "ok").inc()
        self._failures.pop(id(action), None)
        _log.info("version %s of %s: %s succeeded", change.version, change.path, action)
        return True

    def _is_superseded(self, change: Change) -> bool:
        snapshot = self._watch.snapshot
        return snapshot is not None and snapshot.version != change.version

    async def _newer_within(self, change: Change, seconds: float | None) -> bool:
        """Wait for a newer version, at most so long; whether there is one."""
        try:
            async with asyncio.timeout(seconds):
                while not self._is_superseded(change):
                    await self._next_change()
        except TimeoutError:
            return False
        return True

    async def _next_change(self) -> None:
        changed = asyncio.get_running_loop().create_future()
        unsubscribe = self._watch.subscribe(
            lambda: None if changed.done() else changed.set_result(None)
        )
        try:
            await changed
        finally:
            unsubscribe()


async def run(
    path: str | os.PathLike[str],
    actions: Sequence[Action],
    *,
    parallel: bool = False,
    confirm_url: str | None = None,
    confirm_timeout: float = 10.0,
    initial: bool = True,
    once: bool = False,
    drain_timeout: float = 10.0,
    backoff: Callable[[int], float] = exponential_backoff,
    **options: Unpack[Options],
) -> None:
    """Run actions for each distinct version of a file or a set, until this is cancelled.

    A set is one version, and its actions run once for it, not once for each file.
    An action that fails is tried again after growing pauses, until it succeeds or there is a newer version.
    Of versions that come meanwhile only the newest is applied; an action that has begun ends first.
    A cancellation lets it end, too, and begins nothing new.

    Args:
        path: the file, or the directory for a set.
        actions: `Webhook`, `Command`, `Signal`, or what has the same methods; in this order.
        parallel: whether to run them side by side.
        confirm_url: an address that must answer with the version, by its `ETag` or in its body, after the actions;
            where it does not, the version has failed, and all actions run again.
        confirm_timeout: seconds until it must.
        initial: whether the version that is there at the start is applied, too: what has changed
            before somebody looked is unknown. It is the default of the peers that try again.
        once: whether to return when one version was applied: for init containers.
        drain_timeout: seconds that a running action has to end after a cancellation.
        backoff: the seconds to wait after each failed attempt, by its number from 0 on.
        options: of the watch, as for `sidecar.Watch`: `quiet`, `recheck`, `max_size` and others.

    Raises:
        ConfigError: an argument makes no sense.

    >>> import asyncio, tempfile
    >>> from sidecar.reload import Command
    >>> async def main() -> None:
    ...     with tempfile.NamedTemporaryFile() as config:
    ...         await run(config.name, [Command(["true"])], once=True)
    >>> asyncio.run(main())
    """
    reloader = Reloader(
        path,
        actions,
        parallel=parallel,
        confirm_url=confirm_url,
        confirm_timeout=confirm_timeout,
        initial=initial,
        once=once,
        drain_timeout=drain_timeout,
        backoff=backoff,
        **options,
    )
    await reloader.run()
