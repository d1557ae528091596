"""Receive a large body past aiohttp: from the socket into a buffer, and from there to the disk.

By way of aiohttp each piece is copied twice more, into memory that is fetched from the kernel and given back each time:
that is a third of what an upload costs. And what has come lies in this process until the disk takes it, times all uploads.
By this way it waits in the kernel, unread, so that its client cannot send on before it is its turn.
There are a few buffers for all uploads, and no upload has one while it waits for its client: a slow one is in nobody's way.

A body whose length nobody has said (`chunked`), or that comes over TLS, has to be read by aiohttp.
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
"""Bytes from which on the second descriptor is worth its while."""
_PIECE: Final = 1 << 20
"""Bytes at a time, if so many have come. With a quarter of it an upload costs a quarter more."""
_BUFFERS: Final = 4
"""Pieces that are on their way to the disk at a time."""

_SETTLED: Final = 1.0
"""Seconds without an upload after which their memory is given back: that takes milliseconds."""


class BufferPool:
    """Memory for the pieces that are on their way to the disk, for all uploads.

    A second after the last one it is given back, with all else that they have left in the heap.
    """

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_BUFFERS)
        self._idle: list[mmap.mmap] = []
        self._uploads = 0
        self._giving_back: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Buffers uploads={self._uploads} idle={len(self._idle)}>"

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep what there is for the next piece, until no upload is left."""
        if self._giving_back is not None:
            self._giving_back.cancel()
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1
            if not self._uploads:
                loop = asyncio.get_running_loop()
                self._giving_back = loop.call_later(_SETTLED, self._give_back)

    def _give_back(self) -> None:
        self._idle.clear()
        memory.trim_heap()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[mmap.mmap]:
        """Have one for a moment, when it is one's turn. Of a new one the kernel makes only those pages that are filled."""
        async with self._turns:
            buffer = self._idle.pop() if self._idle else mmap.mmap(-1, _PIECE)
            try:
                yield buffer
            finally:
                self._idle.append(buffer)


class BodyRemainder:
    """What is still to come of a body, once aiohttp reads no more of it. Made by `bypass_parser`."""

    def __init__(self, passage: RawSocket, buffers: BufferPool, left: int) -> None:
        self._passage = passage
        self._buffers = buffers
        self._left = left

    @property
    def complete(self) -> bool:
        """Whether nothing is left of it."""
        return not self._left

    async def hand_over(
        self, write: Callable[[memoryview], Awaitable[None]], *, pause: float
    ) -> None:
        """Let each piece be written as it comes; what it is written from is used again after that.

        Raises:
            TimeoutError: nothing has come for `pause` seconds.
            ConnectionResetError: the client has gone before the end.
        """
        while self._left:
            async with self._buffers.one() as buffer:
                room = memoryview(buffer)[: self._left]
                count = self._receive(room)
                if count:
                    await write(room[:count])
            if not count and not await self._passage.readable(pause):
                raise TimeoutError

    def _receive(self, room: memoryview) -> int:
        """Return how many bytes have come; 0 if none are there yet."""
        self._passage.check_client()
        try:
            count = os.readv(self._passage.fd, [room])
        except BlockingIOError:
            return 0
        except ConnectionError:
            count = 0
        if not count:
            self._passage.transport.abort()
            raise ConnectionResetError("the client has gone in the middle of a body")
        self._left -= count
        return count


@contextmanager
def bypass_parser(
    request: web.Request, taken: int, buffers: BufferPool
) -> Iterator[BodyRemainder | None]:
    """Take over the rest of a body of which `taken` bytes have come; None: aiohttp goes on with it.

    If the rest has not come whole when the block ends, nothing but the answer can follow on its connection.
    """
    connection, transport = request.protocol, request.transport
    left = (request.content_length or 0) - taken
    with ExitStack() as stack:
        rest = None
        if left >= MIN_BYTES and isinstance(connection, ServerProtocol) and transport is not None:
            with suppress(Unsupported):
                passage = stack.enter_context(RawSocket(transport))
                if connection.lend_socket(request.content, taken):
                    rest = BodyRemainder(passage, buffers, left)
                    stack.callback(lambda: connection.return_socket(request.content, rest.complete))
        yield rest
