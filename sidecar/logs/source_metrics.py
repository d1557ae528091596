"""The metrics of the sources that are collected: how far they are behind their files, and what they have lost."""

from __future__ import annotations

from sidecar.logs.input.tail import Tail, TailStats
from sidecar.process import metrics

_stats_by_source: dict[int, TailStats] = {}
"""The statistics of each source that is collected in this process, by its `id`."""


class SourceMetrics:
    """Exports the statistics of one source together with those of the others in this process."""

    def __init__(self, source: Tail) -> None:
        self._source = source
        self._exported_losses: dict[str, int] = {}

    def export(self) -> None:
        """Export the sums over all sources, and the maximum of the lag in seconds."""
        source = self._source
        _stats_by_source[id(source)] = source.stats()
        shown = list(_stats_by_source.values())
        metrics.LOGS_LAG_BYTES.set(sum(one.lag_bytes for one in shown))
        metrics.LOGS_LAG_SECONDS.set(max(one.lag_seconds for one in shown))
        metrics.LOGS_UNACKED_BYTES.set(sum(one.unacknowledged_bytes for one in shown))
        metrics.LOGS_POSSIBLE_COPIES.set(sum(one.possible_copies for one in shown))
        for reason, size in source.lost.items():
            if news := size - self._exported_losses.get(reason, 0):
                metrics.LOGS_LOST_BYTES_TOTAL.labels(reason).inc(news)
                self._exported_losses[reason] = size

    def remove(self) -> None:
        """Leave the source out of later sums: its collection has ended."""
        _stats_by_source.pop(id(self._source), None)
