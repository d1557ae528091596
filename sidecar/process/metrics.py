"""The metrics of the process, in the Prometheus data model.

The names are a contract: dashboards and alerts depend on them.
They live in a registry of their own, so the default registry stays free for the user's application.

Events are counted where they happen.
States (age, version, mode of a watch) are read from their sources at each scrape.
"""

from __future__ import annotations

import platform
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol, TypeAlias

from prometheus_client.metrics import Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from sidecar._version import __version__

Family: TypeAlias = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]
"""A metric as JSON data: name, help text, type, and samples with name, labels and value."""

REGISTRY = CollectorRegistry()
_counter = partial(Counter, registry=REGISTRY)
_gauge = partial(Gauge, registry=REGISTRY)

PUBLISH_RESULTS = (
    *("published", "unchanged", "deleted"),
    *("refused", "conflict", "missing", "cancelled", "failed", "uncertain"),
)
WATCH_MODES = ("inotify", "watchfiles", "poll")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# A publish costs two fsyncs: 0.1 ms in memory, tens of ms on a busy disk.
_PUBLISH_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
# From an immediate event, over a re-check (seconds), to kubelet's sync of a ConfigMap (minutes).
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PROPAGATION_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 2.5, 5, 15, 60, 120)


class FastHistogram(Collector):
    """A histogram of seconds that takes a quarter of the time of the library's own, for tens of thousands of observations per second."""

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        labels: Sequence[str] = (),
    ) -> None:
        self.labels = labels
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._series: dict[tuple[str, ...], _Series] = {}
        self._lock = threading.Lock()
        if not labels:
            self._series[()] = self._new_series()
        registry.register(self)

    def observe(self, seconds: float, *labels: str) -> None:
        """Add an observation to the series with these label values."""
        index = bisect_left(self._bounds, seconds)
        with self._lock:
            series = self._series.get(labels) or self._series.setdefault(labels, self._new_series())
            series.counts[index] += 1
            series.sum += seconds

    def add_shortest(self, count: int, *labels: str) -> None:
        """Add `count` observations that are not measured and belong to the first bucket."""
        with self._lock:
            self._series.setdefault(labels, self._new_series()).counts[0] += count

    def count(self, *labels: str) -> int:
        """Return the number of observations with these label values."""
        series = self._series.get(labels)
        return 0 if series is None else sum(series.counts)

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self.labels)
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        with self._lock:
            found = [(labels, list(one.counts), one.sum) for labels, one in self._series.items()]
        for labels, counts, total in found:
            buckets = list(zip(names, map(float, accumulate(counts)), strict=True))
            family.add_metric(labels, buckets, total)
        yield family

    def _new_series(self) -> _Series:
        return _Series([0] * (len(self._bounds) + 1))


@dataclass(slots=True)
class _Series:
    """Observations with the same label values."""

    counts: list[int]
    """Observations by bucket."""
    sum: float = 0.0


# Process
BUILD_INFO = _gauge(
    "sidecar_build_info", "Version of sidecar and of Python, always 1", ["version", "python"]
)

# Publishing
PUBLISH_TOTAL = _counter("sidecar_publish_total", "Publishes, by result", ["result"])
PUBLISH_SECONDS = FastHistogram(
    "sidecar_publish_seconds",
    "Time of a publish, from the first write to durable",
    _PUBLISH_BUCKETS,
    REGISTRY,
)

# Watching
PROPAGATION_SECONDS = Histogram(
    "sidecar_propagation_seconds",
    "From the modification time of a file to the reader's memory",
    buckets=_PROPAGATION_BUCKETS,
    registry=REGISTRY,
)
WATCH_EVENTS_TOTAL = _counter(
    "sidecar_watch_events_total", "Change events, from the kernel or a poll"
)
WATCH_ERRORS_TOTAL = _counter("sidecar_watch_errors_total", "Scans that found something unreadable")
POLL_RESCUES_TOTAL = _counter(
    "sidecar_poll_rescues_total", "Changes found by the slow re-check without an event"
)
CONTENT_UNSIGNED_TOTAL = _counter(
    "sidecar_content_unsigned_total",
    "Contents that were not published or not shown because no trusted key has signed them",
)

