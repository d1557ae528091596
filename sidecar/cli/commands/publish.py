"""`sidecar publish`: publish once, for shell scripts and init containers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sidecar import _errors
from sidecar.cli import declare, options

if TYPE_CHECKING:
    from sidecar.volume.publish.models import Publication
    from sidecar.volume.volume import Volume

_UNCERTAIN = 3
_STDIN = "-"


@declare.command("publish")
@click.argument("source", shell_complete=options.complete_path)
@options.path("File to replace, or directory to publish into.")
@declare.option(
    "--if-match",
    metavar="VERSION",
    help="Publish only if this is the current version (an ETag, with or without quotes); * means any.",
)
@declare.option(
    "--if-missing",
    is_flag=True,
    help="Publish only if nothing exists yet; otherwise keep the existing content and exit with 0 (init containers).",
)
@declare.option(
    "--signature",
    metavar="TEXT",
    help="Signature of a file, as `sidecar sign` prints it; published with the file, for --verify-key.",
)
@declare.option(
    "--dry-run", is_flag=True, help="Validate, report what would happen, and change nothing."
)
@options.gating
@options.keeping
@options.logging(level="warning", reports_failure=True)
def command(
    *,
    source: str,
    path: str,
    if_match: str | None,
    if_missing: bool,
    signature: str | None,
    dry_run: bool,
    gating: options.ValidationOptions,
    keeping: options.StorageOptions,
) -> int:
    """Publish SOURCE to PATH, atomically and durably, and print its version.

    \b
    SOURCE     PATH               effect
    file, -    file               replaces the file (- is standard input)
    file       directory, or …/   adds or replaces the file of this name; the others stay
    directory  directory          replaces the set: files that are not in SOURCE are removed

    A directory is published with its nested files, without names that begin with two dots,
    lost+found and empty directories. Anything else that cannot be part of a set is an error:
    links to directories, dangling links and links that lead outside, names that are not UTF-8,
    more than 32 nested directories. A source that changes while it is read
    is read again, and refused if it keeps changing.

    Exit codes: 0 visible and durable (or unchanged), 1 not published,
    2 usage error, 3 visible, but a power failure may still undo it.
    """  # noqa: D301 (click's mark for a paragraph that is not to be wrapped)
    from sidecar.process import lifecycle, tracing
    from sidecar.volume.volume import Volume

    tracing.request("sidecar-publish", parent=os.environ.get("TRACEPARENT"))
    into = path.endswith("/") or os.path.isdir(path)
    if os.path.isdir(source):
        if not into and os.path.lexists(path):
            raise _errors.ConfigError(
                f"{source} is a directory and {path} is a file: name a directory by --path"
            )
        directory, name = path, None
        if signature is not None:
            raise _errors.ConfigError(
                "--signature is that of one file; a directory contains its own: sidecar sign makes it"
            )
    else:
        directory, name = _target(source, path, into=into)
    volume = Volume(
        directory,
        **asdict(keeping),
        max_size=gating.max_size,
        gate=gating.gate(),
        verify_key=gating.verify_key,
    )
    if if_match and if_missing:
        raise click.UsageError(
            "--if-match and --if-missing contradict each other: give one of them"
        )
    conditions: dict[str, Any] = {
        "if_match": if_match,
        "if_none_match": "*" if if_missing else None,
    }
    if signature is not None:
        from sidecar.volume.content.metadata import Metadata
        from sidecar.volume.validation import signatures

        if (problem := signatures.why_unusable(signature)) is not None:
            raise _errors.ConfigError(f"--signature: {problem}")
        conditions["metadata"] = Metadata(signature=signature)
    try:
        done = lifecycle.run(
            _publish(volume, source, name, conditions, limit=gating.max_size, dry_run=dry_run)
        )
    except _errors.VersionConflict as conflict:
        if not if_missing or conflict.current is None:
            raise
        click.echo(conflict.current.strip('"'))
        return 0
    except _errors.PublishUncertain as error:
        click.echo(f"sidecar: {error}", err=True)
        return _UNCERTAIN
    if done is None:
        happened = "published" if volume.published else "not published"
        click.echo(f"sidecar: stopped by a signal; {source} was {happened}", err=True)
        return 1
    click.echo(done.version)
    if dry_run:
        click.echo(f"sidecar: {_trial(done, source, path, gating)}", err=True)
    return 0


def _trial(done: Publication, source: str, path: str, gating: options.ValidationOptions) -> str:
    """Return the summary of a dry run."""
    asked = (
        *(("signature", gating.verify_key), ("format", gating.format)),
        *(("schema", gating.schema), ("check", gating.check)),
    )
    examined = ", ".join(["size", *(name for name, value in asked if value), "names", "paths"])
    what = f"{'create' if done.created else 'replace'} {path} with {done.size} bytes of {'standard input' if source == _STDIN else source}"
    would = f"it would {what}" if done.changed else f"{path} has this content already"
    return f"nothing was changed; checked {examined}, free space and permissions: {would}"


def _target(source: str, path: str, *, into: bool) -> tuple[str, str]:
    """Return the directory and the name under which one file is published."""
    if not into:
        directory, name = os.path.split(os.path.abspath(path))
        return directory, name
    if source == _STDIN:
        raise _errors.ConfigError(
            f"standard input has no name, and {path} is a directory: name the file by --path {path.rstrip('/')}/NAME"
        )
    return path, os.path.basename(source)


async def _publish(
    volume: Volume,
    source: str,
    name: str | None,
    conditions: Mapping[str, Any],
    *,
    limit: int,
    dry_run: bool,
) -> Publication:
    import asyncio

    from sidecar.cli.impl import publish_source
    from sidecar.process import executor

    options: dict[str, Any] = {**conditions, "dry_run": dry_run}
    if name is None:
        return await _publish_set(volume, source, options, limit)
    with publish_source.open_source(None if source == _STDIN else source) as fd:
        steady = publish_source.ChangeDetector(fd)
        for attempt in range(publish_source.READ_ATTEMPTS):
            if attempt:
                await asyncio.sleep(publish_source.RETRY_DELAY)
                steady.restart()
            async with volume.stage(name, dry_run=dry_run) as upload:
                async with aclosing(publish_source.read_chunks(fd)) as pieces:
                    async for piece in pieces:
                        await upload.write(piece)
                if await executor.run_in_thread(steady.is_unchanged, upload.size, upload.version):
                    return await volume.put(name, upload, **options)
    raise publish_source.changed_error(source)


async def _publish_set(
    volume: Volume, source: str, options: Mapping[str, Any], limit: int
) -> Publication:
    from sidecar.cli.impl import publish_source
    from sidecar.process import executor

    for _ in range(publish_source.READ_ATTEMPTS):
        files = await executor.run_in_thread(publish_source.read_set, source, limit)
        # A large file is read again while it is published.
        with contextlib.suppress(_errors.ContentAltered):
            return await volume.publish(files, **options)
    raise publish_source.changed_error(source)
