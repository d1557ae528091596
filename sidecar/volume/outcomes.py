"""How attempts to change a volume end: each is counted once, is a line of the log and of the audit log, and has a span."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Literal

from sidecar import _errors
from sidecar.process import audit, metrics, tracing
from sidecar.volume import change_log
from sidecar.volume.publish.models import Publication

Event = Literal["publish", "delete", "purge", "rollback"]
"""What was attempted, as the audit log names it."""

#: The label lookup is cached: thousands of publishes per second are counted.
_PUBLISHED, _UNCHANGED, _DELETED = map(
    metrics.PUBLISH_TOTAL.labels, ("published", "unchanged", "deleted")
)
#: Results that are the fault of the volume or of the program.
_ERRORS: Final = ("failed", "uncertain")
_DONE: Final = {"publish": "published", "rollback": "rolled back"}


@dataclass(slots=True)
class Attempt:
    """An attempt that has begun. A dry run is neither counted nor logged."""

    event: Event
    where: str
    """The path of the file, or of the directory of the set."""
    user: str | None
    """Who publishes, if no request tells it."""
    dry_run: bool = False
    _started: float = field(default_factory=time.perf_counter)

    def span(self) -> AbstractContextManager[tracing.Span | None]:
        """Return a span for the attempt, None without tracing."""
        name = "delete" if self.event in ("delete", "purge") else "publish"
        attributes = {"file.path": self.where, "sidecar.dry_run": self.dry_run or None}
        return tracing.span(name, attributes, kind="producer")

    def end(self, outcome: Publication | BaseException) -> None:
        """Count and log a completed or failed publish; record its duration if it succeeded."""
        if not isinstance(outcome, Publication):
            count_failure(
                outcome, self.where, event=self.event, user=self.user, dry_run=self.dry_run
            )
            return
        if self.dry_run:
            return
        (_PUBLISHED if outcome.changed else _UNCHANGED).inc()
        metrics.PUBLISH_SECONDS.observe(time.perf_counter() - self._started)
        if outcome.changed:
            change_log.note(
                _DONE.get(self.event, self.event),
                self.where,
                "%d bytes, version %s",
                outcome.size,
                outcome.version,
            )
        if audit.is_enabled():
            audit.record(
                self.event,
                "published" if outcome.changed else "unchanged",
                self.where,
                user=self.user,
                version=outcome.version,
                size=outcome.size,
                previous_version=outcome.replaced,
                previous_size=outcome.replaced_size,
            )

    def end_delete(self, version: str | None, size: int | None) -> None:
        """Count and log a completed delete; version and size are those of the deleted file."""
        if self.dry_run:
            return
        _DELETED.inc()
        history = "with its history" if self.event == "purge" else "its history stays"
        change_log.note("deleted", self.where, history)
        audit.record(
            self.event,
            "deleted",
            self.where,
            user=self.user,
            previous_version=version,
            previous_size=size,
        )


def count_failure(
    error: BaseException,
    where: str,
    *,
    event: Event = "publish",
    user: str | None = None,
    dry_run: bool = False,
    once: bool = False,
) -> None:
    """Count a failed attempt, and log the reason.

    With `once`, an error that was already counted is skipped. Without it, each caller of a group commit is counted,
    although all get the same error.
    """
    result = _result(error)
    if not isinstance(error, _errors.SidecarError):
        if not dry_run:
            metrics.PUBLISH_TOTAL.labels(result).inc()
            audit.record(event, result, where, user=user, reason=type(error).__name__)
        return
    if not dry_run and not (once and error.counted):
        metrics.PUBLISH_TOTAL.labels(result).inc()
        level = logging.WARNING if result in _ERRORS else logging.INFO
        reason = change_log.one_line(str(error))
        change_log.note(result, where, reason, level=level)
        audit.record(event, result, where, user=user, reason=reason)
    error.counted = True


def describe_outcome(
    span: tracing.Span | None, outcome: Publication | BaseException | None
) -> None:
    """Add the outcome of an attempt to its span; None: a loose file was deleted."""
    if span is None:
        return
    if isinstance(outcome, BaseException):
        result = _result(outcome)
        tracing.set_attributes(span, {"sidecar.result": result})
        if result in _ERRORS:
            tracing.set_error(span, type(outcome).__name__)
    elif outcome is None:
        tracing.set_attributes(span, {"sidecar.result": "deleted"})
    else:
        changed = "published" if outcome.changed else "unchanged"
        about = {"sidecar.version": outcome.version, "sidecar.result": changed}
        tracing.set_attributes(span, {"file.size": outcome.size, **about})


def _result(error: BaseException) -> str:
    match error:
        case asyncio.CancelledError() | ConnectionError():
            return "cancelled"
        case _errors.PublishUncertain():
            return "uncertain"
        case _errors.VersionConflict():
            return "conflict"
        case _errors.ContentRefused() | _errors.NameRefused():
            return "refused"
        case _errors.FileMissing() | _errors.UnknownVersion():
            return "missing"
        case _:
            return "failed"