# HTTP
HTTP_REQUESTS_TOTAL = _counter(
    "sidecar_http_requests_total", "Answered requests, by status", ["code"]
)
HTTP_REQUEST_DURATION_SECONDS = FastHistogram(
    "sidecar_http_request_duration_seconds",
    "From the head of a request to the end of its answer; without those that waited for a change",
    _REQUEST_BUCKETS,
    REGISTRY,
    ["method", "route"],
)
HTTP_FAILED_LOGINS_TOTAL = _counter(
    "sidecar_http_failed_logins_total", "Requests with a wrong bearer token"
)
SUBSCRIBERS = _gauge("sidecar_subscribers", "Clients waiting for the next version")
WORKER_RESTARTS_TOTAL = _counter(
    "sidecar_worker_restarts_total", "Workers that ended and were replaced (--workers)"
)

# Reloading
RELOAD_TOTAL = _counter("sidecar_reload_total", "Reactions to a new version", ["action", "result"])
RELOAD_LAST_SUCCESS_TIMESTAMP_SECONDS = _gauge(
    "sidecar_reload_last_success_timestamp_seconds", "When the last reaction succeeded, Unix time"
)

# Tracing
SPAN_RESULTS = ("exported", "failed", "dropped")
SPANS_TOTAL = _counter(
    "sidecar_spans_total",
    "Spans for the collector: exported, not taken by it, or dropped because the queue was full",
    ["result"],
)

# Mirroring
MIRROR_RESULTS = ("published", "unchanged", "refused", "held")
MIRROR_HELD_REASONS = ("shrunken", "rewound")
MIRROR_RECONNECT_REASONS = ("ended", "silent", "unavailable", "busy", "failed")
MIRROR_CONTACT_AGE_SECONDS = _gauge(
    "sidecar_mirror_contact_age_seconds",
    "Time since the source that was silent longest has answered",
)
MIRROR_LAG_SECONDS = _gauge(
    "sidecar_mirror_lag_seconds", "Time from the last change in a source to its publication"
)
MIRROR_VERSIONS_TOTAL = _counter(
    "sidecar_mirror_versions_total", "States of sources, by what became of them", ["result"]
)
MIRROR_UNITS = _gauge("sidecar_mirror_units", "Units that the sources have")
MIRROR_HELD = _gauge(
    "sidecar_mirror_held", "Sources whose newest state is not published", ["reason"]
)
MIRROR_RECONNECTS_TOTAL = _counter(
    "sidecar_mirror_reconnects_total", "Times that following a source was restarted", ["reason"]
)
MIRROR_RELISTS_TOTAL = _counter(
    "sidecar_mirror_relists_total", "Times that a source was read as a whole again", ["reason"]
)
MIRROR_RESCUES_TOTAL = _counter(
    "sidecar_mirror_rescues_total", "Changes that a re-check found and the watch had missed"
)
MIRROR_RECEIVED_BYTES_TOTAL = _counter(
    "sidecar_mirror_received_bytes_total", "Bytes of answers of the sources"
)
MIRROR_REQUESTS_TOTAL = _counter(
    "sidecar_mirror_requests_total", "HTTP requests to the sources, by status", ["code"]
)

