"""Everybody who listens ends up with the newest content, and costs little until then."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from sidecar.http.apps import reader
from sidecar.http.apps.reader import reader_app
from sidecar.http.subscribe import sse
from sidecar.http.subscribe.pending import PendingRequests
from sidecar.http.subscribe.sse import EventHub, Subscriber
from sidecar.process import lifecycle, metrics
from sidecar.volume.content.snapshot import version_of
from support import Eventually, StartProcess
from support.eventsource import Event, EventSource, Parser
from support.httpkit import MakeClient, Serve, Served, place, tag

Open: TypeAlias = Callable[..., "asyncio.Future[EventSource]"]


def content(text: str) -> Event:
    return Event("content", text, tag(text))


class Recovering:
    """A source that recovers, with a new content, while the image of the old one is being made."""

    def __init__(self) -> None:
        self.etag = tag("old")
        self.stale: str | None = "it is gone"

    async def snapshot_json(self) -> tuple[str, bytes]:
        found = self.etag, b'"x"'
        self.etag, self.stale = tag("new"), None
        return found

    def subscribe(self, _: object) -> Callable[[], None]:
        return lambda: None


async def test_fresh_is_never_told_with_the_tag_of_what_was_stale() -> None:
    """Its tag is that of the content that ended the staleness (issue 10, point 12)."""
    stream = EventHub(Recovering(), PendingRequests())
    await stream._refresh()
    assert (stream._state.etag, stream._state.stale) == (tag("old"), "it is gone")
    await stream._refresh()
    assert (stream._state.etag, stream._state.stale) == (tag("new"), None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return place(tmp_path / "shared" / "config", "1")


@pytest.fixture
def app(config: Path) -> web.Application:
    return reader_app(config)


@pytest_asyncio.fixture
async def one(served: Serve, app: web.Application) -> Served:
    return await served(app, drain_timeout=600.0)  # what waits for its end fails


@pytest_asyncio.fixture
async def listen(one: Served) -> AsyncIterator[Open]:
    """`await listen(**options)`: an event source of the reader."""
    opened: list[EventSource] = []

    async def open_(**options: str) -> EventSource:
        opened.append(await EventSource.open(one.port, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_
    for source in opened:
        source.close()


def stream_of(app: web.Application) -> EventHub:
    found = app[reader.READER].event_hub
    assert found is not None
    return found


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_the_content_comes_at_once_and_each_time_it_changes(
    listen: Open, config: Path, version: str
) -> None:
    """Under its entity tag, quotes and all; as `GET /` has it, whatever lines are in it."""
    source = await listen(version=version)
    assert b"\r\nContent-Type: text/event-stream\r\n" in source.head
    assert await source.next() == content("1")
    for text in ('2"\n\nid: x\r\r\n', "", "\u2028é"):
        place(config, text)
        assert await source.next() == content(text)
    assert 1000 <= (source.parser.retry or 0) <= 3000


async def test_a_stream_does_not_tell_what_it_is_made_of(listen: Open) -> None:
    """As no other answer does: aiohttp would name its version and that of Python."""
    source = await listen()
    assert [line for line in source.head.split(b"\r\n") if line.startswith(b"Server:")] == [
        b"Server: sidecar"
    ]


@pytest.mark.parametrize("kept", ["{}", "W/{}", "bare"])
async def test_who_comes_back_is_sent_nothing_twice(listen: Open, config: Path, kept: str) -> None:
    """`Last-Event-ID` is the present one: the next event is the next change."""
    source = await listen(last=tag("1").strip('"') if kept == "bare" else kept.format(tag("1")))
    place(config, "2")
    assert await source.next() == content("2")


async def test_who_missed_something_gets_the_newest_at_once(listen: Open) -> None:
    """And not what was in between."""
    source = await listen(last=tag("0"))
    assert await source.next() == content("1")


async def test_a_source_that_goes_stale_and_comes_back_is_told_of(
    listen: Open, config: Path
) -> None:
    """The id stays that of the content; who comes while it is stale learns of it as well."""
    source = await listen()
    assert await source.next() == content("1")
    config.unlink()
    stale = await source.next()
    assert stale is not None
    assert (stale.type, stale.id) == ("stale", tag("1"))
    assert "config" in stale.data["reason"]
    later = await listen(last=tag("1"))
    assert await later.next() == Event("stale", stale.data, "")
    place(config, "1")
    assert await source.next() == Event("fresh", {"etag": tag("1")}, tag("1"))
    config.unlink()
    stale = await source.next()
    assert stale is not None
    place(config, "2")
    assert [await source.next(), await source.next()] == [
        content("2"),
        Event("fresh", {"etag": tag("2")}, tag("2")),
    ]


async def test_the_first_content_is_waited_for(served: Serve, tmp_path: Path) -> None:
    """Nothing published yet is no error here: a browser would never come back after a 503."""
    path = tmp_path / "shared" / "config"
    path.parent.mkdir()
    one = await served(reader_app(path))
    source = await EventSource.open(one.port)
    assert source.head.startswith(b"HTTP/1.1 200 ")
    place(path, "1")
    assert await source.next() == content("1")
    source.close()


async def test_what_is_no_text_is_null(listen: Open, config: Path) -> None:
    """With its entity tag: `GET /raw` has the bytes."""
    source = await listen()
    await source.next()
    place(config, b"\xff")
    event = await source.next()
    assert event is not None
    assert (event.type, event.data, event.id) == ("content", None, f'"{version_of(bytes([255]))}"')


async def test_silence_is_broken_by_comments_from_one_task(
    listen: Open, app: web.Application, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """However many listen; and with the last of them it ends."""
    monkeypatch.setattr(sse, "HEARTBEAT", 0.05)
    sources = [await listen() for _ in range(20)]
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == "events"]
    assert len(tasks) == 1
    for source in sources:
        assert await source.next() == content("1")
        reading = asyncio.create_task(source.next(60))
        await eventually(lambda source=source: source.parser.comments > 0)
        assert not reading.done()
        reading.cancel()
        await asyncio.wait({reading})
        source.close()
    await eventually(tasks[0].done)
    assert "subscribers=0" in repr(stream_of(app))


async def test_subscribers_are_counted(listen: Open, eventually: Eventually) -> None:
    """Until they have gone."""
    before = metrics.SUBSCRIBERS._value.get()
    sources = [await listen() for _ in range(3)]
    await eventually(lambda: metrics.SUBSCRIBERS._value.get() == before + 3)
    for source in sources:
        source.close()
    await eventually(lambda: metrics.SUBSCRIBERS._value.get() == before)


async def test_at_the_end_of_the_process_the_stream_ends(one: Served, listen: Open) -> None:
    """Whole, so that the client comes back at once, to another Pod; and nothing waits for it."""
    source, old = await listen(), await listen(version="1.0")
    for each in (source, old):
        assert await each.next() == content("1")
    await one.stop()
    assert [await source.next(), await old.next()] == [None, None]
    assert (source.ended, old.ended) == (True, True)


async def test_who_comes_while_the_process_ends_gets_the_content_and_the_end(
    served: Serve, app: web.Application, eventually: Eventually
) -> None:
    """Not an error, at which a browser would give up."""
    one = await served(app, drain_delay=600.0)
    one.task.cancel()
    await eventually(lifecycle.draining)
    source = await EventSource.open(one.port)
    assert await source.next() == content("1")
    assert await source.next() is None
    assert source.ended  # at once, not with the others
    source.close()


async def test_a_slow_one_gets_the_newest_and_holds_one_message_at_most(
    one: Served, listen: Open, config: Path, app: web.Application, eventually: Eventually
) -> None:
    """What it could not take is left out; the others do not wait for it."""
    raw = socket.create_connection(("127.0.0.1", one.port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    raw.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
    quick = await listen()
    assert await quick.next() == content("1")
    size = 3_000_000
    for number in range(8):
        place(config, str(number) * size)
        while (event := await quick.next()) is not None and event.data != str(number) * size:
            pass
        unsent = [
            each.transport.get_write_buffer_size()
            for each in stream_of(app)._subscribers
            if each.transport is not None
        ]
        assert max(unsent) < size + 1000
    raw.setblocking(False)
    slow = EventSource(*await asyncio.open_connection(sock=raw))
    slow.head = await slow.reader.readuntil(b"\r\n\r\n")
    got: list[str] = []
    while not got or got[-1] != "7":
        event = await slow.next()
        assert event is not None
        got.append(event.data[:1])
    assert len(got) < 7, got
    slow.close()


async def test_who_takes_nothing_for_long_is_let_go(
    one: Served, listen: Open, config: Path, app: web.Application,
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually,
) -> None:  # fmt: skip
    """Its connection is as good as dead, and holds a message."""
    monkeypatch.setattr(sse, "HEARTBEAT", 0.05)
    monkeypatch.setattr(sse, "_STALL_TIMEOUT", 0.2)
    monkeypatch.setattr(
        reader, "_MAX_EVENT_BYTES", 1 << 30
    )  # more than all buffers on the way take
    raw = socket.create_connection(("127.0.0.1", one.port))
    raw.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
    quick = await listen()
    await eventually(lambda: "subscribers=2" in repr(stream_of(app)))
    place(config, "x" * 30_000_000)
    await quick.next()
    await quick.next()
    await eventually(lambda: "subscribers=1" in repr(stream_of(app)))
    raw.close()


async def test_a_thousand_changes_a_second_end_on_the_last_for_all(
    app: web.Application, one: Served, config: Path
) -> None:
    """200 subscribers; who is told of which changes in between is a matter of chance."""
    sources = [await EventSource.open(one.port, limit=1 << 12) for _ in range(200)]
    for number in range(1000):
        place(config, f"change {number}")
        if number % 10 == 0:
            await asyncio.sleep(0)

    async def last(source: EventSource) -> int:
        count = 0
        while (event := await source.next(20)) is not None and event.data != "change 999":
            count += 1
        source.close()
        return count

    assert len(await asyncio.gather(*map(last, sources))) == 200


async def test_a_change_while_one_is_being_welcomed_is_not_missed(
    listen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been told of the content before, and was not among the others yet when they were told of the next."""
    first = await listen()
    assert await first.next() == content("1")
    take = EventHub.adopt

    async def snapshot_json() -> tuple[str, bytes]:
        return tag("2"), b'"2"'

    def late(stream: EventHub, subscriber: Subscriber) -> None:
        monkeypatch.setattr(stream._source, "snapshot_json", snapshot_json)
        stream._state = stream._state._replace(etag=tag("2"), snapshot_json=b'"2"')
        take(stream, subscriber)

    monkeypatch.setattr(EventHub, "adopt", late)
    second = await listen()
    assert [await second.next(), await second.next(2)] == [content("1"), content("2")]


