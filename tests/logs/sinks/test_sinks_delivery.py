"""What all HTTP sinks do about receivers that are away, busy, broken or picky: the same table for each of the four."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logs.fakes.elasticsearch import FakeElasticsearch
from logs.fakes.loki import FakeLoki
from logs.fakes.ndjson import FakeNdjson
from logs.fakes.otlp import FakeOtlp
from logs.fakes.receiver import Broken, Busy, DropAnswer, Hang, Receiver, Reset, SlowRead
from logs.sinks.helpers import batch, deliver, numbered, opened, said
from sidecar._errors import ConfigError
from sidecar.logs.records import Batch
from sidecar.logs.sinks.base import SinkUnavailable
from sidecar.logs.sinks.elasticsearch import ElasticsearchSink
from sidecar.logs.sinks.http import HttpSink
from sidecar.logs.sinks.loki import LokiSink
from sidecar.logs.sinks.ndjson import NdjsonSink
from sidecar.logs.sinks.otlp import OtlpSink
from sidecar.process.retry import parse_retry_after
from support import Eventually

KINDS: dict[str, tuple[type[Receiver], type[HttpSink]]] = {
    "ndjson": (FakeNdjson, NdjsonSink),
    "loki": (FakeLoki, LokiSink),
    "elasticsearch": (FakeElasticsearch, ElasticsearchSink),
    "otlp": (FakeOtlp, OtlpSink),
}
Pair = Callable[..., tuple[Any, Any]]


@pytest.fixture(params=list(KINDS))
def pair(request: pytest.FixtureRequest) -> Pair:
    """`pair(poison=…)`: a fake that is not listening yet, and what makes the sink for it."""
    fake, sink = KINDS[request.param]

    def make(**options: Any) -> tuple[Any, Any]:
        return fake(**options), sink

    return make


async def test_every_line_arrives_once_and_in_order(pair: Pair) -> None:
    """A receiver that is well gets each line once, in order, in the form it asks for."""
    fake, make = pair()
    async with fake, opened(make(fake.address)) as sink:
        first, second = numbered(1000), numbered(1000, 1000)
        assert not (await sink.write(batch(*first))).rejected
        assert not (await sink.write(batch(*second, start=20000))).rejected

        assert fake.texts == first + second
        assert fake.wrong == []


@pytest.mark.parametrize(
    "fault",
    [
        Reset(),
        Busy(),
        Busy("0"),
        Broken(503),
        DropAnswer(),
        Broken(502, "<html>no JSON</html>"),
        Broken(401),
        Broken(404),
        Broken(301, headers={"Location": "/elsewhere"}),
    ],
    ids=str,
)
async def test_a_receiver_that_fails_gets_the_same_batch_again(pair: Pair, fault: Any) -> None:
    """Scenario 32. Nothing is acknowledged before it has been taken, and what was taken and not answered is no duplicate."""
    fake, make = pair()
    async with fake, opened(make(fake.address)) as sink:
        fake.next(fault, fault)
        receipt = await deliver(sink, batch(*numbered(50)))

        assert not receipt.rejected
        assert len(said) == 2
        if isinstance(fault, DropAnswer) and isinstance(fake, FakeOtlp):
            assert set(fake.texts) == set(numbered(50))  # OTLP has nothing to know a line by
        else:
            assert fake.texts == numbered(50)
        assert fake.wrong == []


async def test_a_server_error_is_waited_out_except_where_that_is_forbidden(pair: Pair) -> None:
    """Scenario 32. 500 means later; OTLP's specification alone forbids to try again: then the dead letters have the lines."""
    fake, make = pair()
    async with fake, opened(make(fake.address)) as sink:
        fake.next(Broken(500))
        receipt = await deliver(sink, batch(*numbered(10)))

        if isinstance(sink, OtlpSink):
            assert [one.record.text for one in receipt.rejected] == numbered(10)
            assert fake.seen == 1
        else:
            assert not receipt.rejected
            assert fake.texts == numbered(10)


async def test_a_receiver_that_hangs_is_left_after_the_time_limit(pair: Pair) -> None:
    """Scenario 32. No request outlives its timeout; the batch is given again."""
    fake, make = pair()
    async with fake, opened(make(fake.address, timeout=0.2)) as sink:
        fake.next(Hang())
        await deliver(sink, batch(*numbered(5)))

        assert "no answer within 0.2 s" in str(said[0])
        assert fake.texts == numbered(5)


