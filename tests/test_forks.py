"""After a fork, and in a second event loop: either it works, or it says that it does not."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import sidecar
from sidecar import logs, testing
from support import Eventually, WaitFor
from support.watching import threads

FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


async def in_child(main: Callable[[], Coroutine[Any, Any, object]]) -> object:
    """What `main` returns, or raises, as text, in a child that is forked now, while everything is under way."""
    ours, theirs = FORK.Pipe()

    def run() -> None:
        asyncio._set_running_loop(None)
        try:
            theirs.send(asyncio.run(asyncio.wait_for(main(), 40)))
        except BaseException as error:  # noqa: BLE001 (it is what the test compares)
            theirs.send(f"{type(error).__name__}: {error}")

    child = FORK.Process(target=run)
    child.start()
    try:
        assert await asyncio.to_thread(ours.poll, 50), "the child says nothing"
        return ours.recv()
    finally:
        child.kill()
        child.join()
        ours.close()
        theirs.close()


async def in_other_loop(main: Callable[[], Coroutine[Any, Any, object]]) -> object:
    """What `main` returns, or raises, as text, in the loop of another thread."""

    def run() -> object:
        try:
            return asyncio.run(asyncio.wait_for(main(), 40))
        except Exception as error:  # noqa: BLE001 (it is what the test compares)
            return f"{type(error).__name__}: {error}"

    return await asyncio.to_thread(run)


async def test_several_watched_paths_are_dead_in_a_child_and_work_once_entered_there(
    tmp_path: Path,
) -> None:
    """As one watch: `failure` says it; who iterates in the child gets what is there now, and not what was."""
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_text("old")
    async with sidecar.watch(one, two) as group:
        await asyncio.gather(*(watch.looked() for watch in group.watches.values()))

        async def main() -> object:
            failure = group.failure or ""
            await sidecar.publish_file(two, "new")
            async for snapshots in group:
                if snapshots[str(two)].text() == "new":
                    break
            return ["forked after" in failure, group.failure]

        assert await in_child(main) == [True, None]
        assert group.failure is None


async def test_several_watched_paths_belong_to_one_loop(tmp_path: Path) -> None:
    """Another one would be told late; it must not get what was there at first, and nothing after that."""
    async with sidecar.watch(tmp_path / "one", tmp_path / "two") as group:

        async def main() -> object:
            return await anext(aiter(group))

        assert "another event loop" in str(await in_other_loop(main))


async def test_a_watch_is_dead_in_a_child_and_says_so(tmp_path: Path) -> None:
    """gunicorn --preload, multiprocessing: no thread comes along; the content would be old for ever, as if it were new."""
    (tmp_path / "x").write_text("1")
    async with sidecar.watch(tmp_path / "x") as watch:
        await watch.looked()

        async def main() -> object:
            return [watch.failure, watch.stale, watch.snapshot and watch.snapshot.text()]

        said: Any = await in_child(main)
        assert ["it was forked after" in said[0], "it was forked after" in said[1], said[2]] == [
            True,
            True,
            "1",
        ]
        told = await in_child(lambda: watch.changed(watch.etag, 5))
        assert "RuntimeError" in str(told)
        assert watch.failure is None


async def test_a_watch_can_be_entered_anew_in_a_child(tmp_path: Path) -> None:
    """And the one of the parent goes on."""
    (tmp_path / "x").write_text("1")
    async with sidecar.watch(tmp_path / "x") as watch:
        await watch.looked()

        async def main() -> object:
            async with watch:
                await watch.looked()
                await sidecar.publish_file(tmp_path / "x", "2")
                found = await watch.changed(sidecar.Snapshot.of({"x": "1"}, single=True).etag, 5)
                return [found and found.text(), watch.failure]

        assert await in_child(main) == ["2", None]
        found = await watch.changed(sidecar.Snapshot.of({"x": "1"}, single=True).etag, 5)
        assert found is not None
        assert found.text() == "2"


async def test_probes_of_a_forked_application_fail(tmp_path: Path) -> None:
    """`follow` reports to `/livez`, and a restart mends it."""
    (tmp_path / "x").write_text("1")
    app = web.Application()
    app.cleanup_ctx.append(sidecar.follow(tmp_path / "x"))
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        from sidecar.http import health_state

        async def main() -> object:
            return dict(health_state.get_health(app).report("live").checks)

        said = await in_child(main)
        assert "it was forked after" in str(said)
        assert health_state.get_health(app).report("live").ok
    finally:
        await runner.cleanup()


async def test_a_tail_in_use_is_refused_in_a_child(tmp_path: Path, eventually: Eventually) -> None:
    """Both would move one checkpoint, and each deliver everything. A tail of its own is followed there."""
    log = testing.LogFile(tmp_path / "app.log")
    log.write("one", "two")
    source = logs.tail(log.path, checkpoint=tmp_path / "offsets.json")
    collector = logs.Collector(source, [], [testing.MemorySink()])
    running = asyncio.create_task(collector.run())
    await eventually(lambda: collector.started)

    async def again() -> object:
        await logs.collect(source, sink=testing.MemorySink(), until_end=True)
        return "collected"

    async def other() -> object:
        sink = testing.MemorySink()
        await logs.collect(logs.tail(log.path), sink=sink, until_end=True)
        return [sink.lines, collector.failure()]

    assert str(await in_child(again)).startswith("RuntimeError: the tail of ")
    said: Any = await in_child(other)
    assert said[0] == ["one", "two"]
    assert "forked" in said[1]
    assert "logs.tail" in said[1]
    assert collector.failure() is None
    collector.leave(5.0)
    await running


@pytest.mark.parametrize("what", ["scan", "read", "state", "save", "acknowledge", "on_write"])
async def test_an_open_tail_is_refused_in_a_child_whoever_has_its_locks(
    tmp_path: Path, what: str
) -> None:
    """A lock that a thread had when the process was forked is never given back: it would wait for ever."""
    source = logs.tail(tmp_path / "app.log", checkpoint=tmp_path / "offsets.json")
    source.open()
    given: dict[str, Any] = {
        "read": ("", 100), "acknowledge": ("", []), "on_write": ([],), "save": (source.state(),),
    }  # fmt: skip

    async def main() -> object:
        return getattr(source, what)(*given.get(what, ()))

    with source._files_lock, source._reader.windows_lock:
        assert "RuntimeError: the tail of" in str(await in_child(main))
    source.close()


async def test_a_tail_that_is_made_before_a_fork_is_used_after_it(tmp_path: Path) -> None:
    """Nothing is open before it is collected."""
    log = testing.LogFile(tmp_path / "app.log")
    log.write("one")
    source, sink = logs.tail(log.path), testing.MemorySink()

    async def main() -> object:
        await logs.collect(source, sink=sink, until_end=True)
        return sink.lines

    assert await in_child(main) == ["one"]


async def test_a_child_does_not_keep_the_checkpoint_of_a_collection_that_has_ended(
    tmp_path: Path,
) -> None:
    """A lock of flock(2) belongs to all who have the descriptor: the next collection would wait for the child's end."""
    stop = FORK.Event()
    first, second = (logs.tail(tmp_path / "x", checkpoint=tmp_path / "o.json") for _ in range(2))
    assert first.lock_checkpoint()
    child = FORK.Process(target=stop.wait, args=(20,))
    child.start()
    try:
        first.release()
        assert second.lock_checkpoint()
        second.release()
    finally:
        stop.set()
        child.join()


