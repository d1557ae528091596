"""The metrics of several processes, told as those of one."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.process import metrics
from sidecar.process.metrics import Family
from sidecar.process.prefork.aggregate import MetricAggregator, merge


def counter(value: float, **labels: str) -> Family:
    return ("n", "Things", "counter", [("n_total", labels, value)])


def gauge(name: str, value: float, **labels: str) -> Family:
    return (name, "A state", "gauge", [(name, labels, value)])


def histogram(count: float) -> Family:
    samples = [
        ("h_bucket", {"le": "+Inf"}, count),
        ("h_count", {}, count),
        ("h_sum", {}, count / 2),
    ]
    return ("h", "Times", "histogram", samples)


def values(families: list[Family]) -> dict[str, float]:
    return {
        ",".join([name, *labels.values()]): value
        for *_, samples in families
        for name, labels, value in samples
    }


def test_counters_and_histograms_are_added_up() -> None:
    """By name and labels; what only one process has is there as well."""
    parts = [
        [counter(1, code="200"), histogram(2)],
        [counter(5, code="200"), counter(7, code="404")],
    ]
    assert values(merge(parts)) == {
        "n_total,200": 6, "n_total,404": 7, "h_bucket,+Inf": 2, "h_count": 2, "h_sum": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sidecar_subscribers", 7.0),
        ("sidecar_content_age_seconds", 5.0),
        ("sidecar_content_stale", 5.0),
        ("process_start_time_seconds", 2.0),
        ("process_resident_memory_bytes", 7.0),
    ],
)
def test_a_state_is_told_as_makes_sense_of_it(name: str, told: float) -> None:
    """Subscribers and memory are added up, of ages the largest counts, and a program is as old as its parent."""
    assert values(merge([[gauge(name, 2.0)], [gauge(name, 5.0)]])) == {name: told}


def test_what_the_dead_have_counted_stays() -> None:
    """Also when their number has a new process; but not their states."""
    totals = MetricAggregator()
    totals.note(1, [counter(10), histogram(4), gauge("sidecar_subscribers", 3)])
    totals.note(2, [counter(1)])
    before = values(totals.sum([]))
    totals.ended(1)
    after = values(totals.sum([]))
    assert after == {key: value for key, value in before.items() if key != "sidecar_subscribers"}
    totals.note(1, [counter(2)])
    assert values(totals.sum([counter(100)]))["n_total"] == 10 + 1 + 2 + 100
    totals.ended(1)
    totals.ended(3)  # it has never said anything
    assert values(totals.sum([]))["n_total"] == 10 + 1 + 2


def test_one_that_does_not_answer_counts_with_what_it_said_last() -> None:
    """A counter that is missing for one scrape would look like one that went back."""
    totals = MetricAggregator()
    totals.note(1, [counter(10)])
    totals.note(2, [counter(1)])
    totals.note(2, [counter(3)])
    assert values(totals.sum([]))["n_total"] == 13


def test_what_one_process_has_collected_is_written_as_it_would_itself() -> None:
    """Through JSON, as it goes from one process to another."""
    metrics.HTTP_REQUESTS_TOTAL.labels("418").inc()
    families = json.loads(json.dumps(metrics.export_families()))
    text, content_type = metrics.render_families(families)
    assert content_type == metrics.CONTENT_TYPE

    def shape(exposition: bytes) -> list[tuple[str, str, list[str]]]:
        return [
            (one.name, one.type, [sample.name for sample in one.samples])
            for one in text_string_to_metric_families(exposition.decode())
        ]

    assert shape(text) == shape(metrics.exposition()[0])
    assert b'sidecar_http_requests_total{code="418"}' in text