async def test_a_reason_with_an_odd_name_in_it_can_be_told(app: web.Application) -> None:
    """Names of files are bytes; JSON is text."""
    request = make_mocked_request("GET", "/events")
    stream = EventHub(None, None)  # type: ignore[arg-type]
    stream._state = sse._EventState(None, "cannot read \udcff", b"null")
    assert b'{"reason":"cannot read ?"}' in stream._text(Subscriber(stream, request, None))


async def test_head_and_other_servers_of_the_application(
    client: MakeClient, app: web.Application, config: Path
) -> None:
    """Under a runner that knows nothing of us, a handler stays for each client."""
    session = await client(app)
    assert (await session.head("/events")).headers["Content-Type"] == "text/event-stream"
    answer = await session.get("/events")
    parser = Parser()
    events: list[Event] = []
    place(config, "2")
    async with asyncio.timeout(10):
        while len(events) < 2:
            events += parser.feed(await answer.content.readany())
    assert events == [content("1"), content("2")]
    answer.close()


async def test_a_token_is_asked_for(served: Serve, config: Path, tmp_path: Path) -> None:
    """As everywhere else."""
    token = tmp_path / "token"
    token.write_text("secret")
    one = await served(reader_app(config, token_file=token))
    source = await EventSource.open(one.port)
    assert source.head.startswith(b"HTTP/1.1 401 ")
    source.close()


@pytest.mark.slow
async def test_the_command_streams_and_drains(
    sidecar_process: StartProcess, config: Path, free_port: int
) -> None:
    """As a process, with a real SIGTERM."""
    process = sidecar_process(
        "read", "--path", config, "--host", "127.0.0.1", "--port", free_port, "--drain-delay", 0,
        until=f"http://127.0.0.1:{free_port}",
    )  # fmt: skip
    source = await EventSource.open(free_port)
    assert await source.next() == content("1")
    process.popen.terminate()
    assert await source.next() is None
    assert source.ended
    source.close()
    assert await asyncio.to_thread(process.popen.wait, 10) == 0
