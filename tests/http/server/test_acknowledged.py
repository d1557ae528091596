"""The end of a Pod takes its network along: an answer is given when its client has acknowledged it."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from support import Eventually
from support.httpkit import Serve, Served, place

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


async def ending(one: Served) -> None:
    """Begin to stop, and see that it is not over yet."""
    one.task.cancel()
    done, _ = await asyncio.wait({one.task}, timeout=0.4)
    assert not done


@pytest.mark.parametrize("close", [b"Connection: close\r\n", b""], ids=["closed", "kept"])
async def test_the_end_waits_until_a_client_has_its_answer(
    served: Serve, tmp_path: Path, eventually: Eventually, close: bytes
) -> None:
    """The kernel has taken all of it, and the connection may be closed already: the client has a part."""
    one = await served(reader_app(place(tmp_path / "config", CONTENT)), drain_timeout=20)
    client = await slow_client(one.port, b"GET /raw HTTP/1.1\r\nHost: a\r\n" + close + b"\r\n")
    await asyncio.sleep(0.05)
    await ending(one)
    assert (await rest_of(client)).endswith(CONTENT.encode())
    await eventually(one.task.done)


async def test_the_answer_to_a_request_at_the_end_is_waited_for(
    served: Serve, tmp_path: Path, eventually: Eventually
) -> None:
    """Which closes its connection: what is closed is held until it has arrived, with its end."""
    app = writer_app(place(tmp_path / "config", CONTENT))
    one = await served(app, drain_delay=0.5, drain_timeout=20)
    one.task.cancel()
    await asyncio.sleep(0)
    client = await slow_client(one.port, b"GET /files/config HTTP/1.1\r\nHost: a\r\n\r\n")
    done, _ = await asyncio.wait({one.task}, timeout=1.5)
    assert not done
    assert (await rest_of(client)).endswith(CONTENT.encode())
    await eventually(one.task.done)


async def test_a_client_that_takes_nothing_is_waited_for_no_longer_than_the_drain_lasts(
    served: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    """It is said how many have not got theirs."""
    one = await served(reader_app(place(tmp_path / "config", CONTENT)), drain_timeout=0.6)
    client = await slow_client(one.port, b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.sleep(0.05)
    await ending(one)
    await eventually(one.task.done)
    assert "1 answers were not taken by their clients within 0.6 s" in caplog.text
    client.close()


async def test_a_client_that_has_gone_is_not_waited_for(
    served: Serve, tmp_path: Path, eventually: Eventually
) -> None:
    """Nothing will be acknowledged any more."""
    one = await served(reader_app(place(tmp_path / "config", CONTENT)), drain_timeout=60)
    client = await slow_client(one.port, b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.sleep(0.05)
    await ending(one)
    client.close()  # with bytes that were not read: a reset
    await eventually(one.task.done)


async def test_an_end_that_is_cut_short_holds_no_socket_either(
    served: Serve, tmp_path: Path
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
