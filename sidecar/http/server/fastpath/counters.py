"""Counts responses sent without aiohttp. The event loop increments plain integers; a scrape adds them to the metrics."""

from __future__ import annotations

import threading

from sidecar.process import metrics


class ResponseCounter:
    """Responses of one status code and route sent from the fast path. The value only grows, and another thread may read it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


_COUNTS: dict[tuple[str, ...], ResponseCounter] = {}
"""By status code alone, or by status code, method and route."""
_flushed: dict[tuple[str, ...], int] = {}
_flush_lock = threading.Lock()


def get_counter(code: str, *route: str) -> ResponseCounter:
    """Return the counter of a status code.

    Responses that are counted with a `route` (`durations.labels`) are sent at once, without waiting for anything:
    they belong to the first bucket of durations without being measured.
    """
    return _COUNTS.setdefault((code, *route), ResponseCounter())


def count(code: str) -> None:
    """Count a response that was sent without aiohttp."""
    get_counter(code).value += 1


def _flush_counters() -> None:
    """Add the counts since the last scrape to the metrics.

    Incrementing a Prometheus counter for each response would be measurable.
    This runs in another thread than the event loop: the values only grow and are never reset.
    """
    with _flush_lock:
        for key, counter in list(_COUNTS.items()):
            value = counter.value
            new = value - _flushed.get(key, 0)
            _flushed[key] = value
            code, *route = key
            metrics.HTTP_REQUESTS_TOTAL.labels(code).inc(new)
            if route:
                metrics.HTTP_REQUEST_DURATION_SECONDS.add_shortest(new, *route)


metrics.add_collector_hook(_flush_counters)
