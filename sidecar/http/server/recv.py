"""Receive a large request body past aiohttp: from the socket into a buffer, and from there to the disk.

aiohttp copies each chunk twice more, into memory that is allocated and freed each time:
a third of the cost of an upload. And chunks of all uploads wait in this process until the disk has them.
With this module they wait in the socket buffer, so backpressure reaches the client.
All uploads share a few buffers, and none holds one while it waits for its client: a slow client delays no other.

A body without a length (`chunked`), or over TLS, is read by aiohttp.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from sidecar.http.server.protocol import ServerProtocol
from sidecar.http.server.raw_socket import RawSocket, Unsupported
from sidecar.process import memory

if TYPE_CHECKING:
    from aiohttp import web

MIN_BYTES: Final = 1 << 18
"""Size from which the duplicated socket pays off."""
_CHUNK_SIZE: Final = 1 << 20
"""Bytes per read, at most. With a quarter of it an upload costs a quarter more."""
_MAX_BUFFERS: Final = 4
"""Chunks that are being written to the disk at a time."""

_RELEASE_DELAY: Final = 1.0
"""Seconds without an upload after which the buffers are freed: that takes milliseconds."""


class BufferPool:
    """The buffers of all uploads.

    They are freed a second after the last upload, together with unused heap pages.
    """

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_MAX_BUFFERS)
        self._idle: list[mmap.mmap] = []
        self._uploads = 0
        self._release_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Buffers uploads={self._uploads} idle={len(self._idle)}>"

    @contextmanager
    def session(self) -> Iterator[None]:
        """Keep the buffers until no upload is left."""
        if self._release_timer is not None:
            self._release_timer.cancel()
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1
            if not self._uploads:
                loop = asyncio.get_running_loop()
                self._release_timer = loop.call_later(_RELEASE_DELAY, self._release)

    def _release(self) -> None:
        self._idle.clear()
        memory.trim_heap()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[mmap.mmap]:
        """Acquire a buffer, in order of arrival. The kernel allocates only the pages that are filled."""
        async with self._slots:
            buffer = self._idle.pop() if self._idle else mmap.mmap(-1, _CHUNK_SIZE)
            try:
                yield buffer
            finally:
                self._idle.append(buffer)


class BodyRemainder:
    """The rest of a body that aiohttp no longer reads. Created by `bypass_parser`."""

    def __init__(self, raw: RawSocket, buffers: BufferPool, left: int) -> None:
        self._raw = raw
        self._buffers = buffers
        self._left = left

    @property
    def complete(self) -> bool:
        """Whether everything has been received."""
        return not self._left

    async def copy_to(
        self, write: Callable[[memoryview], Awaitable[None]], *, pause: float
    ) -> None:
        """Pass each chunk to `write` as it arrives; its buffer is reused after that.

        Raises:
            TimeoutError: nothing has arrived for `pause` seconds.
            ConnectionResetError: the client has disconnected before the end.
        """
        while self._left:
            async with self._buffers.acquire() as buffer:
                view = memoryview(buffer)[: self._left]
                count = self._receive(view)
                if count:
                    await write(view[:count])
            if not count and not await self._raw.wait_readable(pause):
                raise TimeoutError

    def _receive(self, view: memoryview) -> int:
        """Return the number of bytes received; 0 if none are available yet."""
        self._raw.check_client()
        try:
            count = os.readv(self._raw.fd, [view])
        except BlockingIOError:
            return 0
        except ConnectionError:
            count = 0
        if not count:
            self._raw.transport.abort()
            raise ConnectionResetError("the client has disconnected in the middle of a body")
        self._left -= count
        return count


@contextmanager
def bypass_parser(
    request: web.Request, taken: int, buffers: BufferPool
) -> Iterator[BodyRemainder | None]:
    """Take over the rest of a body after `taken` bytes; yields None if aiohttp must read it.

    If it is incomplete at the end of the block, the connection closes after the response.
    """
    connection, transport = request.protocol, request.transport
    left = (request.content_length or 0) - taken
    with ExitStack() as stack:
        rest = None
        if left >= MIN_BYTES and isinstance(connection, ServerProtocol) and transport is not None:
            with suppress(Unsupported):
                raw = stack.enter_context(RawSocket(transport))
                if connection.lend_socket(request.content, taken):
                    rest = BodyRemainder(raw, buffers, left)
                    stack.callback(lambda: connection.return_socket(request.content, rest.complete))
        yield rest
