"""Log each change of a volume, and each rejected change, in one line: outcome, size, version, client.

Under load, only one line per second is logged for each file and outcome, with the number of further changes,
so that logging stays cheap at thousands of publishes per second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from sidecar.process import request_context

_log = logging.getLogger(__name__)
_SUMMARY_INTERVAL = 1.0
_MAX_RECENT = 1024


@dataclass(slots=True)
class _Recent:
    """The last logged line for one outcome of one file, and the changes since."""

    logged_at: float
    suppressed: int = 0
    last: tuple[str, tuple[object, ...]] = ("", ())
    """The message of the last of them and its arguments."""


_recent: dict[tuple[str, str], _Recent] = {}


def note(outcome: str, where: str, detail: str, *args: object, level: int = logging.INFO) -> None:
    """Log that `where` was published, refused, deleted, …; `detail % args` is the rest of the message."""
    if not _log.isEnabledFor(level):
        return
    now = time.monotonic()
    recent = _recent.get((outcome, where))
    if recent is not None and now - recent.logged_at < _SUMMARY_INTERVAL:
        recent.suppressed += 1
        recent.last = detail, args
        if recent.suppressed == 1:
            _schedule_summary(outcome, where, level, recent.logged_at + _SUMMARY_INTERVAL - now)
        return
    if recent is not None:
        _log_summary(outcome, where, level)
    elif len(_recent) >= _MAX_RECENT:
        _prune(now)
    _recent[outcome, where] = _Recent(now)
    _log.log(
        level,
        "%s %s: %s%s",
        outcome,
        where,
        _format(detail, args),
        _client(),
        extra=_event(outcome),
    )


def _event(outcome: str) -> dict[str, str]:
    return {"event": "content.changed", "outcome": outcome}


def _format(detail: str, args: tuple[object, ...]) -> str:
    return detail % args if args else detail


def _client() -> str:
    request = request_context.CURRENT.get()
    return "" if request is None else f", for {request}"


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters, because it may be untrusted."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _schedule_summary(outcome: str, where: str, level: int, seconds: float) -> None:
    with contextlib.suppress(
        RuntimeError
    ):  # no running event loop: the next change logs the summary
        asyncio.get_running_loop().call_later(seconds, _log_summary, outcome, where, level)


def _log_summary(outcome: str, where: str, level: int) -> None:
    recent = _recent.get((outcome, where))
    if recent is not None and recent.suppressed:
        _log.log(
            level,
            "%s %s: %d more within %g s, the last: %s",
            outcome,
            where,
            recent.suppressed,
            _SUMMARY_INTERVAL,
            _format(*recent.last),
            extra=_event(outcome),
        )
        recent.logged_at, recent.suppressed = time.monotonic(), 0


def _prune(now: float) -> None:
    for key in [
        k
        for k, entry in _recent.items()
        if not entry.suppressed and now - entry.logged_at > _SUMMARY_INTERVAL
    ]:
        del _recent[key]
    if len(_recent) >= _MAX_RECENT:
        _recent.clear()
