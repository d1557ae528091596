"""What `sidecar wait` does: look, judge, say what is missing, and look again when something changes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from sidecar import _errors
from sidecar.cli import options
from sidecar.volume.gate import Gate
from sidecar.volume.snapshot import Snapshot
from sidecar.volume.watch import Watch

_PROGRESS = 5.0
"""Seconds between two lines that say what is still missing."""


class Waiting:
    """What is waited for, and what is missing for that, in words."""

    def __init__(
        self, path: str, *, gating: options.Gating, etag: str | None, min_size: int
    ) -> None:
        self.missing = "nothing has been published there"
        self._path = path
        self._gating = gating
        self._version = etag.removeprefix("W/").strip('"') if etag else None
        self._min_size = min_size

    async def wait(self, timeout: float) -> str:
        """Return the version once it is there and valid, an empty text after `timeout` seconds."""
        gate = self._gating.gate()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        async with Watch(self._path, max_size=self._gating.max_size) as watch:
            changed = asyncio.Event()
            watch.subscribe(changed.set)
            await watch.looked()
            while not (version := await self._present(watch, gate)):
                left = end - loop.time()
                if left <= 0:
                    break
                due = left > _PROGRESS
                if not await _within(changed, min(left, _PROGRESS)) and due:
                    left = end - loop.time()
                    click.echo(
                        f"waiting for {self._path}: {self.missing} ({left:.0f} s left)", err=True
                    )
        return version

    async def _present(self, watch: Watch[None], gate: Gate) -> str:
        """Return the version if all is as it should be; else note what is not."""
        snapshot = watch.snapshot
        if snapshot is None or watch.problem is not None:
            self.missing = watch.problem or self.missing
        elif problem := await self._problem(snapshot, gate):
            self.missing = problem
        else:
            return snapshot.version
        return ""

    async def _problem(self, snapshot: Snapshot[None], gate: Gate) -> str | None:
        if not snapshot:
            return "the directory holds no file yet"
        if self._version not in (None, snapshot.version):
            return f"version {snapshot.version} is there, and not {self._version}"
        if snapshot.size < self._min_size:
            return f"it has {snapshot.size} bytes, and {self._min_size} are the least"
        return await self._refusal(snapshot, gate)

    async def _refusal(self, snapshot: Snapshot[None], gate: Gate) -> str | None:
        for name, data in snapshot.items():
            where = self._path if snapshot.name else os.path.join(self._path, name)
            try:
                await gate.examine(name, Path(where), len(data), data)
            except _errors.ContentRefused as refused:
                return f"{name}: {refused.reasons[0]}"
            except _errors.PublishError as error:
                return str(error)
        return None


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event, and take it; False if it did not come in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