async def test_a_receiver_that_reads_slowly_is_waited_for(pair: Pair) -> None:
    """Scenario 32. Slow is not broken: one request, one delivery."""
    fake, make = pair()
    async with fake, opened(make(fake.address, gzip=False)) as sink:
        fake.next(SlowRead(200_000))
        await sink.write(batch(*numbered(300)))

        assert fake.seen == 1
        assert fake.texts == numbered(300)


async def test_a_receiver_that_refuses_connections_is_unavailable_until_it_listens(
    pair: Pair,
) -> None:
    """Scenario 32. A closed port is no error of ours: the same batch arrives once the port is open again."""
    fake, make = pair()
    async with fake, opened(make(fake.address)) as sink:
        await fake.refuse()
        given = batch(*numbered(5))
        with pytest.raises(SinkUnavailable):
            await sink.write(given)
        await fake.listen()
        await deliver(sink, given)

        assert fake.texts == numbered(5)


async def test_the_pause_asked_for_reaches_the_collector(pair: Pair) -> None:
    """Scenario 32. Retry-After goes on as `retry_after`, a little more rather than less, five minutes at most."""
    fake, make = pair()
    async with fake, opened(make(fake.address)) as sink:
        fake.next(Busy("7"), Busy("999999"), Busy())
        given = batch("x")
        pauses = []
        for _ in range(3):
            with pytest.raises(SinkUnavailable) as caught:
                await sink.write(given)
            pauses.append(caught.value.retry_after)

        soon, late, unsaid = pauses
        assert soon is not None
        assert 7.0 <= soon <= 7.7
        assert late is not None
        assert 300.0 <= late <= 330.0
        assert unsaid is None


async def test_poison_is_given_back_and_its_neighbours_arrive(pair: Pair) -> None:
    """Scenario 32. A refused record comes back with the reason; all others of its batch arrive, once."""
    poison = {"line 3", "line 96"}
    fake, make = pair(poison=lambda text: text in poison)
    async with fake, opened(make(fake.address)) as sink:
        receipt = await sink.write(batch(*numbered(100)))

        assert {one.record.text for one in receipt.rejected} == poison
        assert all(one.reason for one in receipt.rejected)
        assert sorted(fake.texts) == sorted(set(numbered(100)) - poison)


async def test_poison_and_an_outage_in_the_middle_repeat_nothing(pair: Pair) -> None:
    """What has arrived before the receiver went away is not sent again after it came back."""
    fake, make = pair(poison=lambda text: text == "line 40")
    async with fake, opened(make(fake.address)) as sink:
        fake.next(Broken(400), Broken(503), Busy("0"))
        receipt = await deliver(sink, batch(*numbered(64)))

        assert [one.record.text for one in receipt.rejected] == ["line 40"]
        assert sorted(fake.texts) == sorted(set(numbered(64)) - {"line 40"})


async def test_a_body_that_is_too_large_for_the_receiver_is_halved(pair: Pair) -> None:
    """413 splits; a single line that is still too large is refused, and only that one."""
    fake, make = pair(max_body=3000)
    async with fake, opened(make(fake.address)) as sink:
        lines = [*numbered(40), "x" * 4000, *numbered(40, 40)]
        receipt = await sink.write(batch(*lines))

        assert [one.record.text for one in receipt.rejected] == ["x" * 4000]
        assert fake.texts == numbered(80)


async def test_a_body_larger_than_our_own_limit_is_never_sent(pair: Pair) -> None:
    """max_body bounds what one request holds before compression."""
    fake, make = pair()
    async with fake, opened(make(fake.address, max_body=4000)) as sink:
        await sink.write(batch(*numbered(200)))

        assert fake.texts == numbered(200)
        assert max(len(request.body) for request in fake.requests) <= 4000


async def test_a_receiver_without_gzip_gets_plain_bodies_from_then_on(pair: Pair) -> None:
    """415 to a compressed body turns compression off for good."""
    fake, make = pair(take_gzip=False)
    async with fake, opened(make(fake.address)) as sink:
        await deliver(sink, batch("one"))
        await deliver(sink, batch("two", start=10))

        assert fake.texts == ["one", "two"]
        assert len(said) == 1


async def test_bodies_are_compressed(pair: Pair) -> None:
    """Gzip is on by default, and makes log lines several times smaller."""
    fake, make = pair()
    async with fake, opened(make(fake.address)) as sink:
        await sink.write(batch(*numbered(500)))

        assert fake.requests[0].headers["Content-Encoding"] == "gzip"
        assert fake.requests[0].size * 4 < len(fake.requests[0].body)


