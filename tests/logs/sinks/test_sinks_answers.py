"""What receivers say, in their own words, and what must follow: wait, believe, learn, or give up a batch as a whole."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from logs.fakes.elasticsearch import FakeElasticsearch
from logs.fakes.loki import FakeLoki
from logs.fakes.ndjson import FakeNdjson
from logs.fakes.otlp import FakeOtlp
from logs.fakes.receiver import Broken
from logs.sinks.helpers import READ_AT, batch, deliver, numbered, opened, reasons, records, said
from sidecar._errors import ConfigError
from sidecar.logs.records import Record
from sidecar.logs.sinks.base import SinkUnavailable
from sidecar.logs.sinks.elasticsearch import ElasticsearchSink
from sidecar.logs.sinks.loki import LokiSink
from sidecar.logs.sinks.ndjson import NdjsonSink
from sidecar.logs.sinks.otlp import OtlpSink
from sidecar.process.retry import parse_retry_after

# -- nothing of a batch is taken


@pytest.mark.parametrize(("fake", "make"), [(FakeNdjson, NdjsonSink), (FakeOtlp, OtlpSink)])
async def test_a_batch_of_which_nothing_is_taken_costs_a_few_requests(
    fake: Callable[..., Any], make: Callable[..., Any]
) -> None:
    """Halving to the end would be 2,499 requests, and the lines behind them wait."""
    async with fake(poison=lambda _: True) as receiver, opened(make(receiver.address)) as sink:
        receipt = await sink.write(batch(*numbered(1250)))

        assert sorted(one.record.text for one in receipt.rejected) == sorted(numbered(1250))
        assert "given up with its batch" in reasons(receipt)[-1]
        assert receiver.seen < 100


async def test_lines_that_are_good_behind_many_bad_ones_arrive() -> None:
    """Before a batch is given up, lines from all over it are tried."""
    good = {f"line {number}" for number in range(600, 1250)}
    async with (
        FakeNdjson(poison=lambda text: text not in good) as fake,
        opened(NdjsonSink(fake.address)) as sink,
    ):
        receipt = await sink.write(batch(*numbered(1250)))

        assert set(fake.texts) == good
        assert len(receipt.rejected) == 600


async def test_loki_is_asked_once_about_lines_that_are_too_old() -> None:
    """Its answer names the oldest time it takes (pkg/validation: "oldest acceptable timestamp is"): grafana/loki#9877."""
    old = [Record(b"old %d" % number, file="/log/a", time=10**18) for number in range(500)]
    new = [Record(b"new %d" % number, file="/log/a", time=READ_AT + number) for number in range(5)]
    words = "entry for stream '{}' has timestamp too old: 2001, oldest acceptable timestamp is: 2026-01-01T00:00:00Z"
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        loki.next(Broken(400, words))
        receipt = await sink.write(records(*old, *new))

        assert loki.seen == 2
        assert loki.texts == [f"new {number}" for number in range(5)]
        assert [one.record.text for one in receipt.rejected] == [f"old {n}" for n in range(500)]


async def test_loki_may_say_that_all_of_a_push_was_ignored() -> None:
    """pkg/ingester: "total ignored: N out of N"; with fewer of them the others are looked for."""
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        loki.next(Broken(400, "entry too far behind\ntotal ignored: 50 out of 50"))
        receipt = await sink.write(batch(*numbered(50)))

        assert loki.seen == 1
        assert len(receipt.rejected) == 50


# -- faults of an index, a tenant, a quota, a licence


