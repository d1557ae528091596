"""Direct access to the socket of a transport, for large bodies: they are copied less and not buffered here.

A duplicate descriptor is read or written when the event loop reports it ready.
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
    """The socket cannot be used directly: TLS, or no descriptor is left."""


class RawSocket:
    """The duplicated socket of a transport, closed at the end of the block.

    Raises:
        Unsupported: TLS, or no descriptor is left.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self.transport = transport
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._remove_callback: Callable[[], None] = lambda: None

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
            protocol.add_disconnect_callback(self._wake_up)
            self._remove_callback = lambda: protocol.remove_disconnect_callback(self._wake_up)
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_callback()
        os.close(self.fd)

    def check_client(self) -> None:
        """Raise `ConnectionResetError` if the client has disconnected."""
        if self.transport.is_closing():
            raise ConnectionResetError("the client has disconnected")

    def wait_readable(self, seconds: float) -> Awaitable[bool]:
        """Wait until the socket is readable or the client has disconnected; False after `seconds`."""
        return self._wait_ready(self._loop.add_reader, self._loop.remove_reader, seconds)

    def wait_writable(self, seconds: float) -> Awaitable[bool]:
        """Wait until the socket is writable or the client has disconnected; False after `seconds`."""
        return self._wait_ready(self._loop.add_writer, self._loop.remove_writer, seconds)

    async def _wait_ready(
        self, add: Callable[..., Any], remove: Callable[..., Any], seconds: float
    ) -> bool:
        wake = self._wake = self._loop.create_future()
        add(self.fd, self._wake_up)
        try:
            async with asyncio.timeout(seconds):
                await wake
        except TimeoutError:
            return False
        finally:
            remove(self.fd)
            self._wake = None
        return True

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def _duplicate(fd: int) -> int:
    """Duplicate a descriptor: an event loop does not watch one that a transport uses."""
    return os.dup(fd)
