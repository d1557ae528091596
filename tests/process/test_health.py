"""What probes are told."""

import logging

import pytest

from sidecar.process import lifecycle
from sidecar.process.health import Health, Report


def fine() -> None:
    return None


def test_a_process_without_checks_is_fine() -> None:
    """An empty Health is what a program starts with."""
    for kind in ("live", "ready", "started"):
        assert Health().report(kind) == Report(ok=True, checks={})


def test_one_failing_check_fails_the_sum_and_all_are_listed() -> None:
    """The person who reads /readyz sees which part, what is wrong, and what is fine."""
    health = Health()
    health.add("volume", ready=lambda: "nothing published yet")
    health.add("watch", ready=fine)
    assert health.report("ready") == Report(
        ok=False, checks={"volume": "nothing published yet", "watch": "ok"}
    )


def test_each_kind_asks_its_own_checks() -> None:
    """An absent writer: not ready, and yet alive; a restart would not bring the writer."""
    health = Health()
    health.add("watch", live=fine, ready=lambda: "no writer", started=lambda: "no content yet")
    assert health.report("live").ok
    assert not health.report("ready").ok
    assert health.report("started").checks == {"watch": "no content yet"}


def test_ready_comes_and_goes_with_the_state() -> None:
    """Ready can become false again."""
    wrong: list[str] = []
    health = Health()
    health.add("volume", ready=lambda: wrong[0] if wrong else None)
    assert health.report("ready").ok
    wrong.append("stale")
    assert not health.report("ready").ok
    wrong.clear()
    assert health.report("ready").ok


def test_a_draining_process_is_not_ready_and_stays_alive() -> None:
    """No new traffic; and no restart in the middle of the drain."""
    health = Health()
    health.add("volume", live=fine, ready=fine, started=fine)
    lifecycle.begin_drain()
    assert not health.report("ready").ok
    assert "draining" in health.report("ready").checks["process"]
    assert health.report("live").ok
    assert health.report("started").ok


def test_a_check_that_raises_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a check must not answer a probe with a stack trace, nor with "fine"."""
    health = Health()
    health.add("odd", live=lambda: str(1 / 0))
    with caplog.at_level(logging.ERROR):
        report = health.report("live")
    assert not report.ok
    assert "ZeroDivisionError" in report.checks["odd"]
    assert "odd" in caplog.text


def test_two_parts_of_one_name_are_told_apart() -> None:
    """Two follows of one path: both are asked, each goes away alone."""
    health = Health()
    first = health.add("watch", live=fine)
    health.add("watch", live=lambda: "dead")
    assert health.report("live").checks == {"watch": "ok", "watch#2": "dead"}
    first()
    third = health.add("watch", live=fine)
    first()  # does not take away what has its name now
    assert health.report("live").checks == {"watch": "ok", "watch#2": "dead"}
    third()
    assert repr(health) == "<Health of watch#2>"
