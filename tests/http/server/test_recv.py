"""Large bodies past aiohttp: whole, in order, on a connection that goes on, and nobody in anybody's way."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar import VolumeFull
from sidecar.http.apps import write_request
from sidecar.http.apps.writer import writer_app
from sidecar.http.server import raw_socket, recv
from sidecar.http.server.fastpath.protocol import FastPathProtocol
from sidecar.http.server.recv import MIN_BYTES
from sidecar.process import memory
from sidecar.volume.publish.upload import Upload
from support import Eventually
from support.httpkit import Play, Serve, Served, tag
from support.watching import descriptors

SIZE = 3_000_001
DATA = os.urandom(SIZE)


def head(size: int, name: str = "large") -> bytes:
    return f"PUT /files/{name} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()


class Peer:
    """A client that sends what it likes, when it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, str]:
        """Return the status and the head of the next answer; its body is thrown away."""
        found = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"Content-Length: (\d+)", found)
        await self._reader.readexactly(int(length[1]) if length else 0)
        return int(found.split()[1]), found

    async def ended(self) -> bool:
        return not await self._reader.read()


@asynccontextmanager
async def peer(one: Served) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("size", [MIN_BYTES - 1, MIN_BYTES, MIN_BYTES + 1, recv._CHUNK_SIZE, SIZE])
def test_a_body_of_any_size_is_published_whole(play: Play, tmp_path: Path, size: int) -> None:
    """Sent in one go, in pieces of odd sizes, and behind its head: at every border of the two ways that it can go."""

    async def scene(one: Served) -> None:
        async with peer(one) as client:
            for step in (size, 70_001):
                content = os.urandom(size)
                await client.send(head(size))
                for start in range(0, size, step):
                    await client.send(content[start : start + step])
                status, said = await client.answer()
                assert (status, f"ETag: {tag(content)}" in said) == (
                    201 if step == size else 204,
                    True,
                )
                assert (tmp_path / "large").read_bytes() == content

    play(writer_app(tmp_path / "config"), scene)


def test_the_connection_goes_on_after_a_large_body(play: Play, tmp_path: Path) -> None:
    """With the next request, sent in advance or later, under the same limits as any other; for a client that has closed its side, too."""

    async def scene(one: Served) -> None:
        async with peer(one) as client:
            livez = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
            await client.send(head(SIZE) + DATA + livez + head(SIZE, "b") + DATA + livez)
            assert [(await client.answer())[0] for _ in range(4)] == [201, 200, 201, 200]
            await client.send(livez)
            assert (await client.answer())[0] == 200
            await client.send(head(SIZE, "c") + DATA)
            assert (await client.answer())[0] == 201
            await client.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * 9000))
            assert (await client.answer())[0] == 431
        async with peer(one) as client:
            await client.send(head(SIZE, "d") + DATA)
            client.writer.write_eof()
            assert (await client.answer())[0] == 201
            assert await client.ended()
        assert all((tmp_path / name).read_bytes() == DATA for name in ("large", "b", "c", "d"))

    play(writer_app(tmp_path / "config"), scene)


