"""Fewer lines, on purpose: by level, by chance, by rate, and each only once. What is dropped is counted.

What remembers lines does so for each sink apart (`Remembering`): sinks have their own progress,
and what one has seen is news to the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable
from zlib import crc32

from sidecar.logs import json_encoding
from sidecar.logs.records import Record, Stage
from sidecar.logs.stages.severity import LEVELS
from sidecar.process import arguments, metrics

_SECOND = 1_000_000_000
_MAX_KEYS = 10_000
"""Keys that are remembered; the one that was used longest ago is forgotten first."""


@runtime_checkable
class Remembering(Protocol):
    """A stage with a memory."""

    def __call__(self, record: Record) -> Record | None: ...

    def for_another_sink(self) -> Stage:
        """Return the same stage for one more sink, with a memory of its own."""


def for_another_sink(stage: Stage) -> Stage:
    """Return what a further sink runs in place of a stage that the first one runs."""
    return stage.for_another_sink() if isinstance(stage, Remembering) else stage


def keep_level(least: str) -> Stage:
    """Make a stage that passes lines of at least this level, and those whose level is not known.

    Raises:
        ConfigError: no level; there are trace, debug, info, warn, error and fatal.

    >>> keep_level("warn")(Record(b"x", level="info")) is None
    True
    """
    if least not in LEVELS:
        raise arguments.argument_error("least", least, f"one of {', '.join(LEVELS)}")
    below = frozenset(LEVELS[: LEVELS.index(least)])
    return lambda record: None if record.level in below else record


def sample(share: float, by: str | None = None) -> Stage:
    """Make a stage that passes this share of the lines (0 to 1); with `by`, of the values of a field, with all their lines.

    Which ones is decided by the line's place in its file, or by the value: the same for each sink, and after a restart.

    Raises:
        ConfigError: no number from 0 to 1.

    >>> stage = sample(0.5)
    >>> 400 < sum(stage(Record(b"x", offset=n)) is not None for n in range(1000)) < 600
    True
    """
    if not _is_number(share) or not 0 <= share <= 1:
        raise arguments.argument_error("share", share, "a number from 0 to 1")
    most = share * 2**32
    dropped = metrics.LOGS_DROPPED.labels("sample")

    def stage(record: Record) -> Record | None:
        if by is None:
            what = f"{record.file_id}:{record.offset}"
        elif (value := member(record.fields, by)) is None:
            return record
        else:
            what = as_text(value)
        if crc32(what.encode("utf-8", "replace")) < most:
            return record
        dropped.inc()
        return None

    return stage


def rate_limit(per_second: float, by: str | None = None, burst: int | None = None) -> Stage:
    """Make a stage that passes so many lines a second, for each value of a field apart where `by` names one.

    Seconds are those of the lines' own times: what is caught up after a break is not dropped for coming fast.
    `burst` lines may come at once (a second's lines, by default).

    Raises:
        ConfigError: no number above 0.

    >>> stage = rate_limit(1, by="user")
    >>> [stage(Record(b"x", time=10**18, fields={"user": name})) is not None for name in ("ada", "ada", "bob")]
    [True, False, True]
    """
    if not _is_number(per_second) or per_second <= 0:
        raise arguments.argument_error("per_second", per_second, "a number above 0")
    if burst is not None:
        arguments.check_integer("burst", burst, least=1)
    return _RateLimit(per_second, by, burst or max(int(per_second), 1))


def deduplicate(window: float = 60.0, by: Sequence[str] = ()) -> Stage:
    """Make a stage that drops a line if the same text has passed within `window` seconds; with `by`, the same fields.

    Seconds are those of the lines' own times; up to 10,000 texts are remembered.

    Raises:
        ConfigError: no time.

    >>> stage = deduplicate()
    >>> [stage(Record(text)) is not None for text in (b"disk full", b"disk full", b"ok")]
    [True, False, True]
    """
    arguments.check_seconds("window", window)
    return _Deduplicate(window, tuple(by))


def member(fields: dict[str, Any], name: str) -> Any:
    """Return a field, also a nested one (`http.status`); None if it is not there."""
    if name in fields:
        return fields[name]
    found: Any = fields
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json_encoding.value(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _RateLimit:
    def __init__(self, per_second: float, by: str | None, burst: int) -> None:
        self._given = (per_second, by, burst)
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Of each key how many lines may still come, and at what time that was."""
        self._dropped = metrics.LOGS_DROPPED.labels("rate_limit")

    def for_another_sink(self) -> Stage:
        return _RateLimit(*self._given)

    def __call__(self, record: Record) -> Record | None:
        per_second, by, burst = self._given
        key = "" if by is None else as_text(member(record.fields, by))
        left, since = self._buckets.pop(key, (float(burst), record.time))
        left = min(left + max(record.time - since, 0) / _SECOND * per_second, burst)
        passes = left >= 1
        self._buckets[key] = (left - passes, max(record.time, since))
        if len(self._buckets) > _MAX_KEYS:
            self._buckets.popitem(last=False)
        if passes:
            return record
        self._dropped.inc()
        return None


class _Deduplicate:
    def __init__(self, window: float, by: tuple[str, ...]) -> None:
        self._given = (window, by)
        self._seen: OrderedDict[object, int] = OrderedDict()
        """What passed, and when."""
        self._dropped = metrics.LOGS_DROPPED.labels("deduplicate")

    def for_another_sink(self) -> Stage:
        return _Deduplicate(*self._given)

    def __call__(self, record: Record) -> Record | None:
        window, by = self._given
        key: object = record.text
        if by:
            key = tuple(as_text(member(record.fields, name)) for name in by)
        passed = self._seen.pop(key, None)
        if passed is not None and abs(record.time - passed) < window * _SECOND:
            self._seen[key] = passed
            self._dropped.inc()
            return None
        self._seen[key] = record.time
        if len(self._seen) > _MAX_KEYS:
            self._seen.popitem(last=False)
        return record
