"""A cancelled publish either did not happen or is complete, `Volume.published` tells which, and nothing goes on."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar import _errors
from sidecar.fs import atomic, flock
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.publish import store
from sidecar.volume.volume import Volume
from support import Eventually, opened

ROUNDS = 60

Publish = Callable[[Volume, str], Awaitable[object]]


async def put(volume: Volume, content: str) -> object:
    return await volume.put("config", content)


async def publish(volume: Volume, content: str) -> object:
    return await volume.publish({"config": content, f"name-{content}": "x", "same": "x"})


async def put_in_set(volume: Volume, content: str) -> object:
    if "same" not in await volume.names():
        await volume.publish({"config": "first", "same": "x"})
    return await volume.put("config", content)


async def stream(volume: Volume, content: str) -> object:
    async with volume.stage() as upload:
        for _ in range(4):
            await upload.write(content.encode() * 20_000)
        return await volume.put("config", upload)


def temporary(path: Path) -> list[str]:
    return [name for name in os.listdir(path) if name.startswith("..tmp-")]


def open_files() -> int:
    gc.collect()  # a volume of an earlier test may have its directory open until it is collected
    return len(os.listdir("/proc/self/fd"))


async def take_turns(number: int = 10) -> None:
    """Let the event loop do what it can do without waiting."""
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture
def met_lock(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a writer has found the directory locked by another one."""
    met, real = threading.Event(), flock.try_lock

    def try_lock(fd: int) -> bool:
        taken = real(fd)
        if not taken:
            met.set()
        return taken

    monkeypatch.setattr(flock, "try_lock", try_lock)
    return met


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another writer holds the lock of the directory."""
    with opened(path) as fd, flock.directory_lock(fd, timeout=5, where=str(path)):
        yield


@pytest.mark.parametrize("way", [put, publish, put_in_set, stream], ids=lambda way: way.__name__)
async def test_a_publish_cancelled_at_any_moment_happened_or_did_not(
    tmp_path: Path, way: Publish, eventually: Eventually
) -> None:
    """Never half of it, never in doubt which, never a file or a descriptor left over."""
    volume = Volume(tmp_path, keep=2, grace=0.0)
    begin = time.perf_counter()
    await way(volume, "start")
    usual = time.perf_counter() - begin
    before, chance = open_files(), random.Random(2024)
    outcomes = set()
    for number in range(ROUNDS):
        told = volume.published
        task = asyncio.ensure_future(way(volume, str(number)))
        # A loaded machine would show neither: one of four is cancelled before it can have begun, one once it has happened.
        while number % 4 == 2 and volume.published is told and not task.done():
            await asyncio.sleep(0.001)
        await asyncio.sleep(chance.random() * usual if number % 2 else 0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert volume.published is not None
        shown = await volume.snapshot()
        in_set = (tmp_path / "..data").is_symlink()
        whole_set = in_set and volume.published.version == shown.version
        assert whole_set or volume.published.version == version_of(shown["config"])
        outcomes.add(volume.published is not told)
        assert temporary(tmp_path) == []
    # To read is not waited for when it is cancelled: its thread may still have the directory open.
    await eventually(lambda: open_files() == before)
    assert outcomes == {True, False}, "one of the two outcomes was never tried"


async def test_nothing_goes_on_after_a_cancelled_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancellation is raised when the thread has ended, and not before."""
    volume = Volume(tmp_path)
    await volume.put("config", "old")
    begun, go_on, ended = (threading.Event() for _ in range(3))
    real = atomic.sync_directory

    def slow(fd: int) -> None:
        begun.set()
        go_on.wait(10)
        real(fd)
        ended.set()

    monkeypatch.setattr(atomic, "sync_directory", slow)
    task = asyncio.ensure_future(volume.put("config", "new"))
    await asyncio.to_thread(begun.wait, 10)
    for _ in range(3):
        task.cancel()
        await take_turns()
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    # It was visible when the cancellation came, so it was finished.
    assert volume.published is not None
    assert volume.published.version == version_of(b"new")