@pytest.mark.parametrize(
    "error",
    [
        (404, "index_not_found_exception", "no such index [shop]"),
        (
            400,
            "validation_exception",
            "this action would add [2] shards, but this cluster has 1000",
        ),
        (400, "index_closed_exception", "closed"),
        (
            403,
            "cluster_block_exception",
            "index [shop] blocked by: [FORBIDDEN/8/index write (api)]",
        ),
        (429, "cluster_block_exception", "disk usage exceeded flood-stage watermark"),
        (400, "illegal_argument_exception", "no write index is defined for alias [shop]."),
        (401, "security_exception", "missing authentication credentials"),
        (403, "security_exception", "current license is non-compliant for [security]"),
        (400, "invalid_index_name_exception", "Invalid index name"),
    ],
    ids=lambda error: error[2][:30],
)
async def test_a_fault_of_the_index_buries_no_line(error: tuple[int, str, str]) -> None:
    """Each document would get the same answer: they wait, and the log says why (elastic/beats#12583, vector#2992)."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.error = error
        given = batch(*numbered(3))
        with pytest.raises(SinkUnavailable, match=re.escape(error[2])):
            await sink.write(given)
        search.error = None
        receipt = await deliver(sink, given)

        assert not receipt.rejected
        assert search.texts == numbered(3)


async def test_a_fault_of_the_index_that_the_whole_answer_tells_is_waited_for() -> None:
    """OpenSearch and proxies answer 400 for the request where Elasticsearch answers for each item."""
    words = '{"error":{"type":"illegal_argument_exception","reason":"no write index is defined for alias [x]"},"status":400}'
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.next(Broken(400, words))
        receipt = await deliver(sink, batch(*numbered(3)))

        assert "check the index" in str(said[0])
        assert not receipt.rejected


@pytest.mark.parametrize("status", [402, 403, 404, 406, 409, 410, 418, 421, 423, 451])
async def test_only_a_status_that_may_mean_a_record_refuses_records(status: int) -> None:
    """Payment, quota, licence, address: a 4xx other than 400, 413 and 422 is no fault of a line."""
    async with FakeNdjson() as fake, opened(NdjsonSink(fake.address)) as sink:
        fake.next(Broken(status))
        receipt = await deliver(sink, batch(*numbered(3)))

        assert not receipt.rejected
        assert fake.texts == numbered(3)


async def test_what_lokis_tenant_may_not_do_is_waited_for() -> None:
    """allow_structured_metadata is off: every line would be refused, and is none the worse for it."""
    words = "stream '{}' includes structured metadata, but this feature is disallowed. Please see `limits_config`"
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        loki.next(Broken(400, words))
        receipt = await deliver(sink, batch(*numbered(3)))

        assert "limits_config" in str(said[0])
        assert not receipt.rejected


# -- a success is believed


@pytest.mark.parametrize(
    "body", ["", '{"took":1,"errors":false}', '{"errors":false,"items":[]}', '{"errors": false}']
)
async def test_a_bulk_answer_without_items_is_believed(body: str) -> None:
    """`?filter_path=errors` leaves no more, and some receivers never say more (quickwit#4424): no endless duplicates."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.next(Broken(200, body))
        receipt = await sink.write(batch("a"))

        assert not receipt.rejected
        assert search.seen == 1


def only_errors(answer: dict[str, Any]) -> dict[str, Any]:
    """`filter_path=errors`, as https://www.elastic.co/docs/reference/elasticsearch/rest-apis/common-options has it."""
    return {"errors": answer["errors"]}


def no_statuses(answer: dict[str, Any]) -> dict[str, Any]:
    """`filter_path=errors,items.*.error`: what is empty after that is left out (fluent-plugin-elasticsearch#975)."""
    items = [{"create": one["create"].get("error")} for one in answer["items"]]
    items = [{"create": {"error": one["create"]}} for one in items if one["create"]]
    return {"errors": answer["errors"], **({"items": items} if items else {})}


def only_failures(answer: dict[str, Any]) -> dict[str, Any]:
    """Receivers that speak the protocol have an item for each transaction (Manticore), or for each failure."""
    return {**answer, "items": [one for one in answer["items"] if "error" in one["create"]]}


WAYS = pytest.mark.parametrize("shown", [only_errors, no_statuses, only_failures])


@pytest.mark.parametrize(
    ("shown", "refused", "requests"),
    [
        (only_errors, ["a", "poison", "c"], 6),
        (no_statuses, ["a", "poison", "c"], 6),
        (only_failures, ["poison"], 2),  # what is stored is a conflict at the second time: all are named
    ],
)  # fmt: skip
async def test_what_is_refused_without_saying_which_is_given_up_after_some_tries(
    shown: Callable[[dict[str, Any]], dict[str, Any]], refused: list[str], requests: int
) -> None:
    """It was waited for without end. To ask for each is no way: what is stored is a conflict by now, and so an error."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.shown, search.poison = shown, "poison".__eq__
        receipt = await deliver(sink, batch("a", "poison", "c"))
        after = await deliver(sink, batch("next", start=100))

        assert [one.record.text for one in receipt.rejected] == refused
        assert "not which" in str(said[0])
        assert "filter_path" in str(said[0])
        assert not after.rejected
        assert search.seen == requests + 1
        assert search.texts == ["a", "c", "next"]


@WAYS
async def test_a_full_queue_is_waited_for_without_items_too(
    shown: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """All of the first request is refused for now, and nothing of the second."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.shown = shown
        search.item_statuses.extend([429, 429])
        receipt = await deliver(sink, batch("a", "b"))

        assert not receipt.rejected
        assert search.texts == ["a", "b"]


@pytest.mark.parametrize("shown", [no_statuses, only_failures])
async def test_a_fault_of_the_index_is_waited_for_however_little_is_said(
    shown: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """As long as one item tells of it: nothing is wrong with the lines."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.shown = lambda answer: {**shown(answer), "items": shown(answer).get("items", [])[:1]}
        search.error = (400, "index_closed_exception", "closed")
        with pytest.raises(AssertionError, match="not delivered after 20 tries"):
            await deliver(sink, given := batch("a", "b"), tries=20)
        search.error = None
        assert not (await deliver(sink, given)).rejected


async def test_what_has_no_id_is_not_sent_again_for_an_answer_that_says_too_little() -> None:
    """It would be stored once more each time."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.error = (400, "illegal_argument_exception", "Document ID is not supported")
        await deliver(sink, batch("first"))
        search.error, search.shown, search.poison = None, only_errors, "poison".__eq__
        seen = search.seen
        receipt = await deliver(sink, batch("a", "poison", start=100))

        assert len(receipt.rejected) == 2
        assert search.seen == seen + 1


@pytest.fixture
async def chatty() -> AsyncIterator[str]:
    """A receiver that sends a body with 204, against RFC 9110; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(size[1]) if size else 0)
        writer.write(b'HTTP/1.1 204 No Content\r\nContent-Length: 15\r\n\r\n{"errors":null}')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("make", [NdjsonSink, LokiSink])
async def test_a_204_with_a_body_is_a_success(chatty: str, make: Callable[..., Any]) -> None:
    """Taken for no HTTP, the same lines would be sent again for ever."""
    async with opened(make(chatty)) as sink:
        for number in range(3):
            assert not (await sink.write(batch("a", start=number * 10))).rejected


# -- what Elasticsearch does not let us do


@pytest.mark.parametrize(
    "words", ["Document ID is not supported in create/index operation request"]
)
async def test_an_index_that_gives_ids_itself_gets_documents_without(words: str) -> None:
    """OpenSearch Serverless refuses any `_id`: learned from the first refusal, and said."""
    async with FakeElasticsearch() as search, opened(ElasticsearchSink(search.address)) as sink:
        search.error = (400, "illegal_argument_exception", words)
        first = await sink.write(batch(*numbered(3)))
        second = await sink.write(batch("more", start=100))

        assert not first.rejected
        assert not second.rejected
        assert search.texts == [*numbered(3), "more"]
        assert search.seen == 3


async def test_each_line_goes_into_the_index_of_its_own_day() -> None:
    """`shop-%Y.%m.%d`, in the option or in the address, by the time of the line and in UTC."""
    times = (1_795_440_111 * 10**9, 1_795_440_111 * 10**9 + 86_400 * 10**9)
    lines = [Record(b"x%d" % moment, time=moment) for moment in times]
    async with FakeElasticsearch() as search:
        for path, index in (("", "shop-%Y.%m.%d"), ("/web-%Y.%m.%d", None)):
            async with opened(ElasticsearchSink(search.address + path, index=index)) as sink:
                await sink.write(records(*lines))

        days = ("2026.11.23", "2026.11.24")
        assert [index for index, _ in search.documents] == [
            f"{name}-{day}" for name in ("shop", "web") for day in days
        ]


async def test_an_alias_can_be_asked_for() -> None:
    """A rollover that nobody has set up must not end in an index of that name."""
    async with FakeElasticsearch() as search:
        async with opened(ElasticsearchSink(search.address, index="x", require_alias=True)) as sink:
            await sink.write(batch("a"))

        assert b'"require_alias":true' in search.requests[0].body


@pytest.mark.parametrize(
    "index",
    ["Logs", "logs-*", "", "a b", "a,b", "_all", "..", "x" * 256, "logs-yyyy.MM.dd", "a/b", "-a",
     "logs-%{+yyyy.MM.dd}"],
)  # fmt: skip
def test_what_can_name_no_index_is_refused_before_the_start(index: str) -> None:
    """All lines would wait for ever; whether it stands in the option or in the address."""
    with pytest.raises(ConfigError, match="cannot be the name of an index"):
        ElasticsearchSink("http://h", index=index)
    if index and "/" not in index:
        with pytest.raises(ConfigError, match="cannot be the name of an index"):
            ElasticsearchSink(f"http://h/{index}")


# -- labels of Loki, and absurd pauses


async def test_labels_keep_to_lokis_limits_in_bytes() -> None:
    """2,048 bytes a value and 1,024 a name, whatever the alphabet; a name has ASCII letters, digits and `_`."""
    labels = {"größe" + "ü" * 2000: "x", "text": "ü" * 2000, "1st": "y", "": "z"}
    async with FakeLoki() as loki, opened(LokiSink(loki.address)) as sink:
        await sink.write(records(Record(b"hello", file="/log/a", labels=labels)))

        [stream] = loki.streams
        assert dict(stream)["text"] == "ü" * 1024
        assert all(len(name) <= 1024 and name.isascii() for name, _ in stream)
        assert loki.wrong == []


async def test_fields_become_labels_as_the_application_wrote_them() -> None:
    """`true`, not Python's `True`; what is nested is JSON."""
    record = Record(b"x", fields={"ok": True, "who": {"name": "ada"}, "n": 1.5, "none": None})
    sink = LokiSink("http://h", label_fields=["ok", "who", "n", "none"])
    async with FakeLoki() as loki:
        sink.url = loki.address + loki.path
        async with opened(sink):
            await sink.write(records(record))

        [stream] = loki.streams
        assert dict(stream) == {"ok": "true", "who": '{"name":"ada"}', "n": "1.5"}


@pytest.mark.parametrize(
    "value",
    ["1 Jan 99999999999 00:00:00", "Mon, 99 Foo 2026", "Fri, 31 Dec 0001 23:59:59 +2359", ","],
)
def test_a_pause_that_makes_no_sense_is_none(value: str) -> None:
    """An OverflowError of a date would end the collection."""
    assert parse_retry_after(value) in (None, 0.0)
