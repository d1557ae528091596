"""The names of log events: those in the code are those in the list, and the JSON log has them."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sidecar
from sidecar.process.log_events import EVENTS
from sidecar.process.logging import configure, rate_limited
from sidecar.volume import change_log

PACKAGE = Path(sidecar.__file__).parent


def logged() -> set[str]:
    """Every event that a call of a logger in the code names."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if (
                        isinstance(key, ast.Constant)
                        and key.value == "event"
                        and isinstance(value, ast.Constant)
                    ):
                        names.add(str(value.value))
    return names


def test_each_event_is_listed_and_each_that_is_listed_is_logged() -> None:
    """A name that is searched for must not be missing on the page, nor stand there for nothing."""
    assert logged() == set(EVENTS)
    assert [name for name in EVENTS if not re.fullmatch(r"[a-z_]+\.[a-z_]+", name)] == []
    assert all(meaning and meaning[-1] != "." for meaning in EVENTS.values())


def test_each_event_is_given_to_a_logger() -> None:
    """As `extra`: a dict with the key `event` that is something else would hide a missing one."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.keyword)
                and node.arg == "extra"
                and isinstance(node.value, ast.Dict)
            ):
                assert ast.literal_eval(node.value)["event"] in EVENTS, (
                    f"{path}:{node.value.lineno}"
                )


@pytest.fixture
def restored() -> Iterator[None]:
    """The configuration of logging is global: put it back."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.usefixtures("restored")
def test_the_json_log_has_the_event(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Beside the text, which may change; also of a line that is limited, and with the outcome of a change."""
    configure("info", "json")
    log = logging.getLogger("sidecar.test")
    log.warning("one of %d", 2, extra={"event": "volume.full"})
    rate_limited(log, 60.0).warning("limited", extra={"event": "set.broken"})
    change_log.note("refused", str(tmp_path / "config"), "no JSON")
    log.warning("plain")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line.get("event") for line in lines] == [
        "volume.full",
        "set.broken",
        "content.changed",
        None,
    ]
    assert lines[2]["outcome"] == "refused"
    configure("info", "text")
    log.warning("text", extra={"event": "volume.full"})
    assert "volume.full" not in capsys.readouterr().err
