"""What each receiver is told: labels and times for Loki, ids for Elasticsearch, attributes for OTLP, keys for NDJSON."""

from __future__ import annotations

import datetime as dt
import zlib
from types import MappingProxyType
from typing import Any

import orjson
import pytest

from logs.fakes.elasticsearch import FakeElasticsearch
from logs.fakes.loki import FakeLoki
from logs.fakes.ndjson import FakeNdjson
from logs.fakes.otlp import FakeOtlp
from logs.fakes.receiver import Broken, DropAnswer
from logs.sinks.helpers import READ_AT, batch, deliver, numbered, opened, reasons, records, said
from sidecar._errors import ConfigError
from sidecar.logs import json_encoding, stages
from sidecar.logs.records import Batch, Block, Record
from sidecar.logs.sinks.base import SinkUnavailable
from sidecar.logs.sinks.elasticsearch import ElasticsearchSink
from sidecar.logs.sinks.factory import make_sink as sink_of
from sidecar.logs.sinks.loki import LokiSink
from sidecar.logs.sinks.ndjson import NdjsonSink
from sidecar.logs.sinks.otlp import OtlpSink, any_value

# -- Loki


async def test_equal_lines_read_at_once_are_all_kept_by_loki() -> None:
    """Loki drops what repeats time and text: equal times become distinct, and stay in order."""
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        await sink.write(batch(*["tick"] * 100))
        await sink.write(batch(*["tick"] * 100, start=500))

        assert loki.texts == ["tick"] * 200
        [values] = loki.streams.values()
        assert [moment for moment, _ in values] == sorted({moment for moment, _ in values})


async def test_equal_lines_are_kept_by_loki_when_a_line_between_them_is_older() -> None:
    """The times of a log go back and forth: threads, a line with a time among others without."""
    times = (50, 50, 7, 50, 60, 7, 50)
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        for _ in range(2):
            await sink.write(records(*(Record(b"tick", file="/log/a", time=t) for t in times)))

        assert loki.texts == ["tick"] * 14
        assert loki.repeated == 0


async def test_a_field_that_says_none_and_one_that_is_missing_make_two_streams() -> None:
    """Python's applications write `None` as a text."""
    lines = (b'{"tier":"None"}', b'{"tier":null}', b'{"tier":"None"}')
    async with (
        FakeLoki() as loki,
        opened(LokiSink(loki.address, label_fields=["tier"])) as sink,
    ):
        await sink.write(records(*(stages.parse_json(Record(line)) for line in lines)))

        assert sorted(len(values) for values in loki.streams.values()) == [1, 2]


async def test_times_stay_the_same_however_often_a_batch_is_sent() -> None:
    """A lost answer makes no duplicates, also when the batch is cut up afterwards."""
    async with (
        FakeLoki(poison=lambda text: text == "bad") as loki,
        opened(LokiSink(loki.address)) as sink,
    ):
        loki.next(DropAnswer())
        receipt = await deliver(sink, batch(*["tick"] * 20, "bad", *["tick"] * 20))

        assert [one.record.text for one in receipt.rejected] == ["bad"]
        assert loki.texts == ["tick"] * 40
        assert loki.repeated > 0


async def test_a_time_found_in_the_line_is_the_time_in_loki() -> None:
    """In nanoseconds, as a decimal string."""
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        record = stages.find_time(Record(b"2026-11-23T13:21:51.000000007Z hello"))
        await sink.write(records(record))

        [[(moment, _)]] = loki.streams.values()
        assert moment == 1_795_440_111_000_000_007


async def test_labels_of_the_pod_become_a_stream_with_names_loki_takes() -> None:
    """Dots and slashes become underscores; what differs for each Pod makes no stream of its own; 15 at most."""
    labels = {f"label-{number}": "x" for number in range(20)}
    labels |= {"pod": "web-0", "namespace": "shop", "app.kubernetes.io/name": "web", "pod_uid": "u"}
    record = Record(b"hello", file="/log/a", level="warn", labels=labels)
    async with FakeLoki() as loki, opened(LokiSink(loki.address, labels={"site": "b"})) as sink:
        await sink.write(records(record))

        [stream] = loki.streams
        found = dict(stream)
        assert len(found) == 15
        assert found["pod"] == "web-0"
        assert found["filename"] == "/log/a"
        assert found["level"] == "warn"
        assert found["site"] == "b"
        assert "pod_uid" not in found
        assert loki.wrong == []


