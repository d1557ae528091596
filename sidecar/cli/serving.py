"""What `write` and `read` end with: the application is served, by one process or by several."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from sidecar.cli import options
from sidecar.runtime import descriptors

if TYPE_CHECKING:
    from aiohttp import web


def run(app: web.Application, listening: options.Listening) -> None:
    """Serve until a signal, as the options say."""
    descriptors.allow_enough()
    values = asdict(listening)
    count = values.pop("workers")
    if count == 1:
        from sidecar.http import serve
        from sidecar.runtime import running

        running.run(serve.serve(app, **values))
    else:
        from sidecar.http import workers

        workers.serve(app, count=count, **values)
