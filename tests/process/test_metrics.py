"""What a Prometheus server gets to see."""

import time
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sidecar.process import metrics

CONTRACT = {
    "sidecar_publish_total",
    "sidecar_publish_seconds",
    "sidecar_propagation_seconds",
    "sidecar_content_age_seconds",
    "sidecar_content_info",
    "sidecar_content_stale",
    "sidecar_content_unsigned_total",
    "sidecar_watch_mode",
    "sidecar_watch_events_total",
    "sidecar_watch_errors_total",
    "sidecar_poll_rescues_total",
    "sidecar_build_info",
    "sidecar_http_requests_total",
    "sidecar_http_failed_logins_total",
    "sidecar_http_request_duration_seconds",
    "sidecar_spans_total",
    "sidecar_subscribers",
    "sidecar_worker_restarts_total",
    "sidecar_volume_used_bytes",
    "sidecar_volume_budget_bytes",
    "sidecar_reload_total",
    "sidecar_reload_last_success_timestamp_seconds",
    "sidecar_mirror_contact_age_seconds",
    "sidecar_mirror_lag_seconds",
    "sidecar_mirror_versions_total",
    "sidecar_mirror_units",
    "sidecar_mirror_held",
    "sidecar_mirror_reconnects_total",
    "sidecar_mirror_relists_total",
    "sidecar_mirror_rescues_total",
    "sidecar_mirror_received_bytes_total",
    "sidecar_mirror_requests_total",
    "sidecar_logs_lines_total",
    "sidecar_logs_bytes_total",
    "sidecar_logs_lag_bytes",
    "sidecar_logs_lag_seconds",
    "sidecar_logs_unacked_bytes",
    "sidecar_logs_lost_bytes_total",
    "sidecar_logs_dead_letters_total",
    "sidecar_logs_possible_copies",
    "sidecar_logs_implausible_times_total",
    "sidecar_logs_dropped_lines_total",
}


@dataclass
class Source:
    """A content as the metrics see it."""

    etag: str | None = None
    modified: float | None = None
    stale: str | None = None
    mode: str = "inotify"
    failure: str | None = None


def scrape() -> list[Sample]:
    text, content_type = metrics.exposition()
    assert content_type.startswith("text/plain; version=0.0.4")
    return [
        one for family in text_string_to_metric_families(text.decode()) for one in family.samples
    ]


def values(name: str) -> dict[str, float]:
    """The samples of one name, by the value of their label."""
    return {",".join(one.labels.values()): one.value for one in scrape() if one.name == name}


def test_the_names_are_those_of_the_contract() -> None:
    """Nothing missing, nothing extra: dashboards are built on it."""
    text = metrics.exposition()[0].decode()
    types = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {name for name in types if name.startswith("sidecar_")} == CONTRACT
    assert {"process_resident_memory_bytes", "python_info"} <= types


def test_every_metric_has_a_help_text() -> None:
    """One line that says what it is, and in which unit if the name does not."""
    text = metrics.exposition()[0].decode()
    for name in CONTRACT:
        (line,) = [one for one in text.splitlines() if one.startswith(f"# HELP {name} ")]
        assert len(line) > len(f"# HELP {name} ") + 5


def test_counters_begin_at_0_for_each_known_outcome() -> None:
    """`rate()` cannot see the first failure if the series begins with it."""
    assert set(values("sidecar_publish_total")) == set(metrics.PUBLISH_RESULTS)


def test_there_are_no_created_series() -> None:
    """They double the number of series and nobody asks for them."""
    metrics.HTTP_REQUESTS_TOTAL.labels("200").inc()
    assert not [one.name for one in scrape() if one.name.endswith("_created")]
    assert values("sidecar_http_requests_total")["200"] >= 1


def test_propagation_is_measured_from_half_a_millisecond() -> None:
    """The promise is a median of 1 ms: a histogram that begins at 5 ms cannot show it."""
    steps = values("sidecar_propagation_seconds_bucket")
    assert min(map(float, steps)) == 0.0005
    assert "120.0" in steps