async def test_chosen_fields_become_labels_and_structured_metadata() -> None:
    """What has few values may be a label, what has many is metadata of the line."""
    record = stages.parse_json(Record(b'{"msg":"x","tier":"gold","trace":"abc","n":7}'))
    sink = LokiSink("http://h", label_fields=["tier"], metadata_fields=["trace", "n"])
    async with FakeLoki() as loki:
        sink.url = loki.address + loki.path
        async with opened(sink):
            await sink.write(records(record))

        assert ("tier", "gold") in next(iter(loki.streams))
        assert loki.metadata == [{"trace": "abc", "n": "7"}]


@pytest.mark.parametrize("value", [2**70, dt.UTC, {"a": "\ud800"}, float("nan")])
async def test_structured_metadata_takes_whatever_a_stage_has_made(value: Any) -> None:
    """JSON of our own making must not end the collection."""
    sink = LokiSink("http://h", metadata_fields=["n"])
    async with FakeLoki() as loki:
        sink.url = loki.address + loki.path
        async with opened(sink):
            await sink.write(records(Record(b"x", fields={"n": value})))

        assert len(loki.metadata) == 1
        assert loki.wrong == []


async def test_a_line_too_long_for_loki_becomes_a_dead_letter_and_no_neighbour_does() -> None:
    """256 KB is Loki's default limit for a line."""
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        receipt = await sink.write(batch("a", "x" * 300_000, "b"))

        assert loki.texts == ["a", "b"]
        assert "Max entry size" in reasons(receipt)[0]


async def test_the_tenant_is_named_in_the_header() -> None:
    """Without it a multi-tenant Loki answers 401, which is waited out, loudly."""
    async with FakeLoki(tenant="shop") as loki:
        async with opened(LokiSink(loki.address, tenant="shop")) as sink:
            await sink.write(batch("a"))
        async with opened(LokiSink(loki.address)) as sink:
            with pytest.raises(SinkUnavailable, match="credentials"):
                await sink.write(batch("b"))

        assert loki.texts == ["a"]


async def test_status_260_of_loki_is_no_success() -> None:
    """Loki answers 260 where ingestion is blocked: a 2xx that has stored nothing."""
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        loki.next(Broken(260))
        await deliver(sink, batch("a"))

        assert len(said) == 1
        assert loki.texts == ["a"]


async def test_a_line_whose_fields_a_stage_has_changed_goes_to_loki_as_json() -> None:
    """And one that was only parsed goes as it came."""
    plain = stages.parse_json(Record(b'{"a": 1}'))
    changed = stages.redact("s3cret")(stages.parse_json(Record(b'{"a": "s3cret"}')))
    assert changed is not None
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        await sink.write(records(plain, changed))

        assert loki.texts == ['{"a": 1}', '{"a":"***"}']


# -- Elasticsearch


async def test_only_the_items_that_failed_for_now_are_sent_again() -> None:
    """429 on some items: those again, the others are done with."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.item_statuses.extend([None, 429, None, 503, None])
        receipt = await deliver(sink, batch(*numbered(5)))

        assert not receipt.rejected
        assert search.texts == ["line 0", "line 2", "line 4", "line 1", "line 3"]
        assert search.conflicts == 0


async def test_an_item_that_is_refused_for_good_becomes_a_dead_letter() -> None:
    """The status is 200, and one item says mapper_parsing_exception."""
    async with (
        FakeElasticsearch(poison=lambda text: text == "line 2") as search,
        opened(ElasticsearchSink(search.address)) as sink,
    ):
        receipt = await sink.write(batch(*numbered(5)))

        assert [one.record.text for one in receipt.rejected] == ["line 2"]
        assert "mapper_parsing_exception" in reasons(receipt)[0]
        assert search.seen == 1


async def test_a_document_that_is_there_already_is_a_success() -> None:
    """A lost answer: the same ids come again, and 409 means stored."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.next(DropAnswer())
        receipt = await deliver(sink, batch(*numbered(10)))

        assert not receipt.rejected
        assert search.conflicts == 10
        assert search.texts == numbered(10)


