"""The implementation of `sidecar wait`: check the content, report what is missing, and check again after changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import click

from sidecar import _errors
from sidecar.cli import escape, options
from sidecar.volume.content.snapshot import Snapshot
from sidecar.volume.validation.gate import Gate
from sidecar.volume.watch.watch import Watch

_FIRST_PROGRESS_DELAY = 1.0
_PROGRESS_INTERVAL = 5.0
"""Seconds until the first progress line, and between two of them."""
_STABILITY_TIMEOUT = 1.5
"""Seconds that a freshly written content may need to become stable, whatever --timeout says."""


class Waiting:
    """The conditions to wait for, and which one is not met."""

    def __init__(
        self,
        path: str,
        *,
        gating: options.ValidationOptions,
        etag: str | None,
        min_size: int,
        include: tuple[str, ...],
        exclude: tuple[str, ...],
    ) -> None:
        self.missing = "it is being written"
        self._path = path
        self._gating = gating
        self._watch = Watch(
            path,
            max_size=gating.max_size,
            include=include,
            exclude=exclude,
            verify_key=gating.verify_key,
        )
        self._version = etag.removeprefix("W/").strip('"') if etag else None
        self._min_size = min_size

    async def wait(self, timeout: float) -> str:
        """Return the version once it is valid, an empty string after `timeout` seconds."""
        gate = self._gating.gate()
        clock = asyncio.get_running_loop().time
        end, stability_end, next_progress = (
            clock() + timeout,
            clock() + _STABILITY_TIMEOUT,
            clock() + _FIRST_PROGRESS_DELAY,
        )
        async with self._watch as watch:
            changed = asyncio.Event()
            watch.subscribe(changed.set)
            await watch.looked()
            while not (version := await self._present(watch, gate)):
                undecided = watch.snapshot is None and watch.problem is None
                left = (max(end, stability_end) if undecided else end) - clock()
                if left <= 0:
                    break
                if clock() >= next_progress:
                    missing = escape.one_line(self.missing)
                    click.echo(f"waiting for {self._path}: {missing} ({left:.0f} s left)", err=True)
                    next_progress = clock() + _PROGRESS_INTERVAL
                await _wait_for(changed, min(left, next_progress - clock()))
        return version

    async def _present(self, watch: Watch[None], gate: Gate) -> str:
        """Return the version if all conditions are met; else set `missing`."""
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
        for name in snapshot:
            content = snapshot.content(name)
            data = None if content.is_large else content.data
            where = self._path if snapshot.name else os.path.join(self._path, name)
            try:
                await gate.examine(name, Path(where), content.size, data)
            except _errors.ContentRefused as refused:
                return f"{name}: {refused.reasons[0]}"
            except _errors.PublishError as error:
                return str(error)
        return None


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most `seconds`, and clear it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
