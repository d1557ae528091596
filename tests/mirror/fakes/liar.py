"""A proxy in front of an honest engine, which lies when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

Lie = Callable[["Liar", asyncio.StreamWriter, bytes], Awaitable[None]]

_CHUNK = 64 << 10
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"


async def html(liar: Liar, writer: asyncio.StreamWriter, answer: bytes) -> None:
    """The page of a captive portal."""
    page = b"<!DOCTYPE html><title>Please sign in</title>\n"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page))  # fmt: skip


async def cut(liar: Liar, writer: asyncio.StreamWriter, answer: bytes) -> None:
    """The true answer without its last bytes."""
    writer.write(answer[:-3])


async def endless(liar: Liar, writer: asyncio.StreamWriter, answer: bytes) -> None:
    """10 GiB, as long as somebody reads."""
    begin = _HEAD + b"Content-Length: 10737418240\r\n\r\n"
    if not answer.startswith(b"HTTP/"):
        begin = b"*1000000000\r\n"  # of Redis: so many small values
    writer.write(begin)
    part = (b"$100\r\n%b\r\n" % (b"x" * 100)) * 600
    while liar.sent < 10 << 30:
        writer.write(part)
        liar.sent += len(part)
        await writer.drain()


async def drip(liar: Liar, writer: asyncio.StreamWriter, answer: bytes) -> None:
    """A byte now and then, and never the last one."""
    for byte in answer[:-1]:
        writer.write(bytes((byte,)))
        await writer.drain()
        await asyncio.sleep(0.05)
    await asyncio.Event().wait()


async def silence(liar: Liar, writer: asyncio.StreamWriter, answer: bytes) -> None:
    """Nothing, on a connection that stays open."""
    await asyncio.Event().wait()


LIES: dict[str, Lie] = {
    "HTML with 200": html,
    "cut off": cut,
    "10 GiB": endless,
    "slow drip": drip,
    "silence": silence,
}


class Liar:
    """Passes on what the engine at a port answers; after `tell`, some answers of each connection are true, and the next is a lie."""

    def __init__(self) -> None:
        self.port = self._upstream = 0
        self.sent = 0
        """Bytes of endless answers."""
        self.told = 0
        self._lie: Lie | None = None
        self._true_answers = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, upstream: int) -> None:
        self._upstream = upstream
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        await self._hang_up()

    async def tell(self, lie: Lie | None, true_answers: int = 0) -> None:
        """Lie from the next connection on; those that are open are closed. None is the truth."""
        self._lie, self._true_answers, self.told, self.sent = lie, true_answers, 0, 0
        await self._hang_up()

    async def _hang_up(self) -> None:
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            upstream, downstream = await asyncio.open_connection("127.0.0.1", self._upstream)
            try:
                await self._pass_on(reader, writer, upstream, downstream)
            finally:
                downstream.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
        upstream: asyncio.StreamReader, downstream: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        lie, left = self._lie, self._true_answers

        async def requests() -> None:
            while data := await reader.read(_CHUNK):
                downstream.write(data)

        passing = asyncio.create_task(requests())
        try:
            while answer := await upstream.read(_CHUNK):
                if lie is not None and left == 0:
                    self.told += 1
                    await lie(self, writer, answer)
                    await writer.drain()
                    with suppress(OSError):
                        writer.write_eof()
                    return
                left -= 1
                writer.write(answer)
        finally:
            passing.cancel()
            await asyncio.wait({passing})
