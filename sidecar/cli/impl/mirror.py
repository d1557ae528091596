"""What `sidecar mirror` does, apart from its options."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import click

from sidecar.cli.impl import probe_server
from sidecar.mirror.runner import Mirror
from sidecar.mirror.sources import factory
from sidecar.process import lifecycle
from sidecar.volume.volume import Volume


def run(
    path: str,
    addresses: Sequence[str],
    *,
    volume: Mapping[str, Any],
    once: bool,
    or_last_good: bool,
    timeout: float | None,
    host: str,
    port: int | None,
    **settings: Any,
) -> int:
    """Mirror until SIGTERM, or with `once` until a state of every source is published; return the exit code."""
    placed = [factory.make_source(address) for address in addresses]
    mirror = Mirror(
        path,
        [one.source for one in placed],
        into=[one.into for one in placed],
        volume=Volume(path, **volume),
        once=once,
        **settings,
    )
    work = _limited(mirror, timeout)
    if port is not None:
        work = probe_server.beside(work, _probed(mirror), host, port)
    lifecycle.run(work)
    if not once or mirror.is_complete or (or_last_good and mirror.version is not None):
        return 0
    why = mirror.problem or "no source has answered yet"
    click.echo(f"sidecar: not everything was mirrored to {path}: {why}", err=True)
    return 1


async def _limited(mirror: Mirror, timeout: float | None) -> None:
    try:
        async with asyncio.timeout(timeout):
            await mirror.run()
    except TimeoutError:
        pass


def _probed(mirror: Mirror) -> probe_server.Probed:
    return probe_server.Probed(
        "mirror",
        "sidecar mirror",
        "How far the sources are mirrored.",
        "Is a set published?",
        {
            "ready": lambda: (
                None
                if mirror.version or mirror.is_complete
                else mirror.problem or "nothing is published"
            ),
            "started": lambda: None if mirror.started else "the volume is still being looked at",
        },
    )
