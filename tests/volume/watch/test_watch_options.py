"""Several paths, a quiet period, an event that ends the loop, one log line a version, and files for who wants paths."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest

import sidecar
from sidecar.http.semantics import representation
from sidecar.testing import until
from sidecar.volume import change_log
from sidecar.volume.watch import stability
from support.watching import consumer, replace


async def test_several_paths_are_followed_as_one(tmp_path: Path) -> None:
    """The present of all first, then all again when one of them changes; what is not there yet is left out."""
    one, two = tmp_path / "one", tmp_path / "two"
    replace(one, "1")
    seen: list[dict[str, str]] = []
    stop = asyncio.Event()

    async def consume() -> None:
        async for snapshots in sidecar.watch(one, two, stop_event=stop):
            texts = {Path(path).name: found.text() for path, found in snapshots.items()}
            seen.append(texts)

    task = asyncio.create_task(consume())
    await until(lambda: seen == [{"one": "1"}])
    replace(two, "2")
    await until(lambda: seen[1:] == [{"one": "1", "two": "2"}])
    stop.set()
    await asyncio.wait_for(task, 10)


@pytest.mark.parametrize("there", [True, False])
async def test_an_event_ends_the_loop(tmp_path: Path, there: bool) -> None:
    """As `stop_event` of watchfiles does: also while nothing has been published."""
    if there:
        replace(tmp_path / "config", "0")
    stop, seen = asyncio.Event(), 0
    watch = sidecar.watch(tmp_path / "config", stop_event=stop)

    async def consume() -> None:
        nonlocal seen
        async for _ in watch:
            seen += 1

    task = asyncio.create_task(consume())
    await until(lambda: watch.has_looked and seen == there)
    stop.set()
    await asyncio.wait_for(task, 10)
    assert not watch.in_use


async def test_a_volume_is_watched_with_the_arguments_of_a_watch(tmp_path: Path) -> None:
    """A filter, a schema, a bound and an event that ends it; the bound of the volume holds without one."""
    for name, text in (("a.conf", "1"), ("b.txt", "2")):
        replace(tmp_path / name, text)
    stop = asyncio.Event()
    watch = sidecar.Volume(tmp_path).watch(
        schema=len, include=("*.conf",), exclude=(), quiet=0.1, max_size="1Ki", stop_event=stop
    )
    async for snapshot in watch:
        assert (snapshot.value, list(snapshot)) == (1, ["a.conf"])
        stop.set()
    async with sidecar.Volume(tmp_path, max_size=1).watch() as bounded:
        await bounded.looked()
        assert "limit of 1" in (bounded.problem or "")


async def test_a_tree_that_is_copied_is_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 files made one after the other, in directories."""
    monkeypatch.setattr(
        stability, "DIRECTORY_QUIET", 1.5
    )  # a busy machine may let the copy stand still
    source, volume = tmp_path / "source", tmp_path / "volume"
    for number in range(300):
        (source / f"d{number % 7}").mkdir(parents=True, exist_ok=True)
        (source / f"d{number % 7}/f{number}").write_text("x" * number)
    volume.mkdir()
    replace(volume / "first", "0")
    async with consumer(f"{volume}/") as seen:
        await seen.converge({"first": "0"})
        await asyncio.to_thread(shutil.copytree, source, volume, dirs_exist_ok=True)
        await until(lambda: len(seen[-1]) == 301)
    assert [len(one) for one in seen if 1 < len(one) < 301] == []


async def test_a_quiet_period_takes_renames_together(tmp_path: Path) -> None:
    """Asked for, it holds for whatever changes a directory of loose files. A machine that pauses for as long makes another version."""
    replace(tmp_path / "a", "0")
    moments: list[tuple[float, float]] = []
    async with consumer(f"{tmp_path}/", quiet=1.0) as seen:
        await seen.converge({"a": "0"})
        for number in range(5):
            for name, text in (("a", str(number)), (f"b{number}", "")):
                before = time.monotonic()
                replace(tmp_path / name, text)
                moments.append((before, time.monotonic()))
            await asyncio.sleep(0.02)
        await until(lambda: len(seen[-1]) == 6)
    pauses = sum(after - before >= 1.0 for (before, _), (_, after) in pairwise(moments))
    assert len(seen) <= 2 + pauses


async def test_each_new_version_is_one_line_and_many_are_summed_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What, which version, how large; no more than one a second."""
    monkeypatch.setattr(change_log, "_SUMMARY_INTERVAL", 0.5)
    caplog.set_level(logging.INFO)
    path = tmp_path / "config"
    first, last = (sidecar.Snapshot.of({"config": t}, single=True).version for t in ("0", "22"))
    replace(path, "0")
    async with consumer(path) as seen:
        await seen.converge("0")
        for text in ("1", "22"):
            replace(path, text)
            await seen.converge(text)
        await until(lambda: f"{last}, 2 bytes" in caplog.text)
    lines = [r.getMessage() for r in caplog.records if "new version of" in r.getMessage()]
    assert lines[0] == f"new version of {path}: {first}, 1 bytes"
    assert len(lines) <= len(seen)


async def test_what_has_gone_is_told_as_gone(tmp_path: Path) -> None:
    """And not as never published."""
    replace(tmp_path / "config", "0")
    async with consumer(tmp_path / "config") as seen:
        await seen.converge("0")
        (tmp_path / "config").unlink()
        await until(lambda: seen.watch.stale)
        assert "what was published there is gone" in str(seen.watch.stale)


def test_a_snapshot_becomes_files_for_who_wants_paths() -> None:
    """Private ones, which are gone with the block."""
    snapshot = sidecar.Snapshot.of({"tls.crt": "c", "deep/tls.key": "k"})
    with snapshot.as_directory() as directory:
        assert (directory / "deep/tls.key").read_text() == "k"
        assert os.stat(directory).st_mode & 0o777 == 0o700
        assert os.stat(directory / "tls.crt").st_mode & 0o777 == 0o600
    assert not directory.exists()
    with snapshot.as_file("tls.crt") as path:
        assert (path.name, path.read_text()) == ("tls.crt", "c")


@pytest.mark.parametrize("unix", [2.0**62, -(2.0**62), 2.0**40, -(2.0**40)])
def test_a_time_that_no_calendar_has_becomes_the_nearest_one(unix: float) -> None:
    """Whoever can write to a tmpfs can set any (utimensat(2)): that is no reason for a 500."""
    assert representation.rfc3339(unix)[:4] in {"0001", "9999"}
    assert representation.http_date(unix).endswith(" GMT")
