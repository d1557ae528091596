"""Conditions of a configuration: which records a filter keeps, and which a sink gets."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar._errors import ConfigError
from sidecar.logs.records import Record
from sidecar.logs.stages import conditions


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        ("failed", True),
        ({"text": "^GET"}, False),
        ({"level": "error"}, True),
        ({"level": ["info", "warn"]}, False),
        ({"min_level": "warn"}, True),
        ({"min_level": "fatal"}, False),
        ({"file": "/var/log/*/access*.log"}, True),
        ({"fields": {"status": "^5"}}, True),
        ({"fields": {"http.method": ["GET", "PUT"]}}, True),
        ({"fields": {"ok": True}}, True),
        ({"fields": {"missing": ""}}, False),
        ({"labels": {"app": "^web$"}}, True),
        ({"level": "error", "labels": {"app": "db"}}, False),
        ({"any": [{"labels": {"app": "db"}}, {"text": "failed"}]}, True),
        ({"not": {"text": "failed"}}, False),
    ],
)
def test_a_condition_says_of_each_record_whether_it_holds(given: Any, holds: bool) -> None:
    """All that stands in one mapping must hold."""
    record = Record(
        b"it failed",
        file="/var/log/nginx/access.1.log",
        level="error",
        fields={"status": 503, "http": {"method": "GET"}, "ok": True},
        labels={"app": "web"},
    )
    assert conditions.make_condition(given)(record) is holds


@pytest.mark.parametrize(
    "given",
    [
        {},
        [],
        {"levle": "x"},
        {"level": "loud"},
        {"min_level": 3},
        {"fields": "x"},
        {"any": []},
        {"text": "("},
    ],
)
def test_a_condition_that_means_nothing_is_refused(given: Any) -> None:
    with pytest.raises((ConfigError, TypeError, ValueError)):
        conditions.make_condition(given)
