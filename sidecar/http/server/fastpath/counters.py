"""How many answers were given without aiohttp: numbers that the event loop counts up, and a scrape hands in."""

from __future__ import annotations

import threading

from sidecar.process import metrics


class Counter:
    """How many answers of one code the lane has given. It only grows, and another thread may read it."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


_COUNTS: dict[str, Counter] = {}
_handed_in: dict[str, int] = {}
_handing_in = threading.Lock()


def of(code: str) -> Counter:
    """Return where answers of this code are counted."""
    return _COUNTS.setdefault(code, Counter())


def count(code: str) -> None:
    """Count an answer that was given without aiohttp."""
    of(code).number += 1


def _hand_in() -> None:
    """Add to the metrics what was counted here, where one more call a request would be felt.

    It runs in a thread beside the loop that counts: the numbers only grow, and are never taken away from it.
    """
    with _handing_in:
        for code, one in list(_COUNTS.items()):
            number = one.number
            metrics.HTTP_REQUESTS_TOTAL.labels(code).inc(number - _handed_in.get(code, 0))
            _handed_in[code] = number


metrics.add_collector_hook(_hand_in)