async def test_a_publish_that_is_cancelled_and_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the cause of the cancellation."""
    volume = Volume(tmp_path)
    await volume.put("config", "old")
    begun, go_on = threading.Event(), threading.Event()

    def fail(_: int) -> None:
        begun.set()
        go_on.wait(10)
        raise OSError(5, "error")

    monkeypatch.setattr(atomic, "sync_directory", fail)
    task = asyncio.ensure_future(volume.put("config", "new"))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await take_turns()
    go_on.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, _errors.PublishUncertain)


@pytest.mark.parametrize("way", [put, publish, stream], ids=lambda way: way.__name__)
async def test_a_publish_that_waits_for_a_neighbour_can_be_cancelled(
    tmp_path: Path, way: Publish, met_lock: threading.Event
) -> None:
    """Not when the neighbour lets go."""
    volume = Volume(tmp_path)
    await volume.prepare()
    with held(tmp_path):
        task = asyncio.ensure_future(way(volume, "x"))
        await asyncio.to_thread(met_lock.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert not isinstance(caught.value.__cause__, _errors.VolumeUnavailable), "by its limit"
    assert os.listdir(tmp_path) == []


async def test_a_publish_that_waits_for_another_of_the_same_volume_can_be_cancelled(
    tmp_path: Path, met_lock: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While that one goes on waiting for a neighbour."""
    volume = Volume(tmp_path)
    await volume.prepare()
    mutex, met_mutex = volume._store._mutex, threading.Event()

    def acquire(timeout: float) -> bool:
        taken = mutex.acquire(timeout=timeout)
        if not taken:
            met_mutex.set()
        return taken

    noting = SimpleNamespace(acquire=acquire, release=mutex.release)
    monkeypatch.setattr(volume._store, "_mutex", noting)
    with held(tmp_path):
        first = asyncio.ensure_future(volume.put("config", "1"))
        await asyncio.to_thread(met_lock.wait, 10)
        second = asyncio.ensure_future(volume.put("other", "2"))
        await asyncio.to_thread(met_mutex.wait, 10)
        second.cancel()
        await asyncio.wait({second})
        assert second.cancelled()
        assert not first.done()
    await first
    assert (tmp_path / "config").read_text() == "1"


@pytest.mark.parametrize("way", [put, publish], ids=lambda way: way.__name__)
async def test_a_publish_that_is_cancelled_in_time_does_not_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Publish
) -> None:
    """Before its content is visible it is withdrawn: nobody waits for it any more."""
    volume = Volume(tmp_path)
    await way(volume, "old")
    told = volume.published
    begun, go_on = threading.Event(), threading.Event()
    real = atomic.sync_file

    def slow(fd: int) -> None:
        begun.set()
        go_on.wait(10)
        real(fd)

    monkeypatch.setattr(atomic, "sync_file", slow)
    task = asyncio.ensure_future(way(volume, "new"))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await take_turns()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert volume.published is told
    assert (tmp_path / "config").read_text() == "old"
    assert temporary(tmp_path) == []


async def test_a_stuck_neighbour_is_an_error_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each of those that wait, not for one after the other."""
    monkeypatch.setattr("sidecar.volume.publish.store._LOCK_TIMEOUT", 0.3)
    volume = Volume(tmp_path)
    await volume.prepare()
    waits, real = [], flock.directory_lock

    def note(fd: int, **options: Any) -> Any:
        waits.append(options["timeout"])
        return real(fd, **options)

    with held(tmp_path):
        monkeypatch.setattr(flock, "directory_lock", note)
        waiting = [volume.put(f"{number}", "x") for number in range(8)]
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(waits) < 3 * 0.3, "one after the other"
    assert {type(one) for one in found} == {_errors.VolumeUnavailable}
    await volume.put("config", "x")


async def test_a_slow_disk_is_not_taken_for_a_stuck_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those at the end of the queue wait for longer than any of those before them has taken."""
    now, real = [1000.0], atomic.sync_file

    def slow(fd: int) -> None:
        time.sleep(0.02)  # for the others to look at their time limit
        now[0] += 0.4 * store._LOCK_TIMEOUT
        real(fd)

    volume = Volume(tmp_path)
    await volume.prepare()
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time, time_ns=time.time_ns)
    monkeypatch.setattr(store, "time", clock)
    monkeypatch.setattr(store, "_MUTEX_POLL_INTERVAL", 0.002)
    monkeypatch.setattr(atomic, "sync_file", slow)
    await asyncio.gather(*(volume.put(f"{number}", "x") for number in range(16)))
    assert len(await volume.names()) == 16


async def test_a_loop_that_ends_in_the_midst_of_a_publish_waits_for_it(tmp_path: Path) -> None:
    """`asyncio.run` cancels every task at once; what happened is known all the same."""
    volume = Volume(tmp_path, keep=0)
    asked = [0]

    async def main() -> None:
        async def forever() -> None:
            while True:
                asked[0] += 1
                await volume.put("config", str(asked[0]))

        task = asyncio.ensure_future(forever())
        while asked[0] < 3:
            await asyncio.sleep(0)
        del task  # nobody awaits it: the end of the loop cancels it

    await asyncio.to_thread(asyncio.run, main())
    assert volume.published is not None
    assert volume.published.version == version_of((tmp_path / "config").read_bytes())
    assert temporary(tmp_path) == []
