"""TLS connections from `accept` on, as the guard has to know them: before its handshake each takes a descriptor, too.

An event loop that is given a certificate calls the protocol of a connection when its handshake is complete.
So it accepts plain TCP here, and the connection is upgraded (`loop.start_tls`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.http.server.protocol import ServerProtocol, begun

if TYPE_CHECKING:
    from sidecar.http.server.limits import ConnectionLimiter

_log = logging.getLogger(__name__)


class Handshake(asyncio.Protocol):
    """The protocol of one connection until its TLS handshake is complete; then `make()` makes the one that it has from then on.

    It gives way as a connection does that has not asked for anything: the oldest first.
    A handshake takes no longer than the head of a request may.
    """

    __slots__ = (
        "_at_end",
        "_context",
        "_early",
        "_guard",
        "_loop",
        "_make",
        "_task",
        "idle_since",
        "wire",
    )

    busy = False
    fresh = True
    owes_bytes = False

    def __init__(
        self,
        context: ssl.SSLContext,
        guard: ConnectionLimiter,
        make: Callable[[], ServerProtocol],
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._context = context
        self._guard = guard
        self._make = make
        self._loop = loop
        self._early: list[bytes] = []
        """What the client has said already when the handshake is complete, and nobody has been told yet."""
        self._at_end = False
        self._task: asyncio.Task[None] | None = None
        self.idle_since: float | None = None
        self.wire: asyncio.Transport | None = None
        """The transport of TCP."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake at once: the first bytes of the client are its own."""
        self.wire = transport  # type: ignore[assignment]  # a transport of a stream
        self.idle_since = self._loop.time()
        if self._guard.has_room():
            self._guard.begins(self)
        else:
            self._guard.hear(self)
        upgrade = self._upgrade(transport)  # type: ignore[arg-type]  # as above
        with contextlib.suppress(StopIteration):
            self._task = self._loop.create_task(begun(upgrade, upgrade.send(None)))

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def eof_received(self) -> None:
        self._at_end = True

    def connection_lost(self, _: BaseException | None) -> None:
        self._end()

    def give_way(self) -> None:
        """End the connection, whose client is owed nothing."""
        if self.wire is not None:
            self.wire.abort()

    def header_timeout_expired(self) -> bool:
        """End the connection: there is no way to answer it."""
        self.give_way()
        return True

    async def _upgrade(self, plain: asyncio.Transport) -> None:
        try:
            secured = await self._loop.start_tls(
                plain,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._guard.head_timeout,
            )
        except OSError as error:  # what is no TLS, and what took too long, among them
            _log.debug("a TLS handshake has failed: %s", error)
            plain.abort()
            secured = None
        # One that was closed meanwhile is None, or has no socket any more.
        lost = self.wire is None or plain.is_closing()
        self._end()
        if secured is None or lost:
            return
        connection = self._make()
        connection.beneath = plain
        secured.set_protocol(connection)
        connection.connection_made(secured)
        for data in self._early:
            connection.data_received(data)
        if self._at_end:
            connection.eof_received()

    def _end(self) -> None:
        """Count it no more."""
        self.wire = None
        self._guard.heard(self)
        self._guard.connections.discard(self)
