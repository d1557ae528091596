"""`sidecar read`: what is in a file is answered by HTTP."""

from __future__ import annotations

from dataclasses import asdict

from sidecar.cli import declare, lazy_imports, options
from sidecar.cli.impl import serve


@declare.command("read")
@options.path("File to serve, or directory of files (if it is not there yet: end it with /).")
@options.listening(default=8081)
@declare.option(
    "--missing",
    metavar="TEXT",
    help="Answer with this text while nothing has been published, instead of 503.",
)
@options.watching
@options.token_file
@options.allowed_hosts
@options.ui("Serve /ui, a page that shows the content, its history and its changes.")
@options.logging()
def command(
    *,
    path: str,
    listening: options.ServerOptions,
    missing: str | None,
    watching: options.WatchOptions,
    token_file: str | None,
    allowed_hosts: tuple[str, ...],
    ui: bool,
) -> None:
    """Serve the file or directory at PATH by HTTP, always the newest content that is whole.

    PATH need not be there yet, and may go away again: the last good content stays.

    It runs until SIGTERM: then it is not ready any more, ends what it has begun, and exits with 0.
    A second signal exits at once.
    """
    with lazy_imports.server_alone():
        from sidecar.http.apps import reader
    from sidecar.process import memory

    memory.relax_gc()
    app = reader.reader_app(
        path,
        missing=missing,
        token_file=token_file,
        allowed_hosts=allowed_hosts,
        ui=ui,
        **asdict(watching),
    )
    serve.run(app, listening)
