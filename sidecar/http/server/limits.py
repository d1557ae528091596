"""Connection limits that aiohttp does not have: a header timeout, a send timeout and a maximum number of connections.

Without the first, a client that never finishes a request head holds its connection until the keep-alive timeout.
Without the second, a client that does not read its response holds it for ever, even after it has been closed here.
Without the third, connections use up the file descriptors, and then no client is answered any more.

At the maximum, idle connections are closed first, the longest idle first, as nginx does (`ngx_drain_connections`);
TLS handshakes count as idle. After them, connections with an incomplete request head are closed. If all connections are busy,
one more is accepted as surplus: a probe is answered, any other request gets 503. So no client can lock the kubelet out.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import re
import resource
import socket
import struct
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from itertools import islice
from typing import Protocol

from sidecar.http import problems
from sidecar.http.server.acknowledged import UnackedSockets
from sidecar.process import metrics
from sidecar.process.logging import rate_limited

HEAD_TIMEOUT = 10.0
"""Seconds from the first byte of a request to the end of its head."""
MAX_CONNECTIONS = 10_000
"""Connections at a time. An idle one costs about 7 KiB."""
STALL_TIMEOUT = 60.0
"""Seconds after which a connection is aborted if its client has acknowledged nothing of the pending data.

`TCP_USER_TIMEOUT` (tcp(7)) does not measure this: if the window of a slow client opens by less than the next segment,
Linux keeps counting from when the window was first closed, however much the client has read since.
"""
_STALL_CHECKS = 6
"""Checks of each connection per `STALL_TIMEOUT`."""

_MAX_SURPLUS_CONNECTIONS = 64
"""Surplus connections that are kept open until their request arrives; the oldest is closed for the next."""
ACCEPT_BATCH = 32
"""Connections that the event loop accepts in one iteration (the `backlog` argument of asyncio)."""
_RESERVED_DESCRIPTORS = 64 + _MAX_SURPLUS_CONNECTIONS + 2 * ACCEPT_BATCH
"""File descriptors reserved for files, listening sockets and the rest of the program, for surplus connections,
and for connections that are accepted while evicted ones are not closed yet.
"""
_MAX_EVICTED = 32
"""Idle connections that are closed at a time, but no more than an eighth of all, as nginx does."""
_PROBE_REQUEST = re.compile(rb"(?:GET|HEAD) [!-~]{0,1024}/(?:livez|readyz|startupz)[ ?]")
_LOG_INTERVAL = 10.0
_CLOSE_POLL_INTERVAL = 0.01
_CLOSE_POLLS = 25
"""Polls for the close_notify of TLS clients: time for a few round trips."""
_ABORT_TURNS = 5
"""Iterations of the event loop after which an aborted transport has called `connection_lost`."""
_EXPIRED_BATCH = 50
"""Expired heads that are answered per iteration of the event loop: two milliseconds."""

_BYTES_ACKED = slice(120, 128)
"""Offset of `tcpi_bytes_acked` in `struct tcp_info`, see linux/tcp.h."""

_log = rate_limited(logging.getLogger(__name__), _LOG_INTERVAL)


class LimitedConnection(Protocol):
    """A connection as `ConnectionLimiter` sees it."""

    def header_timeout_expired(self) -> bool:
        """Close the connection because its head is incomplete; False if it is busy and must be checked again later."""

    def evict(self) -> None:
        """Close the connection, which has no request to answer."""

    @property
    def has_unacked_bytes(self) -> bool:
        """Whether the client has not acknowledged all data yet."""

    @property
    def idle_since(self) -> float | None:
        """When the connection became idle (event loop clock); None while it is busy."""

    @property
    def client_transport(self) -> asyncio.Transport | None:
        """The transport until all data has been sent; None after that."""

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""

    @property
    def awaiting_first_request(self) -> bool:
        """Whether the first request has not arrived yet."""


class ConnectionLimiter:
    """The open connections of one server, with their header and send timeouts.

    Each kind of timeout uses one timer, and only while there is something to wait for.
    """

    def __init__(self, *, head_timeout: float, max_connections: int) -> None:
        self.connections: set[LimitedConnection] = set()
        self.head_timeout = head_timeout
        self.max_connections = min(max_connections, _connection_capacity())
        self._heads: dict[LimitedConnection, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: dict[LimitedConnection, tuple[object, float]] = {}
        """Connections with unsent data: what their client had acknowledged, and since when that has not changed."""
        self._stall_check_scheduled = False
        self._surplus: dict[LimitedConnection, None] = {}
        self.unacked = UnackedSockets()
        """While draining: sockets of responses that the clients have not acknowledged yet."""

    def __repr__(self) -> str:
        return f"<ConnectionLimiter connections={len(self.connections)} heads={len(self._heads)}>"

    def make_room(self) -> bool:
        """Return whether one more connection may be opened; close idle ones if necessary."""
        if len(self.connections) + len(self.unacked) < self.max_connections:
            return True
        if self.unacked.release_oldest():
            return True
        most = max(1, min(_MAX_EVICTED, self.max_connections // 8))
        idle = (
            (since, id(one), one)
            for one in self.connections
            if one not in self._heads and (since := one.idle_since) is not None
        )
        found = [one for *_, one in heapq.nsmallest(most, idle)]
        if not found:
            owing = (one for one in self._heads if one in self.connections and not one.busy)
            found = list(islice(owing, most))
        if found:
            _log.warning(
                "closing idle connections: %d are open, and more are not allowed"
                " (see --max-connections, and `ulimit -n`)",
                len(self.connections),
                extra={"event": "http.connections_closed"},
            )
        for one in found:
            self.connections.discard(one)
            one.evict()
        return bool(found)

    def register(self, connection: LimitedConnection) -> None:
        """Add a connection, and check that its client keeps reading."""
        self.connections.add(connection)
        if not self._stall_check_scheduled:
            self._stall_check_scheduled = True
            asyncio.get_running_loop().call_later(
                STALL_TIMEOUT / _STALL_CHECKS, self._check_stalled
            )

    def header_started(self, connection: LimitedConnection) -> None:
        """Start the header timeout, unless it is running already."""
        if connection in self._heads:
            return
        loop = asyncio.get_running_loop()
        self._heads[connection] = loop.time() + self.head_timeout
        if self._timer is None:
            self._timer = loop.call_later(self.head_timeout, self._sweep)

    def header_finished(self, connection: LimitedConnection) -> None:
        """Stop the header timeout: the head is complete, or the connection is gone."""
        if self._heads.pop(connection, None) is not None and not self._heads:
            self._cancel_timer()

    def hold_surplus(self, connection: LimitedConnection) -> None:
        """Keep a surplus connection open until its request arrives, at most for the header timeout."""
        if len(self._surplus) >= _MAX_SURPLUS_CONNECTIONS:
            oldest = next(iter(self._surplus))
            self.release_surplus(oldest)
            oldest.evict()
        self._surplus[connection] = None
        self.header_started(connection)

    def release_surplus(self, connection: LimitedConnection) -> None:
        """Remove a surplus connection."""
        self._surplus.pop(connection, None)
        self.header_finished(connection)

    def rejection(self) -> bytes:
        """Return the 503 response to a surplus connection, and count it."""
        _log.warning(
            "refusing connections: %d are open, and more are not allowed"
            " (see --max-connections, and `ulimit -n`)",
            len(self.connections),
            extra={"event": "http.connections_refused"},
        )
        metrics.HTTP_REQUESTS_TOTAL.labels("503").inc()
        return raw_response(
            "too-many-connections", f"more than {self.max_connections} are open at a time"
        )

    async def close_remaining(self) -> None:
        """Close the remaining connections of a closed server, and return when all their transports are gone.

        TLS clients have a moment to confirm the end; then their connections are aborted.
        """
        try:
            for _ in range(_CLOSE_POLLS):
                if not self.connections:
                    break
                await asyncio.sleep(_CLOSE_POLL_INTERVAL)
        finally:
            for one in [*self.connections, *self._surplus]:
                one.evict()
                if one.client_transport is not None:
                    one.client_transport.abort()
        for _ in range(_ABORT_TURNS):
            await asyncio.sleep(0)

    def _sweep(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        # In batches, because each one blocks the event loop for 40 µs.
        for connection in list(islice(self._expired_heads(loop.time()), _EXPIRED_BATCH)):
            del self._heads[connection]
            if not connection.header_timeout_expired():
                self._heads[connection] = loop.time() + self.head_timeout
        if self._heads:
            self._timer = loop.call_at(next(iter(self._heads.values())), self._sweep)

    def _check_stalled(self) -> None:
        """Abort connections whose clients have acknowledged nothing for `STALL_TIMEOUT`."""
        loop, before, self._stalled = asyncio.get_running_loop(), self._stalled, {}
        for connection in self.connections:
            transport = connection.client_transport
            if transport is None or not transport.get_write_buffer_size():
                continue
            taken = _send_progress(transport)
            known, since = before.get(connection, (None, 0.0))
            self._stalled[connection] = taken, since if taken == known else loop.time()
        for connection, (_, since) in self._stalled.items():
            if loop.time() - since >= STALL_TIMEOUT and connection.client_transport is not None:
                _log.info(
                    "a client has read nothing for %g s and is disconnected",
                    STALL_TIMEOUT,
                    extra={"event": "http.client_stalled"},
                )
                abort(connection.client_transport)
        self._stall_check_scheduled = bool(self.connections)
        if self._stall_check_scheduled:
            loop.call_later(STALL_TIMEOUT / _STALL_CHECKS, self._check_stalled)

    def _expired_heads(self, now: float) -> Iterator[LimitedConnection]:
        # All have the same timeout, so the dict is in order of deadline.
        for connection, limit in self._heads.items():
            if limit > now + 0.01:
                return
            yield connection

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def is_probe(data: bytes) -> bool:
    """Return whether a request is for one of the probes, at the root or under a prefix.

    >>> is_probe(b"GET /livez HTTP/1.1"), is_probe(b"GET /config/readyz HTTP/1.1"), is_probe(b"GET / HTTP/1.1")
    (True, True, False)
    """
    return _PROBE_REQUEST.match(data) is not None


def raw_response(kind: str, detail: str) -> bytes:
    """Return a complete response for a connection without a parsed request; the connection closes after it."""
    problem = problems.Problem(kind, detail)
    body = problem.body if isinstance(problem.body, bytes) else b""
    lines = [
        f"HTTP/1.1 {problem.status} {problem.reason}",
        f"Content-Type: {problems.CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        f"Date: {formatdate(time.time(), usegmt=True)}",
        "Server: sidecar",
        "Connection: close",
    ]
    if problem.status == 503:
        lines.append(f"Retry-After: {problems.RETRY_AFTER}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _send_progress(transport: asyncio.Transport) -> object:
    """Return a value that changes as soon as the client has acknowledged data."""
    found = transport.get_extra_info("socket")
    acknowledged = b""
    if sys.platform == "linux" and found is not None and found.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # not supported in some sandboxes
            acknowledged = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
    return transport.get_write_buffer_size(), acknowledged[_BYTES_ACKED]


def abort(transport: asyncio.WriteTransport) -> None:
    """Reset a connection, and drop the data that the kernel has not sent."""
    found = transport.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _connection_capacity() -> int:
    """Return the number of connections that the file descriptor limit allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = 1 << 30 if soft == resource.RLIM_INFINITY else soft
    return max(1, soft // 4, soft - _RESERVED_DESCRIPTORS)
