"""`sidecar write`: what comes by HTTP becomes a file."""

from __future__ import annotations

from dataclasses import asdict

from sidecar.cli import declare, lazy_imports, options, param_types
from sidecar.cli.impl import serve


@declare.command("write")
@options.path("File to write, or directory for a set (if it is not there yet: end it with /).")
@options.listening(default=8080)
@options.gating
@options.keeping
@declare.option(
    "--confirm",
    type=param_types.http_url,
    metavar="URL",
    help="Reader that writes with `Prefer: wait=SECONDS` ask whether it serves the new content.",
)
@declare.option(
    "--confirm-ca",
    type=param_types.EXISTING_FILE,
    help="Authority (PEM) that must have signed the certificate of that reader; without it,"
    " those of the system, but a reader on this machine itself is not verified.",
)
@options.token_file
@options.allowed_origins
@options.allowed_hosts
@options.ui("Serve /ui, a page that shows the content and its history, and publishes.")
@options.logging()
def command(
    *,
    path: str,
    listening: options.ServerOptions,
    gating: options.ValidationOptions,
    keeping: options.StorageOptions,
    confirm: str | None,
    confirm_ca: str | None,
    token_file: str | None,
    allowed_origins: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    ui: bool,
) -> None:
    """Publish what comes by HTTP to the file or directory at PATH.

    The directory is created, and where PATH is a file that is not there yet, so is an empty one.
    Content that is there survives a restart.

    It runs until SIGTERM: then it is not ready any more, ends what it has begun, and exits with 0.
    A second signal exits at once.
    """
    with lazy_imports.server_alone():
        from sidecar.http.apps import writer
    from sidecar.process import memory

    memory.relax_gc()
    # Above the 256 KiB of uvloop's decryption buffer: fetching those pages from the kernel each time is half the cost of an upload over TLS.
    memory.lower_mmap_threshold(320 << 10)
    app = writer.writer_app(
        path,
        gate=gating.gate(),
        max_size=gating.max_size,
        **asdict(keeping),
        confirm=confirm,
        confirm_ca=confirm_ca,
        token_file=token_file,
        allowed_origins=allowed_origins,
        allowed_hosts=allowed_hosts,
        ui=ui,
    )
    serve.run(app, listening)
