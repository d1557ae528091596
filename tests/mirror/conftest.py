"""A mirror that runs beside the test, with pauses that take no time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar import mirror
from sidecar.volume.volume import Volume

StartMirror = Callable[..., mirror.Mirror]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "shared")


@pytest.fixture
async def start_mirror(volume: Volume) -> AsyncIterator[StartMirror]:
    """Start a mirror of sources into the volume; it is cancelled at the end."""
    tasks: list[asyncio.Task[None]] = []

    def start(*sources: mirror.Source, **settings: Any) -> mirror.Mirror:
        settings = {"volume": volume, "pause": lambda attempt, error: 0.0, "held_pause": 0.0, **settings}  # fmt: skip
        made = mirror.Mirror(volume.path, sources, **settings)
        tasks.append(asyncio.create_task(made.run()))
        return made

    yield start
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
