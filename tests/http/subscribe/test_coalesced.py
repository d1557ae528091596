"""Those who wait for a change and ask in the same words: one entry each, and one answer for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import sidecar
from sidecar.http import handler_api
from sidecar.http.apps.reader import reader_app
from sidecar.http.server.fastpath import ListenerCache, waitlists
from sidecar.http.server.fastpath.protocol import FastPathProtocol
from sidecar.http.subscribe import pending
from sidecar.process import lifecycle, metrics
from sidecar.volume.content.snapshot import version_of
from support import Eventually
from support.httpkit import Serve
from support.parity import Peer, Wire, dates_removed, peer, settled


def ask(known: str, *, seconds: float = 60.0, more: str = "") -> bytes:
    tag = version_of(known.encode())
    head = f"GET / HTTP/1.1\r\nHost: a\r\nPrefer: wait={seconds:g}\r\n{more}"
    return f'{head}If-None-Match: "{tag}"\r\n\r\n'.encode()


def place(path: Path, text: str) -> None:
    draft = path.with_name(".draft")
    draft.write_text(text)
    draft.rename(path)


def subscribers() -> float | None:
    return metrics.REGISTRY.get_sample_value("sidecar_subscribers")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    place(path, "one")
    return path


@pytest_asyncio.fixture
async def reader(config: Path) -> AsyncIterator[Peer]:
    async with peer(reader_app(config, recheck=0.05), ListenerCache()) as one:
        await one.talk([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], eager=False)
        yield one


@pytest.fixture
def by_aiohttp(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The requests that aiohttp has been given."""
    given: list[bytes] = []
    give = FastPathProtocol._fall_back

    def noted(connection: FastPathProtocol, data: bytes) -> None:
        given.append(data)
        give(connection, data)

    monkeypatch.setattr(FastPathProtocol, "_fall_back", noted)
    return given


class Crowd:
    """So many connections, of which the last have asked when a waitlist was open."""

    def __init__(self, reader: Peer, eventually: Eventually) -> None:
        self.reader = reader
        self.eventually = eventually
        self.wires: list[Wire] = []

    async def wait(self, count: int, request: bytes) -> None:
        for number in range(count):
            wire = self.reader.connect()
            await settled(wire)
            wire.protocol.data_received(request)
            self.wires.append(wire)
            if number < 2:
                await self.eventually(lambda: subscribers() == len(self.wires))

    async def answered(self) -> set[bytes]:
        """Return what they have been answered, each once, but for the dates."""
        await self.eventually(lambda: all(wire.written for wire in self.wires))
        return {dates_removed(bytes(wire.written)) for wire in self.wires}

    def leave(self) -> None:
        for wire in self.wires:
            wire.close()


@pytest_asyncio.fixture
async def crowd(reader: Peer, eventually: Eventually) -> AsyncIterator[Crowd]:
    one = Crowd(reader, eventually)
    yield one
    one.leave()
    await eventually(lambda: subscribers() == 0)


async def test_all_who_wait_in_the_same_words_get_one_answer(
    crowd: Crowd, config: Path, by_aiohttp: list[bytes]
) -> None:
    """The first two wait in aiohttp; of the others it sees two, and all get the bytes that it has sent."""
    await crowd.wait(100, ask("one"))
    assert subscribers() == 100
    assert len(by_aiohttp) == 2
    place(config, "two")
    (answer,) = await crowd.answered()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nPreference-Applied: wait=60\r\n" in answer
    assert answer.endswith(b'"two"')
    assert len(by_aiohttp) <= 4
    for _ in range(3):
        at_once = await crowd.reader.talk([ask("one")], eager=False)
        assert at_once.written.endswith(b'"two"')
        assert b"Preference-Applied" not in at_once.written


async def test_they_all_ask_again_and_are_expected(
    crowd: Crowd, config: Path, by_aiohttp: list[bytes]
) -> None:
    """With the tag that they have just been given: a waitlist is open before the first of them has it."""
    await crowd.wait(100, ask("one"))
    place(config, "two")
    await crowd.answered()
    by_aiohttp.clear()
    for wire in crowd.wires:
        wire.written.clear()
        wire.protocol.data_received(ask("two"))
    assert by_aiohttp == []
    place(config, "three")
    (answer,) = await crowd.answered()
    assert answer.endswith(b'"three"')
    assert len(by_aiohttp) == 2


