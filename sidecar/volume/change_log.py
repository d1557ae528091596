"""One line in the log for each change of a volume, and for each that was refused: what, how large, which version, for whom.

Under load it is one line a second for each file and kind of outcome, which says how many more there were:
thousands of publishes a second must not cost more for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from sidecar.process.logging import CLIENT

_log = logging.getLogger(__name__)
_EVERY = 1.0
_MOST = 1024


@dataclass(slots=True)
class _Recent:
    """What was said last of one outcome of one file, and what came since."""

    said: float
    more: int = 0
    last: str = ""


_recent: dict[tuple[str, str], _Recent] = {}


def note(outcome: str, where: str, detail: str, *, level: int = logging.INFO) -> None:
    """Log that `where` was published, refused, deleted, …; `detail` says the rest, in words."""
    if not _log.isEnabledFor(level):
        return
    now = time.monotonic()
    recent = _recent.get((outcome, where))
    if recent is not None and now - recent.said < _EVERY:
        recent.more += 1
        recent.last = detail
        if recent.more == 1:
            _later(outcome, where, level, recent.said + _EVERY - now)
        return
    if recent is not None:
        _sum_up(outcome, where, level)
    elif len(_recent) >= _MOST:
        _forget(now)
    _recent[outcome, where] = _Recent(now)
    _log.log(level, "%s %s: %s", outcome, where, f"{detail}{_client()}")


def _client() -> str:
    client = CLIENT.get()
    return "" if client is None else f", for {client}"


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters: it may come from anybody."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _later(outcome: str, where: str, level: int, seconds: float) -> None:
    with contextlib.suppress(RuntimeError):  # no loop runs here: the next one sums up
        asyncio.get_running_loop().call_later(seconds, _sum_up, outcome, where, level)


def _sum_up(outcome: str, where: str, level: int) -> None:
    recent = _recent.get((outcome, where))
    if recent is not None and recent.more:
        _log.log(
            level,
            "%s %s: %d more within %g s, the last: %s",
            outcome,
            where,
            recent.more,
            _EVERY,
            recent.last,
        )
        recent.said, recent.more = time.monotonic(), 0


def _forget(now: float) -> None:
    for key in [k for k, one in _recent.items() if not one.more and now - one.said > _EVERY]:
        del _recent[key]
    if len(_recent) >= _MOST:
        _recent.clear()
