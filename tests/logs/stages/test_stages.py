"""Stages: what they find in a line, and that no line can stall or break them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import logs
from sidecar._errors import ConfigError
from sidecar.logs import json_encoding, stages
from sidecar.logs.input.framing import MultilineGrouper
from sidecar.logs.records import Record
from support.logs_support import Follower

CRI_P = b"2026-11-23T13:21:51.5Z stdout P "
CRI_F = b"2026-11-23T13:21:51.6Z stdout F "


def record(raw: str | bytes, **options: Any) -> Record:
    return Record(raw.encode() if isinstance(raw, str) else raw, file="/log/a", **options)


# -- parsing


@pytest.mark.parametrize(
    "line", ["no json", "", "[1]", '{"a":', "3", '{"a": nan}', "nul\0", '"text"']
)
def test_a_line_that_is_no_json_object_passes_as_it_came(line: str) -> None:
    """Stack traces between JSON lines are lines, too."""
    parsed = stages.parse_json(record(line))
    assert (parsed.fields, parsed.changed, parsed.text) == ({}, False, line)


def test_parsing_alone_changes_no_line() -> None:
    """stdout and file sinks write a parsed line as it came."""
    for stage, line in [
        (stages.parse_json, '{"b": 1,  "a": [1, {"c": null}]}'),
        (stages.parse_logfmt, 'a=1 b="two words"'),
        (stages.parse_regex(r"(?P<a>\w+)"), "hello there"),
        (stages.find_level, "ERROR x"),
        (stages.find_time, "2026-01-01T00:00:00Z x"),
    ]:
        result = stage(record(line))
        assert result is not None
        assert not result.changed, line


def test_a_change_deep_in_a_parsed_line_is_noticed() -> None:
    parsed = stages.parse_json(record('{"a": [1, {"b": "x"}]}'))
    parsed.fields["a"][1]["b"] = "y"
    assert parsed.changed


@pytest.mark.parametrize(
    "digits", ["18446744073709551615", "18446744073709551616", "-9223372036854775809", "9" * 60]
)
def test_an_integer_of_any_length_keeps_its_digits(digits: str) -> None:
    """An id of 128 bits that has become 1.2e38 finds nothing any more."""
    parsed = stages.parse_json(record(f'{{"a": {{"id": [{digits}]}}, "text": "-"}}'))
    assert parsed.fields["a"] == {"id": [int(digits)]}
    assert not parsed.changed
    assert digits in json_encoding.json_line(parsed).decode()


def test_json_inside_of_a_line_that_was_changed_before_is_parsed_as_changed() -> None:
    """CRI around JSON: the inner line counts, and the stream stays beside its fields."""
    wrapped = stages.parse_json(stages.parse_cri(record(CRI_F + b'{"msg":"say \\"hi\\""}')))
    assert wrapped.fields == {"stream": "stdout", "msg": 'say "hi"'}
    assert wrapped.changed


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("a=1 b=2", {"a": "1", "b": "2"}),
        ('msg="two words" n=3', {"msg": "two words", "n": "3"}),
        (r'msg="a \"b\" \n c"', {"msg": 'a "b" \n c'}),
        ("a= b=1", {"a": "", "b": "1"}),
        ('a="unclosed b=1', {"a": "", "b": "1"}),
        ("no pairs at all", {}),
        ("", {}),
    ],
)
def test_logfmt_is_read(line: str, fields: dict[str, str]) -> None:
    assert stages.parse_logfmt(record(line)).fields == fields


def test_groups_of_a_pattern_become_fields_and_those_that_took_no_part_do_not() -> None:
    stage = stages.parse_regex(r"^(?P<verb>\S+) (?P<path>\S+)(?: (?P<status>\d+))?")
    parsed = stage(record("GET /ü"))
    assert parsed is not None
    assert parsed.fields == {"verb": "GET", "path": "/ü"}


@pytest.mark.parametrize("pattern", ["(", "(?=x)y", r"(a)\1", "no groups", "(unnamed)"])
def test_a_pattern_that_cannot_work_is_refused_before_the_start(pattern: str) -> None:
    with pytest.raises(ConfigError, match="pattern"):
        stages.parse_regex(pattern)


# -- bounded in time


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(?P<x>(a*)*b)", r"(.*a){12}$"])
def test_no_line_can_stall_a_pattern(pattern: str) -> None:
    """With backtracking the first of these takes longer than the age of the universe."""
    line = "a" * 200_000 + "!"
    stages.drop(pattern)(record(line))
    stages.redact(pattern)(record(line))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["a=", '="', "\\", "[", "{", '{"a":', "9", " "])
def test_no_line_can_stall_a_parser(piece: str) -> None:
    """Long runs of what a grammar begins with: a cost that grows with the square takes an hour for two megabytes."""
    line = piece * (2_000_000 // len(piece))
    for stage in (
        stages.parse_json,
        stages.parse_logfmt,
        stages.parse_cri,
        stages.find_level,
        stages.find_time,
    ):
        stage(record(line))
        stage(record(CRI_F + line.encode()))


@given(st.binary(max_size=200), st.sampled_from(["", '{"a":"', "2026-11-23T13:21:51Z stdout F "]))
def test_stages_pass_every_line_whatever_bytes_it_holds(raw: bytes, prefix: str) -> None:
    """An exception in a stage would end the collection: no bytes may cause one."""
    result: Record | None = record(prefix.encode() + raw)
    for stage in (
        stages.parse_cri,
        stages.parse_json,
        stages.parse_logfmt,
        stages.find_level,
        stages.find_time,
        stages.parse_time("time"),
        stages.parse_time("ts", "%Y"),
        stages.redact(r"\d+"),
        stages.add_fields(a=1),
        stages.keep(""),
    ):
        assert result is not None
        result = stage(result)
    assert result is not None
    assert json_encoding.json_line(result)


# -- CRI


def test_the_pieces_of_a_long_line_are_joined() -> None:
    """The runtime cuts at 16 KiB; tailed with CRI_LINES the pieces are one record."""
    raw = CRI_P + b"one, \n" + CRI_P + b"two, \n" + CRI_F + b"three"
    joined = stages.parse_cri(record(raw))
    assert joined.text == "one, two, three"
    assert joined.fields == {"stream": "stdout"}


def test_lines_of_a_container_are_grouped_to_their_last_piece() -> None:
    """P waits for F; every other line, also one that is no CRI, stands alone."""
    lines = [
        CRI_F + b"alone",
        CRI_P + b"cut",
        CRI_F + b"rest",
        b"no CRI at all",
        b"",
        b"word",
        CRI_F + b"",
        CRI_P + b"still open",
    ]
    data = b"".join(line + b"\n" for line in lines)
    cut = MultilineGrouper(logs.CRI_LINES).group(data, final=False)
    assert cut is not None
    assert cut.starts is not None
    pieces = [data[a:b] for a, b in zip(cut.starts, [*cut.starts[1:], cut.size], strict=True)]
    assert pieces == [
        lines[0] + b"\n",
        lines[1] + b"\n" + lines[2] + b"\n",
        *[line + b"\n" for line in lines[3:7]],
    ]


def test_a_piece_of_the_other_stream_between_is_not_lost() -> None:
    raw = CRI_P + b"out " + b"\n" + CRI_F.replace(b"stdout", b"stderr") + b"err\n" + CRI_F + b"put"
    assert stages.parse_cri(record(raw)).text == "out err\nput"


def test_pieces_of_two_streams_that_lie_mixed_are_joined_apart(tmp_path: Path) -> None:
    """A container's log holds both streams; none of a line is put into the other's, and offsets are the file's."""
    err_p, err_f = CRI_P.replace(b"stdout", b"stderr"), CRI_F.replace(b"stdout", b"stderr")
    lines = [
        CRI_F + b"before",
        err_p + b"e1",
        CRI_P + b"o1",
        err_p + b"e2",
        b"no CRI",
        CRI_F + b"o2",
    ]
    lines += [CRI_F + b"between", err_f + b"e3", CRI_P + b"o3", err_f + b"alone"]
    log = tmp_path / "app.log"
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    follower = Follower(log, multiline=logs.CRI_LINES)

    def joined() -> list[tuple[str, str, int]]:
        blocks = follower.tail.read("", 1 << 20)
        made = [stages.parse_cri(record) for block in blocks for record in block.records()]
        follower.tail.acknowledge("", blocks)
        return [(one.text, one.fields.get("stream", ""), one.offset) for one in made]

    place = {line: log.read_bytes().index(line) for line in lines}
    expected = [
        ("before", "stdout", place[lines[0]]),
        ("e1e2e3", "stderr", place[lines[1]]),
        ("o1o2", "stdout", place[lines[2]]),
        ("no CRI", "", place[lines[4]]),
        ("between", "stdout", place[lines[6]]),
    ]
    assert joined() == expected
    with log.open("ab") as file:
        file.write(CRI_F + b"o4\n")
    follower.tail.scan()
    assert joined() == [
        ("o3o4", "stdout", place[lines[8]]),
        ("alone", "stderr", place[lines[9]]),
    ]


