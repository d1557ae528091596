"""Lines as applications really write them: times, levels, JSON, escapes, and secrets behind them."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from sidecar import logs
from sidecar.logs import json_encoding, stages
from sidecar.logs.input.framing import frame_lines
from sidecar.logs.records import Record
from sidecar.logs.stages import time_zones
from sidecar.process import metrics

AT = 1_795_440_111_000_000_000
"""2026-11-23T13:21:51Z"""


def record(raw: str | bytes, **options: Any) -> Record:
    return Record(raw.encode() if isinstance(raw, str) else raw, **options)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23 14:21:51+01", "2026-11-23 14:21:51 +01", "2026-11-23 14:21:51 CET", "2026-11-23T14:21:51CET",
        "2026-11-23T14:21:51\u221201:00", "2026-11-23 14:21:51 \u22120100", "2026-11-23 14:21:51 UTC+1",
        "2026-11-23 14:21:51 GMT+01:00", "2026-11-23 14:21:51 Europe/Berlin", "2026-11-23 08:21:51 EST",
        "2026-11-23 13:21:51 UTC INFO x", "2026-11-23 13:21:51Z INFO x", "2026-11-23 13:21:51 INFO x",
        "2026-11-23 13:21:51 -5 degrees",
    ],
)  # fmt: skip
def test_an_offset_counts_however_it_is_written(text: str) -> None:
    """ISO 8601 permits hours alone and U+2212; java.util.logging and PostgreSQL write names."""
    expected = AT + 7200 * 10**9 if "\u2212" in text else AT
    assert logs.find_time_in("UTC")(record(text)).time == expected  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "zone", ["IST", "CST", "+0175", "+01:2:3:4", "Nowhere/City", "+25", "-20 items"]
)
def test_a_zone_that_is_not_understood_is_not_taken_for_utc(zone: str) -> None:
    """A time that is hours wrong is worse than that of reading."""
    found = logs.find_time_in("UTC")(record(f"2026-11-23 13:21:51 {zone} x", time=7))
    assert found is not None
    assert found.time == 7


def test_a_name_of_several_zones_is_that_of_the_configured_one() -> None:
    """CST is China's and America's: the zone that the user has named says which."""
    found = logs.find_time_in("America/Chicago")(record("2026-11-23 07:21:51 CST x"))
    assert found is not None
    assert found.time == AT


def test_a_time_without_a_zone_is_in_that_of_the_node_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TZ is what a Pod has to say it; with neither it nor /etc/localtime it is UTC."""
    caplog.set_level("INFO", logger=time_zones.__name__)
    for variable, file, expected in [
        ("Europe/Berlin", "/nonexistent", AT - 3600 * 10**9),
        ("", "/nonexistent", AT),
        ("", "/usr/share/zoneinfo/Asia/Tokyo", AT - 9 * 3600 * 10**9),
    ]:
        monkeypatch.setenv("TZ", variable)
        monkeypatch.setattr(time_zones, "_LOCALTIME", file)
        time_zones.default.cache_clear()
        made = time_zones.default()
        found = logs.find_time_in(str(made)) if str(made) != "UTC" else stages.find_time
        parsed = found(record("2026-11-23 13:21:51 x"))
        assert parsed is not None
        assert parsed.time == expected
    assert "are read as Europe/Berlin (TZ)" in caplog.text
    time_zones.default.cache_clear()


