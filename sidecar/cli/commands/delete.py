"""`sidecar delete`: remove a file as `sidecar publish` puts it there, and forget its history if that is wanted."""

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
    help="Forget its older versions, too: those of the file, and generations of a set that hold it.",
)
@declare.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@options.keeping
@options.logging(level="warning", reports_failure=True)
def command(
    *, path: str, if_match: str | None, purge: bool, dry_run: bool, keeping: options.StorageOptions
) -> int:
    """Remove the file at PATH, of a set or by itself.

    Its older versions stay, to be rolled back to, unless --purge is given;
    with --purge a file that is gone already is purged as well.

    Exit codes: 0 it is gone, 1 it was not removed, 2 called wrongly,
    3 it is gone, but a power cut may still bring it back.
    """
    from sidecar.process import lifecycle
    from sidecar.volume.volume import Volume

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
