"""Serve an application until it is stopped, and shut it down in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from aiohttp import web

from sidecar import _errors
from sidecar.http import handler_api, health_state, ops
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
"""Seconds that an idle connection stays open: as in nginx, longer than most clients and proxies keep theirs."""
MAX_REQUEST_LINE_BYTES = 64 << 10
"""Bytes of a request line: that of `GET /?content=TEXT` contains the content."""

#: `sockets` removes the file of a unix socket; other processes may listen there as well.
_KEEP_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
_MAX_ADMIN_CONNECTIONS = 256
"""A kubelet and some Prometheus servers need few."""
_ADMIN_DRAIN_TIMEOUT = 1.0
_CANCEL_TIMEOUT = 1.0
_POLL_INTERVAL = 0.01
_FIRST_REQUEST_GRACE = 0.25
"""Seconds that a new connection has for its first request when listening ends: a few round trips.
Counted in iterations of the event loop: one in which a thousand handshakes complete may take a second.
"""


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
    admin_port: int | None = None,
    admin_host: str = "",
    ready: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """Serve an aiohttp application until this is cancelled, as `sidecar.run` does at SIGTERM.

    The shutdown is in order: not ready, so that no new work is routed here;
    `drain_delay` seconds in which requests are still answered while that becomes known;
    no new connections; requests in progress finish, `drain_timeout` seconds at most; clean-up.
    Clients are told to close keep-alive connections, and those that wait for a change get their response.

    Args:
        app: any application, also one that uses nothing else of `sidecar`.
        host: address to listen on; empty for all, of IPv6 and IPv4. `0.0.0.0` is IPv4 alone.
        port: port to listen on, 0 for any free one, None for none.
        unix_socket: path of a socket to listen on as well, open to user and group.
        tls_cert: certificate chain (PEM) for the port; read again when it changes.
        tls_key: its private key (PEM), if that is in a file of its own.
        drain_delay: seconds between "not ready" and the end of listening.
        drain_timeout: seconds that requests in progress may still take.
        head_timeout: seconds from the first byte of a request to the end of its head;
            then it is answered with 408, and its connection closed. It limits a TLS handshake as well.
        max_connections: connections at a time; for one more an idle one is closed, and if there is none
            it is answered with 503, unless it asks for a probe.
            It is lower if the process may not open as many files (`ulimit -n`).
        access_log: log one line for each request (client, method, path, status, bytes, time) at INFO;
            the application then answers each request itself, and none from the cache, which costs several times the CPU.
        admin_port: port for `/livez`, `/readyz`, `/startupz` and `/metrics`, by plain HTTP and without a token;
            the other ports then have them no longer. It responds until all requests are finished.
        admin_host: address to listen on with it.
        ready: called with the addresses as soon as they are served, without that of the admin port.

    Raises:
        ConfigError: an argument is invalid, the port is busy, the address does not exist,
            or certificate and key do not match.

    >>> async def main() -> None:
    ...     await serve(web.Application(), port=8080)
    """
    arguments.check_instance("app", app, web.Application, "an aiohttp.web.Application")
    arguments.check_instance("host", host, str, "an address, a str")
    arguments.check_instance("admin_host", admin_host, str, "an address, a str")
    for name, number in {"port": port, "admin_port": admin_port}.items():
        if number is not None:
            arguments.check_port(name, number)
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
        bound = await _bind(stack, host, port)
        admin_bound = await _bind(stack, admin_host, admin_port)
        _check_distinct(bound, admin_bound)
        if unix_socket is not None:
            opened = sockets.bind_unix(os.fspath(unix_socket))
            bound.append(await executor.run_in_thread(opened.__enter__))
            stack.push(opened.__exit__)
        await serve_on(
            app,
            bound,
            certificate,
            admin_bound=admin_bound,
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
    admin_bound: Sequence[socket.socket] = (),
    ready: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """Serve on bound sockets, as `serve` does; the caller closes them."""
    async with AsyncExitStack() as stack:
        if admin_bound:
            # It begins first, and ends last: while requests are finished, `/readyz` must say that there should be no more.
            ready = _report_start(app, ready)
            await stack.enter_async_context(_admin_port(app, admin_bound, head_timeout))
        if certificate is not None:
            await stack.enter_async_context(certificate.watched())
        endpoints = [
            _Endpoint(one, None if one.family == socket.AF_UNIX else certificate) for one in bound
        ]
        drain = partial(_drain, delay=drain_delay, timeout=drain_timeout)
        limiter = ConnectionLimiter(head_timeout=head_timeout, max_connections=max_connections)
        await _run(app, endpoints, limiter, ready, drain, access_log=access_log)


def _report_start(
    app: web.Application, ready: Callable[[Sequence[str]], None] | None
) -> Callable[[Sequence[str]], None]:
    """Make an application neither started nor ready until the returned function is called, which then calls `ready`."""

    def starting() -> str:
        return "it starts, and does not listen yet"

    remove = health_state.get_health(app).add("server", ready=starting, started=starting)

    def started(addresses: Sequence[str]) -> None:
        remove()
        if ready is not None:
            ready(addresses)

    return started


async def _bind(stack: AsyncExitStack, host: str, port: int | None) -> list[socket.socket]:
    """Bind the addresses of a host, None without a port; the stack closes them."""
    if port is None:
        return []
    bound = await executor.run_in_thread(sockets.bind_tcp, host, port)
    for one in bound:
        stack.callback(one.close)
    return bound


def _check_distinct(bound: Sequence[socket.socket], admin_bound: Sequence[socket.socket]) -> None:
    """Raise `ConfigError` if two sockets have the same port: Linux says so only when the second one listens."""
    for one, other in product(bound, admin_bound):
        (host, port), (admin_host, admin_port) = one.getsockname()[:2], other.getsockname()[:2]
        any_host = {"0.0.0.0", "::"} & {host, admin_host}  # noqa: S104 (compared, not bound)
        overlaps = one.family == other.family and (any_host or host == admin_host)
        if port == admin_port and (overlaps or "::" in any_host):  # it is IPv4 as well
            raise _errors.ConfigError(
                f"the port and the admin port are both {port}: choose another one with --admin-port"
            )


@asynccontextmanager
async def _admin_port(
    app: web.Application, bound: Sequence[socket.socket], head_timeout: float
) -> AsyncIterator[None]:
    """Serve probes and metrics on these sockets, in place of the application."""
    limiter = ConnectionLimiter(head_timeout=head_timeout, max_connections=_MAX_ADMIN_CONNECTIONS)
    started: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()
    drain = partial(_drain, delay=0.0, timeout=_ADMIN_DRAIN_TIMEOUT)
    serving = asyncio.create_task(
        _run(
            ops.admin_app(app),
            [_Endpoint(one, None) for one in bound],
            limiter,
            started.set_result,
            drain,
            access_log=False,
            is_admin=True,
        ),
        name="admin port",
    )
    try:
        either: set[asyncio.Future[Any]] = {serving, started}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        yield
    finally:
        serving.cancel()
        await asyncio.wait({serving})


def load_certificate(
    cert: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None
) -> ReloadingCertificate | None:
    """Load the server certificate, None without one.

    Raises:
        ConfigError: it cannot be read, the key does not match, or there is a key without a certificate.
    """
    if cert is not None:
        return ReloadingCertificate(cert, key)
    if key is not None:
        raise _errors.ConfigError("there is a TLS key and no certificate: give tls_cert too")
    return None


@dataclass(frozen=True)
class _Endpoint:
    """A bound socket, and its certificate."""

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
    endpoints: Sequence[_Endpoint],
    limiter: ConnectionLimiter,
    ready: Callable[[Sequence[str]], None] | None,
    drain: Callable[[Sequence[_Listener], ConnectionLimiter], Awaitable[None]],
    *,
    access_log: bool,
    is_admin: bool = False,
) -> None:
    """Start the application and listen; shut both down, whatever happens in between."""
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=_CANCEL_TIMEOUT)
    listeners: list[_Listener] = []
    try:
        await runner.setup()
        if runner.server is not None:
            framing.enforce(runner.server)
        for endpoint in endpoints:
            listeners.append(await _listen(runner, limiter, endpoint, access_log=access_log))  # noqa: PERF401 (those before one that fails must be known)
        addresses = [endpoint.address for endpoint in endpoints]
        told = ", ".join(addresses)
        if is_admin:
            _log.info("the admin port is %s", told, extra={"event": "server.listening"})
        else:
            _log.info("listening on %s", told, extra={"event": "server.listening"})
        if ready is not None:
            ready(addresses)
        await asyncio.get_running_loop().create_future()  # until this task is cancelled
    finally:
        try:
            if listeners:
                await drain(listeners, limiter)
        finally:
            limiter.unacked.release_all()  # also if a second cancellation has cut the drain short
            for listener in listeners:
                listener.server.close()
            try:
                await runner.cleanup()
            finally:
                await limiter.close_remaining()


@dataclass(frozen=True)
class _Listener:
    """A listening socket."""

    endpoint: _Endpoint
    server: asyncio.Server
    factory: Callable[[], asyncio.BaseProtocol]
    """Creates the protocol of each connection."""

    async def stop_accepting(self) -> list[asyncio.Task[Any]]:
        """Stop listening, and serve the connections in the accept queue, which the kernel would reset."""
        loop = asyncio.get_running_loop()
        waiting = []
        sockets.drop_new_syns(self.endpoint.socket)
        with contextlib.suppress(OSError):  # the queue is empty
            for _ in range(sockets.BACKLOG):
                waiting.append(self.endpoint.socket.accept()[0])  # noqa: PERF401 (those before the error count)
        tasks = [
            asyncio.ensure_future(loop.connect_accepted_socket(self.factory, accepted))
            for accepted in waiting
        ]
        # asyncio may have accepted some as well, and drops those that a closed server does not know yet.
        await asyncio.sleep(0)
        self.server.close()
        return tasks


async def _listen(
    runner: web.AppRunner, limiter: ConnectionLimiter, endpoint: _Endpoint, *, access_log: bool
) -> _Listener:
    loop = asyncio.get_running_loop()
    server = runner.server
    if server is None:
        raise RuntimeError("the application is not set up")

    cache = ListenerCache()

    def make_protocol() -> ServerProtocol:
        if access_log:  # the fast path has no request object to log
            return ServerProtocol(
                server,
                limiter,
                loop=loop,
                keepalive_timeout=KEEP_ALIVE,
                max_line_size=MAX_REQUEST_LINE_BYTES,
                access_log=True,
            )
        return FastPathProtocol(
            server,
            limiter,
            cache,
            loop=loop,
            keepalive_timeout=KEEP_ALIVE,
            max_line_size=MAX_REQUEST_LINE_BYTES,
        )

    factory: Callable[[], asyncio.BaseProtocol] = make_protocol
    if endpoint.certificate is not None:
        factory = partial(
            Handshake, endpoint.certificate.context, limiter, make_protocol, loop=loop
        )
    # asyncio also accepts this many before it calls the protocols.
    options: dict[str, Any] = {"sock": endpoint.socket, "backlog": limits.ACCEPT_BATCH}
    if endpoint.socket.family == socket.AF_UNIX:
        listening = await loop.create_unix_server(factory, **options, **_KEEP_FILE)
    else:
        listening = await loop.create_server(factory, **options)
    endpoint.socket.listen(sockets.BACKLOG)
    return _Listener(endpoint, listening, factory)


async def _drain(
    listeners: Sequence[_Listener],
    limiter: ConnectionLimiter,
    *,
    delay: float,
    timeout: float,
) -> None:
    """Become not ready, wait for the delay, stop listening, and finish the requests in progress.

    A request is finished when its client has acknowledged the response: the network of a Pod ends with its processes.
    """
    lifecycle.begin_drain()
    handler_api.invalidate_all()  # from now on each response has `Connection: close`
    # Endpoints are removed while the Pod is terminating, not before: requests still arrive
    # (https://kubernetes.io/docs/tutorials/services/pods-and-endpoint-termination-flow/).
    loop = asyncio.get_running_loop()
    drain_end = loop.time() + delay
    while (left := drain_end - loop.time()) > 0:
        await asyncio.sleep(min(left, _POLL_INTERVAL * 5))
        limiter.unacked.release()
    accepted = [task for listener in listeners for task in await listener.stop_accepting()]
    connections, unacked = limiter.connections, limiter.unacked
    for connection in connections:
        if connection.idle_since is None or connection.has_unacked_bytes:
            unacked.add(connection, connection.client_transport)
    for wake in protocol.drain_callbacks:
        wake()
    # Wait here and not in aiohttp, which would drop request bodies that are still arriving,
    # and responses that have not left this process.
    limit = loop.time() + timeout
    if accepted:
        await asyncio.wait(accepted, timeout=timeout)
    await asyncio.sleep(0)
    # A new connection has its first request, or its handshake, on the way.
    fresh: set[LimitedConnection] | None = None
    polls_left = 0
    while True:
        busy = sum(one.busy for one in connections)
        before, fresh = fresh, {one for one in connections if one.awaiting_first_request}
        polls_left = (
            polls_left - 1 if fresh == before else round(_FIRST_REQUEST_GRACE / _POLL_INTERVAL)
        )
        if loop.time() >= limit or not (busy or len(unacked) or (fresh and polls_left > 0)):
            break
        await asyncio.sleep(_POLL_INTERVAL)
        unacked.release()
    unread = len(unacked)
    unacked.release_all()
    if unread > busy:
        _log.warning(
            "%d answers were not taken by their clients within %g s",
            unread,
            timeout,
            extra={"event": "server.drain_timeout"},
        )
    if busy:
        _log.warning(
            "%d requests were not finished within %g s and are cut off",
            busy,
            timeout,
            extra={"event": "server.drain_timeout"},
        )
