"""Follow sources, and publish what they have as one set: complete, validated, and kept while a source is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import NamedTuple, cast

from sidecar import _errors
from sidecar.mirror import backoff
from sidecar.mirror.composition import Composition
from sidecar.mirror.records import MissingContent, SourceRecord
from sidecar.mirror.states import Alive, Source, SourceUnavailable, State
from sidecar.process import arguments, metrics
from sidecar.volume.volume import Volume

_log = logging.getLogger(__name__)

_HELD_SECONDS = 10.0
"""Pause before a held state is read again."""
_RETRY_SECONDS = 1.0
"""Pause before a publish is tried again that the volume refused."""


class Held(NamedTuple):
    """A state that is not believed yet."""

    reason: str
    """One of `metrics.MIRROR_HELD_REASONS`."""
    message: str
    token: str


class Followed:
    """A source, its accepted state, and how the connection to it is."""

    def __init__(self, source: Source, into: str = "") -> None:
        self.source = source
        self.record = SourceRecord(source.name, into)
        self.contact = time.monotonic()
        """When the source last showed that it is alive."""
        self.problem: str | None = None
        """Why it cannot be followed now."""
        self.held: Held | None = None
        """Why its newest state is not published."""
        self.since: str | None = None
        self.has_answered = False
        self.is_stale = False
        self.restart = asyncio.Event()
        """Set where contents are needed that were not kept."""

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def complaint(self) -> str | None:
        """Why readers do not have its newest state."""
        return self.problem if self.held is None else f"{self.name}: {self.held.message}"


class Mirror:
    """What `run` does, as an object that can be asked how it is; see there for the arguments.

    `into` are the directories on the volume for the files of each source, in the same order.

    >>> from sidecar.testing import ListSource
    >>> Mirror("/shared", [ListSource([])]).version is None
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sources: Sequence[Source],
        *,
        into: Sequence[str] = (),
        volume: Volume | None = None,
        shrink_limit: float = 0.5,
        allow_shrink: bool = False,
        allow_rewind: bool = False,
        stale_after: float = 60.0,
        once: bool = False,
        pause: Callable[[int, SourceUnavailable | None], float] = backoff.pause,
        held_pause: float = _HELD_SECONDS,
    ) -> None:
        self._volume = Volume(path) if volume is None else volume
        if not sources:
            raise _errors.ConfigError("there is nothing to mirror: give at least one source")
        prefixes = [*into, *[""] * (len(sources) - len(into))]
        self.followed = [Followed(*pair) for pair in zip(sources, prefixes, strict=True)]
        if not 0.0 <= shrink_limit <= 1.0:
            raise _errors.ConfigError(f"shrink_limit: {shrink_limit!r} is not between 0 and 1")
        self._shrink_limit = shrink_limit
        self._allow_shrink = arguments.check_flag("allow_shrink", allow_shrink)
        self._allow_rewind = arguments.check_flag("allow_rewind", allow_rewind)
        self._stale_after = arguments.check_seconds("stale_after", stale_after, zero=False)
        self._once = arguments.check_flag("once", once)
        self._pause = pause
        self._held_pause = held_pause
        self._composition = Composition(self._volume)
        self._accepted = asyncio.Event()
        self._accepted_states = self._published_states = 0
        self._completed = asyncio.Event()
        self._contacted = asyncio.Event()
        self._started = False
        self._problem: str | None = None

    def __repr__(self) -> str:
        names = ", ".join(one.name for one in self.followed)
        return f"<Mirror {self._volume.path} of {names}>"

    @property
    def started(self) -> bool:
        """Whether the volume has been looked at."""
        return self._started

    @property
    def version(self) -> str | None:
        """The version of the set on the volume, None before there is one."""
        return self._composition.version

    @property
    def problem(self) -> str | None:
        """Why readers do not have the newest state of every source; None while they do."""
        reasons = (self._problem, *(one.complaint for one in self.followed), *self.refused.values())
        return next(filter(None, reasons), None)

    @property
    def refused(self) -> dict[str, str]:
        """Why units are not published as their source has them, by their names."""
        return self._composition.refused

    @property
    def is_complete(self) -> bool:
        """Whether the newest state of every source is published, as far as it is not refused or held."""
        is_current = self._published_states == self._accepted_states
        records = [one.record for one in self.followed]
        return is_current and all(one.is_complete and one.is_settled for one in records)

    async def completed(self) -> None:
        """Wait until `is_complete` is true for the first time."""
        await self._completed.wait()

    async def run(self) -> None:
        """Mirror until it is cancelled, or with `once` until a state of every source is published."""
        _running.add(self)
        await self._volume.prepare()
        await self._composition.load()
        self._started = True
        for one in self.followed:
            one.contact = time.monotonic()
        tasks = [
            *(self._follow(one) for one in self.followed),
            self._publish_accepted(),
            self._tell_staleness(),
        ]
        try:
            await _run_together(tasks)
        except _Done:
            pass
        finally:
            _running.discard(self)

    async def _follow(self, one: Followed) -> None:
        """Follow a source for ever: each failure is followed by a pause and another try."""
        attempt = 0
        while True:
            before = one.contact
            error: SourceUnavailable | None = None
            try:
                await self._follow_once(one)
                reason = "ended"
            except SourceUnavailable as failure:
                error, reason = failure, "busy" if failure.busy else "unavailable"
                self._note_problem(one, str(failure))
            except TimeoutError:
                reason = "silent"
                self._note_problem(
                    one, f"{one.name} is silent: no sign of life for twice its interval"
                )
            except Exception as failure:  # noqa: BLE001 (said below)
                # An answer that nobody foresaw, or a mistake in a source: the others go on, and so does this one.
                reason = "failed"
                _log.debug("%s", one.name, exc_info=failure)
                self._note_problem(
                    one, f"{one.name}: unexpected {type(failure).__name__}: {failure}"
                )
            attempt = 0 if one.contact > before else attempt + 1
            metrics.MIRROR_RECONNECTS_TOTAL.labels(reason).inc()
            if one.held is not None:
                await asyncio.sleep(self._held_pause)
            elif reason != "ended" or attempt:
                await asyncio.sleep(self._pause(attempt, error))

    async def _follow_once(self, one: Followed) -> None:
        """Follow a source until its stream ends, contents are missing, or a state is held.

        Raises:
            TimeoutError: nothing came for twice the interval of the source.
        """
        one.restart.clear()
        stream = cast("AsyncGenerator[State | Alive, None]", one.source.follow(one.since))
        restart = asyncio.create_task(one.restart.wait())
        limit = None if one.source.interval is None else 2 * one.source.interval
        following: asyncio.Task[State | Alive | None] | None = None
        try:
            while True:
                following = asyncio.create_task(_next(stream))
                done, _ = await asyncio.wait(
                    {following, restart}, timeout=limit, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise TimeoutError
                if restart in done:
                    return
                found = following.result()
                if found is None or not self._take(one, found):
                    return
        finally:
            tasks = {restart} if following is None else {restart, following}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await stream.aclose()

    def _take(self, one: Followed, found: State | Alive) -> bool:
        """Take a state, or a sign of life, over; False if the source must be followed anew."""
        self._note_contact(one)
        if isinstance(found, Alive):
            return True
        if found.rescued:
            metrics.MIRROR_RESCUES_TOTAL.inc()
        try:
            if (held := self._reason_to_hold(one, found)) is not None:
                self._hold(one, held)
                return False
            one.record.accept(found)
        except MissingContent:
            one.since = None
            metrics.MIRROR_RELISTS_TOTAL.labels("content").inc()
            return False
        if one.held is not None:
            _log.info("%s is published again", one.name, extra={"event": "mirror.released"})
        one.held = None
        one.since = found.token
        self._accepted_states += 1
        self._accepted.set()
        return True

    def _hold(self, one: Followed, held: Held) -> None:
        if one.held is None:
            _log.warning(
                "%s: not published: %s", one.name, held.message, extra={"event": "mirror.held"}
            )
            metrics.MIRROR_VERSIONS_TOTAL.labels("held").inc()
        one.held, one.since = held, None

    def _reason_to_hold(self, one: Followed, state: State) -> Held | None:
        """Return why a state is not to be believed at once; None to accept it.

        An engine that lost its data, or was restored from a backup, must not take the files of an application away.
        What is allowed must be read twice.
        """
        is_confirmed = one.held is not None and one.held.token == state.token
        last = one.record.order
        went_back = last is not None and state.order is not None and state.order < last
        if went_back and not (self._allow_rewind and is_confirmed):
            return Held(
                "rewound",
                f"it went back from {last} to {state.order} (a restored backup, another server?);"
                " --allow-rewind publishes it",
                state.token,
            )
        before = one.record.files
        if not one.record.is_complete and not self._shares_directory(one):
            # After a start: what the process before this one has published.
            before = self._composition.files_in(one.record)
        count = one.record.file_count(state)
        shrunken = before > 0 and (count == 0 or count < before * self._shrink_limit)
        if shrunken and not (self._allow_shrink and is_confirmed):
            return Held(
                "shrunken",
                f"it has {count} files, and {before} are published (was it emptied?);"
                " --allow-shrink publishes it",
                state.token,
            )
        return None

    def _shares_directory(self, one: Followed) -> bool:
        """Return whether files in the directory of a source may be those of another one."""
        return any(
            other is not one and one.record.overlaps(other.record) for other in self.followed
        )

    async def _publish_accepted(self) -> None:
        """Publish whenever a state was accepted, the newest of each source; try again while that fails."""
        while True:
            await self._accepted.wait()
            self._accepted.clear()
            accepted = self._accepted_states
            try:
                await self._composition.publish([one.record for one in self.followed])
            except MissingContent:
                self._restart_all()
            except _errors.ContentRefused as error:
                # It is not signed as a whole: another state will be, or other keys are trusted later.
                if str(error) != self._problem:
                    metrics.MIRROR_VERSIONS_TOTAL.labels("refused").inc()
                    _log.warning("%s; the files stay", error)
                self._problem = str(error)
                await self._wait_for_state(self._held_pause)
            except (_errors.SidecarError, OSError) as error:
                self._problem = str(error)
                _log.warning("%s; trying again", error, extra={"event": "mirror.publish_failed"})
                await self._wait_for_state(_RETRY_SECONDS)
            else:
                self._problem, self._published_states = None, accepted
                if self.is_complete:
                    self._completed.set()
                    if self._once:
                        raise _Done

    def _restart_all(self) -> None:
        """Have all sources yield their contents again."""
        metrics.MIRROR_RELISTS_TOTAL.labels("content").inc()
        for one in self.followed:
            one.since = None
            one.restart.set()

    async def _wait_for_state(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._accepted.wait(), seconds)
        self._accepted.set()

    def _note_contact(self, one: Followed) -> None:
        one.contact = time.monotonic()
        if one.problem is not None:
            _log.info("%s answers again", one.name, extra={"event": "mirror.source_recovered"})
            one.problem = None
        if one.is_stale or not one.has_answered:
            one.has_answered = True
            self._contacted.set()

    def _note_problem(self, one: Followed, problem: str) -> None:
        if one.problem != problem:
            _log.warning(
                "%s; trying again, and the files stay",
                problem,
                extra={"event": "mirror.source_failing"},
            )
        one.problem = problem

    async def _tell_staleness(self) -> None:
        """Say on the volume when a source has not been heard of for `stale_after`, and when it is back.

        What the process before this one has said holds until each source has answered, or is stale again.
        """
        is_known = False
        while True:
            now = time.monotonic()
            stale = [one for one in self.followed if now - one.contact >= self._stale_after]
            is_told = [one for one in self.followed if one.is_stale] == stale
            has_begun = bool(stale) or all(one.has_answered for one in self.followed)
            failed = False
            if not is_told or (has_begun and not is_known):
                failed = not await self._write_source_state(stale)
            if not failed:
                is_known = is_known or has_begun
                for one in self.followed:
                    one.is_stale = one in stale
            fresh = [one.contact for one in self.followed if not one.is_stale]
            due = min(fresh, default=float("inf")) + self._stale_after - now
            self._contacted.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._contacted.wait(), _RETRY_SECONDS if failed else min(due, 3600.0)
                )

    async def _write_source_state(self, stale: Sequence[Followed]) -> bool:
        """Say which sources are stale; return whether that could be written."""
        reasons = {one.name: one.problem or "no sign of life" for one in stale}
        try:
            await self._volume.mark_source(reasons)
        except _errors.PublishError as error:
            _log.warning(
                "%s; readers do not know yet whether a source is stale",
                error,
                extra={"event": "mirror.mark_failed"},
            )
            return False
        for name, reason in reasons.items():
            _log.warning(
                "the source %s is stale: %s", name, reason, extra={"event": "mirror.source_stale"}
            )
        return True


