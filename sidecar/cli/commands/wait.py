"""`sidecar wait`: for init containers and scripts that must not start before the content exists."""

from __future__ import annotations

import click

from sidecar.cli import declare, escape, options, param_types


@declare.command("wait")
@options.path(
    "File that must exist, or directory that must contain one (end a directory that does not exist yet with /)."
)
@declare.option(
    "--timeout", type=param_types.seconds, default=60.0, help="Seconds to wait; 0 checks once."
)
@declare.option(
    "--etag",
    help="Wait for exactly this version, as printed by `publish` or returned as ETag by a writer.",
)
@declare.option(
    "--min-size",
    type=param_types.size,
    default="0",
    help="Minimum number of bytes: 1 waits for more than the initial empty file of a writer.",
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
    """Wait until the content at PATH exists and is valid, and exit with 0; exit with 1 after --timeout.

    Every few seconds, stderr shows what is still missing, and why.
    On success, it prints the version, which is the ETag without quotes.
    If a signal stops it, it does not exit with 0: an init container that was stopped has not succeeded.
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
