"""How long to wait before a source is asked again."""

from __future__ import annotations

import random

from sidecar.mirror.states import SourceUnavailable

_FIRST_SECONDS = 0.1
_LONGEST_SECONDS = 2.0
_LONGEST_BUSY_SECONDS = 30.0
_LONGEST_RETRY_AFTER_SECONDS = 300.0


def spread() -> float:
    """Return a random factor between 0.9 and 1, so that a fleet does not ask at the same moment.

    >>> 0.9 <= spread() <= 1
    True
    """
    return random.uniform(0.9, 1.0)  # noqa: S311


def pause(attempt: int, error: SourceUnavailable | None = None) -> float:
    """Return the seconds to wait after the failure of this number, from 0 on: at random, so that a fleet spreads.

    A refused connection costs a server nothing, so the pauses end at 2 s; a server that has too much to do
    is left alone for up to 30 s, and at least as long as it says (`Retry-After`), at most 5 minutes.

    >>> 0 <= pause(0) <= 0.1, 0 <= pause(50) <= 2
    (True, True)
    >>> 7 <= pause(0, SourceUnavailable("429", retry_after=7, busy=True)) <= 9
    True
    """
    busy = error is not None and error.busy
    longest = _LONGEST_BUSY_SECONDS if busy else _LONGEST_SECONDS
    own = random.uniform(0.0, min(_FIRST_SECONDS * 2.0 ** min(attempt, 16), longest))  # noqa: S311 (it spreads a fleet, and hides nothing)
    asked = error.retry_after if error is not None and error.retry_after is not None else 0.0
    if asked > 0:
        asked = min(asked, _LONGEST_RETRY_AFTER_SECONDS)
        # As many clients were told the same second.
        own = max(own, asked + random.uniform(0.0, min(asked / 4, 10.0)))  # noqa: S311
    return own
