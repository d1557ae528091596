"""Serve the application of `write` and `read`, with one process or several."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from sidecar.cli import options
from sidecar.process import nofile_limit

if TYPE_CHECKING:
    from aiohttp import web


def run(app: web.Application, listening: options.ServerOptions) -> None:
    """Serve until a signal, with these options."""
    nofile_limit.raise_nofile_limit()
    values = asdict(listening)
    count = values.pop("workers")
    if count == 1:
        from sidecar.http.server import serve
        from sidecar.process import lifecycle

        lifecycle.run(serve.serve(app, **values))
    else:
        from sidecar.http.server import prefork

        prefork.serve_prefork(app, count=count, **values)
