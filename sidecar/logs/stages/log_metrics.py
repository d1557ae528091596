"""Derive metrics from lines: counters, and histograms of a field. Every line is passed on unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sidecar._errors import ConfigError
from sidecar.logs.records import Record, Stage
from sidecar.logs.stages.limiting import member, stringify
from sidecar.process import metrics

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_MAX_SERIES = 1000
_OTHER = "other"
"""Label value of all further series beyond the limit: a field with ids must not fill the memory."""
_made: dict[str, tuple[object, Any]] = {}
"""Metrics by name with their definition: they keep their values when the configuration is reloaded."""


def count_lines(name: str, labels: Mapping[str, str] | None = None) -> Stage:
    """Create a stage that counts lines in a Prometheus counter, by the fields of `labels`.

    `labels` maps label names to fields; `level` is that of the record if there is no such field.
    Beyond 1,000 series further ones are merged, with the value `other`. A line is counted once for all sinks.

    Raises:
        ConfigError: an invalid name, or the name of another metric.

    >>> count_lines("shop_lines_total", {"status": "status"})(Record(b"x", fields={"status": 200})).text
    'x'
    """
    wanted = dict(labels or {})
    made = _metric("counter", name, wanted, None)
    return _Measure(made, wanted, None)


def observe_field(
    name: str,
    field: str,
    *,
    buckets: Sequence[float] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Stage:
    """Create a stage that observes a numeric field in a Prometheus histogram; lines without a number are skipped.

    `buckets` are the upper bounds, in the unit of the field; `labels` as for `count_lines`.

    Raises:
        ConfigError: an invalid name, the name of another metric, or buckets that are not increasing.

    >>> observe_field("shop_took_seconds", "took", buckets=[0.1, 1])(Record(b"x", fields={"took": 0.5})).text
    'x'
    """
    wanted = dict(labels or {})
    bounds = tuple(float(one) for one in buckets or metrics.DEFAULT_BUCKETS)
    if list(bounds) != sorted(set(bounds)):
        raise ConfigError(f"buckets: {list(bounds)} do not rise")
    return _Measure(_metric("histogram", name, wanted, bounds), wanted, field)


class _Measure:
    def __init__(self, metric: Any, labels: Mapping[str, str], field: str | None) -> None:
        self._metric, self._labels, self._field = metric, labels, field
        self._series: dict[tuple[str, ...], Any] = {}

    def copy_for_sink(self) -> Stage:
        return lambda record: record  # the first one counts

    def __call__(self, record: Record) -> Record:
        if self._field is None:
            self._get_series(record).inc()
        elif (number := _number(member(record.fields, self._field))) is not None:
            self._get_series(record).observe(number)
        return record

    def _get_series(self, record: Record) -> Any:
        if not self._labels:
            return self._metric
        key = tuple(_value(record, field) for field in self._labels.values())
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= _MAX_SERIES:
                key = (_OTHER,) * len(key)
            found = self._series[key] = self._metric.labels(*key)
        return found


def _value(record: Record, field: str) -> str:
    value = member(record.fields, field)
    if value is None and field == "level":
        value = record.level
    return "" if value is None else stringify(value)[:128].encode("utf-8", "replace").decode()


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _metric(kind: str, name: str, labels: Mapping[str, str], buckets: Any) -> Any:
    wanted = (kind, tuple(labels), buckets)
    if name in _made and _made[name][0] == wanted:
        return _made[name][1]
    if (
        not _NAME.fullmatch(name)
        or not all(_LABEL.fullmatch(one) for one in labels)
        or "le" in labels
    ):
        raise ConfigError(
            f"{name!r} with the labels {list(labels)}: Prometheus takes letters, digits and _, and `le` is its own"
        )
    if name in _made or name.startswith("sidecar_"):
        raise ConfigError(f"the metric {name!r} cannot be made: another one is called so")
    try:
        made: Any = (
            metrics.counter(name, "Lines, by a stage of the collector", tuple(labels))
            if kind == "counter"
            else metrics.histogram(name, "A field, by a stage", tuple(labels), buckets)
        )
    except ValueError as error:
        raise ConfigError(f"the metric {name!r} cannot be made: {error}") from error
    _made[name] = (wanted, made)
    return made
