"""The audit log: one line for each attempt to change a content, done or not, and never summed up.

Each line is a record of the logger `sidecar.audit`; a program without `configure` adds a handler of its own.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from typing import Final

import orjson

from sidecar._errors import ConfigError
from sidecar.process import request_context
from sidecar.process.logging import rate_limited

LOGGER: Final = logging.getLogger("sidecar.audit")
#: Audit lines have a destination of their own: the log on stderr has summed-up lines of the same changes.
LOGGER.propagate = False
LOGGER.setLevel(logging.INFO)

STDOUT: Final = "-"
_MAX_REASON_CHARACTERS = 1000

_log = rate_limited(logging.getLogger(__name__), 60.0)


def configure(path: str) -> None:
    """Append a JSON object per line to a file, or write it to stdout (`-`). A file that is renamed or removed is created again.

    Raises:
        ConfigError: the file cannot be opened.
    """
    handler: logging.Handler
    try:
        handler = _Stdout(sys.stdout) if path == STDOUT else _File(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the audit log {path}: {error.strerror}") from error
    handler.setFormatter(_Json())
    disable()
    LOGGER.addHandler(handler)


def disable() -> None:
    """End the audit log of `configure`; handlers of others stay."""
    for handler in [one for one in LOGGER.handlers if isinstance(one, _Reporting)]:
        LOGGER.removeHandler(handler)
        handler.close()


def is_enabled() -> bool:
    """Whether anybody wants audit records."""
    return bool(LOGGER.handlers)


def record(
    event: str,
    outcome: str,
    path: str,
    *,
    user: str | None = None,
    reason: str | None = None,
    **details: object,
) -> None:
    """Record an attempt: `event` is `publish`, `delete`, `purge` or `rollback`, `outcome` as in `sidecar_publish_total`.

    Who made it from where is that of the current request; without one, `user` says who.
    `details` that are None are left out.
    """
    if not LOGGER.handlers:
        return
    request = request_context.CURRENT.get()
    fields: dict[str, object] = {
        "event": event,
        "outcome": outcome,
        "path": _text(path),
        "user": user if request is None or request.user is None else request.user,
        "client": None if request is None else request.client,
        "request_id": None if request is None else request.request_id,
        **details,
        "reason": None if reason is None else _text(reason[:_MAX_REASON_CHARACTERS]),
    }
    known = {name: value for name, value in fields.items() if value is not None}
    LOGGER.info(
        "%s %s: %s", event, path, outcome, extra={"event": "audit.recorded", "audit": known}
    )


def _text(text: str) -> str:
    """Return a text that is UTF-8: names in requests and on volumes may not be."""
    return text.encode("utf-8", "backslashreplace").decode()


class _Json(logging.Formatter):
    """One JSON object: time, and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        at = time.isoformat(timespec="microseconds").replace("+00:00", "Z")
        fields = {"time": at, **getattr(record, "audit", {})}
        return orjson.dumps(fields).decode()


class _Reporting(logging.Handler):
    """A handler that reports its own failure in the log instead of on stderr, and lets the change go on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 (of logging)
        _log.error("cannot write the audit log: %s", sys.exc_info()[1])


class _File(_Reporting, logging.handlers.WatchedFileHandler):
    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written was reported
            super().close()


class _Stdout(_Reporting, logging.StreamHandler):  # type: ignore[type-arg]
    pass
