"""The pauses between attempts: exponential backoff with jitter, and `Retry-After` (RFC 9110, 10.2.3)."""

from __future__ import annotations

import random
from datetime import UTC, datetime

_MIN_RETRY_AFTER_SECONDS = 0.05
_MAX_RETRY_AFTER_SECONDS = 300.0
"""Limit of the pause that a server can ask for."""


def exponential_backoff(attempt: int, shortest: float, longest: float) -> float:
    """Return the seconds to wait after the attempt of this number, from 0 on.

    The pause doubles from `shortest` up to `longest`; with jitter, so that many clients do not retry
    at the same time, it is at least half of that.

    >>> 0.25 <= exponential_backoff(0, 0.5, 30) <= 0.5, 15 <= exponential_backoff(1000, 0.5, 30) <= 30
    (True, True)
    """
    pause = min(shortest * 2.0 ** min(attempt, 32), longest)
    return pause * random.uniform(0.5, 1.0)  # noqa: S311


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds of a `Retry-After` header; None if it is missing or invalid.

    >>> parse_retry_after("120")
    120.0
    >>> parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT")
    0.0
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    from email.utils import parsedate_to_datetime  # here: it brings a dozen modules along

    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def requested_pause(after: float | None) -> float | None:
    """Return the pause for a `Retry-After`: five minutes at most, plus up to 10 % of jitter; None for None."""
    if after is None:
        return None
    bounded = min(max(after, _MIN_RETRY_AFTER_SECONDS), _MAX_RETRY_AFTER_SECONDS)
    return bounded * random.uniform(1.0, 1.1)  # noqa: S311
