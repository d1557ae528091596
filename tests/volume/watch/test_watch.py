"""What a consumer may rely on: the present first, each version once, the newest for the slow, the last good for ever."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from sidecar import ConfigError, Snapshot, Volume
from sidecar.fs import openat
from sidecar.fs.notify import inotify
from sidecar.process import metrics
from sidecar.testing import ConfigMapVolume, until
from sidecar.volume.watch import session, stability, thread
from sidecar.volume.watch import watch as watches
from sidecar.volume.watch.group import watch
from sidecar.volume.watch.scanner import PathScanner
from sidecar.volume.watch.thread import WatchUpdate
from sidecar.volume.watch.watch import Watch, shared
from support import after
from support.watching import (
    BOUND,
    MODES,
    Scans,
    consumer,
    content,
    descriptors,
    remove,
    replace,
    threads,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    replace(tmp_path / "config", "0")
    return tmp_path / "config"


def metric(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


async def test_the_present_comes_first_and_then_each_version_once(path: Path) -> None:
    """And a content that is published again is not told again."""
    async with consumer(path) as seen:
        for text in ("0", "1", "1", "2", "2", "0"):
            replace(path, text)
            await seen.converge(text)
    assert seen.texts == ["0", "1", "2", "0"]


async def test_a_slow_consumer_gets_the_newest_and_no_backlog(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has missed is of no use to it."""
    scans, one = Scans(monkeypatch), Watch(path, recheck=0.02)
    async with aclosing(aiter(one)) as versions:
        assert (await anext(versions)).text() == "0"
        for number in range(1, 20):
            replace(path, str(number))
            await asyncio.sleep(0.005)
        await until(lambda: one.snapshot and one.snapshot.text() == "19", timeout=BOUND)
        assert (await anext(versions)).text() == "19"
        waiting = asyncio.ensure_future(anext(versions))
        await scans.more()
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_nothing_is_told_before_there_is_something(tmp_path: Path) -> None:
    """Waiting is not an error."""
    async with consumer(tmp_path / "config") as seen:
        await seen.watch.looked()
        assert not seen
        assert "nothing has been published" in str(seen.watch.problem)
        assert seen.watch.stale is None
        assert seen.watch.failure is None
        replace(tmp_path / "config", "")
        await seen.converge("")


async def lose_file(path: Path) -> None:
    path.unlink()


async def lose_directory(path: Path) -> None:
    remove(path.parent)


async def move_directory_away(path: Path) -> None:
    path.parent.rename(path.parent.with_name("away"))


