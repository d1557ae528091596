"""A way past a transport to its socket, for large bodies: what goes by it is copied less, and nobody holds it meanwhile.

A second descriptor of the socket is written to or read from as soon as the event loop tells that it is ready.
A slow client occupies no thread and no buffer, and costs one more descriptor.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Self

from sidecar.http.server.protocol import ServerProtocol


class Unsupported(Exception):
    """There is no way past a transport: TLS, or no descriptor is left."""


class RawSocket:
    """A way past a transport to its socket, until the block ends.

    Raises:
        NotPossible: there is none.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self.transport = transport
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._forget: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        found: socket.socket | None = self.transport.get_extra_info("socket")
        if found is None or self.transport.get_extra_info("sslcontext") is not None:
            raise Unsupported
        try:
            self.fd = _duplicate(found.fileno())
        except OSError as error:
            raise Unsupported from error
        protocol = self.transport.get_protocol()
        if isinstance(protocol, ServerProtocol):
            protocol.add_disconnect_callback(self._ring)
            self._forget = lambda: protocol.remove_disconnect_callback(self._ring)
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        os.close(self.fd)

    def check_client(self) -> None:
        """Raise `ConnectionResetError` if the client has gone."""
        if self.transport.is_closing():
            raise ConnectionResetError("the client has gone")

    def readable(self, seconds: float) -> Awaitable[bool]:
        """Wait until there is something to read, or the client has gone; False if that was in vain."""
        return self._ready(self._loop.add_reader, self._loop.remove_reader, seconds)

    def writable(self, seconds: float) -> Awaitable[bool]:
        """Wait until the socket takes something, or the client has gone; False if that was in vain."""
        return self._ready(self._loop.add_writer, self._loop.remove_writer, seconds)

    async def _ready(
        self, add: Callable[..., Any], remove: Callable[..., Any], seconds: float
    ) -> bool:
        wake = self._wake = self._loop.create_future()
        add(self.fd, self._ring)
        try:
            async with asyncio.timeout(seconds):
                await wake
        except TimeoutError:
            return False
        finally:
            remove(self.fd)
            self._wake = None
        return True

    def _ring(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def _duplicate(fd: int) -> int:
    """Return another number for a socket: an event loop does not tell of the readiness of one that a transport has."""
    return os.dup(fd)