def test_a_piece_that_is_never_completed_does_not_hold_the_others_back_for_ever() -> None:
    """The container was killed in the middle of a line of one stream; the other one goes on."""
    rule = replace(logs.CRI_LINES, max_lines=3)
    err = CRI_P.replace(b"stdout", b"stderr") + b"cut off\n"
    grouper = MultilineGrouper(rule)
    assert grouper.group(err + CRI_F + b"a\n", final=False) is None
    cut = grouper.group(err + (CRI_F + b"a\n") * 2, final=False)
    assert cut is not None
    assert len(cut.starts or ()) == 3


def test_a_line_that_is_no_cri_passes_as_it_came() -> None:
    assert not stages.parse_cri(record("2026 nonsense")).changed


# -- level and time


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("2026-01-01 12:00:00 WARNING x", "warn"),
        ("[error] x", "error"),
        ("level=debug msg=x", "debug"),
        ('lvl="eror" x', "error"),
        ("E1123 13:21:51.000000 1 file.go:1] x", "error"),
        ("the error was mine", None),
        ("INFORMATION x", None),
        ("x" * 300 + " ERROR", None),
    ],
)
def test_the_level_is_found_in_text(line: str, level: str | None) -> None:
    assert stages.find_level(record(line)).level == level


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({"level": "Warning"}, "warn"),
        ({"severity": "CRITICAL"}, "fatal"),
        ({"level": 30}, "info"),
        ({"level": 50}, "error"),
        ({"level": None, "lvl": "dbg"}, "debug"),
        ({"level": {"a": 1}}, None),
        ({"level": True}, None),
        ({"msg": "ERROR"}, None),
    ],
)
def test_the_level_is_found_in_fields(fields: dict[str, Any], level: str | None) -> None:
    made = record("x")
    made.parsed(fields, lambda _raw: fields)
    assert stages.find_level(made).level == level


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-11-23T13:21:51Z", 1_795_440_111_000_000_000),
        ("2026-11-23T13:21:51.123456789Z", 1_795_440_111_123_456_789),
        ("2026-11-23 14:21:51,5+01:00", 1_795_440_111_500_000_000),
        ("2026-11-23 14:21:51 +0100", 1_795_440_111_000_000_000),
        (1_795_440_111, 1_795_440_111_000_000_000),
        (1_795_440_111.25, 1_795_440_111_250_000_000),
        (1_795_440_111_123, 1_795_440_111_123_000_000),
        ("1795440111123456789", 1_795_440_111_123_456_789),
        ("yesterday", 7),
        ("2026-13-99T99:99:99Z", 7),
        (True, 7),
        (12, 7),
        (1e300, 7),
        (float("nan"), 7),
        ([], 7),
        ("9" * 5000, 7),
    ],
)
def test_the_time_is_found_in_a_field(value: Any, expected: int) -> None:
    """What is no time leaves the time at which the line was read."""
    made = record("x", time=7)
    made.parsed({"ts": value}, lambda _raw: {})
    assert stages.find_time(made).time == expected


