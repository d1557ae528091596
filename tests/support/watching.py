"""What tests of the watch have in common: a consumer that remembers what it saw, and bounds of time."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.testing import until
from sidecar.volume.content.snapshot import Snapshot
from sidecar.volume.watch import stability
from sidecar.volume.watch.thread import WatchThread
from sidecar.volume.watch.watch import Watch

RECHECK = 0.2
MODES = ("inotify", "watchfiles", "poll")
#: The promise is the re-check and 100 ms; a machine that others load as well may take this much more.
SLACK = float(os.environ.get("WATCH_TEST_SLACK", "4.0"))
BOUND = RECHECK + 0.1 + SLACK

_numbers = itertools.count()


class Seen(list[Snapshot[Any]]):
    """The snapshots that a consumer got, in order; `watch` is where they came from."""

    def __init__(self, watch: Watch[Any]) -> None:
        super().__init__()
        self.watch = watch

    @property
    def texts(self) -> list[str]:
        return [one.text() for one in self]

    async def converge(self, text: str | dict[str, str], bound: float = BOUND) -> None:
        """Wait until the newest content is `text`: of a file, or of the files of a set."""
        await until(lambda: bool(self) and content(self[-1]) == text, timeout=bound)


def content(snapshot: Snapshot[Any]) -> str | dict[str, str]:
    if snapshot.name is not None:
        return snapshot.text()
    return {name: snapshot.text(name) for name in snapshot}


@asynccontextmanager
async def consumer(path: str | os.PathLike[str], **options: Any) -> AsyncIterator[Seen]:
    """Consume a watch in a task of its own, as a user's program does, until the block ends."""
    watch = Watch(path, **({"recheck": RECHECK} | options))
    seen = Seen(watch)

    async def consume() -> None:
        async for snapshot in watch:
            seen.append(snapshot)

    task = asyncio.create_task(consume())
    try:
        yield seen
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Scans:
    """Counts the scans that the watches of a test complete: a test waits for some more of them, not for a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.completed = 0
        scan = WatchThread._iterate

        def count(thread: WatchThread) -> float:
            try:
                return scan(thread)
            finally:
                self.completed += 1

        monkeypatch.setattr(WatchThread, "_iterate", count)

    async def more(self, number: int = 3) -> None:
        """Wait until `number` scans have begun and ended, and the event loop has received their results."""
        end = self.completed + number
        await until(lambda: self.completed > end)  # the first one may have begun before
        await asyncio.sleep(0)


def lengthen_quiet_period(monkeypatch: pytest.MonkeyPatch, seconds: float = 600.0) -> None:
    """Let a file without events wait for so long that only one which need not wait is shown within a test."""
    monkeypatch.setattr(stability, "QUIET_PERIOD", seconds)
    monkeypatch.setattr(stability._seconds_until_quiet, "__defaults__", (seconds,))


def replace(path: Path, text: str) -> None:
    """Replace a file as it should be done: another one, renamed over it."""
    temporary = path.with_name(f"..test-{next(_numbers)}")
    temporary.write_text(text)
    temporary.rename(path)


def threads() -> list[str]:
    """The names of the threads that watches have."""
    return [one.name for one in threading.enumerate() if one.name.startswith("sidecar-watch")]


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


class GitSync:
    """A directory as git-sync keeps it: a worktree for each commit, and a link to one of them, swapped by rename.

    https://github.com/kubernetes/git-sync
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.link = root / "current"
        (root / ".worktrees").mkdir(parents=True)

    def sync(self, files: dict[str, str]) -> None:
        """Check out a new worktree, let the link point at it, and remove the one before."""
        old = self.link.resolve() if self.link.is_symlink() else None
        tree = self.root / ".worktrees" / f"{next(_numbers):040x}"
        for name, text in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        temporary = self.root / "tmp-link"
        temporary.symlink_to(tree.relative_to(self.root))
        temporary.rename(self.link)
        if old is not None:
            remove(old)


def remove(directory: Path) -> None:
    """`rm -rf`."""
    shutil.rmtree(directory)


def wait(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait in a test without an event loop."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit, f"not within {timeout} s"
        time.sleep(0.002)
