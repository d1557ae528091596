"""Who checks the checkers: the fakes are fed by senders that other people wrote, and must understand them.

A fake that only ever meets our own sinks would prove that we agree with ourselves.
"""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from logs.fakes.elasticsearch import FakeElasticsearch
from logs.fakes.loki import FakeLoki
from logs.fakes.ndjson import FakeNdjson
from logs.fakes.otlp import FakeOtlp
from logs.fakes.receiver import Receiver


async def in_another_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


def post(url: str, body: bytes, **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, headers=names)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_fake_loki_understands_python_logging_loki() -> None:
    """PyPI `python-logging-loki` expects 204 and raises at anything else."""
    import logging_loki

    async with FakeLoki() as loki:

        def send() -> None:
            handler = logging_loki.LokiHandler(
                url=loki.address + loki.path, tags={"application": "shop"}, version="1"
            )
            handler.raiseExceptions = True
            record = logging.LogRecord("n", logging.WARNING, "p", 1, "hello %s", ("ada",), None)
            handler.emitter(record, handler.format(record))
            handler.emitter.close()

        await in_another_thread(send)

        assert loki.texts == ["hello ada"]
        [stream] = loki.streams
        assert ("application", "shop") in stream
        assert loki.wrong == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("library", ["elasticsearch", "opensearchpy"])
async def test_fake_elasticsearch_understands_the_official_bulk_helpers(library: str) -> None:
    """Both clients' `helpers.bulk`: successes are counted, a poisoned item and a repeated id are errors."""
    module = pytest.importorskip(library)
    helpers = pytest.importorskip(f"{library}.helpers")
    kind = "Elasticsearch" if library == "elasticsearch" else "OpenSearch"
    async with FakeElasticsearch(poison=lambda text: text == "bad") as search:

        def send() -> Any:
            client = getattr(module, kind)(search.address)
            actions = [
                {
                    "_op_type": "create",
                    "_index": "logs-test-default",
                    "_id": name,
                    "_source": {"@timestamp": "2026-01-01T00:00:00Z", "message": text},
                }
                for name, text in [("1", "one"), ("2", "two"), ("3", "bad"), ("1", "again")]
            ]
            with client:
                return helpers.bulk(client, actions, raise_on_error=False)

        done, errors = await in_another_thread(send)

        assert done == 2
        assert [error["create"]["status"] for error in errors] == [400, 409]
        assert search.texts == ["one", "two"]


async def test_fake_otlp_understands_the_official_json_exporter() -> None:
    """OpenTelemetry's own JSON-over-HTTP exporter is the reference sender."""
    logs = pytest.importorskip("opentelemetry.exporter.otlp.json.http._log_exporter")
    sdk = pytest.importorskip("opentelemetry.sdk._logs")
    export = pytest.importorskip("opentelemetry.sdk._logs.export")
    async with FakeOtlp() as otlp:

        def send() -> None:
            provider = sdk.LoggerProvider()
            exporter = logs.OTLPLogExporter(endpoint=otlp.address + otlp.path)
            provider.add_log_record_processor(export.SimpleLogRecordProcessor(exporter))
            from opentelemetry._logs import LogRecord, SeverityNumber

            provider.get_logger("test").emit(
                LogRecord(
                    timestamp=1,
                    body="hello",
                    severity_number=SeverityNumber.WARN,
                    attributes={"n": 7, "deep": {"a": [1, "x"]}},
                )
            )
            provider.shutdown()

        await in_another_thread(send)

        assert otlp.wrong == []
        assert otlp.texts == ["hello"]
        assert otlp.records[0].severity_number == 13


NDJSON = {"Content_Type": "application/x-ndjson", "Idempotency_Key": "k"}
JSON = {"Content_Type": "application/json"}


def loki_body(**change: Any) -> bytes:
    stream = {"stream": {"a": "b"}, "values": [["1700000000000000000", "x"]]} | change
    return json.dumps({"streams": [stream]}).encode()


def otlp_body(**change: Any) -> bytes:
    record = {"timeUnixNano": "1", "severityNumber": 9, "body": {"stringValue": "x"}} | change
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).encode()


WRONG: list[tuple[str, type[Receiver], bytes, dict[str, str], int]] = [
    ("ndjson without the last newline", FakeNdjson, b'{"a":1}', NDJSON, 400),
    ("ndjson that is no object", FakeNdjson, b"[1]\n", NDJSON, 400),
    ("ndjson of another type", FakeNdjson, b"{}\n", JSON | {"Idempotency_Key": "k"}, 415),
    ("loki without streams", FakeLoki, b'{"streams":[]}', JSON, 400),
    ("loki as protobuf", FakeLoki, loki_body(), {"Content_Type": "application/x-protobuf"}, 400),
    ("loki with a number as time", FakeLoki, loki_body(values=[[1, "x"]]), JSON, 400),
    ("loki with an object as line", FakeLoki, loki_body(values=[["1", {}]]), JSON, 400),
    ("loki with a dotted label", FakeLoki, loki_body(stream={"a.b": "c"}), JSON, 400),
    ("loki without labels", FakeLoki, loki_body(stream={}), JSON, 400),
    ("loki with numbers as metadata", FakeLoki, loki_body(values=[["1", "x", {"n": 1}]]), JSON, 400),
    ("bulk without the last newline", FakeElasticsearch, b'{"create":{"_index":"a"}}\n{}', NDJSON, 400),
    ("bulk without a source", FakeElasticsearch, b'{"create":{"_index":"a"}}\n', NDJSON, 400),
    ("bulk without an index", FakeElasticsearch, b'{"create":{}}\n{}\n', NDJSON, 400),
    ("bulk with an unknown action", FakeElasticsearch, b'{"put":{"_index":"a"}}\n{}\n', NDJSON, 400),
    ("bulk as text", FakeElasticsearch, b"{}\n", {"Content_Type": "text/plain"}, 406),
    ("otlp with a number as time", FakeOtlp, otlp_body(timeUnixNano=1), JSON, 400),
    ("otlp with a name as severity", FakeOtlp, otlp_body(severityNumber="INFO"), JSON, 400),
    ("otlp in snake case", FakeOtlp, otlp_body(time_unix_nano="1"), JSON, 400),
    ("otlp with an unknown name", FakeOtlp, otlp_body(nonsense="1"), JSON, 400),
    ("otlp with a trace id in base64", FakeOtlp, otlp_body(traceId="W45sEAs7UexB8g6Yt7Rjsg=="), JSON, 400),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fake", "body", "headers", "status"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG]
)
async def test_a_fake_refuses_what_breaks_its_format(
    fake: type[Receiver], body: bytes, headers: dict[str, str], status: int
) -> None:
    """A lenient fake would let a broken sink pass."""
    async with fake() as receiver:
        path = "/_bulk" if fake is FakeElasticsearch else receiver.path
        got = await in_another_thread(lambda: post(receiver.address + path, body, **headers))

        assert got == status
        assert receiver.texts == []


async def test_the_bodies_from_which_the_wrong_ones_are_made_are_right() -> None:
    """Otherwise the test above would show nothing."""
    async with FakeLoki() as loki, FakeOtlp() as otlp:
        assert (
            await in_another_thread(lambda: post(loki.address + loki.path, loki_body(), **JSON))
            == 204
        )
        assert (
            await in_another_thread(lambda: post(otlp.address + otlp.path, otlp_body(), **JSON))
            == 200
        )
