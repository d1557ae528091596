"""Log lines, as a person and as a machine read them."""

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from sidecar._errors import ConfigError
from sidecar.process.logging import configure, rate_limited

log = logging.getLogger("sidecar.example")


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_is_one_line_with_time_level_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    """stderr, UTC, nothing on stdout: that belongs to what the program puts out."""
    configure()
    log.info("published %s", "8e8cba29")
    log.debug("not at this level")
    out, err = capsys.readouterr()
    time, level, rest = err.split(maxsplit=2)
    assert datetime.fromisoformat(time).utcoffset() is not None
    assert (level, rest) == ("INFO", "sidecar.example: published 8e8cba29\n")
    assert out == ""


def test_a_file_name_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Names on a shared volume are somebody else's choice."""
    configure()
    log.warning("left out %s", "a\n2026-01-01T00:00:00Z INFO sidecar: all is well\x1b[2J")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With the error's traceback in a field of its own, and names that are not UTF-8 kept."""
    configure(format="json")
    try:
        raise OSError("gone")
    except OSError:
        log.exception("cannot read %s", "name-\udcff")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["level"] == "ERROR"
    assert record["logger"] == "sidecar.example"
    assert record["message"] == "cannot read name-\udcff"
    assert "OSError: gone" in record["exception"]
    assert datetime.fromisoformat(record["time"]).utcoffset() is not None


def test_configuring_again_replaces_and_doubles_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command configures after the library has; handlers of others stay."""
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    configure("info", "text")
    configure("error", "text")
    log.warning("too quiet")
    log.error("loud")
    assert capsys.readouterr().err.count("\n") == 1
    assert other in logging.getLogger().handlers


def test_wrong_settings_are_refused_with_the_choices() -> None:
    """What was given, and what could have been."""
    with pytest.raises(ConfigError, match=r"'loud'.*debug, info"):
        configure("loud")
    with pytest.raises(ConfigError, match=r"'xml'.*text, json"):
        configure(format="xml")  # type: ignore[arg-type]


def test_a_message_passes_once_a_period_and_then_says_how_many_were_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broken volume is reported, not repeated a thousand times a second."""
    now = [0.0]
    limited = rate_limited(log, 60.0, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            limited.error("cannot read %s", "/shared")
        limited.error("something else")
        now[0] = 61.0
        limited.error("cannot read %s", "/shared")
        now[0] = 122.0
        limited.error("cannot read %s", "/shared")
    assert caplog.messages == [
        "cannot read /shared",
        "something else",
        "cannot read /shared (and 4 more like it)",
        "cannot read /shared",
    ]


def test_a_level_that_is_off_costs_and_counts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Else the first line after switching it on would count what nobody wanted."""
    limited = rate_limited(log, 60.0)
    with caplog.at_level(logging.WARNING):
        limited.info("quiet")
    with caplog.at_level(logging.INFO):
        limited.info("quiet")
    assert caplog.messages == ["quiet"]


@pytest.mark.parametrize("sign", ["\x9b", "\x85", "\u202e", "\u2028", "\u2066", "\U000e0001"])
def test_no_sign_of_a_name_moves_the_cursor_or_turns_the_text(
    capsys: pytest.CaptureFixture[str], sign: str
) -> None:
    """C1 (U+009B begins a control sequence), line separators, bidirectional controls, invisible tags."""
    configure()
    try:
        raise ValueError(f"a{sign}b")
    except ValueError:
        log.exception("left out %s", f"a{sign}b ü")
    err = capsys.readouterr().err
    assert sign not in err
    assert " ü" in err
