"""Alerts and dashboard ask for metrics that there are."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pod import chart, tools
from pod.matrix import rendered

promql = pytest.importorskip("promql_parser", reason="needs the package promql-parser")

PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def alerts() -> list[dict[str, Any]]:
    groups = chart.only(rendered("observed"), "PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    config_map = chart.only(rendered("observed"), "ConfigMap")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    board: dict[str, Any] = json.loads(config_map["data"]["sidecar.json"])
    return board


def expressions() -> list[str]:
    panels = [
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])
    ]
    return [rule["expr"] for rule in alerts()] + [
        one.replace("$__rate_interval", "1m") for one in panels
    ]


def test_every_expression_is_promql() -> None:
    """A parser of PromQL takes them all."""
    assert len(expressions()) > 25
    for expression in expressions():
        promql.parse(expression)


def test_every_metric_exists() -> None:
    """The names are those that the program exposes."""
    from sidecar.process import metrics

    families = {family.name for family in metrics.REGISTRY.collect()}
    exposed = families | {
        f"{name}{end}" for name in families for end in ("_total", "_bucket", "_count", "_sum")
    }
    # These appear with the first source that is watched.
    exposed |= {f"sidecar_content_{name}" for name in ("age_seconds", "info", "stale")} | {
        "sidecar_watch_mode"
    }
    for expression in expressions():
        for name in re.findall(
            r"\b(?:sidecar|process)_[a-z_]+", re.sub(r'"[^"]*"', "", expression)
        ):
            assert name in exposed | PROCESS, expression


def test_every_alert_says_what_happened_and_how_bad_it_is() -> None:
    """A person who is woken reads a summary, and what to do; each expression is bound to the Pods of the release."""
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    for rule in alerts():
        assert rule["labels"] == {"severity": rule["labels"]["severity"], "team": "a"}
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert 'namespace="here",pod=~"demo-sidecar(-.*)?"' in rule["expr"]
    assert {
        "SidecarContentStale",
        "SidecarWatchDead",
        "SidecarPublishRefused",
        "SidecarLogsLag",
        "SidecarLogsLost",
        "SidecarLogsRefused",
    } <= set(names)


def test_the_panels_have_titles_and_do_not_overlap() -> None:
    """Each panel says what it shows, and has a place of its own on the grid."""
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["description"]
        taken |= cells


def test_the_dashboard_is_the_file_of_the_chart() -> None:
    """The ConfigMap holds the file byte for byte, as JSON."""
    assert dashboard() == json.loads((tools.CHART / "dashboards" / "sidecar.json").read_text())
