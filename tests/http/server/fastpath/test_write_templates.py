"""Writes by the fast path: nobody can tell them from aiohttp's, and whatever goes wrong is answered as it is there."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from sidecar import _errors
from sidecar.http.apps.writer import WRITER, writer_app
from sidecar.http.server.fastpath import ListenerCache
from sidecar.http.server.fastpath.protocol import FastPathProtocol
from sidecar.http.server.fastpath.write_templates import WriteTemplates
from sidecar.process import lifecycle, metrics
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.validation.gate import Gate
from support import Eventually
from support.httpkit import Serve
from support.parity import NO_WRITES, WRITES, Outcome, Peer, conversations, peer, settled


def write(content: object) -> bytes:
    return f"GET /?content={content} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def etag(content: object) -> bytes:
    return f'ETag: "{version_of(str(content).encode())}"'.encode()


CHANCE = re.compile(rb"(?<=\r\n)(Sidecar-Request-Id|Sidecar-Published-At): [^\r]+")
"""What differs from request to request on one server, too."""


class Pair:
    """A writer with the fast path and one without, each with a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directories = (directory / "fast", directory / "slow")
        self.apps = [writer_app(one / "config", durability="none") for one in self.directories]
        self.peers: list[Peer] = []

    async def talk(self, pieces: list[bytes], *, eager: bool) -> tuple[Any, Any]:
        """Say the same to both; return what each has answered, and what lies in its file afterwards."""
        found = []
        at_once = 0
        for peer_, directory in zip(self.peers, self.directories, strict=True):
            before = asyncio.all_tasks()
            said = await peer_.talk(pieces, eager=eager, after=at_once)
            at_once = said.at_once
            # A write goes on after its client has gone: what it leaves belongs to this conversation.
            while late := asyncio.all_tasks() - before:
                await asyncio.wait(late)
            written = said.written.replace(os.fsencode(directory), b"DIRECTORY")
            written = CHANCE.sub(rb"\1: ANY", written)
            config = directory / "config"
            content = config.read_bytes() if config.exists() else None
            found.append((Outcome(written, said.closed), content))
        return found[0], found[1]

    async def differences(self, *, seed: int, count: int) -> list[object]:
        """Return the conversations after which one can be told from the other, at most five."""
        found: list[object] = []
        tag = f'"{version_of(b"5")}"'
        for pieces, eager in conversations(seed, count, tag, WRITES, NO_WRITES):
            one, other = await self.talk(pieces, eager=eager)
            if one != other or re.search(rb"HTTP/1\.1 50[^15]", one[0].written):
                found.append((pieces, eager, one, other))
                if len(found) == 5:
                    break
        return found


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    both = Pair(tmp_path)
    async with peer(both.apps[0], ListenerCache()) as fast, peer(both.apps[1], None) as slow:
        both.peers = [fast, slow]
        yield both


@pytest_asyncio.fixture
async def fast(tmp_path: Path) -> AsyncIterator[Fast]:
    """A writer whose fast path knows the form of `write` already."""
    app = writer_app(tmp_path / "config")
    async with peer(app, ListenerCache()) as one:
        for number in range(2):
            await one.talk([write(number)], eager=False)
        assert one.cache is not None
        assert one.cache.write_templates.find(write("x")) is not None
        yield Fast(one, app, tmp_path / "config")


class Fast:
    """A writer with the fast path, and a brake for its disk."""

    def __init__(self, peer_: Peer, app: web.Application, path: Path) -> None:
        self.peer = peer_
        self.app = app
        self.path = path
        self.volume = app[WRITER].volume

    @contextmanager
    def braked(self) -> Iterator[Callable[[], None]]:
        """Let every publish wait until what is yielded is called, or the block ends."""
        go = threading.Event()
        with self.instead(lambda put, *args: (go.wait(20), put(*args))[1]):
            try:
                yield go.set
            finally:
                go.set()

    @contextmanager
    def instead(self, do: Callable[..., Any]) -> Iterator[None]:
        """Replace what is done on the disk."""
        store = self.volume._store
        put = store.put
        store.put = lambda *args: do(put, *args)  # type: ignore[method-assign]
        try:
            yield
        finally:
            store.put = put  # type: ignore[method-assign]


def counted() -> dict[str, float]:
    metrics.exposition()
    ok = metrics.HTTP_REQUESTS_TOTAL.labels("200")._value.get()
    published = metrics.PUBLISH_TOTAL.labels("published")._value.get()
    seconds = metrics.PUBLISH_SECONDS.count()
    return {"200": ok, "published": published, "seconds": seconds}