async def test_each_waits_as_long_as_it_has_asked_for(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """304 then, as by a handler, and that one does not begin to wait anew."""
    began = []
    wait = pending.Waiter.wait

    async def noted(waiter: pending.Waiter, timeout: float) -> None:
        began.append(timeout)
        await wait(waiter, timeout)

    monkeypatch.setattr(pending.Waiter, "wait", noted)
    await crowd.wait(20, ask("one", seconds=0.3))
    (answer,) = await crowd.answered()
    assert answer.startswith(b"HTTP/1.1 304 ")
    assert b"\r\nPreference-Applied: wait=0.3\r\n" in answer
    assert len(began) == 2


async def test_a_change_that_changes_nothing_for_them_ends_no_waiting(
    crowd: Crowd, config: Path, eventually: Eventually, by_aiohttp: list[bytes]
) -> None:
    """The source goes away: the content is the same, and only that it is stale is new."""
    await crowd.wait(20, ask("one"))
    generation = handler_api.epoch()
    config.unlink()
    await eventually(lambda: handler_api.epoch() > generation)
    await eventually(lambda: subscribers() == 20)
    assert [bytes(wire.written) for wire in crowd.wires] == [b""] * 20
    assert len(by_aiohttp) <= 6  # two at first, and two that looked whether there was anything new
    place(config, "two")
    (answer,) = await crowd.answered()
    assert answer.endswith(b'"two"')


async def test_what_comes_while_one_waits_is_answered_after_it(crowd: Crowd, config: Path) -> None:
    """A pipeline: in order, as everywhere."""
    await crowd.wait(3, ask("one"))
    wire = crowd.wires[-1]
    wire.protocol.data_received(b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.written == b""
    place(config, "two")
    await crowd.eventually(lambda: wire.written.endswith(b"two"))
    assert wire.written.count(b"HTTP/1.1 200 OK") == 2
    assert b'"two"HTTP/1.1 200 OK' in wire.written


async def test_who_asks_for_another_time_or_shows_a_token_waits_alone(
    crowd: Crowd, by_aiohttp: list[bytes]
) -> None:
    """Other bytes are another waitlist, and a token is asked for anew each time."""
    await crowd.wait(2, ask("one"))
    for request in (ask("one", seconds=30), ask("one", more="Authorization: Bearer x\r\n")):
        await crowd.wait(1, request)
    assert len(by_aiohttp) == 4


async def test_who_draws_near_the_end_is_answered(crowd: Crowd) -> None:
    """A process that drains: 304 for all, and the connection is closed."""
    await crowd.wait(20, ask("one"))
    lifecycle.begin_drain()
    handler_api.invalidate_all()
    pending.PendingRequests.wake_all()
    (answer,) = await crowd.answered()
    assert answer.startswith(b"HTTP/1.1 304 ")
    assert b"\r\nConnection: close" in answer


async def test_waitlists_in_which_nobody_waits_give_way(
    crowd: Crowd, by_aiohttp: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are bounded, and whoever asks in ever new words must not keep others from waiting."""
    monkeypatch.setattr(waitlists, "_MAX_WAITLISTS", 2)
    cache = crowd.reader.cache
    assert cache is not None
    await crowd.wait(3, ask("one"))
    for seconds in range(1, 9):
        for _ in range(2):
            await crowd.reader.talk([ask("one", seconds=seconds / 100)], eager=False)
    assert list(cache.waitlists._waitlists) == [ask("one"), ask("one", seconds=0.08)]


async def test_a_real_crowd_is_told(served: Serve, config: Path) -> None:
    """Over real connections, twice; what nobody waits for any more is forgotten."""
    one = await served(reader_app(config))
    clients = [await asyncio.open_connection("127.0.0.1", one.port) for _ in range(60)]
    for known, new in (("one", "two"), ("two", "three")):
        for _, writer in clients:
            writer.write(ask(known))
        await sidecar.publish_file(config, new)
        for reader, _ in clients:
            assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(new) + 2) == f'"{new}"'.encode()
    for _, writer in clients:
        writer.close()
        await writer.wait_closed()