@pytest.mark.parametrize(
    ("read", "form", "text", "meant"),
    [
        ("2026-11-23 13:21:51", "%b %d %H:%M:%S", "Nov 23 13:21:50", "2026-11-23 13:21:50"),
        ("2026-11-23 13:21:51", "%b %d %H:%M:%S", "Nov 24 00:00:10", "2026-11-24 00:00:10"),
        ("2027-01-01 00:00:01", "%b %d %H:%M:%S", "Dec 31 23:59:59", "2026-12-31 23:59:59"),
        ("2028-02-29 12:00:00", "%b %d %H:%M:%S", "Feb 29 11:59:59", "2028-02-29 11:59:59"),
        ("2027-03-01 12:00:00", "%b %d %H:%M:%S", "Feb 29 11:59:59", "2027-03-01 12:00:00"),
        ("2026-11-23 13:21:51", "%H:%M:%S", "13:21:50", "2026-11-23 13:21:50"),
        ("2026-11-24 00:00:01", "%H:%M:%S", "23:59:59", "2026-11-23 23:59:59"),
        ("2026-11-23 13:21:51", "%Y %H", "0001 13", "2026-11-23 13:21:51"),
    ],
)
def test_a_time_without_a_year_or_a_date_means_the_last_such_moment(
    read: str, form: str, text: str, meant: str
) -> None:
    """strptime says 1900, and receivers refuse what is so old. What is no moment leaves the time of reading."""

    def moment(given: str) -> int:
        return int(datetime.fromisoformat(f"{given}+00:00").timestamp()) * 10**9

    record = Record(b"", fields={"at": text}, time=moment(read))
    stages.parse_time("at", form)(record)
    assert record.time == moment(meant)


def test_a_format_that_can_fit_no_time_is_refused() -> None:
    """Otherwise every line would keep the time at which it was read, and nobody would be told."""
    with pytest.raises(ConfigError, match="'e' is a bad directive"):
        stages.parse_time("at", "%b %e %H:%M:%S")