async def put_a_directory_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "loss", [lose_file, lose_directory, move_directory_away, put_a_directory_there]
)
async def test_the_last_good_content_survives_its_file(
    tmp_path: Path,
    loss: Any,
    mode: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is kept for ever; consumers are told once that it is stale, and once that it is not any more."""
    caplog.set_level(logging.INFO)
    scans = Scans(monkeypatch)
    path = tmp_path / "volume" / "config"
    path.parent.mkdir()
    replace(path, "good")
    async with consumer(path, watch=mode, recheck=0.05) as seen:
        await seen.converge("good")
        await loss(path)
        await until(lambda: seen.watch.stale, timeout=BOUND)
        assert str(path) in str(seen.watch.stale)
        assert metric("sidecar_content_stale") == 1
        await scans.more()
        assert seen.watch.snapshot is not None
        assert seen.watch.snapshot.text() == "good"
        if path.is_dir():
            path.rmdir()
        path.parent.mkdir(exist_ok=True)
        replace(path, "good")
        await until(lambda: seen.watch.stale is None, timeout=BOUND)
        assert metric("sidecar_content_stale") == 0
    assert len(seen) == 1
    assert sum("stays" in one.message for one in caplog.records) == 1
    assert sum("can be read again" in one.message for one in caplog.records) == 1


@pytest.fixture
def another_user() -> Iterator[Path]:
    """The process is no longer root, in a directory that it may use."""
    inotify.Inotify().close()  # its modules may lie where that user cannot read
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    os.seteuid(65532)
    yield directory
    os.seteuid(0)
    remove(directory)


@pytest.mark.root
async def test_a_file_in_a_directory_that_may_only_be_passed_is_read_and_polled(
    another_user: Path,
) -> None:
    """inotify(7) needs read permission for the directory, open(2) of the file does not."""
    path = another_user / "config"
    os.seteuid(0)
    replace(path, "0")
    another_user.chmod(0o711)
    os.seteuid(65532)
    async with consumer(path) as seen:
        await seen.converge("0")
        assert (seen.watch.mode, "may be passed through" in str(seen.watch.fallback)) == (
            "poll",
            True,
        )


@pytest.mark.root
async def test_a_file_without_permission_is_stale_until_it_has_it(another_user: Path) -> None:
    """The reason names the user that lacks the permission; a mode sends no event that is listened to."""
    path = another_user / "config"
    os.seteuid(0)
    replace(path, "0")
    os.seteuid(65532)
    async with consumer(path, recheck=0.05) as seen:
        await seen.converge("0")
        os.seteuid(0)
        replace(path, "1")
        path.chmod(0)
        os.seteuid(65532)
        await until(lambda: "denied for user 65532" in str(seen.watch.stale), timeout=BOUND)
        os.seteuid(0)
        path.chmod(0o644)
        os.seteuid(65532)
        await seen.converge("1")
        # It may have been seen already before the mode was taken from it.
        await until(lambda: seen.watch.stale is None, timeout=BOUND)


async def test_an_unreadable_file_is_stale_until_it_can_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk takes nothing away."""
    async with consumer(path, recheck=0.05) as seen:
        await seen.converge("0")

        def fail(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(openat, "_read_all", fail)
        replace(path, "1")
        await until(lambda: "input/output error" in str(seen.watch.stale), timeout=BOUND)
        monkeypatch.undo()
        await seen.converge("1")
        assert seen.watch.stale is None


async def test_a_gap_between_the_old_file_and_the_new_one_is_not_told(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishers that remove and rename leave nothing for a moment."""
    monkeypatch.setattr(thread, "DELETION_QUIET", BOUND)  # a busy machine may lengthen the gap
    async with consumer(path) as seen:
        await seen.converge("0")
        for number in range(1, 20):
            path.unlink()
            await asyncio.sleep(0.002)
            replace(path, str(number))
            await seen.converge(str(number))
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


async def test_a_set_that_is_being_removed_is_never_seen_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rm -rf` takes one file after the other; what stays is the set as it was."""
    # However long a busy machine takes for it: removing 300 files has taken longer than any bound of seconds.
    for bound in ("DELETION_QUIET", "_MAX_DELETION_QUIET"):
        monkeypatch.setattr(stability, bound, math.inf)
    names = {f"{number:03}": str(number) for number in range(300)}
    for name, text in names.items():
        replace(tmp_path / name, text)
    async with consumer(f"{tmp_path}/", recheck=0.01) as seen:
        await seen.converge(names)
        for name in names:
            (tmp_path / name).unlink()
            await asyncio.sleep(0.001)
        await until(lambda: "is gone" in str(seen.watch.stale), timeout=BOUND)
        assert [content(one) for one in seen] == [names]


async def test_a_file_that_is_deleted_from_a_loose_set_is_gone_a_moment_later(
    tmp_path: Path,
) -> None:
    """One name less is a version; it is told when it is clear that it is not the first of many."""
    for name in ("a", "b"):
        replace(tmp_path / name, "0")
    async with consumer(tmp_path) as seen:
        await seen.converge({"a": "0", "b": "0"})
        (tmp_path / "a").unlink()
        await seen.converge({"b": "0"})
    assert seen[1].changed(seen[0]) == {"a"}


async def test_a_generation_that_loses_a_file_is_not_shown(tmp_path: Path) -> None:
    """A generation never changes: what is missing has been removed by somebody who should not."""
    volume = ConfigMapVolume(tmp_path)
    volume.update({"a": "0", "b": "0"})
    async with consumer(tmp_path, recheck=0.05) as seen:
        await seen.converge({"a": "0", "b": "0"})
        (tmp_path / "..data" / "a").unlink()
        await until(lambda: "has lost a" in str(seen.watch.stale), timeout=BOUND)
        volume.update({"a": "1", "b": "1"})
        await seen.converge({"a": "1", "b": "1"})
        assert seen.watch.stale is None
    assert len(seen) == 2


async def test_empty_files_of_a_set_are_there_from_the_beginning(tmp_path: Path) -> None:
    """A set is complete when its link points at it, whatever its files look like."""
    async with consumer(f"{tmp_path}/", recheck=3600) as seen:
        await seen.watch.looked()
        ConfigMapVolume(tmp_path).update({"empty": "", "full": "0"})
        await seen.converge({"empty": "", "full": "0"})
    assert len(seen) == 1


async def test_a_directory_that_comes_by_rename_is_taken_as_a_whole(tmp_path: Path) -> None:
    """New names, empty ones, all at once: nobody is in the middle of it."""
    volume = tmp_path / "volume"
    volume.mkdir()
    replace(volume / "a", "0")
    async with consumer(f"{volume}/", recheck=3600) as seen:
        await seen.converge({"a": "0"})
        new = tmp_path / "new"
        new.mkdir()
        for name, text in {"a": "1", "b": "1", "empty": ""}.items():
            (new / name).write_text(text)
        volume.rename(tmp_path / "old")
        new.rename(volume)
        await seen.converge({"a": "1", "b": "1", "empty": ""})
    assert len(seen) == 2


async def test_files_in_directories_of_a_loose_set_are_found_by_the_re_check(
    tmp_path: Path,
) -> None:
    """Where no event comes, what lies deeper is compared as well."""
    (tmp_path / "deep").mkdir()
    replace(tmp_path / "deep" / "a", "0")
    async with consumer(tmp_path, recheck=0.05, watch="poll") as seen:
        await seen.converge({"deep/a": "0"})
        replace(tmp_path / "deep" / "a", "1")
        await seen.converge({"deep/a": "1"})


def settings(snapshot: Snapshot[Any]) -> dict[str, int]:
    value: dict[str, int] = snapshot.json()
    if "port" not in value:
        raise ValueError("port is missing")
    return value


async def test_a_schema_makes_values_and_refuses_versions(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it raises for is not shown; the last good value stays, and the reason is told once."""
    replace(path, '{"port": 1}')
    async with consumer(path, schema=settings) as seen:
        await until(lambda: seen, timeout=BOUND)
        assert seen[0].value == {"port": 1}
        replace(path, "{}")
        await until(lambda: "port is missing" in str(seen.watch.stale), timeout=BOUND)
        assert seen.watch.snapshot is not None
        assert seen.watch.snapshot.value == {"port": 1}
        replace(path, '{"port": 2}')
        await until(lambda: len(seen) == 2, timeout=BOUND)
        assert seen.watch.stale is None
        assert seen[1].value == {"port": 2}
    told = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert sum("refuses" in one.message for one in told) == 1


async def test_a_refused_version_is_refused_still_when_its_file_comes_back(path: Path) -> None:
    """The reason is the schema's again, not the one why the file was away."""
    replace(path, '{"port": 1}')
    async with consumer(path, schema=settings, recheck=0.05) as seen:
        await until(lambda: seen, timeout=BOUND)
        replace(path, "{}")
        await until(lambda: "refuses" in str(seen.watch.stale), timeout=BOUND)
        path.unlink()
        await until(lambda: "is gone" in str(seen.watch.stale), timeout=BOUND)
        replace(path, "{}")
        await until(lambda: "refuses" in str(seen.watch.stale), timeout=BOUND)
        replace(path, '{"port": 1}')
        await until(lambda: seen.watch.stale is None, timeout=BOUND)
    assert len(seen) == 1


async def test_several_watches_of_one_path_do_not_meet(path: Path) -> None:
    """Each has its own thread and its own last version."""
    async with consumer(path) as one, consumer(path, watch="poll") as two, consumer(path) as three:
        for number in range(1, 4):
            replace(path, str(number))
            for seen in (one, two, three):
                await seen.converge(str(number))


async def test_breaking_out_of_the_loop_leaves_nothing_behind(path: Path) -> None:
    """No task, no descriptor, no thread."""
    await asyncio.sleep(0)
    gc.collect()  # what earlier tests have left is not to be counted
    tasks, files = len(asyncio.all_tasks()), descriptors()
    for _ in range(5):
        async for snapshot in watch(path):
            assert snapshot.text() == "0"
            break
    gc.collect()
    await until(lambda: not threads(), timeout=BOUND)
    await until(lambda: len(asyncio.all_tasks()) == tasks, timeout=BOUND)
    assert descriptors() == files


async def test_a_watch_can_be_entered_again_and_again(path: Path) -> None:
    """Also while the run before is still ending."""
    one = Watch(path)
    for number in range(20):
        replace(path, f"{number}")
        async for snapshot in one:
            assert snapshot.text() == f"{number}"
            break
        async with one:
            await one.looked()
            replace(path, f"{number} again")
            assert await one.changed(one.etag, BOUND)
    await until(lambda: not threads(), timeout=BOUND)


async def test_a_run_that_has_ended_is_not_heard_any_more(path: Path) -> None:
    """Its last news may arrive when the next one has begun."""
    one = Watch(path)
    async with one:
        await one.looked()
        old = one._session
    async with one:
        await one.looked()
        assert old is not None
        one._receive(
            old, WatchUpdate(Snapshot.of({"config": "old"}, single=True), "old", crash="old")
        )
        assert (one.stale, one.failure) == (None, None)
        assert one.snapshot is not None
        assert one.snapshot.text() == "0"


async def test_a_watch_that_is_entered_again_begins_with_the_present(path: Path) -> None:
    """Not with what was there when it was left."""
    one = Watch(path)
    async with one:
        await one.looked()
    replace(path, "1")
    async with aclosing(aiter(one)) as versions:
        assert (await anext(versions)).text() == "1"


def test_a_watch_can_be_used_in_one_loop_after_another(path: Path) -> None:
    """It keeps nothing of the loop that is closed."""
    one = Watch(path)

    async def use(text: str) -> None:
        replace(path, text)
        async with one:
            waiting = asyncio.ensure_future(one.changed(one.etag, BOUND))
            assert (await waiting).text() == text  # type: ignore[union-attr]

    for number in range(1, 4):
        asyncio.run(use(str(number)))
    assert not threads()


async def test_leaving_and_entering_at_once_leaves_a_living_watch(path: Path) -> None:
    """Whoever enters while the last one leaves has a run of their own."""
    one = Watch(path)

    async def visit(number: int) -> None:
        await asyncio.sleep(number % 7 / 1000)
        async with one:
            await one.looked()
            assert one.snapshot is not None

    await asyncio.gather(*(visit(number) for number in range(60)))
    async with one:
        replace(path, "alive")
        await until(lambda: one.snapshot and one.snapshot.text() == "alive", timeout=BOUND)
    assert not threads()


async def test_a_cancelled_consumer_leaves_nothing_behind(path: Path) -> None:
    """Whenever the cancellation comes: before the first look, during it, or while it waits."""
    files = descriptors()
    for number in range(30):

        async def consume() -> None:
            async with Watch(path, recheck=0.01) as one:
                await one.looked()
                await asyncio.Event().wait()

        task = asyncio.create_task(consume())
        await asyncio.sleep(number / 2000)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert not threads()
    assert descriptors() == files


async def test_a_shared_watch_is_one_for_the_same_path_and_options(path: Path) -> None:
    """It lives as long as somebody uses it, and the next one is new."""
    async with shared(path) as one, shared(str(path)) as two, shared(path, recheck=2) as other:
        assert one is two
        assert one is not other
        assert len(threads()) == 2
        await one.looked()
    assert not threads()
    assert not watches._shared
    async with shared(path) as three:
        assert three is not one
        await three.looked()
        assert three.snapshot is not None


async def test_changed_answers_as_soon_as_there_is_another_version(path: Path) -> None:
    """A long poll: at once if it is another one already, None when the time is over."""
    async with Watch(path) as one:
        first = await one.changed(None, BOUND)
        assert first is not None
        assert await one.changed('"another"', 0) is first
        most_of_it = after(0.04)
        assert await one.changed(first.etag, 0.05) is None
        assert most_of_it.is_set()
        waiting = asyncio.ensure_future(one.changed(first.etag, 60))
        await until(lambda: one._waiting)
        replace(path, "1")
        found = await asyncio.wait_for(waiting, BOUND)
        assert found is not None
        assert found.text() == "1"


async def test_subscribers_hear_of_each_change_of_content_and_state(path: Path) -> None:
    """One that fails is logged, and the others hear it all the same; one that has left hears nothing."""
    async with Watch(path, recheck=0.05) as one:
        await one.changed(None, BOUND)
        heard: list[tuple[str | None, bool]] = []

        def fail() -> None:
            raise RuntimeError("a fault of the subscriber's")

        leave = [
            one.subscribe(fail),
            one.subscribe(lambda: heard.append((one.etag, bool(one.stale)))),
        ]
        logging.getLogger("sidecar.volume.watch.watch").setLevel(logging.CRITICAL)
        try:
            first = one.etag
            path.unlink()
            await until(lambda: heard == [(first, True)], timeout=BOUND)
            replace(path, "1")
            await until(lambda: heard[-1] == (one.etag, False) and one.etag != first, timeout=BOUND)
        finally:
            logging.getLogger("sidecar.volume.watch.watch").setLevel(logging.NOTSET)
        told = len(heard)
        for one_leaves in leave:
            one_leaves()
            one_leaves()
        replace(path, "2")
        await until(lambda: one.snapshot and one.snapshot.text() == "2", timeout=BOUND)
        assert len(heard) == told


class Hanging:
    """Lets every look hang until it is released, as a dead server does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hangs = threading.Event()
        self.entered = threading.Event()
        self.released = threading.Event()
        look = PathScanner.scan

        def hang(*arguments: Any, **options: Any) -> Any:
            if self.hangs.is_set():
                self.entered.set()
                self.released.wait(30)
            return look(*arguments, **options)

        monkeypatch.setattr(PathScanner, "scan", hang)


async def test_a_look_that_hangs_is_a_failure_until_it_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Liveness looks at the data path: a dead disk fails it, an absent file does not."""
    monkeypatch.setattr(watches, "_SCAN_STALL", 0.2)
    hanging = Hanging(monkeypatch)
    async with Watch(path, recheck=0.02) as one:
        await one.looked()
        assert one.failure is None
        hanging.hangs.set()
        await until(lambda: "hanging" in str(one.failure), timeout=BOUND)
        assert one.snapshot is not None
        hanging.hangs.clear()
        hanging.released.set()
        await until(lambda: one.failure is None, timeout=BOUND)


async def test_leaving_does_not_wait_for_a_look_that_hangs(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program must be able to end, whatever its disk does; the thread ends when the disk answers."""
    monkeypatch.setattr(session, "_JOIN_TIMEOUT", 0.1)
    hanging = Hanging(monkeypatch)
    async with Watch(path, recheck=0.02) as one:
        await one.looked()
        hanging.hangs.set()
        await until(hanging.entered.is_set)
    assert threads()
    assert "its thread is abandoned" in caplog.text
    hanging.released.set()
    await until(lambda: not threads(), timeout=BOUND)


async def test_a_watch_that_fails_says_so_once_and_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours must not end it unseen: counted, told, and tried again."""
    async with Watch(path, recheck=0.02) as one:
        await one.looked()
        before = metric("sidecar_watch_errors_total")
        failures: list[float] = []
        monkeypatch.setattr(PathScanner, "scan", lambda *_, **__: failures.append(1) or 1 / 0)
        await until(lambda: "ZeroDivisionError" in str(one.failure), timeout=BOUND)
        assert one.snapshot is not None
        await until(lambda: len(failures) >= 3)
        monkeypatch.undo()
        replace(path, "1")
        await until(lambda: one.snapshot and one.snapshot.text() == "1", timeout=BOUND)
        assert one.failure is None
        assert metric("sidecar_watch_errors_total") == before + 1
    assert sum("begins again" in one.message for one in caplog.records) == 1


async def test_what_no_event_told_is_counted_as_a_rescue(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only that: neither what an event told, nor a further link or mode of the same bytes."""
    scans = Scans(monkeypatch)
    async with consumer(path, recheck=0.05) as seen:
        await seen.converge("0")
        before = metric("sidecar_poll_rescues_total")
        replace(path, "1")
        await seen.converge("1")
        os.link(path, path.with_name("..history"))
        path.chmod(0o600)
        await scans.more()
        assert metric("sidecar_poll_rescues_total") == before
        monkeypatch.setattr(inotify.Inotify, "drain", lambda _: [])
        thread = seen.watch._session.thread  # type: ignore[union-attr]
        await until(lambda: not thread._by_event, timeout=BOUND)
        replace(path, "2")
        await seen.converge("2")
        assert metric("sidecar_poll_rescues_total") == before + 1


@pytest.mark.parametrize("left", [("old",), ()])
async def test_a_file_that_goes_away_is_not_taken_for_one_that_took_long_to_come(
    tmp_path: Path, left: tuple[str, ...]
) -> None:
    """What is left is old, and nobody knows when the other one was deleted; of nothing there is no age."""
    volume = Volume(tmp_path)
    await volume.publish(dict.fromkeys((*left, "gone"), "x"))
    past = time.time() - 3600
    for path in tmp_path.glob("..gen-*/*"):
        os.utime(path, (past, past))
    async with volume.watch(recheck=0.02) as one:
        await one.looked()
        before = metric("sidecar_propagation_seconds_sum")
        await volume.delete("gone")
        await until(
            lambda: one.snapshot is not None and len(one.snapshot) == len(left), timeout=BOUND
        )
        assert metric("sidecar_propagation_seconds_sum") == before
        age = metrics.REGISTRY.get_sample_value("sidecar_content_age_seconds")
        assert age is None if not left else age is not None and age < 2 * 3600


async def test_the_metrics_tell_mode_version_and_age(path: Path) -> None:
    """For as long as it is watched, and not after."""
    async with consumer(path, watch="poll") as seen:
        await seen.converge("0")
        text = metrics.exposition()[0].decode()
        assert 'sidecar_watch_mode{mode="poll"} 1.0' in text
        assert f'sidecar_content_info{{etag="{seen[0].version}"}} 1.0' in text
        os.utime(path, (1, 1))
        replace(path, "1")
        await seen.converge("1")
        assert metric("sidecar_propagation_seconds_count") > 0
    assert 'sidecar_watch_mode{mode="poll"} 0.0' in metrics.exposition()[0].decode()


@pytest.mark.parametrize(
    "options",
    [{"recheck": 0}, {"recheck": -1}, {"recheck": float("nan")}, {"watch": "inotifi"}],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options: Any) -> None:
    """Not in a thread, a moment later, again and again."""
    with pytest.raises(ConfigError):
        Watch("/shared", **options)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_is_none_is_refused_at_once(path: str) -> None:
    """No file system has it."""
    with pytest.raises(ConfigError):
        Watch(path)


async def test_its_repr_is_one_for_a_log(path: Path) -> None:
    """Path, mode, version, and what is wrong."""
    async with Watch(path) as one:
        await one.looked()
        assert repr(one) == f"<Watch {path} mode=inotify version=5feceb66>"
        path.unlink()
        await until(lambda: one.stale, timeout=BOUND)
        assert "stale='cannot read" in repr(one)
