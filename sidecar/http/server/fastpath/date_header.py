"""The value of `Date`, which is the same for a second (RFC 9110 section 6.6.1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate


class DateHeader:
    """The `Date` value of the current second; `on_expiry` is called when the second ends.

    The first response of a second arms the timer, so an idle server has no wake-ups.
    """

    __slots__ = ("_on_expiry", "date", "expires_at")

    def __init__(self, on_expiry: Callable[[], object]) -> None:
        self.date = b""
        """The value of `Date`; empty if no response was sent in this second yet: call `start`."""
        self.expires_at = 0.0
        """End of the second, on the event loop's clock."""
        self._on_expiry = on_expiry

    def start(self) -> bytes:
        """Start the current second and return the value of `Date`."""
        now = time.time()
        loop = asyncio.get_running_loop()
        self.expires_at = loop.time() + 1.0 - now % 1.0
        loop.call_at(self.expires_at, self._expire)
        self.date = formatdate(int(now), usegmt=True).encode()
        return self.date

    def _expire(self) -> None:
        self.date = b""
        self._on_expiry()
