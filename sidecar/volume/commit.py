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
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from sidecar.volume import snapshot as snapshots
from sidecar.volume.terms import Publication

Publish = Callable[[str, bytes], Coroutine[Any, Any, Publication]]


@dataclass(eq=False, slots=True)
class _Wish:
    """A content, and the answer that its caller waits for until it gives up."""

    data: bytes
    answer: asyncio.Future[Publication]
    given_up: bool = False


@dataclass(eq=False, slots=True)
class _Round:
    """The wishes that one publish fulfils."""

    wishes: list[_Wish]
    publish: asyncio.Task[Publication]

    def end(self) -> None:
        """Answer everybody. One whose caller has gone is asked by nobody else, so its error counts as seen."""
        try:
            done = self.publish.result()
        except asyncio.CancelledError as cancelled:
            self._fail(cancelled.__cause__ or cancelled)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer)
            self._fail(error)
        else:
            for wish in self.wishes:
                last = wish is self.wishes[-1]
                wish.answer.set_result(done if last else _replaced(wish.data, done))

    def _fail(self, error: BaseException) -> None:
        for wish in self.wishes:
            wish.answer.set_exception(error)
            wish.answer.exception()


class Commits:
    """The contents that wait, by name, and the one publish a name that is under way."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._waiting: dict[str, list[_Wish]] = {}
        self._rounds: dict[str, _Round] = {}

    def __repr__(self) -> str:
        return f"<Commits waiting={sum(map(len, self._waiting.values()))}>"

    async def put(self, name: str, data: bytes) -> Publication:
        """Publish a content, or let a later one do for it.

        If this is cancelled, a content that still waits is withdrawn;
        so is one under way that nobody else waits for, unless it is visible by then.
        """
        wish = _Wish(data, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(name, []).append(wish)
        if name not in self._rounds:
            self._begin(name)
        try:
            await asyncio.wait({wish.answer})
        except asyncio.CancelledError as cancelled:
            await self._give_up(name, wish)
            error = wish.answer.exception() if wish.answer.done() else None
            raise cancelled from (None if isinstance(error, asyncio.CancelledError) else error)
        return wish.answer.result()

    def _begin(self, name: str) -> None:
        """Start the publish of what waits, if anything does."""
        wishes = self._waiting.pop(name, None)
        if not wishes:
            return
        task = asyncio.create_task(self._publish(name, wishes[-1].data), name=f"publish {name}")
        one = self._rounds[name] = _Round(wishes, task)
        task.add_done_callback(lambda _: self._ended(name, one))

    def _ended(self, name: str, one: _Round) -> None:
        del self._rounds[name]
        one.end()
        self._begin(name)

    async def _give_up(self, name: str, wish: _Wish) -> None:
        """Withdraw a wish, or wait for the end of the round that it is in."""
        if wish in (waiting := self._waiting.get(name, [])):
            waiting.remove(wish)
            return
        wish.given_up = True
        one = self._rounds.get(name)
        if one is not None and all(other.given_up for other in one.wishes):
            one.publish.cancel()
        while not wish.answer.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({wish.answer})


def _replaced(data: bytes, by: Publication) -> Publication:
    """Return the publication of a content that another one has replaced at once."""
    version = snapshots.version_of(data)
    return Publication(version, version != by.version, False, by.modified, len(data))