async def test_a_child_does_not_free_the_checkpoint_of_its_parent(tmp_path: Path) -> None:
    first, second = (logs.tail(tmp_path / "x", checkpoint=tmp_path / "o.json") for _ in range(2))
    assert first.lock_checkpoint()

    async def main() -> object:
        first.release()
        return None

    assert await in_child(main) is None
    assert not second.lock_checkpoint()
    first.release()


async def test_a_volume_publishes_in_a_child_whatever_is_under_way(tmp_path: Path) -> None:
    """The threads of the parent are not there, and its locks are nobody's: a publish would wait for ever."""
    volume = sidecar.Volume(tmp_path, gate={"type": "object"})
    await volume.put("x", "{}")
    assert volume._store._mutex.acquire(timeout=5)
    try:

        async def main() -> object:
            return (await volume.put("x", '{"a": 1}')).changed

        assert await in_child(main) is True
    finally:
        volume._store._mutex.release()
    assert (await volume.put("x", '{"a": 2}')).changed


async def test_a_child_that_is_forked_during_a_publish_does_not_keep_its_lock(
    tmp_path: Path,
) -> None:
    """A lock of flock(2) belongs to all who have the descriptor, also to those who do not know of it."""
    from sidecar.fs import flock

    fd = os.open(tmp_path, os.O_RDONLY)
    stop = FORK.Event()
    with flock.directory_lock(fd, timeout=1, where="x"):
        child = FORK.Process(target=stop.wait, args=(20,))
        child.start()
    try:
        with flock.directory_lock(fd, timeout=1, where="x"):
            pass
    finally:
        stop.set()
        child.join()
        os.close(fd)


async def test_a_watch_refuses_another_loop_instead_of_answering_late(tmp_path: Path) -> None:
    """A future of one loop that another thread fulfils wakes nobody: as the locks of asyncio, it says so."""
    (tmp_path / "x").write_text("1")
    async with sidecar.watch(tmp_path / "x") as watch:
        await watch.looked()

        async def enter() -> object:
            async with watch:
                return None

        for main in (enter, lambda: watch.changed(watch.etag, 5)):
            assert "another event loop" in str(await in_other_loop(main))


def test_a_watch_that_was_never_left_can_be_entered_in_the_next_loop(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    """The loop is closed, so nobody can leave it any more: a test, a shell, a second `asyncio.run`.

    No thread of the lost run stays behind.
    """
    (tmp_path / "x").write_text("1")
    watch = sidecar.watch(tmp_path / "x")

    async def main(*, leave: bool) -> object:
        await watch.__aenter__()
        await watch.looked()
        if leave:
            await watch.__aexit__(None, None, None)
        return watch.etag

    lost = threading.Thread(target=lambda: asyncio.run(main(leave=False)))
    lost.start()
    lost.join()
    assert asyncio.run(main(leave=True)) is not None
    assert not watch.in_use
    wait_for(lambda: not threads())


async def test_a_volume_publishes_in_several_loops_at_a_time(
    tmp_path: Path, eventually: Eventually
) -> None:
    """Contents of one name are grouped by loop: each caller is told in its own."""
    volume = sidecar.Volume(tmp_path)

    async def main() -> object:
        done = [await volume.put("x", f"{threading.get_ident()} {n}") for n in range(20)]
        return len(done)

    done = await asyncio.gather(main(), in_other_loop(main), in_other_loop(main))
    assert list(done) == [20, 20, 20]
