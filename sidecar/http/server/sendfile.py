"""Send a file by sendfile(2) where possible, else chunk by chunk; at most one chunk is in memory.

`sendfile` bypasses the transport: asyncio does not support it for a transport in use, and uvloop has none.
So the transport's buffer is drained first, and then the socket is written to through a duplicate descriptor,
when the event loop reports it writable: a slow client occupies no thread, and costs two descriptors.

Data that is not in the page cache is sent in a thread, because `sendfile` blocks on the disk even if the socket is non-blocking:
only a chunk whose both ends are in the page cache is sent on the event loop.

A program may rewrite the file in place while it is being sent. The old content must not be completed with the new one:
the last bytes are withheld until the kernel has sent all others, then they are read,
and then the file is checked. If it has changed, the connection is aborted and the client has an incomplete response.
Data in the receive buffer of a client on the same machine cannot be revoked:
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

SEND_TIMEOUT: Final = 60.0
"""Seconds without progress after which a client is disconnected: until then a replaced or deleted file keeps its space on the disk."""

_SENDFILE_CHUNK: Final = 1 << 19
"""Bytes per sendfile call. As measured for 8 clients, the checks around each chunk make
a quarter of this size cost twice as much on a slow processor; larger chunks gain nothing, and delay others.
"""
_COPY_CHUNK: Final = 1 << 17
"""Bytes per chunk that is copied through memory."""
_READAHEAD_BYTES: Final = 4 << 20
"""Bytes of read-ahead while the disk is slower than the client."""
_TAIL_BYTES: Final = 1 << 14
"""Bytes that are withheld until the end."""
_MIN_SENDFILE_BYTES: Final = 1 << 18
"""Size from which the duplicated socket pays off."""
_SIOCOUTQNSD: Final = 0x894B
"""Unsent bytes of a socket; see tcp(7), and linux/sockios.h for this one."""
_POLL_INTERVAL: Final = 0.005


class FileRange(payload.Payload):
    """A range of a file as the body of a response."""

    def __init__(self, file: OpenFile, part: slice) -> None:
        super().__init__(file)
        self._file = file
        self._part = part
        self._size = part.stop - part.start

    async def write(self, writer: AbstractStreamWriter) -> None:
        with _abort_on_error(writer):
            await _send_range(writer, self._file, self._part.start, self._part.stop)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002 (aiohttp's)
        raise TypeError("a file that is sent from the disk is not read into memory")


class IterPayload(payload.Payload):
    """A body that is generated chunk by chunk in a thread, at the pace of the client."""

    def __init__(self, chunks: Iterable[bytes], size: int) -> None:
        super().__init__(chunks)
        self._chunks = chunks
        self._size = size

    async def write(self, writer: AbstractStreamWriter) -> None:
        chunks = iter(self._chunks)
        with _abort_on_error(writer):
            while (chunk := await executor.run_in_thread(next, chunks, None)) is not None:
                await _write(writer, chunk)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002 (aiohttp's)
        raise TypeError("a body that is made piece by piece is not held in memory")


class _abort_on_error:  # noqa: N801 (used as a function)
    """Abort the connection if the response cannot be completed, so that the client notices."""

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
                _log.info(
                    "a client has read nothing for %g s and is disconnected",
                    SEND_TIMEOUT,
                    extra={"event": "http.client_stalled"},
                )
            case OSError():
                _log.warning(
                    "an answer is cut off: %s", error, extra={"event": "http.response_cut"}
                )
            case _:
                return
        raise ConnectionResetError("the answer cannot be completed") from error


async def _send_range(writer: AbstractStreamWriter, file: OpenFile, start: int, stop: int) -> None:
    transport = writer.transport
    if transport is not None and stop - start >= _MIN_SENDFILE_BYTES:
        with contextlib.suppress(Unsupported), _SendfileSocket(transport, writer) as raw:
            start = await raw.send(file, start, stop - _TAIL_BYTES)
    while start < stop:
        count = min(_COPY_CHUNK, stop - start)
        if file.in_page_cache(start, count):
            chunk = file.read(start, count)
        else:
            chunk = await executor.run_in_thread(file.read, start, count)
        await _write(writer, chunk)
        start += count


async def _write(writer: AbstractStreamWriter, chunk: bytes) -> None:
    async with asyncio.timeout(_write_timeout(writer.transport)):
        await writer.write(chunk)


def _write_timeout(transport: asyncio.WriteTransport | None) -> float | None:
    """Return the write timeout of a transport; None if `ConnectionLimiter` checks its progress.

    A transport resumes only when a third of the kernel's buffer has been sent: a slow client needs minutes for that.
    """
    limited = transport is not None and isinstance(transport.get_protocol(), ServerProtocol)
    return None if limited else SEND_TIMEOUT


class _SendfileSocket(RawSocket):
    """The socket of a response, used by sendfile."""

    def __init__(self, transport: asyncio.WriteTransport, writer: AbstractStreamWriter) -> None:
        super().__init__(transport)
        self._writer = writer

    async def send(self, file: OpenFile, start: int, stop: int) -> int:
        """Send a range of a file, wait until it has left the machine, and return the offset of the rest.

        Raises:
            ConnectionError: the client has disconnected.
            TimeoutError: it makes no progress.
            ContentAltered: the file was rewritten.
        """
        await self._drain_transport()
        while start < stop:
            file.check()
            self.check_client()
            count = min(_SENDFILE_CHUNK, stop - start)
            try:
                sent = await self._send_chunk(file, start, count)
            except BlockingIOError:
                await self._wait_writable()
                continue
            if not sent:
                raise open_file.changed_error(file.where)
            self._update_counters(sent)
            start += sent
        await self._wait_until_sent()
        return start

    async def _send_chunk(self, file: OpenFile, start: int, count: int) -> int:
        if file.in_page_cache(start, count):
            sent = os.sendfile(self.fd, file.fd, start, count)
            await asyncio.sleep(0)
            return sent
        return await executor.run_in_thread(_send_from_disk, self.fd, file.fd, start, count)

    async def _drain_transport(self) -> None:
        """Drain the transport: `sendfile` must not overtake its data."""
        low, high = self.transport.get_write_buffer_limits()
        self.transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(_write_timeout(self.transport)):
                self._writer.send_headers()
                while self.transport.get_write_buffer_size():
                    self.check_client()
                    await self._writer.drain()
                    await asyncio.sleep(0)
        finally:
            if not self.transport.is_closing():
                self.transport.set_write_buffer_limits(high=high, low=low)

    async def _wait_writable(self) -> None:
        """Wait until the socket is writable."""
        unsent = _unsent(self.fd)
        while not await self.wait_writable(SEND_TIMEOUT):
            self.check_client()
            before, unsent = unsent, _unsent(self.fd)
            if unsent >= before:
                raise TimeoutError

    async def _wait_until_sent(self) -> None:
        """Wait until the kernel has sent everything, as long as there is progress."""
        lowest, limit = _unsent(self.fd), self._loop.time() + SEND_TIMEOUT
        while lowest:
            await asyncio.sleep(_POLL_INTERVAL)
            self.check_client()
            unsent = _unsent(self.fd)
            if unsent < lowest:
                lowest, limit = unsent, self._loop.time() + SEND_TIMEOUT
            elif self._loop.time() > limit:
                raise TimeoutError

    def _update_counters(self, sent: int) -> None:
        """Update aiohttp's counters for data that bypassed its writer."""
        self._writer.output_size += sent
        if self._writer.length is not None:
            self._writer.length -= sent


def _send_from_disk(to: int, fd: int, start: int, count: int) -> int:
    """Send data that must be read from the disk, and start reading ahead."""
    open_file.fadvise(fd, start, count + _READAHEAD_BYTES, "POSIX_FADV_WILLNEED")
    return os.sendfile(to, fd, start, count)


def _unsent(fd: int) -> int:
    """Return the bytes of a socket that have not left the machine; 0 if unknown."""
    number = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _SIOCOUTQNSD, number)
    return number[0]