_running: weakref.WeakSet[Mirror] = weakref.WeakSet()


def _update_metrics() -> None:
    """Set the gauges, over all mirrors of this process."""
    followed = [one for mirror in list(_running) for one in mirror.followed]
    now = time.monotonic()
    metrics.MIRROR_CONTACT_AGE_SECONDS.set(max((now - one.contact for one in followed), default=0))
    metrics.MIRROR_UNITS.set(sum(len(one.record.units) for one in followed))
    for reason in metrics.MIRROR_HELD_REASONS:
        held = [one for one in followed if one.held and one.held.reason == reason]
        metrics.MIRROR_HELD.labels(reason).set(len(held))


metrics.add_collector_hook(_update_metrics)


class _Done(Exception):
    """With `once`: everything is published."""


async def _run_together(works: Sequence[Awaitable[None]]) -> None:
    """Run all until one ends, then end the others; its error is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _next(stream: AsyncGenerator[State | Alive, None]) -> State | Alive | None:
    return await anext(stream, None)


async def run(
    path: str | os.PathLike[str],
    sources: Sequence[Source | str],
    *,
    volume: Volume | None = None,
    shrink_limit: float = 0.5,
    allow_shrink: bool = False,
    allow_rewind: bool = False,
    stale_after: float = 60.0,
    once: bool = False,
) -> None:
    """Publish what sources have to a directory, as one set, until this is cancelled.

    The present state of each source is published first, then each newer one. While a source is away its files stay.
    A state removes files only as a whole: one that is empty, that has lost most of its files, or that is older than
    the published one is held, and read again. A unit that the gate refuses, or whose names are taken,
    keeps the files that were published of it last; the others go on.

    Args:
        path: the directory; it is created.
        sources: addresses, as `sidecar mirror` takes them, or objects with the methods of `Source`.
        volume: the volume at `path`, where it has a gate or other settings.
        shrink_limit: share of the published files of a source below which a state is held.
        allow_shrink: publish such a state, after it was read twice.
        allow_rewind: publish a state that is older than the published one, after it was read twice.
        stale_after: seconds without a sign of life of a source after which readers are told that the content is stale.
        once: return when a state of every source is published.

    Raises:
        ConfigError: an argument makes no sense.

    >>> import asyncio, tempfile
    >>> from sidecar.testing import ListSource, state
    >>> with tempfile.TemporaryDirectory() as shared:
    ...     asyncio.run(run(shared, [ListSource([state({"a": "1"})])], once=True))
    """
    # Imported here: sources of one's own need no HTTP client.
    from sidecar.mirror.sources import factory

    placed = [
        factory.make_source(one) if isinstance(one, str) else factory.Placed(one, "")
        for one in sources
    ]
    await Mirror(
        path,
        [one.source for one in placed],
        into=[one.into for one in placed],
        volume=volume,
        shrink_limit=shrink_limit,
        allow_shrink=allow_shrink,
        allow_rewind=allow_rewind,
        stale_after=stale_after,
        once=once,
    ).run()
