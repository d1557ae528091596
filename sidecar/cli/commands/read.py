"""`sidecar read`: serve a file or a directory over HTTP."""

from __future__ import annotations

from dataclasses import asdict

from sidecar.cli import declare, lazy_imports, options
from sidecar.cli.impl import serve


@declare.command("read")
@options.path(
    "File to serve, or directory of files (end a directory that does not exist yet with /)."
)
@options.listening(default=8081)
@declare.option(
    "--missing",
    metavar="TEXT",
    help="Respond with this text, instead of 503, until something has been published.",
)
@options.watching
@options.tokens
@options.allowed_hosts
@declare.repeated(
    "--cors-origin",
    "ORIGIN",
    help="Origin whose pages may read contents and events in a browser, for example https://app.example.com; may be repeated. Without it: none.",
)
@options.ui("Serve /ui, a page that shows the content, its history and its changes.")
@options.logging()
def command(
    *,
    path: str,
    listening: options.ServerOptions,
    missing: str | None,
    watching: options.WatchOptions,
    token_file: str | None,
    read_token_file: str | None,
    allowed_hosts: tuple[str, ...],
    cors_origin: tuple[str, ...],
    ui: bool,
) -> None:
    """Serve the file or directory at PATH over HTTP: always the newest complete content.

    PATH may be missing at the start, and may disappear later: the last good content is still served.

    Runs until SIGTERM: then it reports not ready, finishes running requests, and exits with 0.
    A second signal exits at once.
    """
    with lazy_imports.server_alone():
        from sidecar.http.apps import reader
    from sidecar.process import memory, tracing

    memory.relax_gc()
    tracing.request("sidecar-read")
    app = reader.reader_app(
        path,
        missing=missing,
        token_file=token_file,
        read_token_file=read_token_file,
        allowed_hosts=allowed_hosts,
        cors_origin=cors_origin,
        ui=ui,
        **asdict(watching),
    )
    serve.run(app, listening)
