"""Group commit: of the contents that wait for one name, the last is published, then all are acknowledged.

A publish costs two syncs of the disk, and while they run further contents arrive.
Each of these would be replaced by the next one before anybody could read it,
so only the last is written: with 64 clients one pair of syncs serves them all.
An acknowledgement keeps its meaning: this content, or one that was published after it, is visible and durable.

Contents with conditions, and those of a dry run, are never grouped: each of them asks for the state before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sidecar.volume import snapshot as snapshots
from sidecar.volume.terms import Publication

Publish = Callable[[str, bytes], Awaitable[Publication]]


@dataclass(eq=False, slots=True)
class _Wish:
    """A content, and the answer that its caller waits for."""

    data: bytes
    answer: asyncio.Future[Publication]


class Commits:
    """The contents that wait, by name, and the one publish a name that is under way."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._waiting: dict[str, list[_Wish]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Commits waiting={sum(map(len, self._waiting.values()))}>"

    async def put(self, name: str, data: bytes) -> Publication:
        """Publish a content, or let a later one do for it.

        If this is cancelled, a content that still waits is withdrawn; one under way is waited for.
        """
        wish = _Wish(data, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(name, []).append(wish)
        if name not in self._running:
            self._running[name] = asyncio.create_task(self._run(name), name=f"commit {name}")
        try:
            await asyncio.wait({wish.answer})
        except asyncio.CancelledError:
            if wish in (waiting := self._waiting.get(name, [])):
                waiting.remove(wish)
            else:
                await _ended(wish.answer)
            raise
        return wish.answer.result()

    async def _run(self, name: str) -> None:
        """Publish what waits, round after round, until nothing does."""
        try:
            while wishes := self._waiting.pop(name, None):
                await self._commit(name, wishes)
        finally:
            self._running.pop(name, None)

    async def _commit(self, name: str, wishes: list[_Wish]) -> None:
        last = wishes[-1]
        try:
            done = await self._publish(name, last.data)
        except BaseException as error:  # whatever it is, nobody may be left waiting
            for wish in wishes:
                wish.answer.set_exception(error)
                wish.answer.exception()  # one whose caller was cancelled is asked by nobody else
            if not isinstance(error, Exception):
                raise
            return
        for wish in wishes:
            wish.answer.set_result(done if wish is last else _replaced(wish.data, done))


def _replaced(data: bytes, by: Publication) -> Publication:
    """Return the publication of a content that another one has replaced at once."""
    version = snapshots.version_of(data)
    return Publication(version, version != by.version, False, by.modified, len(data))


async def _ended(answer: asyncio.Future[Publication]) -> None:
    """Wait through however many further cancellations; the first one is on its way already."""
    while not answer.done():
        try:
            await asyncio.wait({answer})
        except asyncio.CancelledError:
            continue
    answer.exception()
