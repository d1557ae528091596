"""What `sidecar mirror` does, apart from its options."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from sidecar.cli.impl import probe_server
from sidecar.mirror.runner import Mirror
from sidecar.mirror.sources import factory
from sidecar.process import lifecycle, tracing
from sidecar.volume.volume import Volume

if TYPE_CHECKING:
    from sidecar.cli.action_options import Actions
    from sidecar.reload.runner import Reloader


def run(
    path: str,
    addresses: Sequence[str],
    *,
    volume: Mapping[str, Any],
    once: bool,
    or_last_good: bool,
    timeout: float | None,
    actions: Actions,
    initial: bool,
    host: str,
    port: int | None,
    **settings: Any,
) -> int:
    """Mirror until SIGTERM, or with `once` until a state of every source is published; return the exit code."""
    tracing.request("sidecar-mirror")
    placed = [factory.make_source(address) for address in addresses]
    mirror = Mirror(
        path,
        [one.source for one in placed],
        into=[one.into for one in placed],
        volume=Volume(path, **volume),
        once=once,
        **settings,
    )
    reloader = None
    if actions.chosen:
        from sidecar.cli.impl import reload
        from sidecar.reload.runner import Reloader

        made = reload.make_actions(actions)
        # With a slash: the directory need not be there yet.
        directory = os.path.join(path, "")
        size = volume["max_size"]
        reloader = Reloader(directory, made, once=once, initial=initial, max_size=size)
    work = _limited(_work(mirror, reloader, once=once, initial=initial), timeout)
    if port is not None:
        work = probe_server.beside(work, _probed(mirror, reloader), host, port)
    # It serves probes alone: uvloop's 3 MB would buy nothing.
    lifecycle.run(work, loop_factory=asyncio.new_event_loop)
    if not once:
        return 0
    if mirror.is_complete and reloader is not None and mirror.version and not reloader.version:
        why = reloader.problem or "stopped before"
        click.echo(f"sidecar: not everything was done for {path}: {why}", err=True)
        return 1
    if mirror.is_complete or (or_last_good and mirror.version is not None):
        return 0
    why = mirror.problem or "no source has answered yet"
    click.echo(f"sidecar: not everything was mirrored to {path}: {why}", err=True)
    return 1


async def _work(mirror: Mirror, reloader: Reloader | None, *, once: bool, initial: bool) -> None:
    """Mirror, and have the actions run for what is published."""
    if reloader is None:
        await mirror.run()
    elif once:
        await mirror.run()
        if mirror.version is not None:
            await reloader.run()
    else:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(mirror.run(), name="mirror")
                if not initial:
                    await mirror.completed()
                group.create_task(reloader.run(), name="reload")
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None


async def _limited(work: Coroutine[Any, Any, None], timeout: float | None) -> None:
    try:
        async with asyncio.timeout(timeout):
            await work
    except TimeoutError:
        pass


def _probed(mirror: Mirror, reloader: Reloader | None) -> probe_server.Probed:
    def readiness() -> str | None:
        if not (mirror.version or mirror.is_complete):
            return mirror.problem or "nothing is published"
        return None if reloader is None else reloader.problem

    return probe_server.Probed(
        "mirror",
        "sidecar mirror",
        "How far the sources are mirrored.",
        "Is a set published?",
        {
            "live": lambda: None if reloader is None else reloader.failure,
            "ready": readiness,
            "started": lambda: None if mirror.started else "the volume is still being looked at",
        },
    )
