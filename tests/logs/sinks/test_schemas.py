"""Names and types: ours and the application's never meet, so no store with types refuses a line for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from logs.fakes.elasticsearch import FakeElasticsearch
from logs.fakes.otlp import FakeOtlp
from logs.sinks.helpers import READ_AT, opened, reasons, records
from sidecar._errors import ConfigError
from sidecar.logs import stages
from sidecar.logs.records import Record
from sidecar.logs.sinks import schemas
from sidecar.logs.sinks.elasticsearch import ElasticsearchSink
from sidecar.logs.sinks.factory import make_sink as sink_of
from sidecar.logs.sinks.file import FileSink
from sidecar.logs.sinks.otlp import OtlpSink

POD = {
    "pod": "web-0",
    "namespace": "shop",
    "app": "web",
    "app.kubernetes.io/name": "web",
    "a_b": "1",
    "a.b": "2",
}
MIXED = (
    '{"level":30,"time":1764443800123,"msg":"listening"}',
    "ERROR uncaught exception, the process ends",
    '{"level":50,"msg":"failed","file":{"name":"a.py","line":3}}',
    '{"msg":"x","labels":["a","b"],"offset":"far","log":{"x":1}}',
    '{"message":{"nested":true},"log.file":"text","kubernetes":1,"json":[1]}',
    '{"attributes":1,"resource":"r","body":[2],"severity_text":3,"sidecar_level":{"a":1}}',
    '{"":"empty",".a":1,"b.":2}',
)


def parsed(text: str, **options: Any) -> Record:
    record = Record(text.encode(), file="/log/a", time=READ_AT, labels=POD, **options)
    return stages.find_level(stages.parse_json(record))


@pytest.mark.parametrize("schema", ["ecs", "otel", "flat"])
async def test_no_line_is_refused_for_what_we_add_to_it(schema: str) -> None:
    """pinojs/pino-elasticsearch#61, fluent-bit#2663: whichever comes first, by Elasticsearch's dynamic mapping."""
    lines = [parsed(text) for text in MIXED]
    for order in (lines, lines[::-1]):
        async with (
            FakeElasticsearch(typed=True) as search,
            opened(ElasticsearchSink(search.address, schema=schema)) as sink,
        ):
            receipt = await sink.write(records(*order))

            wrong = [one for one in reasons(receipt) if "empty" not in one]
            assert wrong == []
            assert len(search.documents) >= len(lines) - (schema == "flat")


def test_ecs_is_what_elasticsearch_gets_by_default() -> None:
    """log.level, log.file.path and kubernetes.* as Filebeat has them; the application's fields keep their names."""
    made = schemas.Ecs()(parsed('{"level":50,"msg":"failed","status":500}', offset=7))
    assert made == {
        "@timestamp": "2026-11-23T13:21:51.000000000Z",
        "message": "failed",
        "log": {"level": "error", "offset": 7, "file": {"path": "/log/a"}},
        "ecs": {"version": "8.11.0"},
        "kubernetes": {"pod": {"name": "web-0"}, "namespace": "shop"},
        "labels": {"app": "web", "a_b": "1", "app_kubernetes_io/name": "web", "a_b_": "2"},
        "level": 50,
        "status": 500,
    }
    sink: Any = sink_of("elasticsearch+http://h")
    assert isinstance(sink._schema, schemas.Ecs)


def test_what_an_ecs_logger_wrote_stays_in_its_place() -> None:
    """ecs-logging of Java, .NET, Python, Node: `log.logger`, `labels`, `ecs.version`, `error.*`."""
    line = (
        '{"@timestamp":"2026-11-23T13:21:51Z","log.level":"WARN","message":"m","ecs.version":"1.2.0",'
        '"log.logger":"shop","labels":{"tier":"gold","n":1},"error.type":"E"}'
    )
    made = schemas.Ecs()(parsed(line))
    assert made["log"]["level"] == "warn"
    assert made["log"]["logger"] == "shop"
    assert made["labels"]["tier"] == "gold"
    assert made["labels"]["n"] == "1"
    assert made["labels"]["app"] == "web"
    assert made["error.type"] == "E"
    assert made["json"] == {"@timestamp": "2026-11-23T13:21:51Z", "log.level": "WARN"}


def test_the_attributes_of_a_schema_are_those_of_the_semantic_conventions() -> None:
    """https://opentelemetry.io/docs/specs/semconv/: log.file.path, k8s.pod.name, service.name."""
    made = schemas.Otel()(parsed('{"level":50,"msg":"failed","status":500}'))
    assert made["body"] == {"text": "failed"}
    assert (made["severity_text"], made["severity_number"]) == ("ERROR", 17)
    assert made["attributes"]["log.file.path"] == "/log/a"
    assert made["attributes"]["status"] == 500
    assert made["resource"]["attributes"]["k8s.pod.name"] == "web-0"
    assert made["resource"]["attributes"]["service.name"] == "web"


async def test_attributes_of_otlp_have_unique_keys() -> None:
    """opentelemetry.proto: "Attribute keys MUST be unique"; a line of Filebeat's has log.file.path as well."""
    line = '{"message":"x","log.file.path":"/elsewhere","log.record.offset":7,"json":1}'
    odd = Record(b"x", fields={"\ud800": 1, "?": 2, "n": {1: "a", "1": "b"}})
    async with FakeOtlp() as otlp, opened(OtlpSink(otlp.address)) as sink:
        await sink.write(records(parsed(line), odd))

        for record in otlp.records:
            keys = [one.key for one in record.attributes]
            assert len(keys) == len(set(keys))
        values = {one.key: one.value for one in otlp.records[0].attributes}
        assert values["log.file.path"].string_value == "/log/a"
        aside = {one.key: one.value for one in values["json"].kvlist_value.values}
        assert aside["log.file.path"].string_value == "/elsewhere"
        nested = {one.key: one.value for one in otlp.records[1].attributes}["n"].kvlist_value
        assert len(nested.values) == 1


async def test_files_take_a_schema_where_they_hold_json(tmp_path: Path) -> None:
    """A line as it came stays as it came."""
    sink = FileSink(tmp_path / "out", json=True, schema="flat", prefix="x_")
    await sink.open(None)
    await sink.write(records(Record(b"hello", file="/log/a", labels={"a.b": "c"})))
    await sink.close()

    assert orjson.loads((tmp_path / "out").read_bytes()) == {
        "x_time": "1970-01-01T00:00:00.000000000Z",
        "x_message": "hello",
        "x_file": "/log/a",
        "x_offset": 0,
        "x_label_a_b": "c",
    }


@pytest.mark.parametrize(
    "options", [{"schema": "xml"}, {"prefix": "x"}, {"schema": "flat", "prefix": ""}]
)
def test_a_schema_that_is_none_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"schema"):
        sink_of("http://h", options)
