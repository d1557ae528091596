"""Group commit: of the contents that wait for one name, the last is published, then all are acknowledged.

A publish costs two syncs of the disk, and while they run further contents arrive.
Each of these would be replaced by the next one before anybody could read it,
so only the last is written: with 64 clients one pair of syncs serves them all.
An acknowledgement keeps its meaning: this content, or one that was published after it, is visible and durable.

Contents with conditions, and those of a dry run, are never grouped: each of them asks for the state before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from sidecar.volume.content import snapshot
from sidecar.volume.publish.models import Publication

_log = logging.getLogger(__name__)

Publish = Callable[[str, bytes], Coroutine[Any, Any, Publication]]
AtOnce = Callable[[str, bytes], Publication | None]
"""Publishes without a wait, where that is possible; None: it has to be waited for, and nothing has begun."""
_MOST_TURNS = 32

Outcome: TypeAlias = Publication | BaseException
"""What became of a content; `CancelledError` if it was withdrawn, or given up with the whole program."""


class PendingWrite:
    """A content that is to be published, and who is told what became of it."""

    __slots__ = ("data", "given_up", "name", "tell")

    def __init__(self, name: str, data: bytes, tell: Callable[[Outcome], None]) -> None:
        self.name = name
        self.data = data
        self.tell = tell
        self.given_up = False


class GroupCommit:
    """The contents that wait, by name, and the one publish a name that is under way."""

    def __init__(self, publish: Publish, at_once: AtOnce = lambda *_: None) -> None:
        self._publish = publish
        self._at_once = at_once
        self._waiting: dict[str, list[PendingWrite]] = {}
        self._rounds: dict[str, _Batch] = {}

    def __repr__(self) -> str:
        return f"<Commits waiting={sum(map(len, self._waiting.values()))}>"

    def wish(self, name: str, data: bytes, tell: Callable[[Outcome], None]) -> PendingWrite:
        """Publish a content, or let a later one do for it, and `tell` what became of it, once, on the loop."""
        wish = PendingWrite(name, data, tell)
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = []
        waiting.append(wish)
        if name not in self._rounds:
            self._begin(name)
        return wish

    def withdraw(self, wish: PendingWrite) -> None:
        """Give a wish up. One that still waits is never written, and told at once that it was cancelled.

        So is one under way that nobody else waits for, unless it is visible by then: it is told when that is known.
        """
        waiting = self._waiting.get(wish.name, [])
        if wish in waiting:
            waiting.remove(wish)
            wish.tell(asyncio.CancelledError())
            return
        wish.given_up = True
        one = self._rounds.get(wish.name)
        # It may have been told already, and the next round have begun.
        if one is not None and wish in one.wishes and all(other.given_up for other in one.wishes):
            one.publish.cancel()

    async def put(self, name: str, data: bytes) -> Publication:
        """Publish a content, or let a later one do for it. If this is cancelled, it is withdrawn."""
        answer: asyncio.Future[Publication] = asyncio.get_running_loop().create_future()
        wish = self.wish(name, data, lambda outcome: _settle(answer, outcome))
        try:
            await asyncio.wait({answer})
        except asyncio.CancelledError as cancelled:
            self.withdraw(wish)
            while not answer.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({answer})
            error = answer.exception()
            raise cancelled from (None if isinstance(error, asyncio.CancelledError) else error)
        return answer.result()

    def _begin(self, name: str) -> None:
        one = self._rounds[name] = _Batch()
        one.publish = asyncio.create_task(self._run(name, one), name=f"publish {name}")
        one.publish.add_done_callback(lambda task: self._give_up(name, one, task))

    async def _run(self, name: str, one: _Batch) -> None:
        """Publish what waits, and tell what became of it: a turn of the loop earlier than once the task is done."""
        outcome: Outcome | None
        try:
            outcome = await self._publish_last(name, one)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer)
            outcome = error
        self._end(name, one, outcome)

    async def _publish_last(self, name: str, one: _Batch) -> Publication | None:
        """Publish what waits, once a turn of the loop has brought no more.

        Clients that have just been answered come back within a few turns, and are served by the same pair of syncs;
        one that is alone waits for one turn, some hundredths of a millisecond.
        """
        known = 0
        for _ in range(_MOST_TURNS):
            if known == (known := len(self._waiting.get(name, ()))):
                break
            await asyncio.sleep(0)
        one.wishes = self._waiting.pop(name, [])
        if not one.wishes:
            return None
        data = one.wishes[-1].data
        # Where many come, the loop goes on to read what comes next while a thread publishes: the groups are larger for it.
        done = self._at_once(name, data) if len(one.wishes) == 1 else None
        return done or await self._publish(name, data)

    def _give_up(self, name: str, one: _Batch, task: asyncio.Task[None]) -> None:
        """End a round that was cancelled."""
        if self._rounds.get(name) is not one:
            return
        # With the whole program, before it began: nothing has been taken from those who wait.
        one.wishes = one.wishes or self._waiting.pop(name, [])
        outcome: Outcome | None = None
        try:
            task.result()
        except asyncio.CancelledError as cancelled:
            outcome = cancelled.__cause__ or cancelled
        self._end(name, one, outcome)

    def _end(self, name: str, one: _Batch, outcome: Outcome | None) -> None:
        _tell(one.wishes, outcome)
        # Only now: whoever was told may have wished again.
        del self._rounds[name]
        if self._waiting.get(name):
            self._begin(name)


class _Batch:
    """The wishes that one publish fulfils: all that wait when it begins."""

    __slots__ = ("publish", "wishes")

    publish: asyncio.Task[None]

    def __init__(self) -> None:
        self.wishes: list[PendingWrite] = []


def _tell(wishes: list[PendingWrite], done: Outcome | None) -> None:
    """Tell everybody what became of a publish; None: that it was cancelled."""
    for wish in wishes:
        if isinstance(done, Publication):
            outcome: Outcome = done if wish is wishes[-1] else _replaced(wish.data, done)
        else:
            outcome = done or asyncio.CancelledError()
        try:
            wish.tell(outcome)
        except Exception:  # noqa: BLE001 (logged)
            # One who stumbles over the answer must not keep it from the others.
            _log.exception("cannot answer a publish of %s", wish.name)


def _settle(answer: asyncio.Future[Publication], outcome: Outcome) -> None:
    if isinstance(outcome, Publication):
        answer.set_result(outcome)
    else:
        answer.set_exception(outcome)
        answer.exception()


def _replaced(data: bytes, by: Publication) -> Publication:
    """Return the publication of a content that another one has replaced at once."""
    version = snapshot.version_of(data)
    return Publication(version, version != by.version, False, by.modified, len(data))
