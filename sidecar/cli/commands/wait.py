"""`sidecar wait`: for init containers and scripts that must not begin before the content is there."""

from __future__ import annotations

import click

from sidecar.cli import declare, escape, options, param_types


@declare.command("wait")
@options.path(
    "File that must be there, or directory that must hold one (if it is not there yet: end it with /)."
)
@declare.option(
    "--timeout", type=param_types.seconds, default=60.0, help="Seconds to wait; 0 looks once."
)
@declare.option(
    "--etag", help="Wait for this very version, as `publish` prints it or a writer's ETag says it."
)
@declare.option(
    "--min-size",
    type=param_types.size,
    default="0",
    help="Least number of bytes: 1 waits for more than the empty file that a writer begins with.",
)
@options.patterns
@options.gating
@options.logging(level="error")
def command(
    *,
    path: str,
    timeout: float,
    etag: str | None,
    min_size: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    gating: options.ValidationOptions,
) -> int:
    """Wait until PATH is there and valid, and exit with 0; exit with 1 after --timeout.

    What it still waits for, and why, is told on stderr every few seconds.
    On success the version is printed, which is the ETag without its quotes.
    Stopped by a signal, it does not exit with 0: an init container that was stopped has not succeeded.
    """
    from sidecar.cli.impl.wait import Waiting
    from sidecar.process import lifecycle

    waiting = Waiting(
        path, gating=gating, etag=etag, min_size=min_size, include=include, exclude=exclude
    )
    version = lifecycle.run(waiting.wait(timeout))
    if version is None:
        return _stopped(path)
    if version:
        click.echo(version)
        return 0
    missing = escape.one_line(waiting.missing)
    click.echo(f"sidecar: {path} is not there after {timeout:g} s: {missing}", err=True)
    return 1


def _stopped(path: str) -> int:
    click.echo(f"sidecar: stopped while waiting for {path}", err=True)
    return 1
