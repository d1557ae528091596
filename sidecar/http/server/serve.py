"""Serve an application until it is told to stop, and then end in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from sidecar import _errors
from sidecar.http import handler_api
from sidecar.http.server import framing, limits, protocol, sockets
from sidecar.http.server.fastpath import ListenerCache
from sidecar.http.server.fastpath.protocol import FastPathProtocol
from sidecar.http.server.handshake import Handshake
from sidecar.http.server.limits import ConnectionLimiter, LimitedConnection
from sidecar.http.server.protocol import ServerProtocol
from sidecar.http.server.tls import ReloadingCertificate
from sidecar.process import arguments, executor, lifecycle

_log = logging.getLogger(__name__)

KEEP_ALIVE = 75.0
"""Seconds that an idle connection stays open: as nginx has it, longer than most clients and proxies keep theirs."""
LONGEST_LINE = 64 << 10
"""Bytes of a request line: `GET /?content=TEXT` has its content in it."""

#: `listening` removes the file of a unix socket, and other processes may listen there as well.
_KEEP_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
_CANCEL_TIME = 1.0
_POLL_INTERVAL = 0.01
_FIRST_REQUEST_GRACE = 0.25
"""Seconds that a new connection has for its first request when listening ends: a few round trips.
It has as many turns of the loop as fit into that: one in which a thousand handshakes are done may take a second."""


async def serve(
    app: web.Application,
    *,
    host: str = "",
    port: int | None = 8080,
    unix_socket: str | os.PathLike[str] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    drain_delay: float = 1.0,
    drain_timeout: float = 10.0,
    head_timeout: float = limits.HEAD_TIMEOUT,
    max_connections: int = limits.MAX_CONNECTIONS,
    access_log: bool = False,
    ready: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """Serve an aiohttp application until this is cancelled, as `sidecar.run` does at SIGTERM.

    The end is in order: not ready any more, so that no new work is sent here;
    `drain_delay` seconds in which requests are still answered, for that to get around;
    no new connections; requests under way are finished, `drain_timeout` seconds at most; clean-up.
    Clients that keep a connection are told to close it, those that wait for a change get their answer.

    Args:
        app: any application, also one that uses nothing else of `sidecar`.
        host: address to listen on; empty for all, of IPv6 and IPv4. `0.0.0.0` is IPv4 alone.
        port: port to listen on, 0 for any free one, None for none.
        unix_socket: path of a socket to listen on as well, open to user and group.
        tls_cert: certificate chain (PEM) for the port; read again when it changes.
        tls_key: its private key (PEM), if that is in a file of its own.
        drain_delay: seconds between "not ready" and the end of listening.
        drain_timeout: seconds that requests under way may still take.
        head_timeout: seconds from the first byte of a request to the end of its head;
            then it is answered with 408, and its connection closed. A TLS handshake has as long.
        max_connections: connections at a time; for one more an idle one is closed, and where there is none
            it is answered with 503, unless it asks for a probe.
            It is less where the process may not open as many files (`ulimit -n`).
        access_log: log one line for each request (client, method, path, status, bytes, time) at INFO;
            each is then answered by the application itself, and none from memory, which costs several times the CPU.
        ready: called with the addresses as soon as they are served.

    Raises:
        ConfigError: an argument makes no sense, the port is busy, an address is not there,
            or certificate and key do not fit.

    >>> async def main() -> None:
    ...     await serve(web.Application(), port=8080)
    """
    arguments.check_instance("app", app, web.Application, "an aiohttp.web.Application")
    arguments.check_instance("host", host, str, "an address, a str")
    if port is not None:
        arguments.check_port("port", port)
    for name, value in {"drain_delay": drain_delay, "drain_timeout": drain_timeout}.items():
        arguments.check_seconds(name, value)
    arguments.check_seconds("head_timeout", head_timeout, zero=False)
    arguments.check_integer("max_connections", max_connections, least=1)
    paths = {"unix_socket": unix_socket, "tls_cert": tls_cert, "tls_key": tls_key}
    for name, path in paths.items():
        if path is not None:
            arguments.check_path(name, path)
    if ready is not None:
        arguments.check_plain_function("ready", ready, "a function that gets the addresses")
    if port is None and unix_socket is None:
        raise _errors.ConfigError("there is nowhere to listen: give a port or a unix socket")
    async with AsyncExitStack() as stack:
        certificate = await executor.run_in_thread(load_certificate, tls_cert, tls_key)
        bound: list[socket.socket] = []
        if port is not None:
            bound += await executor.run_in_thread(sockets.bind_tcp, host, port)
            for one in bound:
                stack.callback(one.close)
        if unix_socket is not None:
            opened = sockets.bind_unix(os.fspath(unix_socket))
            bound.append(await executor.run_in_thread(opened.__enter__))
            stack.push(opened.__exit__)
        await serve_on(
            app,
            bound,
            certificate,
            drain_delay=drain_delay,
            drain_timeout=drain_timeout,
            head_timeout=head_timeout,
            max_connections=max_connections,
            access_log=access_log,
            ready=ready,
        )


async def serve_on(
    app: web.Application,
    bound: Sequence[socket.socket],
    certificate: ReloadingCertificate | None,
    *,
    drain_delay: float,
    drain_timeout: float,
    head_timeout: float,
    max_connections: int,
    access_log: bool = False,
    ready: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """Serve at sockets that are bound already, as `serve` does; whoever has bound them closes them, too."""
    async with AsyncExitStack() as stack:
        if certificate is not None:
            await stack.enter_async_context(certificate.followed())
        places = [
            _Endpoint(one, None if one.family == socket.AF_UNIX else certificate) for one in bound
        ]
        drain = partial(_drain, delay=drain_delay, timeout=drain_timeout)
        guard = ConnectionLimiter(head_timeout=head_timeout, max_connections=max_connections)
        await _run(app, places, guard, ready, drain, access_log=access_log)


def load_certificate(
    cert: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None
) -> ReloadingCertificate | None:
    """Read the certificate that is shown at ports, None if there is to be none.

    Raises:
        ConfigError: it cannot be read, the key does not fit, or there is nothing but a key.
    """
    if cert is not None:
        return ReloadingCertificate(cert, key)
    if key is not None:
        raise _errors.ConfigError("there is a TLS key and no certificate: give tls_cert too")
    return None


@dataclass(frozen=True)
class _Endpoint:
    """A bound socket, and the certificate that is shown at it."""

    socket: socket.socket
    certificate: ReloadingCertificate | None

    @property
    def address(self) -> str:
        if self.socket.family == socket.AF_UNIX:
            return f"unix:{self.socket.getsockname()}"
        host, port = self.socket.getsockname()[:2]
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _run(
    app: web.Application,
    places: Sequence[_Endpoint],
    guard: ConnectionLimiter,
    ready: Callable[[Sequence[str]], None] | None,
    drain: Callable[[Sequence[_Listener], ConnectionLimiter], Awaitable[None]],
    *,
    access_log: bool,
) -> None:
    """Start the application, listen, and end both, whatever happens in between."""
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=_CANCEL_TIME)
    listeners: list[_Listener] = []
    try:
        await runner.setup()
        if runner.server is not None:
            framing.enforce(runner.server)
        for place in places:
            listeners.append(await _listen(runner, guard, place, access_log=access_log))  # noqa: PERF401 (those before one that fails must be known)
        addresses = [place.address for place in places]
        _log.info("listening on %s", ", ".join(addresses))
        if ready is not None:
            ready(addresses)
        await asyncio.get_running_loop().create_future()  # until this task is cancelled
    finally:
        try:
            if listeners:
                await drain(listeners, guard)
        finally:
            guard.held.release_all()  # also where a second cancellation has cut the drain short
            for listener in listeners:
                listener.server.close()
            try:
                await runner.cleanup()
            finally:
                await guard.end()


@dataclass(frozen=True)
class _Listener:
    """A place that is listened at."""

    place: _Endpoint
    server: asyncio.Server
    factory: Callable[[], asyncio.BaseProtocol]
    """What makes the protocol of each connection there."""

    async def end(self) -> list[asyncio.Task[Any]]:
        """Listen no longer, and serve the connections that nobody has accepted yet: the kernel would reset them."""
        loop = asyncio.get_running_loop()
        waiting = []
        sockets.drop_new_syns(self.place.socket)
        with contextlib.suppress(OSError):  # there is none left
            for _ in range(sockets.BACKLOG):
                waiting.append(self.place.socket.accept()[0])  # noqa: PERF401 (those before the error count)
        tasks = [
            asyncio.ensure_future(loop.connect_accepted_socket(self.factory, one))
            for one in waiting
        ]
        # asyncio has accepted some, too, and would drop those that a closed server has not got to know.
        await asyncio.sleep(0)
        self.server.close()
        return tasks


async def _listen(
    runner: web.AppRunner, guard: ConnectionLimiter, place: _Endpoint, *, access_log: bool
) -> _Listener:
    loop = asyncio.get_running_loop()
    server = runner.server
    if server is None:
        raise RuntimeError("the application is not set up")

    answers = ListenerCache()

    def connection() -> ServerProtocol:
        if access_log:  # the lane answers without a request that could be logged
            return ServerProtocol(
                server,
                guard,
                loop=loop,
                keepalive_timeout=KEEP_ALIVE,
                max_line_size=LONGEST_LINE,
                access_log=True,
            )
        return FastPathProtocol(
            server,
            guard,
            answers,
            loop=loop,
            keepalive_timeout=KEEP_ALIVE,
            max_line_size=LONGEST_LINE,
        )

    factory: Callable[[], asyncio.BaseProtocol] = connection
    if place.certificate is not None:
        factory = partial(Handshake, place.certificate.context, guard, connection, loop=loop)
    # For asyncio it is also how many it accepts before it tells anybody of one.
    where: dict[str, Any] = {"sock": place.socket, "backlog": limits.ACCEPTED_AT_ONCE}
    if place.socket.family == socket.AF_UNIX:
        made = await loop.create_unix_server(factory, **where, **_KEEP_FILE)
    else:
        made = await loop.create_server(factory, **where)
    place.socket.listen(sockets.BACKLOG)
    return _Listener(place, made, factory)


async def _drain(
    listeners: Sequence[_Listener],
    guard: ConnectionLimiter,
    *,
    delay: float,
    timeout: float,
) -> None:
    """Become not ready, let that get around, stop listening, and finish what was begun.

    An answer is finished when its client has acknowledged all of it: the network of a Pod ends with its processes.
    """
    lifecycle.begin_drain()
    handler_api.invalidate_all()  # from now on each answer says `Connection: close`
    # Endpoints are removed while the Pod is being stopped, not before: requests still come
    # (https://kubernetes.io/docs/tutorials/services/pods-and-endpoint-termination-flow/).
    loop = asyncio.get_running_loop()
    over = loop.time() + delay
    while (left := over - loop.time()) > 0:
        await asyncio.sleep(min(left, _POLL_INTERVAL * 5))
        guard.held.release()
    accepted = [task for listener in listeners for task in await listener.end()]
    connections, held = guard.connections, guard.held
    for one in connections:
        if one.idle_since is None or one.owes_bytes:
            held.add(one, one.wire)
    for wake in protocol.drain_callbacks:
        wake()
    # What is left is finished here and not by aiohttp: that would drop the bodies that are still coming in,
    # and end with answers that have not left this process.
    limit = loop.time() + timeout
    if accepted:
        await asyncio.wait(accepted, timeout=timeout)
    await asyncio.sleep(0)
    # A client that has just connected has its first request on the way, or its handshake.
    fresh: set[LimitedConnection] | None = None
    glances = 0
    while True:
        busy = sum(one.busy for one in connections)
        before, fresh = fresh, {one for one in connections if one.fresh}
        glances = glances - 1 if fresh == before else round(_FIRST_REQUEST_GRACE / _POLL_INTERVAL)
        if loop.time() >= limit or not (busy or len(held) or (fresh and glances > 0)):
            break
        await asyncio.sleep(_POLL_INTERVAL)
        held.release()
    unread = len(held)
    held.release_all()
    if unread > busy:
        _log.warning("%d answers were not taken by their clients within %g s", unread, timeout)
    if busy:
        _log.warning("%d requests were not finished within %g s and are cut off", busy, timeout)
