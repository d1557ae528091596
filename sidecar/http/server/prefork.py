"""Serve an application by several processes: one for each core, all at the same port.

Each worker has an event loop, a watch and connections of its own.
What they share is what was in memory before they began, and what they answer for together:
`/metrics` of any worker is the sum of all, and a probe speaks for all, since a client may reach any of them.
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

#: What each worker would import for itself: in the parent it is in memory once, a fifth of what a worker needs.
_PRELOAD = ("uvloop", "asyncinotify", "ctypes.util")


def serve_prefork(
    app: web.Application,
    *,
    count: int,
    host: str,
    port: int | None,
    unix_socket: str | os.PathLike[str] | None,
    tls_cert: str | os.PathLike[str] | None,
    tls_key: str | os.PathLike[str] | None,
    **limits: Any,
) -> None:
    """Serve by `count` processes until a signal, as `run(serve(…))` does by one. It forks, so it is no coroutine.

    The application is made before, and started by each worker for itself.
    The limits of `serve_prefork` hold for each worker.

    Raises:
        ConfigError: as for `serve_prefork`; or this is not Linux, which alone spreads connections evenly.
        SystemExit: in the parent, when all workers have ended; see `process.prefork.supervisor.begin`.
    """
    if sys.platform != "linux":
        raise _errors.ConfigError("several workers need Linux: leave --workers at 1")
    with ExitStack() as stack:
        certificate = load_certificate(tls_cert, tls_key)
        places: list[list[socket.socket]] = [[] for _ in range(count)]
        if port is not None:
            places = sockets.bind_reuseport(host, port, count)
        if unix_socket is not None:
            shared = stack.enter_context(sockets.bind_unix(os.fspath(unix_socket)))
            for place in places:
                place.append(shared)
        for name in _PRELOAD:
            with suppress(ImportError):
                import_module(name)
        number = supervisor.fork_workers(
            count,
            release=lambda: _close(places),
            drain=limits["drain_delay"] + limits["drain_timeout"],
        )
        mine = places.pop(number - 1)
        # A socket of another worker that stayed open here would take connections after that worker has closed it.
        _close(places, but=mine)
        for one in mine:
            sockets.accept_syns(one)  # for the worker whose place this one takes
        lifecycle.run(_work(app, mine, certificate, limits))


def _close(places: Sequence[Sequence[socket.socket]], but: Sequence[socket.socket] = ()) -> None:
    for one in {one for place in places for one in place} - set(but):
        one.close()


async def _work(
    app: web.Application,
    bound: Sequence[socket.socket],
    certificate: ReloadingCertificate | None,
    limits: Mapping[str, Any],
) -> None:
    with worker.serve_queries(_answers(app)):
        await serve_on(app, bound, certificate, **limits, ready=lambda _: worker.started())


def _answers(app: web.Application) -> dict[str, worker.Answer]:
    """Return what a worker says when it is asked."""

    async def numbers() -> object:
        return await executor.run_in_thread(metrics.export_families)

    def checks(kind: health.ProbeKind) -> worker.Answer:
        async def said() -> object:
            return dict(health_state.get_health(app).report(kind).checks)

        return said

    return {worker.METRICS: numbers} | {kind: checks(kind) for kind in get_args(health.ProbeKind)}
