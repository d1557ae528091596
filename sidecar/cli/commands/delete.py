"""`sidecar delete`: remove a published file, and its history on request."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sidecar import _errors
from sidecar.cli import declare, options

if TYPE_CHECKING:
    from sidecar.volume.volume import Volume

_UNCERTAIN = 3


@declare.command("delete")
@options.path("File to remove.")
@declare.option(
    "--if-match",
    metavar="VERSION",
    help="Remove only this version (an ETag, with or without quotes).",
)
@declare.option(
    "--purge",
    is_flag=True,
    help="Remove its older versions, too: those of the file, and generations of a set that contain it.",
)
@declare.option("--dry-run", is_flag=True, help="Report what would happen, and change nothing.")
@options.keeping
@options.logging(level="warning", reports_failure=True)
def command(
    *, path: str, if_match: str | None, purge: bool, dry_run: bool, keeping: options.StorageOptions
) -> int:
    """Remove the file at PATH: a single file, or one file of a set.

    Its older versions stay available for a rollback, unless --purge is given;
    --purge also works for a file that was deleted before.

    Exit codes: 0 removed, 1 not removed, 2 usage error,
    3 removed, but a power failure may still undo it.
    """
    from sidecar.process import lifecycle, tracing
    from sidecar.volume.volume import Volume

    tracing.request("sidecar-delete", parent=os.environ.get("TRACEPARENT"))
    directory, name = os.path.split(os.path.abspath(path))
    if not os.path.isdir(directory):  # which a volume would make
        raise _errors.FileMissing(f"cannot delete {path}: there is no directory {directory}")
    volume = Volume(directory, **asdict(keeping))
    try:
        done = lifecycle.run(_delete(volume, name, if_match, purge=purge, dry_run=dry_run))
    except _errors.PublishUncertain as error:
        click.echo(f"sidecar: {error}", err=True)
        return _UNCERTAIN
    return 0 if done else 1


async def _delete(
    volume: Volume, name: str, if_match: str | None, *, purge: bool, dry_run: bool
) -> bool:
    await volume.delete(name, if_match=if_match, purge=purge, dry_run=dry_run)
    return True