async def test_ids_survive_a_restart_with_the_checkpoint() -> None:
    """Killed after the delivery and before the save: what is read again is known to be there."""
    async with FakeElasticsearch() as search:
        async with opened(ElasticsearchSink(search.address)) as sink:
            receipt = await sink.write(batch(*numbered(3)))
        async with opened(ElasticsearchSink(search.address), receipt.resume) as sink:
            await sink.write(batch(*numbered(4)))

        assert search.texts == numbered(4)
        assert orjson.loads(orjson.dumps(receipt.resume)) == receipt.resume


async def test_equal_files_of_two_pods_do_not_hide_each_other() -> None:
    """Same inode, same content, another Pod: without a checkpoint in common the ids differ."""
    async with FakeElasticsearch() as search:
        for _pod in range(2):
            async with opened(ElasticsearchSink(search.address)) as sink:
                await sink.write(batch("starting"))

        assert search.texts == ["starting", "starting"]


async def test_documents_hold_the_time_as_data_streams_ask_for() -> None:
    """`@timestamp`, by `create`, into the data stream that the built-in templates know."""
    record = stages.parse_json(Record(b'{"msg":"x","status":200}', time=READ_AT, file="/log/a"))
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        await sink.write(records(record))

        [((index, _), source)] = search.documents.items()
        assert index == "logs-sidecar-default"
        assert source["@timestamp"] == json_encoding.rfc3339(READ_AT)
        assert source["status"] == 200
        assert source["log"]["file"] == {"path": "/log/a"}


async def test_the_index_comes_from_the_address_or_from_an_option() -> None:
    async with FakeElasticsearch() as search:
        async with opened(ElasticsearchSink(search.address + "/mine")) as sink:
            await sink.write(batch("a"))
        async with opened(ElasticsearchSink(search.address, index="other")) as sink:
            await sink.write(batch("b"))

        assert [index for index, _ in search.documents] == ["mine", "other"]
    with pytest.raises(ConfigError, match="lower case"):
        ElasticsearchSink("http://h", index="Logs")


