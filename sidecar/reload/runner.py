"""Follow a path, run the actions for each version until they succeed, and know which version the application has."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from sidecar import _errors
from sidecar.process import metrics, tracing
from sidecar.reload.change import Action, ActionFailed, Change
from sidecar.reload.options import ReloaderOptions, check
from sidecar.volume.content.snapshot import Snapshot

if TYPE_CHECKING:
    from sidecar.reload.rollback import Rollback

_log = logging.getLogger(__name__)

_RESULTS = ("ok", "failed")
_ROLLBACK = "rollback"
_APPLIED, _REFUSED, _SUPERSEDED = "applied", "refused", "superseded"
_SEEN_WITHIN = 1.0
"""Seconds in which the watch usually sees what was published, before it is published again."""


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
        **options: Unpack[ReloaderOptions],
    ) -> None:
        config = self._config = check(path, actions, **options)
        self._watch, self._rollback, self._stop = config.watch, config.rollback, config.stop
        self._reports = None if config.stop is None else config.stop.reports()
        self._applied: Mapping[str, str] = {}
        self._last: str | None = None
        """The version that was applied last."""
        self._current: str | None = None
        """The version that the application has; None while that is not known."""
        self._failures: dict[int, str] = {}
        """Why each step has failed last, by its identity."""
        self._refusal: str | None = None
        """Why the version that is being applied is given up."""
        self._deadline = math.inf
        """When it is given up, by the clock of the loop."""
        self._reported = False
        self._turn: float | None = None
        """When it is the turn of this Pod, by the clock of the loop; None while it does not wait for it."""
        self._waiting: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return f"<Reloader {self._watch.path} version={(self._current or '')[:8] or None}>"

    @property
    def started(self) -> bool:
        """Whether the first scan of the path is complete, whatever it found."""
        return self._watch.has_looked

    @property
    def version(self) -> str | None:
        """The version that was applied last, None while another one is being applied, or before the first."""
        return self._current

    @property
    def problem(self) -> str | None:
        """Why the last version was not applied, None while all is well: what a readiness probe asks.

        A version that is held by `stop_url` is no problem, nor one in place of which the confirmed one was applied again:
        the application works with an older one.
        """
        return next((said for step, said in self._failures.items() if step != id(self._stop)), None)

    @property
    def held(self) -> str | None:
        """Why `stop_url` holds a version, None while it does not."""
        return self._failures.get(id(self._stop))

    @property
    def refused(self) -> str | None:
        """The version that was rolled back, None after another one has come."""
        refusal = None if self._rollback is None else self._rollback.refusal
        return None if refusal is None else refusal.version

    @property
    def failure(self) -> str | None:
        """Why the path is not followed any more, None while it is: what a liveness probe asks."""
        return self._watch.failure

    async def run(self) -> None:
        """Do it, until it is cancelled, or with `once` until the present version was applied."""
        for kind in self._kinds():
            for result in _RESULTS:
                metrics.RELOAD_TOTAL.labels(kind, result)
        if self._rollback is not None:
            await self._rollback.load()
        try:
            async with self._watch as watch:
                await watch.looked()
                present = watch.snapshot
                if (
                    present is not None
                    and not self._config.initial
                    and not self._must_leave(present)
                ):
                    await self._note_applied(present)
                while not await self._apply_next() or not self._config.once:
                    pass
        finally:
            if self._reports is not None:
                await self._reports.finish(self._config.drain_timeout)

    def _kinds(self) -> list[str]:
        steps = (
            self._stop,
            self._config.expansion,
            *self._config.actions,
            self._config.confirmation,
        )
        kinds = [step.kind for step in steps if step is not None]
        return kinds if self._rollback is None else [*kinds, _ROLLBACK]

    async def _note_applied(self, snapshot: Snapshot[None]) -> None:
        self._applied, self._current = snapshot.versions(), snapshot.version
        self._last = snapshot.version
        if self._rollback is not None:
            await self._rollback.confirm(snapshot)

    async def _apply_next(self) -> bool:
        """Wait for another version than the application has, and apply it; False if it was not applied."""
        while (snapshot := self._watch.snapshot) is None or snapshot.version == self._current:
            # What was waited for is not there any more.
            self._failures.pop(id(self._stop), None)
            self._turn = None
            await self._next_change()
        context = tracing.context_of(self._watch.traceparent)
        attributes = {"file.path": self._watch.path, "sidecar.version": snapshot.version}
        if self._rollback is not None and self._must_leave(snapshot):
            self._current = None
            with tracing.span(_ROLLBACK, attributes, context=context):
                await self._roll_back(self._rollback, snapshot)
            return False
        names = {name for name, _ in self._applied.items() ^ snapshot.versions().items()}
        change = Change(
            self._watch.path,
            snapshot.version,
            tuple(sorted(names)),
            snapshot=snapshot,
            traceparent=self._watch.traceparent,
        )
        with tracing.span("reload", attributes, context=context) as span:
            result = await self._take(change, snapshot)
            tracing.set_attributes(span, {"sidecar.result": result})
        return result == _APPLIED

    async def _take(self, change: Change, snapshot: Snapshot[None]) -> str:
        """Apply a version, when it is the turn of this Pod; return whether it was applied, refused or superseded."""
        self._refusal, self._reported, self._deadline = None, False, math.inf
        # The first version, and one to which the writer or a rollback has gone back, do not wait.
        if self._last not in (None, change.version) and not await self._await_turn(change):
            return _SUPERSEDED
        # From here on nobody knows what the application has: going back to the last version is a change, too.
        self._current = None
        self._deadline = asyncio.get_running_loop().time() + self._config.confirm_timeout
        if not await self._apply(change):
            if self._rollback is None or self._refusal is None:
                return _SUPERSEDED
            await self._rollback.refuse(change.version, self._refusal)
            self._refusal = None
            return _REFUSED
        await self._note_applied(snapshot)
        metrics.RELOAD_LAST_SUCCESS_TIMESTAMP_SECONDS.set_to_current_time()
        return _APPLIED

    def _must_leave(self, snapshot: Snapshot[None]) -> bool:
        return self._rollback is not None and self._rollback.must_leave(snapshot.version)

    async def _await_turn(self, change: Change) -> bool:
        """Wait for the turn of this Pod, and for leave of `stop_url`; False once there is a newer version.

        A newer version does not change the turn: else one that comes in each window would put it off for ever.
        """
        if self._config.splay:
            from sidecar.reload import rollout

            now = asyncio.get_running_loop().time()
            if self._turn is None:
                self._turn = now + rollout.splay_delay(
                    rollout.pod_name(), change.version, self._config.splay
                )
            if await self._newer_within(change, self._turn - now):
                return False
            self._turn = None
        return self._stop is None or await self._persist(self._stop, change)

    async def _apply(self, change: Change) -> bool:
        """Run the actions, and have the version confirmed, until both succeed.

        False once there is a newer version, or this one is given up: then `_refusal` says why.
        """
        for attempt in itertools.count():
            if self._config.expansion is not None:
                if not await self._persist(self._config.expansion, change):
                    return False
                change = replace(change, output_version=self._config.expansion.version)
            if not await self._run_actions(change):
                return False
            if self._config.confirmation is None:
                return True
            outcome = await self._confirm(change, self._config.confirmation)
            if isinstance(outcome, bool):
                return outcome
            if not await self._may_retry(self._config.confirmation, change, attempt, outcome):
                return False
        raise AssertionError  # count() has no end

    async def _run_actions(self, change: Change) -> bool:
        if self._config.parallel:
            async with asyncio.TaskGroup() as group:
                running = [
                    group.create_task(self._persist(one, change)) for one in self._config.actions
                ]
            return all(task.result() for task in running)
        for action in self._config.actions:
            if not await self._persist(action, change):
                return False
        return True

    async def _persist(self, action: Action, change: Change) -> bool:
        """Run one action until it succeeds; False once there is a newer version, or this one is given up."""
        for attempt in itertools.count():
            if self._is_over(change):
                return False
            running = asyncio.create_task(_run(action, change), name=f"reload: {action.kind}")
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                await self._drain(running)
                if not running.cancelled() and self._note_outcome(action, change, running):
                    _log.warning("%s", self._failures[id(action)])
                raise
            error = self._note_outcome(action, change, running)
            if error is None:
                return True
            if not await self._may_retry(action, change, attempt, error):
                return False
        raise AssertionError  # count() has no end

    async def _drain(self, running: asyncio.Task[None]) -> None:
        """Let an action end that has begun, in the time there is for it."""
        await asyncio.wait({running}, timeout=self._config.drain_timeout)
        if not running.done():
            running.cancel()
            await asyncio.wait({running})

    async def _confirm(self, change: Change, confirmation: Action) -> ActionFailed | bool:
        """Ask whether the application has it: True, why not, or False once there is a newer version."""
        asking = asyncio.create_task(_run(confirmation, change), name="reload: confirm")
        newer = asyncio.create_task(self._newer_within(change, None), name="reload: newer")
        try:
            await asyncio.wait({asking, newer}, return_when=asyncio.FIRST_COMPLETED)
            # A question does no harm where it is cut off; for a newer version it is not worth the time.
            if not asking.done():
                return False
            return self._note_outcome(confirmation, change, asking) or True
        finally:
            for task in (asking, newer):
                task.cancel()
            await asyncio.wait({asking, newer})

    async def _may_retry(
        self, action: Action, change: Change, attempt: int, error: ActionFailed
    ) -> bool:
        """Wait for the next attempt; False once there is a newer version, or this one is given up."""
        left = self._deadline - asyncio.get_running_loop().time()
        rolls_back = self._rollback is not None and self._rollback.has_other_than(change.version)
        if error.refused or left <= 0:
            if self._reports is not None and not self._reported:
                self._reported = True
                self._reports.send(change, str(error))
            if rolls_back:
                _log.warning(
                    "%s; rolling back", self._failures[id(action)], extra={"event": "reload.failed"}
                )
                self._refusal = self._refusal or str(error)
                for waiting in self._waiting:
                    _wake(waiting)
                return False
        _log.warning(
            "%s; trying again", self._failures[id(action)], extra={"event": "reload.failed"}
        )
        pause = max(self._config.backoff(attempt), error.retry_after or 0.0)
        return not await self._newer_within(change, min(pause, left) if rolls_back else pause)

    async def _roll_back(self, rollback: Rollback, refused: Snapshot[None]) -> None:
        """Publish the confirmed version, until the watch sees another one than the refused."""
        change = Change(self._watch.path, refused.version, ())
        for attempt in itertools.count():
            pause = _SEEN_WITHIN
            try:
                confirmed = await rollback.publish(refused)
            except _errors.VersionConflict:
                pass  # another one is there already
            except _errors.SidecarError as error:
                metrics.RELOAD_TOTAL.labels(_ROLLBACK, "failed").inc()
                said = f"version {refused.version} of {change.path} was not rolled back: {error}"
                _log.error("%s", said)
                if not rollback.is_possible:
                    self._failures.pop(id(rollback), None)
                    return
                self._failures[id(rollback)] = said
                pause = self._config.backoff(attempt)
            else:
                metrics.RELOAD_TOTAL.labels(_ROLLBACK, "ok").inc()
                self._failures.pop(id(rollback), None)
                _log.warning(
                    "version %s of %s was rolled back to %s",
                    refused.version,
                    change.path,
                    confirmed,
                    extra={"event": "reload.rolled_back"},
                )
            if await self._newer_within(change, pause):
                self._failures.pop(id(rollback), None)
                return

    def _note_outcome(
        self, action: Action, change: Change, ended: asyncio.Task[None]
    ) -> ActionFailed | None:
        """Count how an action has ended, log its success; return why it has failed. Errors that are not its own are raised."""
        try:
            ended.result()
        except ActionFailed as error:
            metrics.RELOAD_TOTAL.labels(action.kind, "failed").inc()
            self._failures[id(action)] = (
                f"version {change.version} of {change.path} was not applied: {error}"
            )
            return error
        metrics.RELOAD_TOTAL.labels(action.kind, "ok").inc()
        self._failures.pop(id(action), None)
        _log.info(
            "version %s of %s: %s succeeded",
            change.version,
            change.path,
            action,
            extra={"event": "reload.succeeded"},
        )
        return None

    def _is_over(self, change: Change) -> bool:
        """Whether there is a newer version, or this one is given up."""
        snapshot = self._watch.snapshot
        newer = snapshot is not None and snapshot.version != change.version
        return newer or self._refusal is not None

    async def _newer_within(self, change: Change, seconds: float | None) -> bool:
        """Wait for a newer version, at most so long; whether there is one, or this one is given up."""
        try:
            async with asyncio.timeout(seconds):
                while not self._is_over(change):
                    await self._next_change()
        except TimeoutError:
            return False
        return True

    async def _next_change(self) -> None:
        changed = asyncio.get_running_loop().create_future()
        unsubscribe = self._watch.subscribe(lambda: _wake(changed))
        self._waiting.add(changed)
        try:
            await changed
        finally:
            self._waiting.discard(changed)
            unsubscribe()


async def _run(action: Action, change: Change) -> None:
    """Run an action, and have a span for this attempt. Its credentials, its output and its errors are in no attribute."""
    attributes = {"sidecar.action": str(action), "sidecar.version": change.version}
    with tracing.span(action.kind, attributes) as span:
        try:
            await action.run(change)
        except ActionFailed as error:
            tracing.set_error(span, "refused" if error.refused else "unavailable")
            raise


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


async def run(
    path: str | os.PathLike[str],
    actions: Sequence[Action],
    **options: Unpack[ReloaderOptions],
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
        confirm_timeout: seconds until it must; with `rollback_on_failure` also those that a version has to be applied.
        rollback_on_failure: whether to publish the last confirmed version again in place of one that the application
            refuses, or that is not applied in time. It is not tried again until another version comes.
            For a file, and for a set that was published as one.
        state_file: where to remember which version was confirmed and which refused, for the next start;
            by default beside the content, under a name that readers ignore.
        expand_to: a file, or a directory for a set, in which each version is published with its references expanded,
            before the actions: see docs/reload.md.
        storage: arguments of `sidecar.Volume` (`mode`, `group`, `keep`, `volume_budget` and others)
            for what is published: the rollback, and `expand_to`.
        splay: a window in seconds in which the Pods of a Deployment take a new version one after the other,
            by a hash of the Pod's name and the version.
        stop_url: an address that is asked before a new version is taken, and told when the application has refused it.
        ca_file: authorities (PEM) for `confirm_url` and `stop_url`, as for `Webhook`.
        token_file: file with a bearer token for both, as for `Webhook`.
        user: Basic credentials in place of it, with `password_file`.
        password_file: file with the password of `user`.
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
    await Reloader(path, actions, **options).run()
