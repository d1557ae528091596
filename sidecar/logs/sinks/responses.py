"""What came back from a receiver, and what follows from it: one of seven verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MAX_REASON_CHARS = 300
_RETRYABLE_STATUSES = frozenset({408, 409, 423, 425, 429})
_RECORD_STATUSES = frozenset({400, 422})
"""The only statuses that may mean a record. With any other 4xx the address, credentials, quota or licence is at fault:
waiting loudly loses nothing; refusing would bury every line."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    retry_after: float | None = None

    def __str__(self) -> str:
        text = " ".join(self.body[: 2 * _MAX_REASON_CHARS].decode("utf-8", "replace").split())[
            :_MAX_REASON_CHARS
        ]
        return f"HTTP {self.status}" + (f": {text}" if text else "")


@dataclass(frozen=True, slots=True)
class Accepted:
    """It has arrived."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Nothing was taken: the same again, after a pause."""

    reason: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class PayloadTooLarge:
    """To be sent in halves."""

    reason: str


@dataclass(frozen=True, slots=True)
class RecordRejected:
    """Something in it is refused: in halves, until what is refused stands alone and is given back."""

    reason: str


@dataclass(frozen=True, slots=True)
class PermanentlyRejected:
    """All of it is refused, and asking again is forbidden."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """Some of it is refused, and which is not said: the same again, a few times, then all of it is given back."""

    reason: str


@dataclass(frozen=True, slots=True)
class PartialResult:
    """An answer for each record: positions of those that are refused (and why), and of those to send again.

    With a `reason`, those are sent after a pause, else at once.
    """

    refused: Sequence[tuple[int, str]]
    again: Sequence[int]
    reason: str = ""
    after: float | None = None


Verdict = (
    Accepted
    | RetryLater
    | PayloadTooLarge
    | RecordRejected
    | PermanentlyRejected
    | Unclear
    | PartialResult
)


def classify_status(answer: Answer) -> Verdict:
    """Judge by the status alone, as most receivers mean it."""
    status = answer.status
    if 200 <= status < 300:
        return Accepted()
    if status in _RETRYABLE_STATUSES or status >= 500:
        return RetryLater(str(answer), answer.retry_after)
    if status == 413:
        return PayloadTooLarge(str(answer))
    if status in _RECORD_STATUSES:
        return RecordRejected(str(answer))
    return RetryLater(f"{answer} (check address and credentials)", answer.retry_after)


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the pause that a `Retry-After` asks for, in seconds (RFC 9110, 10.2.3); None for none or nonsense.

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
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
