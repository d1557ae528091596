"""Counts responses sent without aiohttp. The event loop increments plain integers; a scrape adds them to the metrics."""

from __future__ import annotations

import threading

from sidecar.process import metrics


class ResponseCounter:
    """Responses of one status code sent from the fast path. The value only grows, and another thread may read it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


_COUNTS: dict[str, ResponseCounter] = {}
_flushed: dict[str, int] = {}
_flush_lock = threading.Lock()


def get_counter(code: str) -> ResponseCounter:
    """Return the counter of a status code."""
    return _COUNTS.setdefault(code, ResponseCounter())


def count(code: str) -> None:
    """Count a response that was sent without aiohttp."""
    get_counter(code).value += 1


def _flush_counters() -> None:
    """Add the counts since the last scrape to the metrics.

    Incrementing a Prometheus counter for each response would be measurable.
    This runs in another thread than the event loop: the values only grow and are never reset.
    """
    with _flush_lock:
        for code, counter in list(_COUNTS.items()):
            value = counter.value
            metrics.HTTP_REQUESTS_TOTAL.labels(code).inc(value - _flushed.get(code, 0))
            _flushed[code] = value


metrics.add_collector_hook(_flush_counters)
