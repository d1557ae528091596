"""Classify the response of a receiver: one of seven results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MAX_REASON_CHARS = 300
_RETRYABLE_STATUSES = frozenset({408, 409, 423, 425, 429})
_RECORD_STATUSES = frozenset({400, 422})
"""The only statuses that may refer to single records. Any other 4xx is a fault of address, credentials, quota or licence:
it is retried with a warning, since rejecting would send every line to the dead letters."""


@dataclass(frozen=True, slots=True)
class ReceiverResponse:
    """The response of a receiver."""

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
    """All records were accepted."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Nothing was accepted: retry the same request after a pause."""

    reason: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class PayloadTooLarge:
    """The request is too large: send it in halves."""

    reason: str


@dataclass(frozen=True, slots=True)
class RecordRejected:
    """Some record was rejected: send halves until the rejected record is alone."""

    reason: str


@dataclass(frozen=True, slots=True)
class PermanentlyRejected:
    """All records are rejected, and must not be retried."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """Some unnamed records were rejected: retry the same request a few times, then reject all of it."""

    reason: str


@dataclass(frozen=True, slots=True)
class PartialResult:
    """A result for each record: indexes of rejected records with the reasons, and of records to retry.

    With a `reason` the retry follows after a pause, else at once.
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


def classify_status(answer: ReceiverResponse) -> Verdict:
    """Classify a response by its status alone, as is right for most receivers."""
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
    """Return the seconds of a `Retry-After` header (RFC 9110, 10.2.3); None if it is missing or invalid.

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