# Logs
LOGS_LINES_TOTAL = _counter("sidecar_logs_lines_total", "Lines that the first sink has taken")
LOGS_BYTES_TOTAL = _counter(
    "sidecar_logs_bytes_total", "Bytes of lines that the first sink has taken"
)
LOGS_LAG_BYTES = _gauge("sidecar_logs_lag_bytes", "Written and not yet acknowledged by every sink")
LOGS_LAG_SECONDS = _gauge(
    "sidecar_logs_lag_seconds", "Age of the oldest line not yet acknowledged by every sink"
)
LOGS_UNACKED_BYTES = _gauge(
    "sidecar_logs_unacked_bytes", "Read and not yet acknowledged by every sink"
)
LOGS_POSSIBLE_COPIES = _gauge(
    "sidecar_logs_possible_copies",
    "Files that are not read yet because they begin like another one",
)
LOGS_LOST_REASONS = (
    "hole",
    "damaged",
    "deleted",
    "truncated",
    "vanished",
    "refused",
    "dead_letters_full",
)
LOGS_LOST_BYTES_TOTAL = _counter(
    "sidecar_logs_lost_bytes_total", "Bytes that were lost before they were read", ["reason"]
)
LOGS_IMPLAUSIBLE_TIMES = _counter(
    "sidecar_logs_implausible_times_total",
    "Lines with a timestamp more than an hour in the future; they get the time of reading",
)
LOGS_DROPPED = _counter(
    "sidecar_logs_dropped_lines_total",
    "Lines dropped by a sampling or limiting stage, for each sink",
    ["stage"],
)
LOGS_DEAD_LETTERS_TOTAL = _counter(
    "sidecar_logs_dead_letters_total", "Lines that a sink has rejected permanently"
)


DEFAULT_BUCKETS: Sequence[float] = Histogram.DEFAULT_BUCKETS


def counter(name: str, text: str, labels: Sequence[str]) -> Counter:
    """Create a user-defined counter in the registry."""
    return _counter(name, text, labels)


