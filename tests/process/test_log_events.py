"""The names of log events: those in the code are those in the list, and the JSON log has them."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sidecar
from sidecar.process.log_events import EVENTS
from sidecar.process.logging import configure, rate_limited
from sidecar.volume import change_log

PACKAGE = Path(sidecar.__file__).parent


@cache
def dicts() -> list[tuple[str, ast.Dict, bool]]:
    """Every dict in the code that has the key `event` or is the `extra` of a call: where, the dict, whether it is `extra`."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if "extra=" not in text and '"event"' not in text:
            continue
        tree = ast.parse(text)
        extra = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.keyword) and node.arg == "extra"
        }
        found += [
            (f"{path}:{node.lineno}", node, id(node) in extra)
            for node in ast.walk(tree)
            if isinstance(node, ast.Dict) and (id(node) in extra or event_of(node) is not None)
        ]
    return found


def event_of(node: ast.Dict) -> str | None:
    for key, value in zip(node.keys, node.values, strict=True):
        if (
            isinstance(key, ast.Constant)
            and key.value == "event"
            and isinstance(value, ast.Constant)
        ):
            return str(value.value)
    return None


def test_each_event_is_listed_and_each_that_is_listed_is_logged() -> None:
    """A name that is searched for must not be missing on the page, nor stand there for nothing."""
    assert {event_of(node) for _, node, _ in dicts()} == set(EVENTS)
    assert [name for name in EVENTS if not re.fullmatch(r"[a-z_]+\.[a-z_]+", name)] == []
    assert all(meaning and meaning[-1] != "." for meaning in EVENTS.values())


def test_each_event_is_given_to_a_logger() -> None:
    """As `extra`: one that is something else would hide a missing one."""
    assert [where for where, node, extra in dicts() if extra and event_of(node) not in EVENTS] == []


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
