"""Forms of lines beside JSON, and stages that leave lines out, count them or change their fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar import logs, testing
from sidecar._errors import ConfigError
from sidecar.logs import pipeline as config
from sidecar.logs import stages
from sidecar.logs.collector import Collector
from sidecar.logs.records import Record
from sidecar.process import metrics
from support.logs_support import Follower

AT = 1_795_440_111_000_000_000
"""2026-11-23T13:21:51Z"""


def record(raw: str | bytes, **options: Any) -> Record:
    return Record(raw.encode() if isinstance(raw, str) else raw, **options)


def made(*specs: Any) -> list[logs.Stage]:
    return config.Pipeline(files=["x"], stages=specs).make_stages()


def run(given: list[logs.Stage], one: Record | None) -> Record | None:
    for stage in given:
        one = None if one is None else stage(one)
    return one


def docker(text: str, stream: str = "stdout") -> str:
    return json.dumps(
        {"log": text, "stream": stream, "time": "2026-11-23T13:21:51Z"}, separators=(",", ":")
    )


def test_the_pieces_of_a_long_line_in_dockers_file_are_joined(tmp_path: Path) -> None:
    """json-file cuts at 16 KiB, and writes both streams into one file (moby/moby#34855)."""
    lines = [
        docker("a" * 16384),
        docker("err\n", "stderr"),
        docker("b" * 16384),
        docker("end\n"),
        docker("short\n"),
    ]
    log = tmp_path / "x-json.log"
    log.write_text("".join(line + "\n" for line in [*lines, "no JSON"]))
    pipeline = config.Pipeline(files=[str(log)], stages=[{"parse": "docker"}])
    assert pipeline._default_multiline() is logs.DOCKER_LINES
    follower = Follower(log, multiline=logs.DOCKER_LINES)
    got = [
        logs.parse_docker(one)
        for block in follower.tail.read("", 1 << 20)
        for one in block.records()
    ]
    texts = {one.text: one.fields.get("stream") for one in got}
    assert texts == {
        "a" * 16384 + "b" * 16384 + "end": "stdout",
        "err": "stderr",
        "short": "stdout",
        "no JSON": None,
    }
    assert got[0].time == AT


@pytest.mark.parametrize(
    ("line", "fields", "level", "time"),
    [
        ("<34>Nov 23 13:21:51 web su[10]: 'su root' failed", {"hostname": "web", "appname": "su", "procid": "10", "facility": "auth", "severity": "crit", "message": "'su root' failed"}, "fatal", AT),
        ("Nov 23 13:21:51 web CRON[7]: (root) CMD (x: y)", {"appname": "CRON", "message": "(root) CMD (x: y)"}, None, AT),
        ("2026-11-23T14:21:51+01:00 web kernel: oom", {"appname": "kernel", "message": "oom"}, None, AT),
        ('<165>1 2026-11-23T13:21:51.000Z web app - ID47 [ex@1 a="b \\"c\\"" d="x]"][o@2] \ufeffhello', {"structured_data": {"ex@1": {"a": 'b "c"', "d": "x]"}, "o@2": {}}, "msgid": "ID47", "message": "hello", "facility": "local4", "severity": "notice", "version": 1}, "info", AT),
        ("<191>1 - - - - - -", {"message": "", "severity": "debug", "facility": "local7"}, "debug", AT + 1),
        ("<999>Nov 23 13:21:51 web x: y", {}, None, AT + 1),
        ("at java.lang.Thread", {}, None, AT + 1),
    ],
)  # fmt: skip
def test_syslog_is_read_in_both_forms(line: str, fields: dict[str, Any], level: str | None, time: int) -> None:  # fmt: skip
    """RFC 3164 and 5424, with priority and as rsyslog writes files without one."""
    parsed = logs.parse_syslog_in("UTC")(record(line, time=AT + 1))
    assert parsed is not None
    assert {name: parsed.fields.get(name) for name in fields} == fields
    assert bool(parsed.fields) is bool(fields)
    assert (parsed.level, parsed.time, parsed.changed) == (level, time, False)


def test_klog_is_read_with_its_pairs() -> None:
    """A structured line of Kubernetes, and one of before."""
    line = 'E1123 13:21:51.000000    12 pod.go:7] "Pod \\"web\\" failed" pod="shop/web-0" err="no\\nway"'
    parsed = logs.parse_klog(record(line, time=AT + 1))
    assert parsed.fields == {"level": "error", "thread": 12, "source": "pod.go:7", "message": 'Pod "web" failed', "pod": "shop/web-0", "err": "no\nway"}  # fmt: skip
    assert (parsed.level, parsed.changed) == ("error", False)
    assert (
        logs.parse_klog(record("I1123 13:21:51.000000 1 a.go:7] x=1 y")).fields["message"]
        == "x=1 y"
    )
    assert logs.parse_klog(record("I am no klog")).fields == {}


def test_columns_are_read_and_lines_of_another_form_pass() -> None:
    """Quotes as in RFC 4180; the header and a broken line are no records of that form."""
    stage = made({"parse": {"csv": {"columns": ["at", "path", ""], "delimiter": ";"}}})[0]
    for line, fields in [
        ('1;"/a;""b""";x', {"at": "1", "path": '/a;"b"'}),
        ("1;2", {}), ('1;"2;3', {}), ("", {}),
    ]:  # fmt: skip
        parsed = stage(record(line))
        assert parsed is not None
        assert (parsed.fields, parsed.changed) == (fields, False)
    header = logs.parse_csv(["at", "path"])(record("at,path"))
    assert header is not None
    assert header.fields == {}


def test_fields_are_renamed_and_removed() -> None:
    fields = {"msg": "x", "user": {"mail": "m", "id": 1}, "n": 1}
    done = run(
        made({"rename": {"msg": "message"}}, {"remove": ["user.mail", "n", "none"]}),
        record("", fields=fields),
    )
    assert done is not None
    assert done.fields == {"message": "x", "user": {"id": 1}}
    assert fields["user"] == {"mail": "m", "id": 1}


def test_lines_below_a_level_are_left_out_and_those_without_one_stay() -> None:
    """A stack trace has no level of its own."""
    stage = made({"min_level": "warn"})
    got = [
        run(stage, record("x", level=level)) is not None
        for level in ("debug", "info", "warn", "fatal", None)
    ]
    assert got == [False, False, True, True, True]


def test_a_sample_is_the_same_for_each_sink_and_whole_by_a_field() -> None:
    """All lines of a trace, or none of them; nothing depends on a random number."""
    lines = [record("x", file_id="f", offset=n, fields={"trace": n // 10}) for n in range(2000)]
    one, other = made({"sample": 0.1}), made({"sample": {"share": 0.1}})
    kept = [line.offset for line in lines if run(one, line)]
    assert kept == [line.offset for line in lines if run(other, line)]
    assert 100 < len(kept) < 300
    by = made({"sample": {"share": 0.2, "by": "trace"}})
    traces = [line.fields["trace"] for line in lines if run(by, line)]
    assert all(traces.count(trace) == 10 for trace in set(traces))


def test_lines_beyond_a_rate_are_left_out_and_counted() -> None:
    """By the lines' own times: what is caught up after a break is not dropped for coming fast."""
    before = metrics.LOGS_DROPPED.labels("rate_limit")._value.get()
    stage = made({"rate_limit": {"per_second": 2, "by": "user.name"}})
    times = [0, 0.1, 0.2, 0.9, 1.0, 5.0]
    lines = [(at, name) for at in times for name in ("ada", "bob")]
    got = [
        run(stage, record("x", time=AT + int(at * 1e9), fields={"user": {"name": name}}))
        is not None
        for at, name in lines
    ]
    assert got[::2] == got[1::2] == [True, True, False, True, False, True]
    assert metrics.LOGS_DROPPED.labels("rate_limit")._value.get() == before + 4


def test_what_is_said_again_within_a_window_is_left_out() -> None:
    """The window begins at the line that passed: what never stops is heard once a window."""
    stage = made({"deduplicate": {"window": "10s", "by": ["code"]}})
    got = [run(stage, record(str(at), time=AT + at * 10**9, fields={"code": code})) is not None for at, code in [(0, 1), (5, 1), (5, 2), (11, 1), (20, 1), (21, 1)]]  # fmt: skip
    assert got == [True, False, True, True, False, True]


async def test_each_sink_has_a_memory_of_its_own_and_a_line_is_counted_once(tmp_path: Path) -> None:
    """What one sink has seen is news to the other: a shared memory would lose lines."""
    (tmp_path / "a.log").write_text("same\nsame\nother\n")
    sinks = [testing.MemorySink(name=name) for name in ("one", "two")]
    given = made({"deduplicate": "1h"}, {"count": "test_lines_total"})
    source = logs.tail(str(tmp_path / "a.log"))
    await Collector(source, given, sinks).run(until_end=True)
    assert [[one.text for one in sink.records] for sink in sinks] == [["same", "other"]] * 2
    assert metrics.REGISTRY.get_sample_value("test_lines_total") == 2.0


def test_metrics_are_made_of_fields_and_bounded() -> None:
    """A field with ids in it may not fill the memory."""
    stage = made({"count": {"name": "test_by_status_total", "labels": {"status": "http.status", "level": "level"}}},
                 {"histogram": {"name": "test_took", "field": "took", "buckets": [1, 10]}})  # fmt: skip
    for status in range(1100):
        run(
            stage,
            record(
                "x",
                level="info",
                fields={"http": {"status": status}, "took": "5" if status else "soon"},
            ),
        )
    value = metrics.REGISTRY.get_sample_value
    assert value("test_by_status_total", {"status": "7", "level": "info"}) == 1.0
    assert value("test_by_status_total", {"status": "other", "level": "other"}) == 100.0
    assert (value("test_took_bucket", {"le": "1.0"}), value("test_took_bucket", {"le": "10.0"}), value("test_took_count")) == (0.0, 1099.0, 1099.0)  # fmt: skip
    assert made(
        {
            "count": {
                "name": "test_by_status_total",
                "labels": {"status": "http.status", "level": "level"},
            }
        }
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"min_level": "loud"}, {"sample": 2}, {"sample": {"by": "x"}}, {"rate_limit": 0}, {"rate_limit": "x"}, {"deduplicate": {"windows": 1}},
        {"count": "9 lives"}, {"count": "sidecar_logs_lines"}, {"count": {"name": "ok", "labels": {"le": "x"}}}, {"count": {"labels": {}}},
        {"histogram": {"name": "h", "field": "x", "buckets": [2, 1]}}, {"histogram": "h"}, {"parse": {"csv": []}}, {"parse": "xml"},
        {"parse": {"csv": {"columns": ["a"], "delimiter": "::"}}}, {"rename": ["a"]}, {"keep": {"min_level": "x"}},
    ],
)  # fmt: skip
def test_a_stage_that_cannot_work_is_refused_before_the_start(spec: Any) -> None:
    with pytest.raises(ConfigError, match="stage 1"):
        made(spec)


def test_the_zone_of_a_pipeline_counts_for_all_its_times() -> None:
    """In parsers, in `time` with a format, and in syslog."""
    for spec, line in [
        ({"parse": "text"}, "2026-11-23 14:21:51 x"),
        ({"parse": "syslog"}, "Nov 23 14:21:51 web x: y"),
    ]:
        pipeline = config.Pipeline(files=["x"], stages=[spec], time_zone="Europe/Berlin")
        done = run(pipeline.make_stages(), record(line, time=AT + 1))
        assert done is not None
        assert done.time == AT
    with pytest.raises(ConfigError, match="Europe/Berlin"):
        config.READERS["time_zone"]("Mars/Base")
    assert stages.find_time(record("2026-11-23 14:21:51+01")).time == AT
