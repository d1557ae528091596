"""Aggregates the metrics of several worker processes into those of one program.

Counters are summed, including those of ended processes: a counter never decreases.
If a process does not reply, its last values are used.
What a killed process has counted since its last reply is lost.

Gauges are combined by a rule per metric: sum, maximum or minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from sidecar.process.metrics import Family

Rule: TypeAlias = Callable[[float, float], float]

#: Gauges without a rule are summed: subscribers, unread bytes, memory, open files.
_RULES: dict[str, Rule] = {
    # All workers follow the same content: the worst value counts, as for several contents in one process.
    "sidecar_build_info": max,
    "sidecar_content_age_seconds": max,
    "sidecar_content_info": max,
    "sidecar_content_stale": max,
    "sidecar_watch_mode": max,
    "sidecar_volume_used_bytes": max,
    "sidecar_volume_budget_bytes": max,
    "sidecar_reload_last_success_timestamp_seconds": max,
    "sidecar_logs_lag_seconds": max,
    "process_max_fds": min,  # the first worker to reach its limit
    "process_start_time_seconds": min,  # the program is as old as its parent
    "python_info": max,
}


class MetricAggregator:
    """The last metrics of each worker, by worker number."""

    def __init__(self) -> None:
        self._last: dict[int, Sequence[Family]] = {}
        self._ended: list[Family] = []

    def note(self, number: int, families: Sequence[Family]) -> None:
        """Store the metrics of a worker."""
        self._last[number] = families

    def ended(self, number: int) -> None:
        """Keep the last counters of an ended worker, and drop its gauges."""
        counted = [one for one in self._last.pop(number, ()) if one[2] in ("counter", "histogram")]
        self._ended = merge([self._ended, counted])

    def sum(self, parent: Sequence[Family]) -> list[Family]:
        """Return the metrics of all workers and of the parent."""
        return merge([parent, *self._last.values(), self._ended])


def merge(parts: Iterable[Sequence[Family]]) -> list[Family]:
    """Merge families of the same name; the help text is that of the first.

    >>> merge([[("n", "", "counter", [("n_total", {}, 1.0)])]] * 3)
    [('n', '', 'counter', [('n_total', {}, 3.0)])]
    """
    found: dict[str, tuple[str, str, dict[tuple[str, ...], tuple[dict[str, str], float]]]] = {}
    for name, text, kind, samples in (family for part in parts for family in part):
        rule = _RULES.get(name, _plus) if kind == "gauge" else _plus
        _, _, values = found.setdefault(name, (text, kind, {}))
        for sample, labels, value in samples:
            key = (sample, *(part for item in sorted(labels.items()) for part in item))
            values[key] = (labels, rule(values[key][1], value) if key in values else value)
    return [
        (name, text, kind, [(key[0], labels, value) for key, (labels, value) in values.items()])
        for name, (text, kind, values) in found.items()
    ]


def _plus(one: float, other: float) -> float:
    return one + other
