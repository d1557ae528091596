"""Tell how a publish ended: in the metrics, in the log, and in its span."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractContextManager

from sidecar import _errors
from sidecar.process import metrics, tracing
from sidecar.volume import change_log
from sidecar.volume.publish.group_commit import Outcome
from sidecar.volume.publish.models import Publication

#: The label lookup is cached: thousands of publishes per second are counted.
_PUBLISHED, _UNCHANGED, DELETED = map(
    metrics.PUBLISH_TOTAL.labels, ("published", "unchanged", "deleted")
)


#: Results that are the fault of the volume or of the program.
_ERRORS = ("failed", "uncertain")


def count_result(outcome: Outcome, where: str, started: float, done: str = "published") -> None:
    """Count a completed or failed publish; record its duration if it succeeded."""
    if not isinstance(outcome, Publication):
        count_failure(outcome, where)
        return
    (_PUBLISHED if outcome.changed else _UNCHANGED).inc()
    metrics.PUBLISH_SECONDS.observe(time.perf_counter() - started)
    if outcome.changed:
        change_log.note(done, where, "%d bytes, version %s", outcome.size, outcome.version)


def count_failure(
    error: BaseException, where: str, *, dry_run: bool = False, once: bool = False
) -> None:
    """Count a failed publish or delete, and log the reason.

    With `once`, an error that was already counted is skipped. Without it, each caller of a group commit is counted,
    although all get the same error.
    """
    result = classify(error)
    if not isinstance(error, _errors.SidecarError):
        if not dry_run:
            metrics.PUBLISH_TOTAL.labels(result).inc()
        return
    if not dry_run and not (once and error.counted):
        metrics.PUBLISH_TOTAL.labels(result).inc()
        level = logging.WARNING if result in _ERRORS else logging.INFO
        change_log.note(result, where, change_log.one_line(str(error)), level=level)
    error.counted = True


def publish_span(
    name: str, where: str, *, dry_run: bool
) -> AbstractContextManager[tracing.Span | None]:
    """Return the span of a publish; its value is None where nothing is traced."""
    attributes = {"file.path": where, "sidecar.dry_run": dry_run or None}
    return tracing.span(name, attributes, kind="producer")


def note_outcome(span: tracing.Span | None, outcome: Outcome | None) -> None:
    """Add the outcome of a publish to its span; None: a loose file was deleted."""
    if span is None:
        return
    if isinstance(outcome, BaseException):
        result = classify(outcome)
        tracing.set_attributes(span, {"sidecar.result": result})
        if result in _ERRORS:
            tracing.set_error(span, type(outcome).__name__)
    elif outcome is None:
        tracing.set_attributes(span, {"sidecar.result": "deleted"})
    else:
        changed = "published" if outcome.changed else "unchanged"
        about = {"sidecar.version": outcome.version, "sidecar.result": changed}
        tracing.set_attributes(span, {"file.size": outcome.size, **about})


def classify(error: BaseException) -> str:
    """Return the value of `sidecar_publish_total{result}` for an error."""
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
