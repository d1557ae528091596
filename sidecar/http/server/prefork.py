"""Serve an application with several worker processes, one per core, on the same port.

Each worker has its own event loop, watch and connections.
Workers share the memory that was allocated before the fork, and report together:
`/metrics` of any worker is the sum of all, and a probe covers all, since a client may reach any of them.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import Any, get_args

from aiohttp import web

from sidecar import _errors
from sidecar.http import health_state
from sidecar.http.server import sockets
from sidecar.http.server.serve import load_certificate, serve_on
from sidecar.http.server.tls import ReloadingCertificate
from sidecar.process import executor, health, lifecycle, metrics
from sidecar.process.prefork import supervisor, worker


def serve_prefork(
    app: web.Application,
    *,
    count: int,
    host: str,
    port: int | None,
    unix_socket: str | os.PathLike[str] | None,
    tls_cert: str | os.PathLike[str] | None,
    tls_key: str | os.PathLike[str] | None,
    admin_port: int | None = None,
    admin_host: str = "",
    **limits: Any,
) -> None:
    """Serve with `count` workers until a signal, as `run(serve(…))` does with one. It forks, so it is not a coroutine.

    The application is created before the fork, and started by each worker.
    `limits` are those of `serve`, and apply to each worker.

    Raises:
        ConfigError: as for `serve`; or this is not Linux, which alone distributes connections evenly.
        SystemExit: in the parent, when all workers have ended; see `process.prefork.supervisor.fork_workers`.
    """
    if sys.platform != "linux":
        raise _errors.ConfigError("several workers need Linux: leave --workers at 1")
    with ExitStack() as stack:
        certificate = load_certificate(tls_cert, tls_key)
        sockets_by_worker: list[list[socket.socket]] = [[] for _ in range(count)]
        if port is not None:
            sockets_by_worker = sockets.bind_reuseport(host, port, count)
        if unix_socket is not None:
            shared = stack.enter_context(sockets.bind_unix(os.fspath(unix_socket)))
            for group in sockets_by_worker:
                group.append(shared)
        admin_by_worker: list[list[socket.socket]] = [[] for _ in range(count)]
        if admin_port is not None:
            admin_by_worker = sockets.bind_reuseport(admin_host, admin_port, count)
        with suppress(ImportError):
            import_module("uvloop")  # in the parent: the workers share its memory
        number = supervisor.fork_workers(
            count,
            release=lambda: _close([*sockets_by_worker, *admin_by_worker]),
            drain=limits["drain_delay"] + limits["drain_timeout"],
        )
        own, own_admin = sockets_by_worker.pop(number - 1), admin_by_worker.pop(number - 1)
        # An open duplicate of another worker's socket would accept connections after that worker has closed it.
        _close([*sockets_by_worker, *admin_by_worker], keep=[*own, *own_admin])
        for listener in (*own, *own_admin):
            sockets.accept_syns(listener)  # this worker may replace one that has drained
        lifecycle.run(_serve_worker(app, own, certificate, {**limits, "admin_bound": own_admin}))


def _close(
    sockets_by_worker: Sequence[Sequence[socket.socket]], keep: Sequence[socket.socket] = ()
) -> None:
    for one in {one for group in sockets_by_worker for one in group} - set(keep):
        one.close()


async def _serve_worker(
    app: web.Application,
    bound: Sequence[socket.socket],
    certificate: ReloadingCertificate | None,
    limits: Mapping[str, Any],
) -> None:
    with worker.serve_queries(_query_handlers(app)):
        await serve_on(app, bound, certificate, **limits, ready=lambda _: worker.started())


def _query_handlers(app: web.Application) -> dict[str, worker.QueryHandler]:
    """Return the query handlers of a worker by topic."""

    async def numbers() -> object:
        return await executor.run_in_thread(metrics.export_families)

    def checks(kind: health.ProbeKind) -> worker.QueryHandler:
        async def said() -> object:
            return dict(health_state.get_health(app).report(kind).checks)

        return said

    return {worker.METRICS: numbers} | {kind: checks(kind) for kind in get_args(health.ProbeKind)}