def test_a_time_hours_ahead_is_counted_and_that_of_reading_stays() -> None:
    """Loki refuses what lies ahead of its clock; Elasticsearch shows it on top for hours."""
    now = time.time_ns()
    before = metrics.LOGS_IMPLAUSIBLE_TIMES._value.get()
    for ahead, taken in [(600, True), (3 * 3600, False)]:
        made = record(json_encoding.rfc3339(now + ahead * 10**9) + " x", time=now)
        assert (stages.find_time(made).time != now) is taken
    assert metrics.LOGS_IMPLAUSIBLE_TIMES._value.get() == before + 1


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({"Level": "Information"}, "info"), ({"@t": "x", "@l": "Fatal"}, "fatal"), ({"@t": "x", "@m": "y"}, "info"),
        ({"LogLevel": "Warning"}, "warn"), ({"level": "ERROR+4"}, "error"), ({"level": "DEBUG-2"}, "debug"),
        ({"level": 35}, "info"), ({"level": "50"}, "error"), ({"level": 4, "short_message": "x"}, "warn"),
        ({"PRIORITY": "3"}, "error"), ({"severityNumber": 17}, "error"), ({"log": {"level": "WARN"}}, "warn"),
        ({"level": "\x1b[31merror\x1b[39m"}, "error"), ({"level": "crit"}, "fatal"),
    ],
)  # fmt: skip
def test_the_levels_of_the_usual_libraries_are_understood(
    fields: dict[str, Any], level: str
) -> None:
    """Serilog, Microsoft.Extensions.Logging, slog, pino, GELF, journald, OpenTelemetry, ECS, winston."""
    made = record("x")
    made.parsed(fields, lambda _raw: fields)
    assert stages.find_level(made).level == level


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("fail: Microsoft.AspNetCore.Server.Kestrel[13]", "error"), ("2026-11-20T10:00:00Z 0 [Note] [MY-1] x", "info"),
        ("<11>Nov 23 12:00:00 host app: x", "error"), ("<191>1 - - - - - - x", "debug"), ("<999>x", None),
        ("\x1b[32mINFO\x1b[39m x", "info"), ("[\x1b[33mwarn\x1b[39m] x", "warn"), ("10:00AM ERR x", "error"),
        ("W, [2026-11-20T10:00:00 #1]  WARN -- : x", "warn"), ("[Fri Nov 20 2026] [core:error] x", "error"),
        ("information: it will fail", None),
    ],
)  # fmt: skip
def test_the_levels_of_consoles_are_understood(line: str, level: str | None) -> None:
    """.NET, MySQL, syslog, zerolog, Ruby, Apache, and whatever writes colours."""
    assert stages.find_level(record(line)).level == level


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b'{"a":"\xff","n":1}', {"a": "\ufffd", "n": 1}),
        (rb'{"a":"\ud800 x","n":1}', {"a": "\ufffd x", "n": 1}),
        (b'{"a":NaN,"b":[-Infinity]}', {"a": None, "b": [None]}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'{"a":"x\ty"}', {"a": "x\ty"}),
        (b'{"a":' + b"9" * 5000 + b"}", {"a": "9" * 5000}),
    ],
)
def test_json_is_read_as_applications_write_it_and_goes_out_repaired(
    line: bytes, fields: dict[str, Any]
) -> None:
    """RFC 8259 forbids each of them; CPython, PHP and printf write them."""
    parsed = stages.parse_json(record(line))
    assert parsed.fields == fields
    assert not parsed.changed
    assert (
        stages.parse_json(record(json_encoding.json_line(parsed))).fields.items() >= fields.items()
    )


@pytest.mark.parametrize(
    ("quoted", "value"),
    [
        (r"caf\u00e9", "café"), (r"\x1b[31mred", "\x1b[31mred"), (r"\ud83d\ude00 ok", "😀 ok"), (r"a\bb\fc", "a\bb\fc"),
        (r"say \"hi\" at C:\\temp\nend", 'say "hi" at C:\\temp\nend'), (r"\udc00", "\ufffd"), (r"\u12", "u12"),
    ],
)  # fmt: skip
def test_escapes_of_logfmt_are_read_as_they_are_written(quoted: str, value: str) -> None:
    """Those of JSON by go-logfmt, those of Go's %q by logrus."""
    assert stages.parse_logfmt(record(f'msg="{quoted}"')).fields == {"msg": value}


