"""Files in directories below the one that is followed, and those that links lead to: seen as soon and as whole as any."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from sidecar.fs.notify import inotify
from sidecar.fs.notify.base import EventBatch, WatchTarget
from sidecar.fs.notify.inotify import InotifyNotifier
from sidecar.fs.notify.wakeup import WakeupPipe
from sidecar.process import metrics
from sidecar.testing import until
from sidecar.volume.watch import stability
from sidecar.volume.watch.thread import WatchThread
from support.watching import Scans, consumer, replace

#: So slow a re-check that only events can be the reason for a look.
NEVER = 60.0
AT_ONCE = 5.0


@pytest.fixture(autouse=True)
def _old(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is looked at twice because a clock may be coarse: that is not what is asked here."""
    monkeypatch.setattr("sidecar.volume.content.read_state._CLOCK_GRANULARITY", 0.0)


@pytest.mark.parametrize("depth", ["sub", "a/b/c"])
async def test_a_nested_file_that_is_replaced_is_seen_by_its_event(
    tmp_path: Path, depth: str
) -> None:
    """inotify(7): "Inotify monitoring of directories is not recursive", so each directory is watched."""
    (tmp_path / depth).mkdir(parents=True)
    replace(tmp_path / depth / "f", "0")
    async with consumer(f"{tmp_path}/", recheck=NEVER) as seen:
        await seen.converge({f"{depth}/f": "0"})
        rescues = metrics.POLL_RESCUES_TOTAL._value.get()
        replace(tmp_path / depth / "f", "1")
        await seen.converge({f"{depth}/f": "1"}, AT_ONCE)
        assert metrics.POLL_RESCUES_TOTAL._value.get() == rescues


async def test_a_nested_file_is_shown_after_its_writer_has_closed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old file that is rewritten, and a new one in a new directory, each in two pieces.

    By the clock of the watch, each has been unchanged for longer than a file without events must be.
    """
    monkeypatch.setattr(stability, "_now", lambda: time.time() + 1.3 * stability.QUIET_PERIOD)
    scans = Scans(monkeypatch)
    (tmp_path / "old").mkdir()
    replace(tmp_path / "old/f", "0")
    async with consumer(f"{tmp_path}/", recheck=0.02) as seen:
        await seen.converge({"old/f": "0"})
        (tmp_path / "new").mkdir()
        for name in ("old/f", "new/f"):
            with (tmp_path / name).open("w") as file:
                file.write("half")
                file.flush()
                await scans.more(20)  # for longer than a directory must be still
                file.write(" and half")
        await seen.converge({"old/f": "half and half", "new/f": "half and half"}, AT_ONCE)
    assert not any(b"half" in one.values() for one in seen)


async def test_directories_that_come_go_and_move_are_followed_by_events(tmp_path: Path) -> None:
    """A tree that is moved keeps its watches in the kernel, under names that are not true any more."""
    staged = tmp_path / "..staged"
    (staged / "deep").mkdir(parents=True)
    (staged / "deep/f").write_text("0")
    replace(tmp_path / "top", "t")
    async with consumer(f"{tmp_path}/", recheck=NEVER) as seen:
        await seen.converge({"top": "t"})
        staged.rename(tmp_path / "one")
        await seen.converge({"one/deep/f": "0", "top": "t"}, AT_ONCE)
        (tmp_path / "one").rename(tmp_path / "two")
        await seen.converge({"top": "t", "two/deep/f": "0"}, AT_ONCE)
        replace(tmp_path / "two/deep/f", "1")
        await seen.converge({"top": "t", "two/deep/f": "1"}, AT_ONCE)
        shutil.rmtree(tmp_path / "two")
        await seen.converge({"top": "t"}, AT_ONCE)
        (tmp_path / "two/deep").mkdir(parents=True)
        replace(tmp_path / "two/deep/f", "2")
        await seen.converge({"top": "t", "two/deep/f": "2"}, AT_ONCE)


@pytest.mark.parametrize("single", [True, False])
async def test_what_a_link_leads_to_is_followed_by_events(tmp_path: Path, single: bool) -> None:
    """Its target, and each link and directory on the way there."""
    for name in ("v1", "v2"):
        (tmp_path / "..store" / name).mkdir(parents=True)
        replace(tmp_path / "..store" / name / "f", name)
    (tmp_path / "..store/now").symlink_to("v1")
    (tmp_path / "f").symlink_to("..store/now/f")
    path = tmp_path / "f" if single else f"{tmp_path}/"

    def named(text: str) -> str | dict[str, str]:
        return text if single else {"f": text}

    async with consumer(path, recheck=NEVER) as seen:
        await seen.converge(named("v1"))
        replace(tmp_path / "..store/v1/f", "new")
        await seen.converge(named("new"), AT_ONCE)
        (tmp_path / "..store/next").symlink_to("v2")
        (tmp_path / "..store/next").rename(tmp_path / "..store/now")
        await seen.converge(named("v2"), AT_ONCE)
        (tmp_path / "..store/v2/f").write_text("in place")
        await seen.converge(named("in place"), AT_ONCE)


async def test_without_enough_watches_everything_is_polled_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """proc_sys_fs(5), max_user_watches. Half of them is for others; the line comes once, and another one at the end."""
    limit = tmp_path / "limit"
    limit.write_text("8")
    monkeypatch.setattr(inotify, "_MAX_USER_WATCHES_PATH", str(limit))
    monkeypatch.setattr("sidecar.volume.watch.thread._REARM_DELAY", 0.05)
    scans, volume = Scans(monkeypatch), tmp_path / "volume"
    for number in range(6):
        (volume / f"d{number}").mkdir(parents=True)
        replace(volume / f"d{number}/f", "0")
    errors = metrics.WATCH_ERRORS_TOTAL._value.get()
    async with consumer(f"{volume}/", recheck=0.02) as seen:
        await until(lambda: seen and seen.watch.mode == "poll" and seen.watch.fallback)
        assert "max_user_watches" in str(seen.watch.fallback)
        replace(volume / "d5/f", "1")
        await until(lambda: seen[-1].text("d5/f") == "1", timeout=AT_ONCE)
        await scans.more(12)  # it tries to get watches again meanwhile
        assert caplog.text.count("no inotify watch is left") == 1
        assert metrics.WATCH_ERRORS_TOTAL._value.get() == errors + 1
        caplog.set_level("INFO")
        limit.write_text("1000")
        await until(lambda: "is watched by inotify again" in caplog.text, timeout=AT_ONCE)
        assert seen.watch.fallback is None


async def test_one_change_among_many_files_is_looked_at_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event names the file: the others are neither listed nor compared."""
    for number in range(50):
        (tmp_path / f"d{number:02}").mkdir()
        replace(tmp_path / f"d{number:02}/f", "0")
    everything: list[int] = []
    real = WatchThread._scan_all

    def count(self: WatchThread, *args: object, **more: object) -> object:
        everything.append(1)
        return real(self, *args, **more)  # type: ignore[arg-type]

    async with consumer(f"{tmp_path}/", recheck=NEVER) as seen:
        await until(lambda: seen and len(seen[-1]) == 50)
        monkeypatch.setattr(WatchThread, "_scan_all", count)
        replace(tmp_path / "d07/f", "1")
        await until(lambda: seen[-1].text("d07/f") == "1", timeout=AT_ONCE)
        assert seen[-1].version == type(seen[-1]).of({n: seen[-1][n] for n in seen[-1]}).version
        assert not everything


