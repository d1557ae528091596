"""Classify the response of a receiver: one of seven results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
