"""The metrics of several processes as those of one program.

What is counted is added up, and what the dead have counted stays in the sum: a counter never goes back.
So that it does not, the last numbers of a process stand in for it when it does not answer.
Of what a killed process has counted since it was last asked nobody knows: that is missing.

What is a state of each process is told by the rule that makes sense of it: a sum, the largest, or the smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from sidecar.process.metrics import Family

Rule: TypeAlias = Callable[[float, float], float]

#: A gauge that is not here is added up: subscribers, bytes not yet read, memory, open files.
_RULES: dict[str, Rule] = {
    # All follow the same content: the worst is told, as of several contents in one process.
    "sidecar_content_age_seconds": max,
    "sidecar_content_info": max,
    "sidecar_content_stale": max,
    "sidecar_watch_mode": max,
    "sidecar_volume_used_bytes": max,
    "sidecar_volume_budget_bytes": max,
    "sidecar_reload_last_success_timestamp_seconds": max,
    "sidecar_logs_lag_seconds": max,
    "process_max_fds": min,  # who comes first to its limit
    "process_start_time_seconds": min,  # the program is as old as its parent
    "python_info": max,
}


class MetricAggregator:
    """What the processes of one program have told about themselves, by number."""

    def __init__(self) -> None:
        self._last: dict[int, Sequence[Family]] = {}
        self._ended: list[Family] = []

    def note(self, number: int, families: Sequence[Family]) -> None:
        """Take down what a process says now."""
        self._last[number] = families

    def ended(self, number: int) -> None:
        """Keep what a process had counted when it was last asked: it is gone, and so are its states."""
        counted = [one for one in self._last.pop(number, ()) if one[2] in ("counter", "histogram")]
        self._ended = merge([self._ended, counted])

    def sum(self, parent: Sequence[Family]) -> list[Family]:
        """Return the metrics of all, those of the parent included."""
        return merge([parent, *self._last.values(), self._ended])


def merge(parts: Iterable[Sequence[Family]]) -> list[Family]:
    """Return one family for all of the same name; the text is that of the first.

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