def test_a_time_in_a_format_of_ones_own_and_in_a_zone() -> None:
    stage = stages.parse_time("at", "%d.%m.%Y %H:%M:%S", zone="Europe/Berlin")
    result = stage(record("x", fields={"at": "23.11.2026 14:21:51"}))
    assert result is not None
    assert result.time == 1_795_440_111_000_000_000
    with pytest.raises(ConfigError, match="zone"):
        stages.parse_time("at", zone="Nowhere/At_All")


# -- selecting and changing


def test_lines_are_kept_and_dropped_by_pattern_or_by_function() -> None:
    healthz, other = record("GET /healthz 200"), record("GET / 200")
    assert stages.drop("/healthz")(healthz) is None
    assert stages.drop("/healthz")(other) is other
    assert stages.keep(r"GET /\w+ ")(healthz) is healthz
    assert stages.keep(r"GET /\w+ ")(other) is None
    assert stages.drop(lambda one: one.level == "debug")(record("x", level="debug")) is None


def test_a_secret_is_taken_out_of_text_and_of_every_field() -> None:
    """Nested, in lists, in names, in numbers: wherever it stands."""
    line = (
        '{"msg":"card 4111111111111111","deep":[{"card":4111111111111111,"4111111111111111":"x"}]}'
    )
    result = stages.redact("4111111111111111")(stages.parse_json(record(line)))
    assert result is not None
    assert "4111111111111111" not in json_encoding.json_line(result).decode() + result.text
    assert result.fields["msg"] == "card ***"


@pytest.mark.parametrize(
    "line",
    [
        '{"user":"ada","password":"s3cret"}',
        '{"user": "ada", "password": "s3cret"}',
        '{"token":"1","password":"s3cret"}',
    ],
)
def test_a_secret_that_only_a_pattern_across_fields_finds_does_not_leak(line: str) -> None:
    """`"password":"…"` matches the text and no value: the record goes on as text."""
    stage = stages.redact(r'"password": ?"[^"]*"|"token":"1"')
    result = stage(stages.parse_json(record(line)))
    assert result is not None
    assert "s3cret" not in json_encoding.json_line(result).decode() + result.text


@pytest.mark.parametrize("nested", ['{{"a":{}}}', "[{}]"])
def test_what_is_nested_too_deep_to_be_looked_through_is_replaced_whole(nested: str) -> None:
    """A secret below the last level that is looked at is not delivered, and one above it is still found."""
    deep = '"s3cret"'
    for _ in range(70):
        deep = nested.format(deep)
    line = f'{{"near":"s3cret","kept":1,"far":{deep}}}'
    result = stages.redact("s3cret")(stages.parse_json(record(line)))
    assert result is not None
    assert "s3cret" not in json_encoding.json_line(result).decode() + result.text
    assert (result.fields["near"], result.fields["kept"]) == ("***", 1)


def test_a_secret_hidden_by_escapes_in_the_text_is_found_in_the_field() -> None:
    result = stages.redact("s3cret")(stages.parse_json(record(r'{"a":"s3cr\u0065t"}')))
    assert result is not None
    assert b"s3cret" not in json_encoding.json_line(result)


def test_a_replacement_that_matches_its_own_pattern_keeps_the_fields() -> None:
    stage = stages.redact(r"password=\S+", "password=***")
    result = stage(stages.parse_json(record('{"msg":"x password=abc","n":1}')))
    assert result is not None
    assert result.fields == {"msg": "x password=***", "n": 1}


def test_groups_may_stand_in_the_replacement_and_a_wrong_one_is_refused() -> None:
    result = stages.redact(r"(\d{4})\d{8}(\d{4})", r"\1…\2")(record("card 4111111111111111"))
    assert result is not None
    assert result.text == "card 4111…1111"
    for wrong in (r"\3", r"\g<name>"):
        with pytest.raises(ConfigError, match="does not have"):
            stages.redact(r"(\d{4})", wrong)


def test_added_fields_make_a_record_changed_and_win() -> None:
    result = stages.add_fields(site="b", n=2)(stages.parse_json(record('{"n":1,"a":0}')))
    assert result is not None
    assert result.fields == {"n": 2, "a": 0, "site": "b"}
    assert result.changed


@pytest.mark.parametrize("depth", [129, 1000, 100_000])
def test_a_line_nested_too_deep_stays_text(depth: int) -> None:
    """Comparing or writing such an object ends in a RecursionError, and that would end the collection at each start."""
    raw = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    record = stages.parse_json(Record(raw))
    assert not record.structured
    assert not record.changed


def test_brackets_inside_of_strings_are_no_depth() -> None:
    """A line may hold a program."""
    record = stages.parse_json(Record(b'{"code":"' + b"{[" * 500 + b'","n":[[1]]}'))
    assert record.fields["n"] == [[1]]
