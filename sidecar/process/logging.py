"""Logging of a program: one line per event, on stderr, as text or JSON.

Libraries only call `getLogger(__name__)`; this module is for programs.
stdout stays free for the output of a command, and for collected log lines.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, get_args

from sidecar._errors import ConfigError

Format = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")

_QUIETED_LOGGERS = ("watchfiles", "asyncio")
"""Third-party loggers whose INFO messages duplicate our own."""


def configure(level: str = "info", format: Format = "text") -> None:  # noqa: A002 (the flag's name)
    """Log messages at `level` and above to stderr, as text or as one JSON object per line.

    Times are UTC, in milliseconds (RFC 3339).
    A further call replaces the earlier configuration; handlers of others stay.

    Raises:
        ConfigError: no such level or format.

    >>> configure("debug", "json")
    >>> configure("loud")
    Traceback (most recent call last):
    sidecar._errors.ConfigError: no log level 'loud': it is one of debug, info, warning, error
    """
    if level not in LEVELS:
        raise ConfigError(f"no log level {level!r}: it is one of {', '.join(LEVELS)}")
    if format not in get_args(Format):
        raise ConfigError(f"no log format {format!r}: it is one of {', '.join(get_args(Format))}")
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Stderr)]:
        root.removeHandler(handler)
    ours = _Stderr()
    ours.setFormatter(_json_formatter() if format == "json" else _Text())
    root.addHandler(ours)
    root.setLevel(level.upper())
    for name in _QUIETED_LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)


def leave_out_failures(logger: str) -> None:
    """Drop warnings and errors of a logger: the program reports them by the error that it ends with."""
    logging.getLogger(logger).addFilter(lambda record: record.levelno < logging.WARNING)


def name_worker(number: int) -> None:
    """Add the worker number to each line.

    In text it follows the name of the logger, `sidecar.http.server.serve[2]`; in JSON it is `worker`.
    """

    def add_worker(record: logging.LogRecord) -> bool:
        record.worker = number
        return True

    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Stderr):
            handler.addFilter(add_worker)


def rate_limited(
    logger: logging.Logger, seconds: float, *, clock: Callable[[], float] = time.monotonic
) -> RateLimited:
    """Return a logger that passes each message at most once in `seconds`.

    Messages are equal if they have the same level and the same text before `%` formatting.
    The next one that passes includes the number of dropped messages.

    >>> log = rate_limited(logging.getLogger("example"), 60.0)
    >>> for attempt in range(1000):
    ...     log.error("cannot read %s", "/shared/config")  # one line
    """
    return RateLimited(logger, seconds, clock)


class RateLimited(logging.LoggerAdapter[logging.Logger]):
    """A logger with a rate limit per message; see `rate_limited`."""

    def __init__(self, logger: logging.Logger, seconds: float, clock: Callable[[], float]) -> None:
        super().__init__(logger, {})
        self._seconds = seconds
        self._clock = clock
        self._passed: dict[tuple[int, str], float] = {}
        self._left_out: dict[tuple[int, str], int] = {}

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        key, now = (level, str(msg)), self._clock()
        passed = self._passed.get(key)
        if passed is not None and now - passed < self._seconds:
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return
        self._passed[key] = now
        if count := self._left_out.pop(key, 0):
            msg, args = f"{msg} (and %d more like it)", (*args, count)
        self.logger.log(level, msg, *args, **kwargs)


class _Stderr(logging.StreamHandler[TextIO]):
    """Looks up `sys.stderr` for each line, so that a replacement takes effect."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # A file name may contain a line break: it must not forge a line of the log.
        message = _escaped(record.getMessage(), kept="\t")
        worker = f"[{record.worker}]" if hasattr(record, "worker") else ""
        line = f"{_time(record)} {record.levelname:<7} {record.name}{worker}: {message}"
        if record.exc_info:
            line += "\n" + _escaped(self.formatException(record.exc_info), kept="\t\n")
        return line


def _escaped(text: str, kept: str) -> str:
    r"""Return a text without what moves a terminal's cursor or reorders its signs: C0, C1, U+2028, bidirectional controls.

    >>> _escaped("\x9b31m\u202egpj\tö", kept="\t")
    '\\x9b31m\\u202egpj\tö'
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign in kept else _escape(ord(sign)) for sign in text
    )


def _escape(code: int) -> str:
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"


def _json_formatter() -> logging.Formatter:
    # Imported here: not needed for text logs.
    # Not the orjson variant, which rejects the surrogates of a file name that is not UTF-8.
    from pythonjsonlogger.json import JsonFormatter

    class Json(JsonFormatter):
        def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
            return _time(record)

    names = {"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "exception"}
    return Json("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
