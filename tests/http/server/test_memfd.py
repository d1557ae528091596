"""Long answers of the fast path go from a file in memory to the socket: in their place, whole, and whatever is missing."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.http.apps.reader import reader_app
from sidecar.http.server import memfd
from sidecar.http.server.memfd import MemFd
from support.httpkit import Play, Served

RAW = b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n"
STATE = b"HEAD /raw HTTP/1.1\r\nHost: a\r\n\r\n"
DATE = re.compile(rb"\r\nDate: [^\r]+")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes went past the transport, each time."""
    sizes: list[int] = []
    sendfile = os.sendfile

    def counted(out: int, from_: int, offset: int, count: int) -> int:
        sizes.append(sendfile(out, from_, offset, count))
        return sizes[-1]

    monkeypatch.setattr(os, "sendfile", counted)
    return sizes


async def answer(reader: asyncio.StreamReader, *, body: bool = True) -> bytes:
    """Read one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    return head + (await reader.readexactly(length) if body else b"")


def told(path: Path, size: int, seed: bytes = b"0123456789") -> bytes:
    content = (seed * (size // len(seed) + 1))[:size]
    path.write_bytes(content)
    return content


async def in_turn(served: Served, count: int, request: bytes = RAW) -> list[bytes]:
    """Ask so many times on one connection, each time after the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        answers = []
        for _ in range(count):
            writer.write(request)
            answers.append(await answer(reader))
        return answers
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("size", [40_000, 1 << 16, 250_000])
def test_it_is_the_answer_of_aiohttp(
    play: Play, tmp_path: Path, sent: list[int], size: int
) -> None:
    """Byte for byte, but for the date, also where the socket takes only a part of it at once."""
    content = told(tmp_path / "config", size)

    async def scene(served: Served) -> None:
        first, *others = await in_turn(served, 12)
        assert first.endswith(content)
        assert {DATE.sub(b"", one) for one in others} == {DATE.sub(b"", first)}
        assert all(DATE.search(one) for one in others)
        assert len(sent) > 5, "the fast path sent none of them in this way"

    play(reader_app(tmp_path / "config"), scene)


def test_it_keeps_its_place_behind_what_the_client_has_not_read(
    play: Play, tmp_path: Path, sent: list[int]
) -> None:
    """Two kinds of requests in turn, and nothing is read before all of them are sent."""
    content = told(tmp_path / "config", 200_000)

    async def scene(served: Served) -> None:
        await in_turn(served, 4)
        sent.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1 << 16)
        try:
            for _ in range(4):  # until the fast path knows both, and this connection is idle
                writer.write(RAW)
                await answer(reader)
                writer.write(STATE)
                await answer(reader, body=False)
            for request in [RAW, STATE] * 60:
                writer.write(request)
                for _ in range(20):  # the server, in the same loop, gets each by itself
                    await asyncio.sleep(0)
            for _ in range(60):
                assert (await answer(reader)).endswith(content)
                assert b"Content-Length: 200000\r\n" in await answer(reader, body=False)
            assert min(sent) < len(content), "the socket has always taken all of it"
        finally:
            writer.close()
            await writer.wait_closed()

    play(reader_app(tmp_path / "config"), scene)


def test_a_new_content_is_never_sent_from_the_old_file(play: Play, tmp_path: Path) -> None:
    """Once somebody has been given the new one, in whatever words he asked."""
    config, fresh = tmp_path / "config", tmp_path / "fresh"
    told(config, 1 << 16, b"old")

    async def scene(served: Served) -> None:
        for round_ in range(4):
            await in_turn(served, 6)
            new = told(fresh, 1 << 16, b"new%d" % round_)
            os.replace(fresh, config)
            other_words = RAW.replace(b"a\r\n", b"b\r\n")
            while not (await in_turn(served, 1, other_words))[0].endswith(new):
                pass
            assert all(one.endswith(new) for one in await in_turn(served, 4))

    play(reader_app(config), scene)


