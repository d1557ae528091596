"""Serve an application until it is told to stop, and then end in order."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from sidecar import _errors
from sidecar.http import guard as guards
from sidecar.http import lane, listening
from sidecar.http.connection import Connection
from sidecar.http.guard import Guard, Guarded
from sidecar.http.lane import Lane
from sidecar.http.tls import Certificate
from sidecar.http.waiting import Waits
from sidecar.runtime import running, threads

_log = logging.getLogger(__name__)

KEEP_ALIVE = 75.0
"""Seconds that an idle connection stays open: as nginx has it, longer than most clients and proxies keep theirs."""
LONGEST_LINE = 64 << 10
"""Bytes of a request line: `GET /?content=TEXT` has its content in it."""

_BACKLOG = 1024
_HANDSHAKE_TIME = 10.0
_CANCEL_TIME = 1.0
_GLANCE = 0.01


async def serve(
    app: web.Application,
    *,
    host: str = "0.0.0.0",  # noqa: S104 (probes and other containers come from outside)
    port: int | None = 8080,
    unix_socket: str | os.PathLike[str] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    drain_delay: float = 1.0,
    drain_timeout: float = 10.0,
    head_timeout: float = guards.HEAD_TIMEOUT,
    max_connections: int = guards.MAX_CONNECTIONS,
    ready: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """Serve an aiohttp application until this is cancelled, as `sidecar.run` does at SIGTERM.

    The end is in order: not ready any more, so that no new work is sent here;
    `drain_delay` seconds in which requests are still answered, for that to get around;
    no new connections; requests under way are finished, `drain_timeout` seconds at most; clean-up.
    Clients that keep a connection are told to close it, those that wait for a change get their answer.

    Args:
        app: any application, also one that uses nothing else of `sidecar`.
        host: address to listen on; `::` is IPv6 and IPv4.
        port: port to listen on, 0 for any free one, None for none.
        unix_socket: path of a socket to listen on as well, open to user and group.
        tls_cert: certificate chain (PEM) for the port; read again when it changes.
        tls_key: its private key (PEM), if that is in a file of its own.
        drain_delay: seconds between "not ready" and the end of listening.
        drain_timeout: seconds that requests under way may still take.
        head_timeout: seconds from the first byte of a request to the end of its head;
            then it is answered with 408, and its connection closed.
        max_connections: connections at a time; one more is answered with 503 and closed.
            It is less where the process may not open as many files (`ulimit -n`).
        ready: called with the addresses as soon as they are served.

    Raises:
        ConfigError: the port is busy, an address is not there, or certificate and key do not fit.

    >>> async def main() -> None:
    ...     await serve(web.Application(), port=8080)
    """
    if port is None and unix_socket is None:
        raise _errors.ConfigError("there is nowhere to listen: give a port or a unix socket")
    async with AsyncExitStack() as stack:
        certificate = await _certificate(tls_cert, tls_key)
        places: list[_Place] = []
        if port is not None:
            for one in await threads.in_thread(listening.tcp, host, port):
                stack.callback(one.close)
                places.append(_Place(one, certificate))
        if unix_socket is not None:
            opened = listening.unix(os.fspath(unix_socket))
            one = await threads.in_thread(opened.__enter__)
            stack.push(opened.__exit__)
            places.append(_Place(one, None))
        if certificate is not None:
            await stack.enter_async_context(certificate.followed())
        drain = partial(_drain, delay=drain_delay, timeout=drain_timeout)
        guard = Guard(head_timeout=head_timeout, max_connections=max_connections)
        await _run(app, places, guard, ready, drain)


@dataclass(frozen=True)
class _Place:
    """A bound socket, and the certificate that is shown at it."""

    socket: socket.socket
    certificate: Certificate | None

    @property
    def address(self) -> str:
        if self.socket.family == socket.AF_UNIX:
            return f"unix:{self.socket.getsockname()}"
        host, port = self.socket.getsockname()[:2]
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _certificate(
    cert: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None
) -> Certificate | None:
    if cert is None:
        if key is not None:
            raise _errors.ConfigError("there is a TLS key and no certificate: give tls_cert too")
        return None
    return await threads.in_thread(Certificate, cert, key)


async def _run(
    app: web.Application,
    places: Sequence[_Place],
    guard: Guard,
    ready: Callable[[Sequence[str]], None] | None,
    drain: Callable[[Sequence[asyncio.Server], set[Guarded]], Awaitable[None]],
) -> None:
    """Start the application, listen, and end both, whatever happens in between."""
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=_CANCEL_TIME)
    servers: list[asyncio.Server] = []
    try:
        await runner.setup()
        for place in places:
            servers.append(await _listen(runner, guard, place))  # noqa: PERF401 (those before one that fails must be known)
        addresses = [place.address for place in places]
        _log.info("listening on %s", ", ".join(addresses))
        if ready is not None:
            ready(addresses)
        await asyncio.get_running_loop().create_future()  # until this task is cancelled
    finally:
        try:
            if servers:
                await drain(servers, guard.connections)
        finally:
            for server in servers:
                server.close()
            await runner.cleanup()


async def _listen(runner: web.AppRunner, guard: Guard, place: _Place) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    server = runner.server
    if server is None:
        raise RuntimeError("the application is not set up")

    answers = Lane()

    def connection() -> Connection:
        return Connection(
            server,
            guard,
            answers,
            loop=loop,
            keepalive_timeout=KEEP_ALIVE,
            max_line_size=LONGEST_LINE,
        )

    if place.socket.family == socket.AF_UNIX:
        return await loop.create_unix_server(connection, sock=place.socket, backlog=_BACKLOG)
    certificate = place.certificate
    return await loop.create_server(
        connection,
        sock=place.socket,
        backlog=_BACKLOG,
        ssl=certificate.context if certificate is not None else None,
        ssl_handshake_timeout=_HANDSHAKE_TIME if certificate is not None else None,
    )


async def _drain(
    servers: Sequence[asyncio.Server],
    connections: set[Guarded],
    *,
    delay: float,
    timeout: float,
) -> None:
    """Become not ready, let that get around, stop listening, and finish what was begun."""
    running.start_draining()
    lane.forget()  # from now on each answer says `Connection: close`
    # Endpoints are removed while the Pod is being stopped, not before: requests still come
    # (https://kubernetes.io/docs/tutorials/services/pods-and-endpoint-termination-flow/).
    await asyncio.sleep(delay)
    for server in servers:
        server.close()
    Waits.end_all()
    # What is left is finished here and not by aiohttp: that would drop the bodies that are still coming in,
    # and end with answers that have not left this process.
    loop = asyncio.get_running_loop()
    limit = loop.time() + timeout
    await asyncio.sleep(0)
    while (busy := sum(one.busy for one in connections)) and loop.time() < limit:  # noqa: ASYNC110 (a write buffer rings no bell)
        await asyncio.sleep(_GLANCE)
    if busy:
        _log.warning("%d requests were not finished within %g s and are cut off", busy, timeout)