async def test_most_of_a_large_body_never_comes_to_aiohttp(
    served: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be copied twice more, and lie here until the disk takes it."""
    through = 0
    given = FastPathProtocol._fall_back

    def count(self: FastPathProtocol, data: bytes) -> None:
        nonlocal through
        through += len(data)
        given(self, data)

    monkeypatch.setattr(FastPathProtocol, "_fall_back", count)
    one = await served(writer_app(tmp_path / "config"))
    async with peer(one) as client:
        await client.send(head(SIZE))
        await client.send(DATA)
        assert (await client.answer())[0] == 201
    assert through <= MIN_BYTES


async def test_without_a_descriptor_a_body_goes_by_way_of_aiohttp(
    served: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published all the same."""

    def fails(_: int) -> int:
        raise OSError(24, "no descriptor is left")

    one = await served(writer_app(tmp_path / "config"))
    async with peer(one) as client:
        monkeypatch.setattr(raw_socket, "_duplicate", fails)
        await client.send(head(SIZE) + DATA)
        assert (await client.answer())[0] == 201
    assert (tmp_path / "large").read_bytes() == DATA


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_goes_in_the_middle_leaves_nothing(
    play: Play, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No file, no descriptor, no line in the log; nobody waits for the rest."""

    async def scene(one: Served) -> None:
        before = descriptors()
        async with peer(one) as client:
            await client.send(head(SIZE) + DATA[:-1])
            await until(lambda: written(tmp_path) > SIZE - (1 << 16))
            if how == "close":
                client.writer.close()
        await until(lambda: descriptors() == before)
        assert written(tmp_path) == 0

    play(writer_app(tmp_path / "config"), scene)
    assert [one for one in caplog.records if one.levelno > logging.INFO] == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def written(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("..tmp-*"))


async def test_a_client_that_stalls_is_told_and_let_go(
    served: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """408, and what it sends after that is no request."""
    monkeypatch.setattr(write_request, "BODY_TIMEOUT", 0.2)
    one = await served(writer_app(tmp_path / "config"))
    async with peer(one) as client:
        await client.send(head(SIZE) + DATA[:-2])
        status, said = await client.answer()
        assert (status, "Connection: close" in said) == (408, True)
        client.writer.write_eof()
        assert await client.ended()
    assert not (tmp_path / "large").exists()


async def test_a_disk_that_is_full_ends_the_connection_with_an_answer(
    served: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a client that reads nothing before it has sent everything: what it sends on is taken and dropped."""
    write = Upload.write

    async def fail_late(self: Upload, chunk: bytes | memoryview) -> None:
        if self.size > 2 * MIN_BYTES:
            raise VolumeFull(28, "planted")
        await write(self, chunk)

    monkeypatch.setattr(Upload, "write", fail_late)
    one = await served(writer_app(tmp_path / "config"))
    async with peer(one) as client:
        for start in range(0, SIZE, MIN_BYTES):
            await client.send(
                DATA[start : start + MIN_BYTES] if start else head(SIZE) + DATA[:MIN_BYTES]
            )
        status, said = await client.answer()
        assert (status, "Connection: close" in said) == (507, True)
        client.writer.write_eof()
        assert await client.ended()
    assert written(tmp_path) == 0


async def test_clients_that_dawdle_are_in_nobodys_way(
    served: Serve, tmp_path: Path, eventually: Eventually
) -> None:
    """Many more of them than there are buffers, each in the middle of a body: a good client is answered, and they are."""
    one = await served(writer_app(tmp_path / "config"))
    slow = 5 * recv._MAX_BUFFERS
    async with asyncio.timeout(20):
        opened = [await asyncio.open_connection("127.0.0.1", one.port) for _ in range(slow)]
        clients = [Peer(*each) for each in opened]
        for number, client in enumerate(clients):
            await client.send(head(SIZE, f"{number}") + DATA[:-1])
        await eventually(lambda: written(tmp_path) > slow * (SIZE - (1 << 16)))
        async with peer(one) as good:
            await good.send(head(SIZE) + DATA)
            assert (await good.answer())[0] == 201
        for client in clients:
            await client.send(DATA[-1:])
            assert (await client.answer())[0] == 201
            client.writer.transport.abort()
    assert all((tmp_path / f"{number}").read_bytes() == DATA for number in range(slow))


async def test_memory_for_pieces_is_given_back(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Few buffers for however many uploads, the same ones again; none of them, and nothing else, a while after the last."""
    buffers, given_back = recv.BufferPool(), asyncio.Event()
    at_once = most = 0

    async def use() -> None:
        nonlocal at_once, most
        for _ in range(10):
            async with buffers.acquire():
                at_once += 1
                most = max(most, at_once)
                await asyncio.sleep(0)
                at_once -= 1

    monkeypatch.setattr(recv, "_RELEASE_DELAY", 0.01)
    monkeypatch.setattr(memory, "trim_heap", given_back.set)
    with buffers.session(), buffers.session():
        pass
    with buffers.session():
        await asyncio.gather(*(use() for _ in range(50)))
        assert buffers._release_timer is not None
        assert buffers._release_timer.cancelled()
        assert (most, len(buffers._idle)) == (recv._MAX_BUFFERS, recv._MAX_BUFFERS)
    await eventually(given_back.is_set)
    assert repr(buffers) == "<Buffers uploads=0 idle=0>"