def test_a_content_that_is_replaced_goes_on_to_who_reads_slowly(play: Play, tmp_path: Path) -> None:
    """The kernel keeps the pages of a file that was closed for as long as they are on their way."""
    config, fresh = tmp_path / "config", tmp_path / "fresh"
    old = told(config, 250_000, b"old")

    async def scene(served: Served) -> None:
        await in_turn(served, 4)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1 << 12)
        try:
            for _ in range(3):
                writer.write(RAW)
                assert (await answer(reader)).endswith(old)
            writer.write(RAW)
            await reader.readuntil(b"\r\n\r\n")
            new = told(fresh, 250_000, b"new")
            os.replace(fresh, config)
            while not (await in_turn(served, 1))[0].endswith(new):
                pass
            while open_files():
                await asyncio.sleep(0.02)
            assert await reader.readexactly(len(old)) == old
        finally:
            writer.close()
            await writer.wait_closed()

    play(reader_app(config), scene)


class Recorded(asyncio.Transport):
    """A transport that keeps what is written, with a socket beside it."""

    def __init__(self, socket_: socket.socket, *, unsent: int, closing: bool, tls: bool) -> None:
        super().__init__({"socket": socket_, **({"sslcontext": True} if tls else {})})
        self.unsent, self.closing = unsent, closing
        self.written = b""

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: Any) -> None:
        self.written += bytes(data)


@pytest.mark.parametrize(
    ("state", "past"),
    [
        ({"unsent": 0, "closing": False, "tls": False}, True),
        ({"unsent": 1, "closing": False, "tls": False}, False),
        ({"unsent": 0, "closing": True, "tls": False}, False),
        ({"unsent": 0, "closing": False, "tls": True}, False),
    ],
)
def test_it_goes_past_a_transport_only_when_nothing_is_in_its_way(
    state: dict[str, Any], past: bool
) -> None:
    """Not before what is unsent, not to a number that may be another's by now, not in clear text."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = Recorded(ours, **state)
        MemFd(b"all of it").send(transport, memfd.raw_fd(transport))
        theirs.setblocking(False)
        found = theirs.recv(100) if past else b""
        assert (found, transport.written) == ((b"all of it", b"") if past else (b"", b"all of it"))
        with pytest.raises(BlockingIOError):
            theirs.recv(100)


def open_files() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return {name for name in found if "sidecar-answer" in name}


def test_the_file_is_closed_when_its_second_is_over(play: Play, tmp_path: Path) -> None:
    """At rest the fast path holds none: no descriptor, and no copy of the content."""
    told(tmp_path / "config", 1 << 16)

    async def scene(served: Served) -> None:
        while not open_files():
            await in_turn(served, 4)
        while open_files():
            await asyncio.sleep(0.02)

    play(reader_app(tmp_path / "config"), scene)


def no_memfd(*_: Any) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def no_sendfile(*_: Any) -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize(("name", "fails"), [("memfd_create", no_memfd), ("sendfile", no_sendfile)])
def test_without_it_the_answer_is_the_same(
    play: Play,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fails: Callable[..., int],
) -> None:
    """No descriptor left, or a socket that takes nothing at once."""
    content = told(tmp_path / "config", 1 << 16)
    monkeypatch.setattr(os, name, fails)

    async def scene(served: Served) -> None:
        for one in await in_turn(served, 8):
            assert one.endswith(content)

    play(reader_app(tmp_path / "config"), scene)


@pytest.mark.parametrize("libc", [True, False])
def test_a_python_that_has_no_name_for_it_sends_long_answers_all_the_same(
    play: Play,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sent: list[int],
    libc: bool,
) -> None:
    """Built for an older C library, as that of conda: by the C library that is there, or else without it."""
    content = told(tmp_path / "config", 1 << 16)
    monkeypatch.delattr(os, "memfd_create")
    if not libc:
        monkeypatch.setattr("sidecar.fs.libc._find", lambda _: None)

    async def scene(served: Served) -> None:
        for one in await in_turn(served, 8):
            assert one.endswith(content)
        assert bool(sent) is libc

    play(reader_app(tmp_path / "config"), scene)