@pytest.mark.parametrize("body", ["<html>", "[]", '{"items": []}', '{"items": [{}]}'])
async def test_an_answer_that_is_no_bulk_answer_acknowledges_nothing(body: str) -> None:
    """A proxy's friendly 200 is not a success."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.next(Broken(200, body))
        await deliver(sink, batch("a"))

        assert len(said) == 1
        assert search.texts == ["a"]


# -- OTLP


async def test_a_partial_success_is_never_sent_again() -> None:
    """It is not said which records were refused: all of the batch is kept as dead letters, none is repeated."""
    async with (
        FakeOtlp(partial=True, poison=lambda text: text == "line 1") as otlp,
        opened(OtlpSink(otlp.address)) as sink,
    ):
        receipt = await sink.write(batch(*numbered(3)))

        assert otlp.texts == ["line 0", "line 2"]
        assert otlp.seen == 1
        assert len(receipt.rejected) == 3
        assert "1 of 3" in reasons(receipt)[0]


@pytest.mark.parametrize(
    "body", ["", "{}", '{"partialSuccess":null}', '{"partialSuccess":{"errorMessage":"slow"}}']
)
async def test_a_success_that_refuses_nothing_is_a_success(body: str) -> None:
    """Also with a warning, with null, and with no text at all."""
    async with FakeOtlp() as otlp, opened(OtlpSink(otlp.address)) as sink:
        otlp.next(Broken(200, body))
        receipt = await sink.write(batch("a"))

        assert not receipt.rejected


async def test_a_status_may_be_added_to_those_that_are_tried_again() -> None:
    """Some receivers answer 500 when they are busy; whoever knows that can say so."""
    async with FakeOtlp() as otlp, opened(OtlpSink(otlp.address, retry_status=[500])) as sink:
        otlp.next(Broken(500))
        receipt = await deliver(sink, batch("a"))

        assert not receipt.rejected
        assert otlp.texts == ["a"]


async def test_records_without_a_message_field_keep_all_their_fields_in_the_body() -> None:
    record = stages.parse_json(Record(b'{"user":"ada","n":1}'))
    async with FakeOtlp() as otlp, opened(OtlpSink(otlp.address)) as sink:
        await sink.write(records(record))

        assert [one.key for one in otlp.records[0].body.kvlist_value.values] == ["user", "n"]


@pytest.mark.parametrize(
    "value", [2**63, -(2**63) - 1, float("nan"), float("inf"), {1, 2}, object()]
)
def test_what_otlp_has_no_type_for_is_text(value: Any) -> None:
    assert list(any_value(value)) == ["stringValue"]


def test_values_nested_without_end_are_cut_off() -> None:
    """A line of a thousand brackets must not end the collection."""
    deep: Any = "x"
    for _ in range(1000):
        deep = [deep]
    assert orjson.dumps(any_value(deep))


# -- NDJSON


async def test_a_batch_sent_again_has_the_same_key_and_another_one_has_another() -> None:
    """`Idempotency-Key` lets a receiver know what it has; equal lines of another place are other lines."""
    async with FakeNdjson() as fake, opened(NdjsonSink(fake.address)) as sink:
        fake.next(DropAnswer())
        await deliver(sink, batch("same"))
        await sink.write(batch("same", start=5))

        assert fake.repeated == 1
        assert fake.texts == ["same", "same"]
        assert [one["offset"] for one in fake.objects] == [0, 5]


# -- JSON


def test_blocks_and_records_are_written_as_the_same_json() -> None:
    """The fast way, without records, and the other one must not differ."""
    lines = [
        b"plain",
        b"",
        b'a","b',
        b"back\\",
        b'"',
        b"\xff\xfe",
        b"cr\r",
        b"tab\t\x00",
        "ü😀".encode(),
    ]
    for labels in ({}, {"pod": "w"}, MappingProxyType({"pod": "w"})):
        fast = batch(*lines, start=100, file="/log/ü.log")
        slow = Batch(fast.blocks, [r for b in fast.blocks for r in b.records(labels)], labels)
        fast.labels = labels

        assert json_encoding.json_lines(fast) == json_encoding.json_lines(slow)
        assert all(orjson.loads(line) for line in json_encoding.json_lines(fast).splitlines())


@pytest.mark.parametrize("value", ["\ud800", 2**70, {1: 2}, object(), {"a": {1, 2}}, float("nan")])
def test_whatever_stages_put_into_a_field_can_be_written(value: Any) -> None:
    """An object nobody can serialise must not end the collection."""
    record = stages.add_fields(strange=value)(Record(b"hello"))
    assert record is not None
    assert orjson.loads(json_encoding.json_line(record))["message"] == "hello"


def test_a_line_without_fields_is_written_as_its_document_says() -> None:
    """The short way and the long way to the same JSON."""
    plain = Record('"ü" \\ \0'.encode(), file="/log/\udcff", offset=3, time=READ_AT + 5)
    graded = Record(b"x", file="/log/a", level="warn", labels=MappingProxyType({"pod": "w"}))
    redacted = stages.redact("secret")(Record(b"a secret", file="/log/a"))
    surrogate = Record(b"x")
    surrogate.text = "\ud800"
    for record in (plain, graded, redacted, surrogate):
        assert record is not None
        assert orjson.loads(json_encoding.json_line(record)) == orjson.loads(
            json_encoding.dumps(json_encoding.to_document(record))
        )


def test_fields_nested_without_end_can_be_written() -> None:
    deep: dict[str, Any] = {}
    deep["itself"] = deep
    record = stages.add_fields(deep=deep)(Record(b"hello"))
    assert record is not None
    assert orjson.loads(json_encoding.json_line(record))["message"] == "hello"


def test_what_the_application_wrote_wins_over_what_we_know() -> None:
    record = stages.parse_json(
        Record(b'{"time":"then","file":"main.go","level":"loud"}', file="/log/a")
    )
    made = orjson.loads(json_encoding.json_line(record))
    assert (made["time"], made["file"], made["level"]) == ("then", "main.go", "loud")


# -- addresses


@pytest.mark.parametrize(
    ("address", "said_about"),
    [
        ("ftp://h", "no sink"),
        ("loki://h", "no sink"),
        ("file://path", "three slashes"),
        ("loki+http://h#tennant=x", "did you mean tenant"),
        ("http://h#gzip=perhaps", "neither true nor false"),
        ("http://h#timeout=soon", "no time"),
        ("http://h#concurrency=0", "concurrency: 0 is too few"),
        ("http://h#batch_lines=0", "batch_lines: 0 is too few"),
        ("http://h#batch_bytes=0", "batch_bytes: 0 is too small"),
        ("http://u:secret@h#nonsense=1", "http://h"),
        ("http://h?key=secret#nonsense=1", r"http://h\?key=\*\*\*"),
        ("http://u:secret@h:99999", "Port out of range"),
    ],
)
def test_a_wrong_address_is_refused_with_a_hint(address: str, said_about: str) -> None:
    with pytest.raises(ConfigError, match=said_about) as caught:
        sink_of(address)
    assert "secret" not in str(caught.value)


def test_options_stand_behind_the_address_and_defaults_step_back() -> None:
    sink: Any = sink_of(
        "loki+http://u:p@h#tenant=shop&batch_lines=7&linger=200ms&gzip=no",
        defaults={"token_file": "/t", "tenant": "other", "index": "x"},
    )
    assert sink._fixed_headers["X-Scope-OrgID"] == "shop"
    assert (sink.batching.max_lines, sink.batching.linger) == (7, 0.2)
    assert sink._gzip is False


async def test_a_body_is_made_block_by_block_and_is_one_gzip_member() -> None:
    """What is in memory is one block and what the others have become; some receivers read the first member alone."""
    many = Batch([*batch(*numbered(50)).blocks, *batch(*numbered(50, 50), start=9000).blocks])
    async with FakeNdjson() as fake, opened(NdjsonSink(fake.address)) as sink:
        await sink.write(many)

        assert many.raw
        assert fake.texts == numbered(100)
    member = zlib.decompressobj(31)
    body = await sink._make_body(sink.encode_batch(many), None)
    assert len(member.decompress(body).splitlines()) == 100
    assert member.eof
    assert not member.unused_data


def test_lines_that_become_records_are_fewer_in_a_batch() -> None:
    """Each takes a kilobyte; those that nobody looks at take their bytes. A limit that somebody sets counts for both."""
    made = [sink_of("http://h").batching, sink_of("http://h#batch_lines=7").batching]
    assert [(one.max_lines, one.max_records) for one in made] == [(None, 1250), (7, None)]


def test_pieces_of_a_block_are_the_same_lines_at_the_same_offsets() -> None:
    lines = [b"x" * 7000, b"two\r", b"\xff\xfe", b"", b"y" * 70_000, "ü".encode() * 9000, b"last"]
    data = b"\n".join(lines * 3) + b"\n"
    block = Block(data, "/log/a", "id", start=100, end=100 + len(data), read_at=0, count=21)
    made = b"".join(json_encoding.json_pieces(Batch([block])))
    assert [orjson.loads(line)["message"] for line in made.splitlines()] == [
        line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines * 3
    ]
    places = [100 + sum(len(line) + 1 for line in (lines * 3)[:number]) for number in range(21)]
    assert [orjson.loads(line)["offset"] for line in made.splitlines()] == places
    assert sum(piece.lines for piece in block.pieces(24 << 10)) == 21
