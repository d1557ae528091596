"""A limit of failed logins: requests with a wrong bearer token, by address and in total.

A right token is always accepted, so nobody can lock its holder out, neither from the same address nor by many.
Beyond the limit a wrong one gets 429, and its connection is closed: each further guess costs a handshake.
What needs no token is answered nevertheless, since a probe must not fail for the token that it shows; its connection is closed, too.
That makes no short token safe; 128 random bits need no limit at all.

The address is that of the connection: headers such as `X-Forwarded-For` come from the client.
IPv6 counts by /64, the smallest network that is assigned.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

BURST_PER_ADDRESS: Final = 10
"""Failed logins of an address before the first 429."""
BURST_IN_TOTAL: Final = 100
REFILL_SECONDS: Final = 60.0
"""Seconds in which as many are permitted again."""
MAX_ADDRESSES: Final = 4096
"""Addresses that are remembered; the one that failed longest ago is forgotten."""


class FailedLogins:
    """Token buckets of failed logins.

    >>> failed = FailedLogins(clock=lambda: 0.0)
    >>> [failed.note("192.0.2.1") for _ in range(10)] == [0] * 10
    True
    >>> failed.note("192.0.2.1"), failed.note("192.0.2.2")
    (6, 0)
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = (float(BURST_IN_TOTAL), clock())
        self._by_address: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What is left of the burst of an address, and when that was."""

    def __repr__(self) -> str:
        return f"<FailedLogins addresses={len(self._by_address)}>"

    def note(self, address: str | None) -> int:
        """Count a failed login; return 0 within the limit, else the seconds until another one is permitted."""
        key, now = network_of(address), self._clock()
        left = _refill(
            self._by_address.pop(key, (float(BURST_PER_ADDRESS), now)), now, BURST_PER_ADDRESS
        )
        total = _refill(self._total, now, BURST_IN_TOTAL)
        wait = 0
        if left < 1 or total < 1:
            waits = ((1 - left) / BURST_PER_ADDRESS, (1 - total) / BURST_IN_TOTAL)
            wait = max(1, math.ceil(max(waits) * REFILL_SECONDS))
        else:
            left, total = left - 1, total - 1
        self._by_address[key], self._total = (left, now), (total, now)
        if len(self._by_address) > MAX_ADDRESSES:
            self._by_address.popitem(last=False)
        return wait


def network_of(address: str | None) -> str:
    """Return what an address counts as.

    >>> network_of("2001:db8::1"), network_of("::ffff:192.0.2.1"), network_of(None)
    ('2001:db8::/64', '192.0.2.1', 'unix')
    """
    if not address:
        return "unix"
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), 64), strict=False))


def _refill(bucket: tuple[float, float], now: float, burst: int) -> float:
    left, then = bucket
    return min(float(burst), left + (now - then) * burst / REFILL_SECONDS)
