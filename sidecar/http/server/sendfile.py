"""Send a file from the disk: by the kernel alone where that works, piece by piece else; one piece in memory at most.

`sendfile` goes past the transport, for neither event loop of ours has it for one that is in use (uvloop has none at all).
So what the transport still holds is sent first, then the socket is written to through a second descriptor of it,
with the readiness that the event loop tells of: a slow client occupies no thread, and costs two descriptors.

What has to come from the disk is sent in a thread, because `sendfile` waits for the disk even where the socket would not:
only what is in the page cache at both ends of a piece is sent in the event loop.

A program may rewrite the file in place while it is being sent. What it held then must not pass for the content:
the last bytes are held back until the kernel has sent all those before them, then they are read,
and then the file is looked at. If it has changed, the connection is cut and the client has an incomplete answer.
What is on its way at this very moment, in the receive buffer of a client on the same machine, cannot be called back:
those pages are the file's own (sendfile(2), NOTES).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from aiohttp import payload

from sidecar.fs import open_file
from sidecar.http.server import limits
from sidecar.http.server.protocol import ServerProtocol
from sidecar.http.server.raw_socket import RawSocket, Unsupported
from sidecar.process import executor

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

    from sidecar.fs.open_file import OpenFile

_log = logging.getLogger(__name__)

PATIENCE: Final = 60.0
"""Seconds in which a client must take something: until then a file that is replaced or deleted keeps its place on the disk."""

_PIECE: Final = 1 << 19
"""Bytes at a time by the kernel, then others get their turn. As measured for 8 clients, the looking around each piece makes
those of a quarter cost twice as much on a slow processor; larger ones gain nothing, and let others wait longer."""
_SMALL_PIECE: Final = 1 << 17
"""Bytes at a time through memory."""
_AHEAD: Final = 4 << 20
"""Bytes that the disk is asked for in advance, while it is slower than the client."""
_TAIL: Final = 1 << 14
"""Bytes that are held back until the end."""
_WORTH: Final = 1 << 18
"""Bytes from which on the second descriptor is worth its while."""
_SIOCOUTQNSD: Final = 0x894B
"""Bytes of a socket that were not sent yet; see tcp(7), and linux/sockios.h for this one."""
_GLANCE: Final = 0.005


class FileRange(payload.Payload):
    """Bytes of a file as the body of an answer."""

    def __init__(self, file: OpenFile, part: slice) -> None:
        super().__init__(file)
        self._file = file
        self._part = part
        self._size = part.stop - part.start

    async def write(self, writer: AbstractStreamWriter) -> None:
        with _abort_on_error(writer):
            await _send(writer, self._file, self._part.start, self._part.stop)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002 (aiohttp's)
        raise TypeError("a file that is sent from the disk is not read into memory")


class IterPayload(payload.Payload):
    """A body that is made piece by piece, by blocking work in a thread, as the client takes it."""

    def __init__(self, pieces: Iterable[bytes], size: int) -> None:
        super().__init__(pieces)
        self._pieces = pieces
        self._size = size

    async def write(self, writer: AbstractStreamWriter) -> None:
        pieces = iter(self._pieces)
        with _abort_on_error(writer):
            while (piece := await executor.run_in_thread(next, pieces, None)) is not None:
                await _write(writer, piece)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002 (aiohttp's)
        raise TypeError("a body that is made piece by piece is not held in memory")


class _abort_on_error:  # noqa: N801 (used as a function)
    """End the connection where the answer on it cannot be completed: the client must notice."""

    def __init__(self, writer: AbstractStreamWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        transport = self._writer.transport
        if transport is not None:
            if isinstance(error, TimeoutError):
                limits.abort(transport)
            else:
                transport.abort()
        match error:
            case ConnectionError():
                return
            case TimeoutError():
                _log.info("a client has taken nothing for %g s and is let go", PATIENCE)
            case OSError():
                _log.warning("an answer is cut off: %s", error)
            case _:
                return
        raise ConnectionResetError("the answer cannot be completed") from error


async def _send(writer: AbstractStreamWriter, file: OpenFile, start: int, stop: int) -> None:
    transport = writer.transport
    if transport is not None and stop - start >= _WORTH:
        with contextlib.suppress(Unsupported), _SendfileSocket(transport, writer) as passage:
            start = await passage.send(file, start, stop - _TAIL)
    while start < stop:
        count = min(_SMALL_PIECE, stop - start)
        if file.in_page_cache(start, count):
            piece = file.read(start, count)
        else:
            piece = await executor.run_in_thread(file.read, start, count)
        await _write(writer, piece)
        start += count


async def _write(writer: AbstractStreamWriter, piece: bytes) -> None:
    async with asyncio.timeout(_limit(writer.transport)):
        await writer.write(piece)


def _limit(transport: asyncio.WriteTransport | None) -> float | None:
    """Return for how long a transport may hold bytes; None where the guard of `serve` looks whether they get less.

    A transport goes on only when a third of what the kernel holds has been taken: a slow client needs minutes for that.
    """
    guarded = transport is not None and isinstance(transport.get_protocol(), ServerProtocol)
    return None if guarded else PATIENCE


class _SendfileSocket(RawSocket):
    """A way past the transport for parts of a file."""

    def __init__(self, transport: asyncio.WriteTransport, writer: AbstractStreamWriter) -> None:
        super().__init__(transport)
        self._writer = writer

    async def send(self, file: OpenFile, start: int, stop: int) -> int:
        """Send bytes of a file, and return from where on the rest has to be sent, when these have left.

        Raises:
            ConnectionError: the client has gone.
            TimeoutError: it takes nothing any more.
            ContentAltered: the file was rewritten.
        """
        await self._empty_transport()
        while start < stop:
            file.check()
            self.check_client()
            count = min(_PIECE, stop - start)
            try:
                sent = await self._send_piece(file, start, count)
            except BlockingIOError:
                await self._wait_for_room()
                continue
            if not sent:
                raise open_file.changed_error(file.where)
            self._note(sent)
            start += sent
        await self._wait_until_sent()
        return start

    async def _send_piece(self, file: OpenFile, start: int, count: int) -> int:
        if file.in_page_cache(start, count):
            sent = os.sendfile(self.fd, file.fd, start, count)
            await asyncio.sleep(0)
            return sent
        return await executor.run_in_thread(_send_from_disk, self.fd, file.fd, start, count)

    async def _empty_transport(self) -> None:
        """Let the transport send what it has: what goes past it must not overtake that."""
        low, high = self.transport.get_write_buffer_limits()
        self.transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(_limit(self.transport)):
                self._writer.send_headers()
                while self.transport.get_write_buffer_size():
                    self.check_client()
                    await self._writer.drain()
                    await asyncio.sleep(0)
        finally:
            if not self.transport.is_closing():
                self.transport.set_write_buffer_limits(high=high, low=low)

    async def _wait_for_room(self) -> None:
        """Wait until the socket takes something again."""
        unsent = _unsent(self.fd)
        while not await self.writable(PATIENCE):
            self.check_client()
            before, unsent = unsent, _unsent(self.fd)
            if unsent >= before:
                raise TimeoutError

    async def _wait_until_sent(self) -> None:
        """Wait until the kernel has sent everything, as long as it gets on."""
        least, limit = _unsent(self.fd), self._loop.time() + PATIENCE
        while least:
            await asyncio.sleep(_GLANCE)
            self.check_client()
            unsent = _unsent(self.fd)
            if unsent < least:
                least, limit = unsent, self._loop.time() + PATIENCE
            elif self._loop.time() > limit:
                raise TimeoutError

    def _note(self, sent: int) -> None:
        """Keep the books of aiohttp: what is sent past its writer counts, too."""
        self._writer.output_size += sent
        if self._writer.length is not None:
            self._writer.length -= sent


def _send_from_disk(to: int, fd: int, start: int, count: int) -> int:
    """Send what has to be read first, and have what follows read meanwhile."""
    open_file.fadvise(fd, start, count + _AHEAD, "POSIX_FADV_WILLNEED")
    return os.sendfile(to, fd, start, count)


def _unsent(fd: int) -> int:
    """Return the bytes of a socket that have not left the machine; 0 where it cannot tell."""
    number = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _SIOCOUTQNSD, number)
    return number[0]