async def test_lines_that_are_no_text_arrive_as_text(pair: Pair) -> None:
    """Whatever bytes a line holds, the request keeps to the format, and the readable part arrives."""
    fake, make = pair()
    nasty = [
        b"\xff\xfe bad",
        b'quote " back\\slash',
        b"nul \0 \x1b[31m",
        "ümläut \u2028 😀".encode(),
        b"",
    ]
    async with fake, opened(make(fake.address)) as sink:
        receipt = await sink.write(batch(*nasty))

        assert not receipt.rejected
        assert fake.texts == [line.decode("utf-8", "replace") for line in nasty]
        assert fake.wrong == []


async def test_a_batch_of_which_the_stages_kept_nothing_is_acknowledged_unsent(pair: Pair) -> None:
    """Dropped lines are done with: no request."""
    fake, make = pair()
    async with fake, opened(make(fake.address)) as sink:
        given = batch("one")
        await sink.write(Batch(given.blocks, []))

        assert fake.seen == 0


async def test_cancelling_a_write_that_hangs_ends_it_at_once(
    pair: Pair, eventually: Eventually
) -> None:
    """A shutdown does not wait for a receiver."""
    fake, make = pair()
    async with fake, opened(make(fake.address)) as sink:
        fake.always = Hang()
        task = asyncio.create_task(sink.write(batch("x")))
        await eventually(lambda: fake.seen)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)


async def test_credentials_come_from_the_url_or_from_files_and_are_never_shown(
    pair: Pair, tmp_path: Path
) -> None:
    """Basic from the URL or a file, bearer from a file that is read again; none of it in name or repr."""
    fake, make = pair()
    token = tmp_path / "token"
    token.write_text("first\n")
    async with fake:
        with_user = fake.address.replace("//", "//ada:s3cr%40t@")
        async with opened(make(with_user)) as sink:
            await sink.write(batch("a"))
            assert "s3cr" not in sink.name + repr(sink)
        async with opened(make(fake.address, token_file=token)) as sink:
            await sink.write(batch("b"))
            token.write_text("second\n")
            await sink.write(batch("c"))

        sent = [request.headers["Authorization"] for request in fake.requests]
        assert sent == ["Basic YWRhOnMzY3JAdA==", "Bearer first", "Bearer second"]


async def test_keys_and_any_other_header_come_from_files(tmp_path: Path) -> None:
    """`Authorization: ApiKey` as Elasticsearch makes them; read for each request, so they may be rotated."""
    key = tmp_path / "key"
    key.write_text("first\n")
    async with FakeNdjson() as fake:
        for options in ({"api_key_file": key}, {"header_files": {"X-Key": key, "X-Team": key}}):
            async with opened(NdjsonSink(fake.address, **options)) as sink:
                await sink.write(batch("a"))
                key.write_text("second\n")
                await sink.write(batch("b"))

        sent = [
            (one.headers.get("Authorization"), one.headers.get("X-Key")) for one in fake.requests
        ]
        assert sent == [
            ("ApiKey first", None),
            ("ApiKey second", None),
            (None, "second"),
            (None, "second"),
        ]


