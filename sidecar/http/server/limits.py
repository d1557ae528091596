"""Limits that aiohttp does not have: time for the head of a request, time to take some of an answer, connections.

Without the first, a client that never finishes a head holds its connection until the keep-alive time is over;
without the second, one that takes nothing of its answer holds it for ever, even after it has been closed here;
without the third, as many of them as there are descriptors are open, and then nobody is answered any more.

Where as many are open as may be, those give way that wait for a request, the longest idle first, as nginx has it
(`ngx_drain_connections`), those in a TLS handshake among them, and after them those that owe the rest of a head. Where all are at work, one more
is heard all the same: a probe is answered, everybody else is told 503. So nobody can keep the kubelet out.
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
"""Connections at a time. One that is idle costs about 7 KiB."""
STALL_TIMEOUT = 60.0
"""Seconds in which a client must take something of what it is sent.

`TCP_USER_TIMEOUT` (tcp(7)) is no measure of it: where the window of a slow client opens by less than the next segment
has, Linux goes on counting from when it was closed first, however much has been taken since.
"""
_LOOKS = 6
"""How often in that time it is looked who takes something."""

_SURPLUS = 64
"""Connections beyond the limit at a time that are held until they say what they want; the oldest gives way to the next."""
ACCEPTED_AT_ONCE = 32
"""Connections that an event loop may accept before it says so."""
_RESERVE = 64 + _SURPLUS + 2 * ACCEPTED_AT_ONCE
"""Descriptors that are not for connections: files that are read, sockets that listen, what else the program has open;
those beyond the limit; and those that are accepted while others that give way to them are not closed yet."""
_DRAINED = 32
"""Idle connections that are closed at a time, but no more than an eighth of all: as nginx has it."""
_PROBE = re.compile(rb"(?:GET|HEAD) [!-~]{0,1024}/(?:livez|readyz|startupz)[ ?]")
_SAID_EVERY = 10.0
_GLANCE = 0.01
_CONFIRM_GLANCES = 25
"""How often it is looked whether the clients of TLS have confirmed the end: for a few round trips."""
_TURNS = 5
"""Turns of an event loop after which a transport that was aborted is gone, and its protocols know."""
_SLICE = 50
"""Late heads that are ended before others get their turn: two milliseconds."""

_BYTES_ACKED = slice(120, 128)
"""Where the field of that name is in `struct tcp_info`, see linux/tcp.h."""

_log = rate_limited(logging.getLogger(__name__), _SAID_EVERY)


class LimitedConnection(Protocol):
    """What a guard has to do with a connection."""

    def header_timeout_expired(self) -> bool:
        """End the connection, whose request did not come; False if it has to be asked again later."""

    def give_way(self) -> None:
        """End the connection, of which nobody is owed an answer."""

    @property
    def owes_bytes(self) -> bool:
        """Whether the client has not acknowledged yet all that it was sent."""

    @property
    def idle_since(self) -> float | None:
        """Since when it has waited for a request, by the clock of the loop; None while there is something to do."""

    @property
    def wire(self) -> asyncio.Transport | None:
        """What the client is sent goes by it, until that has left this process."""

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""

    @property
    def fresh(self) -> bool:
        """Whether its first request has not come yet."""


class ConnectionLimiter:
    """The open connections of one server, those that are owed the rest of a head, and those that leave what they are sent.

    There is one timer for all of a kind, and only while there is something to wait for.
    """

    def __init__(self, *, head_timeout: float, max_connections: int) -> None:
        self.connections: set[LimitedConnection] = set()
        self.head_timeout = head_timeout
        self.max_connections = min(max_connections, _descriptors())
        self._heads: dict[LimitedConnection, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: dict[LimitedConnection, tuple[object, float]] = {}
        """How much those had taken that did not take all, and since when that is so."""
        self._looks = False
        self._surplus: dict[LimitedConnection, None] = {}
        self.held = UnackedSockets()
        """While it drains: the sockets of answers that their clients have not acknowledged yet."""

    def __repr__(self) -> str:
        return f"<Guard connections={len(self.connections)} heads={len(self._heads)}>"

    def has_room(self) -> bool:
        """Tell whether one more connection may be open; if need be, close some that nobody needs."""
        if len(self.connections) + len(self.held) < self.max_connections:
            return True
        if self.held.release_oldest():
            return True
        most = max(1, min(_DRAINED, self.max_connections // 8))
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
            )
        for one in found:
            self.connections.discard(one)
            one.give_way()
        return bool(found)

    def begins(self, connection: LimitedConnection) -> None:
        """Count one more connection, and see to it that its client takes what it is sent."""
        self.connections.add(connection)
        if not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_later(STALL_TIMEOUT / _LOOKS, self._look)

    def header_started(self, connection: LimitedConnection) -> None:
        """Wait for the rest of a head from now on; if it has begun before, from then on."""
        if connection in self._heads:
            return
        loop = asyncio.get_running_loop()
        self._heads[connection] = loop.time() + self.head_timeout
        if self._timer is None:
            self._timer = loop.call_later(self.head_timeout, self._sweep)

    def header_finished(self, connection: LimitedConnection) -> None:
        """Wait for it no longer: it is complete, or its connection is gone."""
        if self._heads.pop(connection, None) is not None and not self._heads:
            self._stop()

    def hear(self, connection: LimitedConnection) -> None:
        """Hold one connection too many until it says what it wants, no longer than a head may take."""
        if len(self._surplus) >= _SURPLUS:
            oldest = next(iter(self._surplus))
            self.heard(oldest)
            oldest.give_way()
        self._surplus[connection] = None
        self.header_started(connection)

    def heard(self, connection: LimitedConnection) -> None:
        """Hold it no longer."""
        self._surplus.pop(connection, None)
        self.header_finished(connection)

    def refusal(self) -> bytes:
        """Count and return the answer to one connection too many."""
        _log.warning(
            "refusing connections: %d are open, and more are not allowed"
            " (see --max-connections, and `ulimit -n`)",
            len(self.connections),
        )
        metrics.HTTP_REQUESTS_TOTAL.labels("503").inc()
        return raw_response(
            "too-many-connections", f"more than {self.max_connections} are open at a time"
        )

    async def end(self) -> None:
        """End what is still open after its server has closed it, and return when no transport of it is left.

        Clients of TLS have a moment to confirm the end; then they are cut off.
        """
        try:
            for _ in range(_CONFIRM_GLANCES):
                if not self.connections:
                    break
                await asyncio.sleep(_GLANCE)
        finally:
            for one in [*self.connections, *self._surplus]:
                one.give_way()
                if one.wire is not None:
                    one.wire.abort()
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    def _sweep(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        # Whoever sends thousands of them at once must not be ended at once: each takes 40 µs of all others' time.
        for connection in list(islice(self._late(loop.time()), _SLICE)):
            del self._heads[connection]
            if not connection.header_timeout_expired():
                self._heads[connection] = loop.time() + self.head_timeout
        if self._heads:
            self._timer = loop.call_at(next(iter(self._heads.values())), self._sweep)

    def _look(self) -> None:
        """Let go of those who have taken nothing for so long."""
        loop, before, self._leaving = asyncio.get_running_loop(), self._leaving, {}
        for connection in self.connections:
            wire = connection.wire
            if wire is None or not wire.get_write_buffer_size():
                continue
            taken = _is_acknowledging(wire)
            known, since = before.get(connection, (None, 0.0))
            self._leaving[connection] = taken, since if taken == known else loop.time()
        for connection, (_, since) in self._leaving.items():
            if loop.time() - since >= STALL_TIMEOUT and connection.wire is not None:
                _log.info("a client has taken nothing for %g s and is let go", STALL_TIMEOUT)
                abort(connection.wire)
        self._looks = bool(self.connections)
        if self._looks:
            loop.call_later(STALL_TIMEOUT / _LOOKS, self._look)

    def _late(self, now: float) -> Iterator[LimitedConnection]:
        # The limit is the same for all, so they are in order.
        for connection, limit in self._heads.items():
            if limit > now + 0.01:
                return
            yield connection

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def is_probe(data: bytes) -> bool:
    """Tell whether the first bytes of a connection ask for one of the probes, at the top or beneath a prefix.

    >>> is_probe(b"GET /livez HTTP/1.1"), is_probe(b"GET /config/readyz HTTP/1.1"), is_probe(b"GET / HTTP/1.1")
    (True, True, False)
    """
    return _PROBE.match(data) is not None


def raw_response(kind: str, detail: str) -> bytes:
    """Return a complete answer for a connection at which there is no request to answer, and none will follow."""
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


def _is_acknowledging(wire: asyncio.Transport) -> object:
    """Return what is another one as soon as the client has taken something."""
    found = wire.get_extra_info("socket")
    acknowledged = b""
    if sys.platform == "linux" and found is not None and found.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # a sandbox that does not know it
            acknowledged = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
    return wire.get_write_buffer_size(), acknowledged[_BYTES_ACKED]


def abort(wire: asyncio.WriteTransport) -> None:
    """End a connection at once, with what the kernel still has for it."""
    found = wire.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.abort()


def _descriptors() -> int:
    """Return the number of connections for which this process has descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = 1 << 30 if soft == resource.RLIM_INFINITY else soft
    return max(1, soft // 4, soft - _RESERVE)