def test_a_publish_is_in_the_bucket_of_its_time_and_in_all_above() -> None:
    """As Prometheus' histograms count: less than or equal, cumulative, with a count and a sum."""
    before = values("sidecar_publish_seconds_bucket")
    total = values("sidecar_publish_seconds_sum")[""]
    for seconds in (0.0005, 0.0006, 11.0):
        metrics.PUBLISH_SECONDS.observe(seconds)
    after = values("sidecar_publish_seconds_bucket")
    more = {step: after[step] - before[step] for step in after}
    assert (more["0.0005"], more["0.001"], more["10.0"], more["+Inf"]) == (1, 2, 2, 3)
    assert values("sidecar_publish_seconds_count")[""] == after["+Inf"]
    assert values("sidecar_publish_seconds_sum")[""] == pytest.approx(total + 11.0011)


def test_a_dead_watch_has_no_mode() -> None:
    """All of them are 0 then: that is what the alert for it asks."""
    source = Source()
    stop = metrics.track_content(source)
    assert sum(values("sidecar_watch_mode").values()) == 1
    source.failure = "planted"
    assert sum(values("sidecar_watch_mode").values()) == 0
    stop()


def test_a_tracked_source_is_read_when_somebody_scrapes() -> None:
    """The state of now, not of the last change; and gone once it is no longer tracked."""
    source = Source(etag='"8e8cba29"', modified=time.time() - 100)
    stop = metrics.track_content(source)
    assert values("sidecar_content_info") == {"8e8cba29": 1.0}
    assert values("sidecar_content_age_seconds")[""] == pytest.approx(100, abs=5)
    source.etag = '"77777777"'
    assert values("sidecar_content_info") == {"77777777": 1.0}
    stop()
    stop()
    assert values("sidecar_content_info") == {}
    assert values("sidecar_content_age_seconds") == {}


def test_of_several_sources_the_worst_is_told() -> None:
    """Oldest age, stale if any is; each version and each mode once."""
    stops = [
        metrics.track_content(Source('"a"', time.time() - 5, None, "inotify")),
        metrics.track_content(Source('"b"', time.time() - 500, "directory is gone", "poll")),
        metrics.track_content(Source('"b"', None, None, "poll")),
    ]
    try:
        assert values("sidecar_content_age_seconds")[""] == pytest.approx(500, abs=5)
        assert values("sidecar_content_stale") == {"": 1.0}
        assert values("sidecar_content_info") == {"a": 1.0, "b": 1.0}
        assert values("sidecar_watch_mode") == {"inotify": 1.0, "watchfiles": 0.0, "poll": 1.0}
    finally:
        for stop in stops:
            stop()
    assert values("sidecar_content_stale") == {"": 0.0}


def test_who_follows_no_content_has_no_dead_watch() -> None:
    """Neither a writer nor a collector says that no mode is in use: an alert would take it for a watch that died."""
    sources = metrics._ContentCollector()
    told = {one.name: one.samples for one in sources.collect()}
    assert told["sidecar_watch_mode"] == told["sidecar_content_stale"] == []

    sources.add(Source())()
    told = {one.name: one.samples for one in sources.collect()}
    assert [one.value for one in told["sidecar_watch_mode"]] == [0, 0, 0]


def test_a_clock_that_runs_behind_gives_no_negative_age() -> None:
    """A file from a node whose clock is ahead is new, not older than new."""
    stop = metrics.track_content(Source(modified=time.time() + 60))
    assert values("sidecar_content_age_seconds") == {"": 0.0}
    stop()


def test_the_default_registry_stays_the_users() -> None:
    """A program with metrics of its own does not find ours among them."""
    from prometheus_client import REGISTRY

    assert not [one.name for one in REGISTRY.collect() if one.name.startswith("sidecar_")]
