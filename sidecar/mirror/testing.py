"""A source that is a list: what tests of a mirror, or of the program around it, need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from sidecar.mirror.states import Alive, State, Unit


class ListSource:
    """A source that yields what it is given, in order, and then waits for more. An exception in the list is raised.

    >>> import asyncio
    >>> from sidecar import mirror
    >>> from sidecar.testing import temporary_volume
    >>> async def main() -> None:
    ...     async with temporary_volume() as volume:
    ...         source = ListSource([state({"greeting.txt": "hello"})])
    ...         await mirror.Mirror(volume.path, [source], once=True).run()
    ...         print((await volume.snapshot()).text("greeting.txt"))
    >>> asyncio.run(main())
    hello
    """

    def __init__(
        self,
        items: list[State | Alive | Exception],
        *,
        name: str = "list",
        interval: float | None = None,
    ) -> None:
        self.name = name
        self.interval = interval
        self.since: list[str | None] = []
        """With what each `follow` was called."""
        self._items = list(items)
        self._added = asyncio.Event()

    def add(self, *items: State | Alive | Exception) -> None:
        """Yield more."""
        self._items.extend(items)
        self._added.set()

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield what has not been yielded yet."""
        self.since.append(since)
        while True:
            while self._items:
                item = self._items.pop(0)
                if isinstance(item, Exception):
                    raise item
                yield item
            self._added.clear()
            await self._added.wait()


def state(
    files: Mapping[str, bytes | str], *, order: int | None = None, token: str | None = None
) -> State:
    """Return a state of one unit with these files.

    >>> state({"a": "1"}).units[""].files
    {'a': b'1'}
    """
    data = {name: one.encode() if isinstance(one, str) else one for name, one in files.items()}
    version = repr(sorted(data.items()))
    return State({"": Unit(version, data)}, token if token is not None else version, order)