def test_watches_of_what_is_gone_are_given_back(tmp_path: Path) -> None:
    """A directory that two keys follow is watched until the last of them is gone."""
    wakeup = WakeupPipe()
    notifier = InotifyNotifier(wakeup)
    notifier.arm([])
    fd = os.open(tmp_path, os.O_RDONLY)
    notifier.follow(WatchTarget(fd, "", None, prefix=b"a/", key="a/"))
    notifier.follow(WatchTarget(fd, "", None, prefix=b"b/", key="b/"))
    notifier.unfollow("a/")
    (tmp_path / "f").touch()
    assert set(notifier.drain().kinds) == {b"b/f"}
    notifier.unfollow("b/")
    (tmp_path / "g").touch()
    assert not notifier.drain().kinds
    os.close(fd)
    notifier.close()
    wakeup.close()


async def test_a_nested_link_that_leads_upwards_inside_is_followed(tmp_path: Path) -> None:
    """What counts is the directory of the path, and not the one in which the link lies."""
    (tmp_path / "sub").mkdir()
    replace(tmp_path / "top", "0")
    (tmp_path / "sub/link").symlink_to("../top")
    async with consumer(f"{tmp_path}/", recheck=NEVER) as seen:
        await seen.converge({"sub/link": "0", "top": "0"})
        replace(tmp_path / "top", "1")
        await until(lambda: seen[-1].text("sub/link") == "1", timeout=AT_ONCE)
        assert seen.watch.problem is None


async def test_events_are_not_relied_on_where_they_cannot_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """inotify(7): "does not report accesses and modifications that occur [...] on network filesystems", whatever --watch says."""
    monkeypatch.setattr("sidecar.fs.notify.select.is_remote", lambda _: True)
    monkeypatch.setattr(InotifyNotifier, "drain", lambda _: EventBatch())
    for share in ("_COMPARE_TIME_SHARE", "_LOOSE_COMPARE_TIME_SHARE"):
        monkeypatch.setattr(f"sidecar.volume.watch.thread.{share}", 1e-9)
    (tmp_path / "sub").mkdir()
    replace(tmp_path / "sub/f", "0")
    async with consumer(f"{tmp_path}/", recheck=0.02, watch="inotify") as seen:
        await seen.converge({"sub/f": "0"})
        run = seen.watch._session
        await until(lambda: run is not None and run.thread._full_at > 0)  # all were compared
        (tmp_path / "sub/f").write_text("1")
        await seen.converge({"sub/f": "1"}, AT_ONCE)
