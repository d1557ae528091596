"""Writers that truncate and rewrite in place, as most programs do: never served in the middle.

Contents say what they are: a number, repeated to a length that depends on it.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

import pytest

from sidecar.testing import rewrite_in_place, until
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.watch import stability
from support import StartProcess
from support.watching import BOUND, Scans, consumer, lengthen_quiet_period, replace


def whole(number: int, most: int = 3000) -> bytes:
    return (b"%d;" % number) * (1 + number * 7919 % most)


def is_whole(data: bytes, most: int = 3000) -> bool:
    head, _, _ = data.partition(b";")
    return head.isdigit() and data == whole(int(head), most)


async def test_a_rewrite_in_two_pieces_is_read_after_the_close(tmp_path: Path) -> None:
    """Truncate, half of it, a pause, the rest: at once when it is closed, and never before."""
    path = tmp_path / "config"
    replace(path, "0;" * 10)
    async with consumer(path, recheck=0.02) as seen:
        await until(lambda: seen)
        for number in range(1, 30):
            pause = random.choice((0.0, 0.001, 0.01, 0.05))
            await asyncio.to_thread(rewrite_in_place, path, whole(number), pause)
            await until(lambda n=number: seen[-1].data == whole(n), timeout=BOUND)
    assert all(is_whole(one.data) for one in seen[1:])


NAIVE = """
import sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
end, number = time.monotonic() + seconds, 0
while time.monotonic() < end or number < 1000:
    number += 1
    with open(path, "wb", buffering=0) as file:
        data = (b"%d;" % number) * (1 + number * 7919 % 3000)
        file.write(data[:len(data) // 2])
        file.write(data[len(data) // 2:])
print("last", number, flush=True)
"""


@pytest.mark.parametrize("watched", ["file", "directory"])
async def test_a_tight_loop_of_rewrites_is_never_seen_in_the_middle(
    start_process: StartProcess, tmp_path: Path, watched: str
) -> None:
    """Thousands of truncations beside a reader that looks all the time."""
    path = tmp_path / "config"
    replace(path, "0;")
    target = path if watched == "file" else tmp_path
    async with consumer(target, recheck=0.01) as seen:
        await until(lambda: seen)
        process = start_process(sys.executable, "-c", NAIVE, path, 3)
        await until(lambda: process.output.endswith("\n"), timeout=20)
        last = int(process.output.split()[1])
        assert last > 500
        await until(lambda: seen[-1]["config"] == whole(last), timeout=BOUND)
    torn = [one["config"][:40] for one in seen if not is_whole(one["config"])]
    assert not torn
    print("rewrites", last, "seen", len(seen))


async def test_a_file_that_is_made_by_a_plain_writer_is_read_after_the_close(
    tmp_path: Path,
) -> None:
    """There is no old content to protect, and half of the new one is still not shown."""
    path = tmp_path / "config"
    for number in range(1, 8):
        async with consumer(path, recheck=0.02) as seen:
            await seen.watch.looked()
            await asyncio.to_thread(rewrite_in_place, path, whole(number), 0.05)
            await until(lambda seen=seen: seen, timeout=BOUND)
            assert seen[0].data == whole(number)
        path.unlink()


async def test_a_file_that_is_removed_and_written_anew_is_read_after_the_close(
    tmp_path: Path,
) -> None:
    """A new inode alone proves nothing: it may have been made a moment ago, and be half written."""
    path = tmp_path / "config"
    replace(path, "0;")
    async with consumer(path, recheck=0.02) as seen:
        await until(lambda: seen)
        for number in range(1, 12):
            path.unlink()
            await asyncio.to_thread(rewrite_in_place, path, whole(number), 0.03)
            await until(lambda n=number: seen[-1].data == whole(n), timeout=BOUND)
    assert all(is_whole(one.data) for one in seen)


async def test_a_large_file_is_not_read_while_it_grows(tmp_path: Path) -> None:
    """One `write` of many megabytes takes long enough to be caught in the middle, without any event yet."""
    path = tmp_path / "config"
    replace(path, "0;")
    versions: list[str] = []
    async with consumer(path, recheck=0.005) as seen:
        await until(lambda: seen)
        for letter in b"abcdefghijkl":
            if letter % 4 == 0:
                path.unlink()
            data = bytes([letter]) * (12 << 20)
            versions.append(version_of(data))
            await asyncio.to_thread(path.write_bytes, data)
            await until(lambda: seen[-1].version == versions[-1], timeout=20)
    assert [one.version for one in seen[1:]] == versions


async def test_a_file_that_is_kept_open_is_told_as_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log is no content: the last good one stays, and `stale` says why; once it is closed, it is read."""
    monkeypatch.setattr(stability, "MAX_WAIT", 0.5)
    path = tmp_path / "config"
    replace(path, "good")
    async with consumer(path, recheck=0.05) as seen:
        await seen.converge("good")
        with path.open("a", buffering=1) as log:
            limit = time.monotonic() + BOUND
            while seen.watch.stale is None:
                assert time.monotonic() < limit
                log.write("line\n")
                await asyncio.sleep(0.01)
            assert "rewritten in place" in seen.watch.stale
            assert seen.texts == ["good"]
        await until(lambda: seen.watch.stale is None, timeout=BOUND)
        assert seen[-1].text() == path.read_text()
        assert len(seen) == 2


async def test_a_writer_that_goes_away_without_a_close_is_believed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`truncate(2)` tells of a change and of no close: after a while of stillness the file counts."""
    monkeypatch.setattr(stability, "MAX_WAIT", 0.3)
    path = tmp_path / "config"
    replace(path, "a long text")
    async with consumer(path, recheck=0.05) as seen:
        await seen.converge("a long text")
        os.truncate(path, 6)
        await seen.converge("a long")


async def test_one_file_that_is_being_written_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """Loose files are independent of each other."""
    for name in ("a", "b"):
        replace(tmp_path / name, "0")
    async with consumer(tmp_path, recheck=0.05) as seen:
        await seen.converge({"a": "0", "b": "0"})
        with (tmp_path / "a").open("w", buffering=1) as file:
            file.write("half")
            replace(tmp_path / "b", "1")
            await seen.converge({"a": "0", "b": "1"})
            file.write(" and half")
        await seen.converge({"a": "half and half", "b": "1"})
    assert len(seen) == 3


async def test_a_directory_whose_new_file_is_being_written_shows_the_rest(tmp_path: Path) -> None:
    """A name that was never complete is not there yet."""
    replace(tmp_path / "a", "0")
    async with consumer(tmp_path, recheck=0.05) as seen:
        await seen.converge({"a": "0"})
        with (tmp_path / "b").open("w", buffering=1) as file:
            file.write("half")
            replace(tmp_path / "a", "1")
            await seen.converge({"a": "1"})
        await seen.converge({"a": "1", "b": "half"})


@pytest.mark.parametrize("how", ["hard link", "symlink", "rename", "unnamed file"])
async def test_a_file_that_gets_its_name_in_one_step_is_read_at_once(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody writes to it any more: with events there is nothing to wait for."""
    if how != "symlink":
        lengthen_quiet_period(monkeypatch)
    path, other = tmp_path / "config", tmp_path / "other"
    async with consumer(path, recheck=3600) as seen:
        await seen.watch.looked()
        if how == "unnamed file":
            unnamed = os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY)
            os.write(unnamed, b"whole")
            time.sleep(0.02)
            # With a descriptor of a directory Python calls linkat(2), which can follow the link.
            os.link(f"/proc/self/fd/{unnamed}", path, src_dir_fd=unnamed, follow_symlinks=True)
            os.close(unnamed)
        else:
            replace(other, "whole")
            {
                "hard link": lambda: os.link(other, path),
                "symlink": lambda: path.symlink_to(other.name),
                "rename": lambda: other.rename(path),
            }[how]()
        await seen.converge("whole")


async def test_a_link_is_followed_to_a_file_that_is_rewritten_in_place(tmp_path: Path) -> None:
    """The events are those of another name."""
    path, real = tmp_path / "config", tmp_path / "real"
    replace(real, "0;")
    path.symlink_to("real")
    async with consumer(path, recheck=0.02) as seen:
        await until(lambda: seen)
        for number in range(1, 8):
            await asyncio.to_thread(rewrite_in_place, real, whole(number), 0.03)
            await until(lambda n=number: seen[-1].data == whole(n), timeout=BOUND)
    assert all(is_whole(one.data) for one in seen)


async def test_an_empty_file_that_was_truncated_is_believed_after_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncating is told only when it is over; whoever wants an empty content at once renames one."""
    path = tmp_path / "config"
    replace(path, "0")
    async with consumer(path, recheck=0.05) as seen:
        await seen.converge("0")
        began = time.monotonic()
        path.write_bytes(b"")
        await seen.converge("", BOUND + stability.QUIET_PERIOD)
        assert time.monotonic() - began >= stability.QUIET_PERIOD
        replace(path, "1")
        await seen.converge("1")
        lengthen_quiet_period(monkeypatch)
        replace(path, "")
        await seen.converge("")


async def test_polling_reads_a_rewritten_file_once_it_is_still(tmp_path: Path) -> None:
    """Without events the close is not seen: a second without a change stands for it."""
    path = tmp_path / "config"
    replace(path, "0;")
    async with consumer(path, watch="poll", recheck=0.02) as seen:
        await until(lambda: seen)
        for number in range(1, 3):
            # Many scans long, and far from the quiet period even if a busy machine makes it longer.
            await asyncio.to_thread(
                rewrite_in_place, path, whole(number), stability.QUIET_PERIOD * 0.2
            )
            await until(
                lambda n=number: seen[-1].data == whole(n), timeout=BOUND + stability.QUIET_PERIOD
            )
    assert all(is_whole(one.data) for one in seen)


async def test_polling_takes_a_replaced_file_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another inode is another file, and nobody rewrites it."""
    path = tmp_path / "config"
    replace(path, "0")
    async with consumer(path, watch="poll", recheck=0.02) as seen:
        await seen.converge("0")
        lengthen_quiet_period(monkeypatch)
        replace(path, "1")
        await seen.converge("1")


async def test_at_the_start_a_fresh_file_is_given_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in the hands of a plain writer: of what happened before there is no event."""
    scans = Scans(monkeypatch)
    path = tmp_path / "config"
    with path.open("w", buffering=1) as file:
        file.write("half")
        async with consumer(path, recheck=0.02) as seen:
            await scans.more()
            file.write(" and half")
            file.close()
            await seen.converge("half and half")
    assert len(seen) == 1