async def test_a_text_longer_than_a_request_line_may_be_is_refused_by_the_fast_path_as_well(
    fast: Fast,
) -> None:
    """A form that is known has no limit of its own: that of the parser holds, here aiohttp's default of 8190 bytes."""
    found = await fast.peer.talk([write("x" * 8190)], eager=False)
    assert found.written.startswith(b"HTTP/1.1 414 ")
    assert fast.path.read_text() == "1"


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_no_conversation_tells_a_write_by_the_fast_path_from_one_by_aiohttp(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some thousand generated writes: the same bytes but for dates, the same file, no 5xx, nothing in the log."""
    filled = []
    fill = WriteTemplates.render
    monkeypatch.setattr(WriteTemplates, "render", lambda *args: filled.append(1) or fill(*args))
    with caplog.at_level(logging.INFO):
        assert await pair.differences(seed=1, count=1_500) == []
    assert len(filled) > 400, "the fast path has written too little for that to mean anything"
    assert {one.name for one in caplog.records} <= {"sidecar.volume.change_log", "sidecar.audit"}


@pytest.mark.soak
async def test_no_conversation_of_many_tells_a_write_by_the_fast_path(pair: Pair) -> None:
    """Others each time; the seed is in the failure."""
    seed = int.from_bytes(os.urandom(4))
    assert (seed, await pair.differences(seed=seed, count=10_000)) == (seed, [])


@pytest.mark.parametrize("request_", [*WRITES[18:], *NO_WRITES], ids=lambda one: repr(one[:70]))
async def test_each_write_is_answered_as_aiohttp_does_it(pair: Pair, request_: bytes) -> None:
    """Whole, when the fast path knows all forms of a write already, and cut after each byte, with others around it."""
    await pair.talk([*WRITES[:2], *WRITES[-6:] * 2], eager=False)
    request_ = request_.replace(b"TAG", etag(11).removeprefix(b"ETag: "))
    said = [write(11), request_, request_, write(4), request_]
    one, other = await pair.talk(said, eager=False)
    assert one == other
    if len(request_) < 300:
        whole = write(5) + request_ + write(6)
        one, other = await pair.talk([whole[n : n + 1] for n in range(len(whole))], eager=True)
        assert one == other


async def test_a_write_goes_by_the_fast_path_from_the_third_time_on(fast: Fast) -> None:
    """Whatever its content; and is counted as any other is."""
    before = counted()
    wire = fast.peer.connect()
    assert isinstance(wire.protocol, FastPathProtocol)
    await settled(wire)
    for content in ("2", "3", "three+and%20more"):
        wire.protocol.data_received(write(content))
        assert wire.protocol._in_flight is not None
        assert wire.protocol.busy
        await settled(wire)
    assert fast.path.read_text() == "three and more"
    assert wire.written.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert etag("three and more") in wire.written
    assert {name: value - before[name] for name, value in counted().items()} == {
        "200": 3,
        "published": 3,
        "seconds": 3,
    }
    wire.close()


async def test_the_request_id_is_that_of_the_client_however_the_line_is_written(fast: Fast) -> None:
    """RFC 9112 section 5: white space around the value is optional, so a line without any says the same."""
    request = write("CONTENT").replace(b"\r\n\r\n", b"\r\nX-Request-ID:deploy\r\n\r\n")
    wire = fast.peer.connect()
    for number in range(4):
        wire.protocol.data_received(request.replace(b"CONTENT", b"%d" % number))
        await settled(wire)
        metadata = (await fast.volume.read("config")).metadata
        assert metadata is not None
        assert metadata.request_id == "deploy"
    wire.close()


async def test_of_the_writes_of_many_connections_one_is_published(fast: Fast) -> None:
    """All are answered, each with the entity tag of its own content, and the last one is there."""
    wires = [fast.peer.connect() for _ in range(64)]
    for wire in wires:
        await settled(wire)
    for number, wire in enumerate(wires):
        wire.protocol.data_received(write(f"number-{number}"))
    for number, wire in enumerate(wires):
        await settled(wire)
        assert etag(f"number-{number}") in wire.written
        wire.close()
    assert fast.path.read_text() == "number-63"
    assert len(await fast.volume.versions("config")) == 4  # the empty one, two to learn the form


@pytest.mark.parametrize(
    "error",
    [
        _errors.VolumeFull(errno.ENOSPC, "cannot publish: no space"),
        _errors.VolumeUnavailable(errno.EROFS, "cannot publish: read-only"),
        _errors.PublishUncertain("published, but perhaps not durably", "0" * 32),
        _errors.PublishError("cannot publish"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_goes_wrong_is_answered_as_without_the_lane(
    fast: Fast, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, not tried again: the same problem, the same count, the same readiness."""
    tried = []

    def fail(*_: object) -> None:
        tried.append(1)
        raise error

    result = "uncertain" if isinstance(error, _errors.PublishUncertain) else "failed"
    count = metrics.PUBLISH_TOTAL.labels(result)._value.get
    outcomes = []
    data_path = fast.app[WRITER].write_health
    with fast.instead(fail):
        for by_fast_path in (True, False):
            before = count()
            if not by_fast_path:
                monkeypatch.setattr(WriteTemplates, "find", lambda *_: None)
            said = await fast.peer.talk([write("new"), write("newer")], eager=False)
            outcomes.append((said, count() - before, data_path.ready(), len(tried)))
            tried.clear()
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == 2
    monkeypatch.undo()
    assert b" 200 OK" in (await fast.peer.talk([write("good")], eager=False)).written
    assert data_path.ready() is None


async def test_what_comes_while_a_write_is_under_way_waits_its_turn(fast: Fast) -> None:
    """Requests, halves of them, and so many that they are not read on: all are answered, in order."""
    wire = fast.peer.connect()
    await settled(wire)
    asked = 0
    with fast.braked() as go:
        while wire.reading:
            assert asked < 10_000, "it reads on, however many wait"
            wire.protocol.data_received(write(asked))
            asked += 1
        wire.protocol.data_received(write("last")[:9])
        assert wire.written == b""
        go()
        await settled_and_reading(wire, asked)
    wire.protocol.data_received(write("last")[9:])
    await settled(wire)
    assert wire.written.count(b" 200 OK") == asked + 1
    tags = [wire.written.find(etag(number)) for number in (0, 1, asked // 2, asked - 1, "last")]
    assert tags == sorted(tags)
    assert -1 not in tags
    assert fast.path.read_text() == "last"
    wire.close()


async def test_a_write_that_waits_its_turn_is_not_lost_to_the_malformed_request_after_it(
    fast: Fast,
) -> None:
    """aiohttp refuses all of the bytes that come at once: so they are given to it as they came."""
    wire = fast.peer.connect()
    await settled(wire)
    with fast.braked() as go:
        for piece in (write("first"), write("second"), b"GET / HTTP/1.1\r\nno field\r\n\r\n"):
            wire.protocol.data_received(piece)
        go()
        await settled(wire)
    assert re.findall(rb"HTTP/1\.1 (\d+) ", wire.written) == [b"200", b"200", b"400"]
    assert etag("second") in wire.written
    assert fast.path.read_text() == "second"


async def settled_and_reading(wire: Any, answers: int) -> None:
    """Wait for so many answers; what ends a wait without end is the time limit of the test."""
    while not wire.reading or wire.written.count(b" 200 OK") < answers:
        await asyncio.sleep(0.005)


async def test_a_write_of_somebody_who_has_gone_is_still_done(
    fast: Fast, eventually: Eventually
) -> None:
    """As aiohttp does not stop a handler for that; it is counted, and the others are answered."""
    before = counted()
    gone, other = fast.peer.connect(), fast.peer.connect()
    for wire in (gone, other):
        await settled(wire)
    with fast.braked() as go:
        other.protocol.data_received(write("other"))
        await asyncio.sleep(0)
        gone.protocol.data_received(write("gone"))
        gone.close()
        go()
        await settled(other)
    await eventually(lambda: fast.path.read_text() == "gone")
    assert b" 200 OK" in other.written
    assert gone.written == b""
    await eventually(lambda: counted()["200"] - before["200"] == 2)
    other.close()


async def test_the_end_is_announced_on_a_write_that_was_begun_before_it(
    fast: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draining: what was remembered says `keep-alive`. And none is begun by the fast path any more."""
    wire = fast.peer.connect()
    await settled(wire)
    with fast.braked() as go:
        wire.protocol.data_received(write("last"))
        monkeypatch.setattr(lifecycle._LifecycleState, "draining", True)
        go()
        await settled(wire)
    assert (b" 200 OK" in wire.written, b"Connection: close" in wire.written) == (True, True)
    assert etag("last") in wire.written
    assert wire.closed
    said = await fast.peer.talk([write("after")], eager=False)
    assert (b"Connection: close" in said.written, said.closed) == (True, True)


async def test_a_connection_is_not_idle_while_it_writes(fast: Fast) -> None:
    """The time after which an idle one is closed does not run."""
    wire = fast.peer.connect()
    await settled(wire)
    with fast.braked() as go:
        wire.protocol.data_received(write("slow"))
        wire.protocol._next_keepalive_close_time = 0.0
        wire.protocol._process_keepalive()
        go()
        await settled(wire)
    assert b" 200 OK" in wire.written
    assert not wire.closed
    wire.close()


async def test_a_write_that_outlasts_the_end_is_withdrawn(fast: Fast) -> None:
    """If it is not visible yet: the file keeps what it has."""
    wire = fast.peer.connect()
    assert isinstance(wire.protocol, FastPathProtocol)
    await settled(wire)
    with fast.braked() as go:
        wire.protocol.data_received(write("too-late"))
        for _ in range(50):
            await asyncio.sleep(0)  # it is with the disk by now
        await wire.protocol.shutdown(0.01)
        go()
        while wire.protocol._in_flight is not None:
            await asyncio.sleep(0.001)
    assert wire.closed
    assert fast.path.read_text() == "1"


@pytest.mark.parametrize("kind", ["gate", "middleware", "signal", "directory"])
async def test_what_wants_to_see_each_write_sees_it(tmp_path: Path, kind: str) -> None:
    """A gate that looks at contents, a middleware or a signal of a user; and a directory has no content of its own."""
    gate = Gate(format="json") if kind == "gate" else None
    app = writer_app(tmp_path if kind == "directory" else tmp_path / "config", gate=gate)

    @web.middleware
    async def audit(request: web.Request, handler: Any) -> web.StreamResponse:
        answer: web.StreamResponse = await handler(request)
        return answer

    async def sign(*_: object) -> None:
        """Nothing."""

    if kind == "middleware":
        app.middlewares.append(audit)
    elif kind == "signal":
        app.on_response_prepare.append(sign)
    async with peer(app, ListenerCache()) as one:
        await one.talk([write(1), write(2), write(3)], eager=False)
        wire = one.connect()
        await settled(wire)
        wire.protocol.data_received(write("nothing"))
        assert wire.protocol._in_flight is None
        await settled(wire)
        assert {"gate": b" 422 ", "directory": b" 400 "}.get(kind, b" 200 ") in wire.written
        wire.close()


async def test_a_write_with_a_token_is_never_remembered(tmp_path: Path) -> None:
    """The token is asked for each time."""
    (tmp_path / "token").write_text("secret")
    ask = write(1)[:-2] + b"Authorization: Bearer secret\r\n\r\n"
    async with peer(
        writer_app(tmp_path / "config", token_file=tmp_path / "token"), ListenerCache()
    ) as one:
        said = await one.talk([ask] * 3 + [write(1)] * 3, eager=False)
        assert (said.written.count(b" 200 "), said.written.count(b" 401 ")) == (3, 3)
        assert (one.cache.write_templates.find(ask), one.cache.write_templates.find(write(2))) == (
            None,
            None,
        )


async def test_a_content_above_the_limit_is_refused_by_the_fast_path_too(tmp_path: Path) -> None:
    """Of the volume, or of the gate."""
    for options in ({"max_size": 10}, {"gate": Gate(max_size=10)}):
        async with peer(writer_app(tmp_path / "config", **options), ListenerCache()) as one:
            said = await one.talk([write(1), write(2), write("x" * 11), write("y")], eager=False)
            assert said.written.count(b" 200 ") == 3
            assert said.written.count(b" 413 ") == 1


async def test_a_mounted_writer_has_the_lane_too(tmp_path: Path, served: Serve) -> None:
    """Under whatever prefix, over a real connection, and beside other applications."""
    parent = web.Application()
    parent.add_subapp("/one/", writer_app(tmp_path / "one"))
    parent.add_subapp("/two/", writer_app(tmp_path / "two"))
    server = await served(parent)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for number in range(5):
        for name in ("one", "two"):
            writer.write(write(f"{name}-{number}").replace(b"GET /", f"GET /{name}/".encode()))
            head = await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(4) == b'"ok"'
            assert etag(f"{name}-{number}") in head
            assert (tmp_path / name).read_text() == f"{name}-{number}"
    writer.close()
