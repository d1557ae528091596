"""The end of a Pod takes its network along: an answer is given when its client has acknowledged it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.server import serve as serving
from sidecar.http.server.acknowledged import UnackedSockets
from support import Eventually, after
from support.httpkit import Serve, Served, place

Ending = Callable[[Served], Awaitable[None]]

CONTENT = "x" * 12_000
"""More than a client with a small window takes at once, and less than the kernel takes for it."""


async def slow_client(port: int, request: bytes) -> socket.socket:
    """Ask, with a small window, and take nothing."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    one.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(one, ("127.0.0.1", port))
    await loop.sock_sendall(one, request)
    return one


async def rest_of(one: socket.socket) -> bytes:
    received = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        while piece := await loop.sock_recv(one, 1000):
            received += piece
    one.close()
    return received


def sockets() -> set[str]:
    """The sockets of this process."""
    links = (os.readlink(one.path) for one in os.scandir("/proc/self/fd") if os.path.lexists(one))
    return {link for link in links if link.startswith("socket:")}


class Polls:
    """Counts how often the end has looked whether all answers have arrived since it does not listen any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        stop, release = serving._Listener.stop_accepting, UnackedSockets.release

        async def stop_accepting(listener: serving._Listener) -> Any:
            self.count = 0
            return await stop(listener)

        def count(sockets_: UnackedSockets) -> None:
            self.count += 1
            release(sockets_)

        monkeypatch.setattr(serving._Listener, "stop_accepting", stop_accepting)
        monkeypatch.setattr(UnackedSockets, "release", count)


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> Ending:
    """`await ending(served)`: it does not listen any more, and waits for something."""
    polls = Polls(monkeypatch)

    async def end(one: Served) -> None:
        if not one.task.cancelling():
            one.task.cancel()
        await eventually(lambda: polls.count > 10 or one.task.done())
        assert not one.task.done()

    return end


async def answered(client: socket.socket, eventually: Eventually) -> None:
    """Wait until the answer has begun to arrive; it is not taken."""
    await eventually(lambda: select.select([client], [], [], 0)[0])


@pytest.mark.parametrize("close", [b"Connection: close\r\n", b""], ids=["closed", "kept"])
async def test_the_end_waits_until_a_client_has_its_answer(
    served: Serve, tmp_path: Path, eventually: Eventually, ending: Ending, close: bytes
) -> None:
    """The kernel has taken all of it, and the connection may be closed already: the client has a part."""
    one = await served(reader_app(place(tmp_path / "config", CONTENT)), drain_timeout=20)
    client = await slow_client(one.port, b"GET /raw HTTP/1.1\r\nHost: a\r\n" + close + b"\r\n")
    await answered(client, eventually)
    await ending(one)
    assert (await rest_of(client)).endswith(CONTENT.encode())
    await eventually(one.task.done)


async def test_the_answer_to_a_request_at_the_end_is_waited_for(
    served: Serve, tmp_path: Path, eventually: Eventually, ending: Ending
) -> None:
    """Which closes its connection: what is closed is held until it has arrived, with its end."""
    app = writer_app(place(tmp_path / "config", CONTENT))
    one = await served(app, drain_delay=0.2, drain_timeout=20)
    one.task.cancel()
    await asyncio.sleep(0)
    client = await slow_client(one.port, b"GET /files/config HTTP/1.1\r\nHost: a\r\n\r\n")
    await ending(one)
    assert (await rest_of(client)).endswith(CONTENT.encode())
    await eventually(one.task.done)


async def test_a_client_that_takes_nothing_is_waited_for_no_longer_than_the_drain_lasts(
    served: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    """It is said how many have not got theirs."""
    one = await served(reader_app(place(tmp_path / "config", CONTENT)), drain_timeout=0.6)
    client = await slow_client(one.port, b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n")
    await answered(client, eventually)
    most_of_the_drain = after(0.5)
    one.task.cancel()
    await eventually(one.task.done)
    assert most_of_the_drain.is_set()
    assert "1 answers were not taken by their clients within 0.6 s" in caplog.text
    client.close()


async def test_a_client_that_has_gone_is_not_waited_for(
    served: Serve, tmp_path: Path, eventually: Eventually, ending: Ending
) -> None:
    """Nothing will be acknowledged any more."""
    one = await served(reader_app(place(tmp_path / "config", CONTENT)), drain_timeout=60)
    client = await slow_client(one.port, b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n")
    await answered(client, eventually)
    await ending(one)
    client.close()  # with bytes that were not read: a reset
    await eventually(one.task.done)


async def test_an_end_that_is_cut_short_holds_no_socket_either(
    served: Serve, tmp_path: Path, ending: Ending
) -> None:
    """A second cancellation ends the drain at once: what it held goes with it."""
    before = sockets()
    one = await served(reader_app(place(tmp_path / "config", CONTENT)), drain_timeout=20)
    client = await slow_client(one.port, b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n")
    await ending(one)
    assert len(sockets() - before) == 2, "that of the client, and the one that is held"
    await one.stop()
    assert len(sockets() - before) == 1
    client.close()
