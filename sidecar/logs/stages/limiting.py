"""Reduce the number of lines: by level, sampling, rate limit and deduplication. Dropped lines are counted.

Stages with state keep it separately for each sink (`Remembering`), since each sink has its own positions.
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

_NS_PER_SECOND = 1_000_000_000
_MAX_KEYS = 10_000
"""Limit of remembered keys; the least recently used one is dropped first."""


@runtime_checkable
class Remembering(Protocol):
    """A stage with state."""

    def __call__(self, record: Record) -> Record | None: ...

    def copy_for_sink(self) -> Stage:
        """Return the same stage with separate state for another sink."""


def copy_for_sink(stage: Stage) -> Stage:
    """Return the stage for another sink: one with separate state, if the stage has any."""
    return stage.copy_for_sink() if isinstance(stage, Remembering) else stage


def keep_level(least: str) -> Stage:
    """Create a stage that keeps lines of at least this level, and lines without a level.

    Raises:
        ConfigError: unknown level; there are trace, debug, info, warn, error and fatal.

    >>> keep_level("warn")(Record(b"x", level="info")) is None
    True
    """
    if least not in LEVELS:
        raise arguments.argument_error("least", least, f"one of {', '.join(LEVELS)}")
    below = frozenset(LEVELS[: LEVELS.index(least)])
    return lambda record: None if record.level in below else record


def sample(share: float, by: str | None = None) -> Stage:
    """Create a stage that keeps a share of the lines (0 to 1); with `by`, all lines of a share of the values of a field.

    The choice depends on the offset of the line, or on the value: it is the same for each sink, and after a restart.

    Raises:
        ConfigError: not a number from 0 to 1.

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
            what = stringify(value)
        if crc32(what.encode("utf-8", "replace")) < most:
            return record
        dropped.inc()
        return None

    return stage


def rate_limit(per_second: float, by: str | None = None, burst: int | None = None) -> Stage:
    """Create a stage that keeps at most `per_second` lines a second; with `by`, for each value of a field.

    The time is that of the lines: lines that are read late after a break are not dropped for that.
    `burst` lines are kept at once (by default the lines of one second).

    Raises:
        ConfigError: not a number above 0.

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
    """Create a stage that drops a line if the same text passed within `window` seconds; with `by`, the same fields.

    The time is that of the lines; up to 10,000 texts are remembered.

    Raises:
        ConfigError: not a duration.

    >>> stage = deduplicate()
    >>> [stage(Record(text)) is not None for text in (b"disk full", b"disk full", b"ok")]
    [True, False, True]
    """
    arguments.check_seconds("window", window)
    return _Deduplicate(window, tuple(by))


def member(fields: dict[str, Any], name: str) -> Any:
    """Return a field by its name or dotted path (`http.status`); None if it is missing."""
    if name in fields:
        return fields[name]
    found: Any = fields
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def stringify(value: Any) -> str:
    return value if isinstance(value, str) else json_encoding.value(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _RateLimit:
    def __init__(self, per_second: float, by: str | None, burst: int) -> None:
        self._given = (per_second, by, burst)
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """The remaining lines of each key, and the time of that count."""
        self._dropped = metrics.LOGS_DROPPED.labels("rate_limit")

    def copy_for_sink(self) -> Stage:
        return _RateLimit(*self._given)

    def __call__(self, record: Record) -> Record | None:
        per_second, by, burst = self._given
        key = "" if by is None else stringify(member(record.fields, by))
        left, since = self._buckets.pop(key, (float(burst), record.time))
        left = min(left + max(record.time - since, 0) / _NS_PER_SECOND * per_second, burst)
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
        """Times of the lines that passed, by key."""
        self._dropped = metrics.LOGS_DROPPED.labels("deduplicate")

    def copy_for_sink(self) -> Stage:
        return _Deduplicate(*self._given)

    def __call__(self, record: Record) -> Record | None:
        window, by = self._given
        key: object = record.text
        if by:
            key = tuple(stringify(member(record.fields, name)) for name in by)
        passed = self._seen.pop(key, None)
        if passed is not None and abs(record.time - passed) < window * _NS_PER_SECOND:
            self._seen[key] = passed
            self._dropped.inc()
            return None
        self._seen[key] = record.time
        if len(self._seen) > _MAX_KEYS:
            self._seen.popitem(last=False)
        return record