@pytest.mark.parametrize(
    "line",
    [
        r'{"m":"pass\u0077ord=hunter2","m":"x"}', r'{"m":"pass\u0077ord=hunter2"}', "GET /?password%3Dhunter2 200",
        r'{"log":"{\"m\":\"password=hunter2\"}"}', r'{"log":"{\"m\":\"pass\\u0077ord=hunter2\"}"}',
        '{"password=hunter2":1}', r'{"a":["pass\u0077ord=hunter2"]}', r'msg="pass\x77ord=hunter2"',
    ],
)  # fmt: skip
@pytest.mark.parametrize("parse", [stages.parse_json, stages.parse_logfmt, lambda one: one])
def test_a_secret_behind_an_encoding_is_redacted(line: str, parse: Any) -> None:
    """No form in which the line may leave holds it, whichever parser came before."""
    made = stages.redact(r"password=[^\s\"\\}]+")(parse(record(line)))
    assert made is not None
    raw = made.text if made.changed else made.raw.decode()
    for text in (raw, json_encoding.json_line(made).decode()):
        assert "hunter2" not in text


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Basic {}", "GET /?q={}&x=1", '{{"data":{{"config":"{}"}}}}', r'{{"log":"{{\"body\":\"{}\"}}"}}',
        "/blobs/{}", "a{}", "ab{}", "abc{}", "x.{}.y", '{{"path":"a%2F{}"}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("secret", ["user=ada password=hunter2", "password=hunter2", "pass\\u0077ord=hunter2", "?>~ password=hunter2", "Käse password=hunter2"])  # fmt: skip
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padding", ["=", ""])
@pytest.mark.parametrize("parse", [stages.parse_json, lambda one: one])
def test_a_secret_in_base64_is_redacted(
    line: str, secret: str, encode: Any, padding: str, parse: Any
) -> None:
    """RFC 4648, both alphabets, with and without padding, alone or behind letters that belong to something else."""
    hidden = encode(secret.encode()).decode().replace("=", padding)
    made = stages.redact(r"password=[^\s\"\\}]+")(parse(record(line.format(hidden))))
    assert made is not None
    assert made.changed
    for text in (made.text, json_encoding.json_line(made).decode()):
        assert hidden.rstrip("=") not in text
        assert "***" in text


@pytest.mark.parametrize(
    "line",
    [
        "cGFzc3dvcmQ9aHVudGVyMg== is the password of Ada, and cGFzc3dvcmQ is not",
        "trace=4bf92f3577b34da6a3ce929d0e0e4736 AbstractAutowireCapableBeanFactory /usr/share/zoneinfo/Europe/Berlin",
    ],
)
def test_what_is_no_base64_of_a_secret_passes_as_it_came(line: str) -> None:
    """What it encodes does not match, or is no text at all."""
    made = stages.redact(r"password=nothing|[^ ]+@[^ ]+")(record(line))
    assert made is not None
    assert not made.changed


def test_a_secret_across_two_pieces_of_a_line_loses_its_later_part() -> None:
    """A line of more than max_line goes on in pieces; each is a record of its own."""
    redact = stages.redact(r"password=\S+")
    first = redact(record("x" * 90 + " passwo", file_id="f", offset=0, end=97))
    second = redact(record("rd=hunter2 y", file_id="f", offset=97, end=110))
    other = redact(record("rd=hunter2 y", file_id="g", offset=97, end=110))
    assert first is not None and second is not None and other is not None  # noqa: PT018
    assert (second.text, other.text) == ("*** y", "rd=hunter2 y")


def test_a_long_line_is_cut_between_two_words() -> None:
    """So that no pattern for one word finds half of it in each piece."""
    raw = b"z" * 9990 + b" 4111111111111111" + b"z" * 9990
    cut = frame_lines(raw, 10_000, final=False)
    assert cut is not None
    assert (cut.size, cut.newline) == (9990, True)


def test_a_pattern_that_asks_for_the_beginning_of_a_text_finds_that_of_a_field() -> None:
    """The line begins with a brace."""
    made = stages.redact(r"^sk-\w+$")(stages.parse_json(record('{"key":"sk-abc"}')))
    assert made is not None
    assert made.fields == {"key": "***"}


def test_colours_are_taken_out_of_text_and_fields() -> None:
    """winston's colorize() before json() puts them into the JSON's values."""
    made = logs.strip_ansi(
        stages.parse_json(record(r'{"level":"\u001b[31merror\u001b[39m","n":[1]}'))
    )
    assert made.fields == {"level": "error", "n": [1]}
    assert (
        logs.strip_ansi(record("\x1b[1mbold\x1b[0m \x1b]8;;http://x\x07link")).text == "bold link"
    )


@pytest.mark.parametrize(
    "value", ["\x1b", "\x1b[", "\x1b[31m\x1b", "2026-11-23T13:21:51.Z", "2026-11-23T13:21:51.١Z"]
)
def test_a_text_that_only_looks_like_a_time_leaves_that_of_reading(value: str) -> None:
    """A lone escape, no fraction where one should be, digits that are none of ASCII."""
    made = record("x", time=7)
    made.parsed({"time": value}, lambda _raw: {})
    found = logs.find_time_in("UTC")(made)
    assert found is not None
    assert found.time in (7, AT)
