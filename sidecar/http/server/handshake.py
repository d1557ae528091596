"""TLS connections from `accept` on, because each one uses a file descriptor before its handshake is complete.

An event loop with a certificate calls the protocol only after the handshake.
So this protocol accepts plain TCP, and then upgrades the connection (`loop.start_tls`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.http.server.aiohttp_protocol import resume_coroutine

if TYPE_CHECKING:
    from sidecar.http.server.limits import ConnectionLimiter
    from sidecar.http.server.protocol import ServerProtocol

_log = logging.getLogger(__name__)


class Handshake(asyncio.Protocol):
    """The protocol of one connection until its TLS handshake is complete; `make_protocol` returns the protocol after that.

    The limiter counts it as an idle connection. The header timeout limits the handshake as well.
    """

    __slots__ = (
        "_context",
        "_early_data",
        "_eof_seen",
        "_limiter",
        "_loop",
        "_make_protocol",
        "_task",
        "client_transport",
        "idle_since",
    )

    busy = False
    awaiting_first_request = True
    has_unacked_bytes = False

    def __init__(
        self,
        context: ssl.SSLContext,
        limiter: ConnectionLimiter,
        make_protocol: Callable[[], ServerProtocol],
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._context = context
        self._limiter = limiter
        self._make_protocol = make_protocol
        self._loop = loop
        self._early_data: list[bytes] = []
        """Data that arrived between the end of the handshake and the call of the new protocol."""
        self._eof_seen = False
        self._task: asyncio.Task[None] | None = None
        self.idle_since: float | None = None
        self.client_transport: asyncio.Transport | None = None
        """The TCP transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake at once: the first bytes of the client belong to it."""
        self.client_transport = transport  # type: ignore[assignment]  # a transport of a stream
        self.idle_since = self._loop.time()
        if self._limiter.make_room():
            self._limiter.register(self)
        else:
            self._limiter.hold_surplus(self)
        upgrade = self._upgrade(transport)  # type: ignore[arg-type]  # as above
        with contextlib.suppress(StopIteration):
            self._task = self._loop.create_task(resume_coroutine(upgrade, upgrade.send(None)))

    def data_received(self, data: bytes) -> None:
        self._early_data.append(data)

    def eof_received(self) -> None:
        self._eof_seen = True

    def connection_lost(self, _: BaseException | None) -> None:
        self._unregister()

    def evict(self) -> None:
        """Close the connection, which has no request to answer."""
        if self.client_transport is not None:
            self.client_transport.abort()

    def header_timeout_expired(self) -> bool:
        """Close the connection: before the handshake there is no way to answer."""
        self.evict()
        return True

    async def _upgrade(self, plain: asyncio.Transport) -> None:
        try:
            secured = await self._loop.start_tls(
                plain,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._limiter.head_timeout,
            )
        except OSError as error:  # includes clients without TLS, and handshake timeouts
            _log.debug("a TLS handshake has failed: %s", error)
            plain.abort()
            secured = None
        # A transport that was closed meanwhile is None, or has no socket any more.
        lost = self.client_transport is None or plain.is_closing()
        self._unregister()
        if secured is None or lost:
            return
        connection = self._make_protocol()
        connection.tcp_transport = plain
        secured.set_protocol(connection)
        connection.connection_made(secured)
        for data in self._early_data:
            connection.data_received(data)
        if self._eof_seen:
            connection.eof_received()

    def _unregister(self) -> None:
        """Remove the connection from the limiter."""
        self.client_transport = None
        self._limiter.release_surplus(self)
        self._limiter.connections.discard(self)
