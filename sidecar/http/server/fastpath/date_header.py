"""The value of `Date`, which is the same for a second (RFC 9110 section 6.6.1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate


class DateHeader:
    """The second in which answers are given, from the first of them on; `over` is called at its end.

    A timer is armed by the first answer of a second, and by that alone: at rest nobody is woken.
    """

    __slots__ = ("_over", "date", "ends")

    def __init__(self, over: Callable[[], object]) -> None:
        self.date = b""
        """The value of `Date`; empty where the second has not begun, so that `begin` must be called."""
        self.ends = 0.0
        """When it is over, by the clock of the loop."""
        self._over = over

    def begin(self) -> bytes:
        """Begin it with the first answer, and return the value of `Date`."""
        now = time.time()
        loop = asyncio.get_running_loop()
        self.ends = loop.time() + 1.0 - now % 1.0
        loop.call_at(self.ends, self._end)
        self.date = formatdate(int(now), usegmt=True).encode()
        return self.date

    def _end(self) -> None:
        self.date = b""
        self._over()