def histogram(name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
    """Create a user-defined histogram in the registry."""
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


class ContentSource(Protocol):
    """A watch, as the metrics see it."""

    @property
    def etag(self) -> str | None:
        """The ETag of what is in memory, None before the first content."""

    @property
    def modified(self) -> float | None:
        """The modification time of what is in memory, Unix seconds."""

    @property
    def stale(self) -> str | None:
        """Why the content may be out of date, None while it is not."""

    @property
    def mode(self) -> str:
        """The notifier in use: one of `WATCH_MODES`."""

    @property
    def failure(self) -> str | None:
        """Why the watch has failed, None while it works."""


def track_content(source: ContentSource) -> Callable[[], None]:
    """Add a content to the metrics; returns a function that removes it (may be called twice)."""
    return _SOURCES.add(source)


def add_collector_hook(hook: Callable[[], None]) -> None:
    """Call `hook` before each exposition: for counts that are kept elsewhere."""
    _COLLECTOR_HOOKS.append(hook)


def exposition() -> tuple[bytes, str]:
    """Return all metrics in Prometheus' text format, and the content type of it.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    # Imported here: it imports three web servers, which a process without scrapes does not need.
    from prometheus_client.exposition import generate_latest

    for hook in _COLLECTOR_HOOKS:
        hook()
    return generate_latest(_ScrapeCollector()), CONTENT_TYPE


def export_families() -> list[Family]:
    """Return all metrics as data, to be aggregated with those of other processes (`render_families`)."""
    for hook in _COLLECTOR_HOOKS:
        hook()
    return [
        (
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in _ScrapeCollector().collect()
    ]


def render_families(families: Iterable[Family]) -> tuple[bytes, str]:
    """Return aggregated metrics in the form of `exposition`."""
    from prometheus_client.exposition import generate_latest

    return generate_latest(_FamilyCollector(families)), CONTENT_TYPE


class _ContentCollector(Collector):
    """Metrics of contents. Exposed only by processes with a watch: elsewhere "no watch" would look like a failed one."""

    def __init__(self) -> None:
        self._sources: dict[object, ContentSource] = {}
        self._follows = False

    def add(self, source: ContentSource) -> Callable[[], None]:
        key = object()
        self._sources[key] = source
        self._follows = True

        def stop() -> None:
            self._sources.pop(key, None)

        return stop

    def collect(self) -> Iterable[Metric]:
        sources = list(self._sources.values())
        age = GaugeMetricFamily(
            "sidecar_content_age_seconds", "Age of the oldest content in memory"
        )
        if times := [source.modified for source in sources if source.modified is not None]:
            age.add_metric([], max(0.0, time.time() - min(times)))
        info = GaugeMetricFamily(
            "sidecar_content_info", "The version in memory, 1 each", labels=["etag"]
        )
        for etag in sorted({source.etag for source in sources if source.etag is not None}):
            info.add_metric([etag.strip('"')], 1)
        stale = GaugeMetricFamily(
            "sidecar_content_stale", "1 if any content in memory may be out of date"
        )
        mode = GaugeMetricFamily(
            "sidecar_watch_mode",
            "1 for each notifier of an active watch",
            labels=["mode"],
        )
        if self._follows:
            stale.add_metric([], any(source.stale is not None for source in sources))
            in_use = {source.mode for source in sources if source.failure is None}
            for name in WATCH_MODES:
                mode.add_metric([name], name in in_use)
        return age, info, stale, mode


class VolumeSource(Protocol):
    """A volume with a budget."""

    @property
    def budget(self) -> int | None:
        """Limit in bytes, None without one."""

    @property
    def used(self) -> int | None:
        """Disk usage in bytes, None if not measured."""


def track_volume(source: VolumeSource) -> Callable[[], None]:
    """Add the disk usage of a volume to the metrics; returns a function that removes it (may be called twice)."""
    return _VOLUMES.add(source)


class _VolumeCollector(Collector):
    """Disk usage of volumes with a budget, summed over all of them."""

    def __init__(self) -> None:
        self._sources: dict[object, VolumeSource] = {}

    def add(self, source: VolumeSource) -> Callable[[], None]:
        key = object()
        self._sources[key] = source

        def stop() -> None:
            self._sources.pop(key, None)

        return stop

    def collect(self) -> Iterable[Metric]:
        used = GaugeMetricFamily(
            "sidecar_volume_used_bytes",
            "Bytes on the disk that the published directory takes, with history and temporary files",
        )
        budget = GaugeMetricFamily(
            "sidecar_volume_budget_bytes", "Bytes on the disk that it may take (--volume-budget)"
        )
        with_budget = [
            source for source in list(self._sources.values()) if source.budget is not None
        ]
        if with_budget:
            used.add_metric([], sum(source.used or 0 for source in with_budget))
            budget.add_metric([], sum(source.budget or 0 for source in with_budget))
        return used, budget


class _FamilyCollector(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for name, documentation, kind, samples in self._families:
            metric = Metric(name, documentation, kind)
            for sample, labels, value in samples:
                metric.add_sample(sample, labels, value)
            yield metric


class _ScrapeCollector(Collector):
    """The registry without the `…_created` series, which would double their number."""

    def collect(self) -> Iterable[Metric]:
        for metric in REGISTRY.collect():
            metric.samples = [
                sample for sample in metric.samples if not sample.name.endswith("_created")
            ]
            yield metric


def _initialise_series() -> None:
    """Create each known series with 0: `rate()` needs the value before the first event."""
    BUILD_INFO.labels(__version__, platform.python_version()).set(1)
    for result in PUBLISH_RESULTS:
        PUBLISH_TOTAL.labels(result)
    for reason in LOGS_LOST_REASONS:
        LOGS_LOST_BYTES_TOTAL.labels(reason)
    for result in MIRROR_RESULTS:
        MIRROR_VERSIONS_TOTAL.labels(result)
    for reason in MIRROR_RECONNECT_REASONS:
        MIRROR_RECONNECTS_TOTAL.labels(reason)
    for reason in MIRROR_HELD_REASONS:
        MIRROR_HELD.labels(reason)


_SOURCES = _ContentCollector()
_COLLECTOR_HOOKS: list[Callable[[], None]] = []
_VOLUMES = _VolumeCollector()
REGISTRY.register(_SOURCES)
REGISTRY.register(_VOLUMES)
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
_initialise_series()