@pytest.mark.parametrize(
    "options",
    [
        {"api_key_file": "/k", "token_file": "/t"},
        {"api_key_file": "/k", "header_files": {"authorization": "/a"}},
        {"headers": {"X Key": "a"}},
        {"header_files": {"": "/a"}},
    ],
)
def test_credentials_and_headers_that_cannot_work_are_refused_before_the_start(
    options: dict[str, Any],
) -> None:
    """aiohttp would end the collection at the first request, and two credentials leave it open which is meant."""
    with pytest.raises(ConfigError, match=r"give one of|cannot be the name of a header"):
        NdjsonSink("http://h", **options)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 xx\r\n\r\n", b"220 mail.example ESMTP\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r", b""],
)
async def test_a_key_in_an_address_is_not_told_when_the_answer_makes_no_sense(
    answer: bytes,
) -> None:
    """Another port, a proxy in between: what is said of it goes into the log, and to whoever asks /readyz."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with opened(NdjsonSink(f"http://127.0.0.1:{port}/in?api_key=secret")) as sink:
        with pytest.raises(SinkUnavailable) as raised:
            await sink.write(batch("a"))
    server.close()
    assert f"http://127.0.0.1:{port}/in?api_key=***: " in str(raised.value)
    assert "secret" not in str(raised.value)


async def test_a_key_that_the_receiver_repeats_is_not_told() -> None:
    """Express answers so, for one, when a path is wrong."""
    async with FakeNdjson() as fake:
        fake.next(Broken(404, "Cannot POST /in?api_key=secret"))
        async with opened(NdjsonSink(f"{fake.address}/in?api_key=secret")) as sink:
            with pytest.raises(SinkUnavailable) as raised:
                await sink.write(batch("a"))
    assert "HTTP 404: Cannot POST /in?*** (check address" in str(raised.value)


def test_a_key_in_the_query_travels_and_is_never_shown() -> None:
    """Nor is it part of the name in the checkpoint: with a new key, all would be delivered once more."""
    sink = NdjsonSink("http://h/in?api_key=secret&source=shop")
    assert sink.url == "http://h/in?api_key=secret&source=shop"
    assert sink.name == "http://h/in?api_key=***&source=***"
    assert "secret" not in repr(sink)


@pytest.mark.parametrize("content", [b"", b"two\nlines", b"\xff"])
async def test_a_token_that_no_header_can_hold_is_waited_for(
    tmp_path: Path, content: bytes
) -> None:
    """The file may be half written; a wrong one must not end the collection."""
    token = tmp_path / "token"
    token.write_bytes(content)
    async with opened(NdjsonSink("http://127.0.0.1:1", token_file=token)) as sink:
        with pytest.raises(SinkUnavailable, match="cannot read the secret"):
            await sink.write(batch("a"))


def test_a_header_of_several_lines_is_refused_before_the_start() -> None:
    with pytest.raises(ConfigError, match="the header 'X-Team' must be one line"):
        NdjsonSink("http://h", headers={"X-Team": "a\nb"})


async def test_a_missing_token_file_is_waited_for(tmp_path: Path) -> None:
    """A secret that is not mounted yet costs a pause, no line."""
    async with (
        FakeNdjson() as fake,
        opened(NdjsonSink(fake.address, token_file=tmp_path / "token")) as sink,
    ):
        given = batch("a")
        with pytest.raises(SinkUnavailable, match="token"):
            await sink.write(given)
        (tmp_path / "token").write_text("t")
        await sink.write(given)

        assert fake.texts == ["a"]


@pytest.mark.parametrize(
    ("make", "url", "expected"),
    [
        (LokiSink, "loki+http://h:1", "http://h:1/loki/api/v1/push"),
        (LokiSink, "loki+https://h/", "https://h/loki/api/v1/push"),
        (LokiSink, "http://h/tenant-a/loki/api/v1/push", "http://h/tenant-a/loki/api/v1/push"),
        (OtlpSink, "otlp+http://h:4318", "http://h:4318/v1/logs"),
        (OtlpSink, "otlp+http://h:4318/v1/logs", "http://h:4318/v1/logs"),
        (ElasticsearchSink, "elasticsearch+http://h:9200", "http://h:9200/_bulk"),
        (ElasticsearchSink, "elasticsearch+http://h:9200/my-logs", "http://h:9200/my-logs/_bulk"),
        (ElasticsearchSink, "http://[::1]:9200/_bulk", "http://[::1]:9200/_bulk"),
        (NdjsonSink, "http://h/ingest?x=1", "http://h/ingest?x=1"),
        (NdjsonSink, "http://u:p@h", "http://h/"),
    ],
)
def test_the_standard_path_is_appended_where_it_is_missing(
    make: Any, url: str, expected: str
) -> None:
    assert make(url).url == expected


@pytest.mark.parametrize("url", ["ftp://h", "http://", "h:80", "http://h:port", "http://[::1"])
def test_what_is_no_url_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        NdjsonSink(url)


def test_wrong_certificates_are_found_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="certificates"):
        NdjsonSink("https://h", ca_file=tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match=r"certificates in ca_file .*missing\.pem: No such file"):
        NdjsonSink("https://h", ca_file=tmp_path / "missing.pem")


def test_retry_after_is_read_as_seconds_or_date() -> None:
    assert parse_retry_after("3") == 3.0
    assert parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0.0
    assert parse_retry_after("soon") is None
    assert parse_retry_after("-3") is None
    assert parse_retry_after("9" * 400) == float("9" * 9)


def test_the_systems_certificates_are_used_by_default() -> None:
    """In a context of its own, whatever aiohttp has; and none is loaded where nobody speaks TLS."""
    context = NdjsonSink("https://h")._tls.context()
    assert isinstance(context, ssl.SSLContext)
    assert context.cert_store_stats() == ssl.create_default_context().cert_store_stats()
    assert NdjsonSink("http://h")._tls.context() is True


async def test_lines_that_no_stage_looks_at_never_become_records() -> None:
    """That is what makes NDJSON cheap: a block is encoded as a whole."""
    async with FakeNdjson() as fake, opened(NdjsonSink(fake.address)) as sink:
        given = batch(*numbered(100))
        await sink.write(given)

        assert given.raw
        assert fake.texts == numbered(100)
