"""`sidecar write`: receive content over HTTP, and publish it."""

from __future__ import annotations

from dataclasses import asdict

from sidecar.cli import declare, lazy_imports, options, param_types
from sidecar.cli.impl import serve


@declare.command("write")
@options.path(
    "File to write, or directory for a set (end a directory that does not exist yet with /)."
)
@options.listening(default=8080)
@options.gating
@options.keeping
@declare.option(
    "--confirm",
    type=param_types.http_url,
    metavar="URL",
    help="URL of the reader; a write with `Prefer: wait=SECONDS` waits until it serves the new content.",
)
@declare.option(
    "--confirm-ca",
    type=param_types.EXISTING_FILE,
    help="CA certificate (PEM) to verify that reader. Without it, the system's CA certificates are used,"
    " and a reader on this machine is not verified.",
)
@declare.option(
    "--audit-log",
    metavar="FILE",
    help="File to append a JSON line to for each attempt to change a content, done or not; - for stdout.",
)
@options.tokens
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
    audit_log: str | None,
    token_file: str | None,
    read_token_file: str | None,
    allowed_origins: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    ui: bool,
) -> None:
    """Receive content over HTTP, and publish it to the file or directory at PATH.

    A missing directory is created; if PATH is a missing file, an empty file is published.
    Existing content survives a restart.

    Runs until SIGTERM: then it reports not ready, finishes running requests, and exits with 0.
    A second signal exits at once.
    """
    with lazy_imports.server_alone():
        from sidecar.http.apps import writer
    from sidecar.process import audit, memory, tracing

    if audit_log is not None:
        audit.configure(audit_log)
    memory.relax_gc()
    tracing.request("sidecar-write")
    # Above the 256 KiB of uvloop's decryption buffer: fetching those pages from the kernel each time is half the cost of an upload over TLS.
    memory.lower_mmap_threshold(320 << 10)
    app = writer.writer_app(
        path,
        gate=gating.gate(),
        max_size=gating.max_size,
        verify_key=gating.verify_key,
        **asdict(keeping),
        confirm=confirm,
        confirm_ca=confirm_ca,
        token_file=token_file,
        read_token_file=read_token_file,
        allowed_origins=allowed_origins,
        allowed_hosts=allowed_hosts,
        ui=ui,
    )
    serve.run(app, listening)
