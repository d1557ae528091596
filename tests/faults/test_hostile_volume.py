"""A neighbour who can write to the volume plants what it likes: nothing from outside, nobody blocked, the last good content stays.

Each with `openat2`, and with the walk that replaces it where the kernel or a seccomp filter refuses it.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.fs import openat
from sidecar.testing import ConfigMapVolume, until
from sidecar.volume.content import loader
from sidecar.volume.publish import models
from sidecar.volume.volume import Volume
from support import Process, StartProcess, read_beneath
from support.watching import BOUND, consumer, descriptors, replace

SECRET = "root:x:0:0 from outside"
LIMIT = 1 << 20


@pytest.fixture(autouse=True, params=["openat2", "walk"])
def resolver(request: pytest.FixtureRequest) -> Iterator[str]:
    """How names are resolved beneath the volume."""
    before = openat._openat2.available
    if request.param == "openat2" and not before:
        pytest.skip("this kernel has no openat2")
    openat._openat2.available = request.param == "openat2"
    yield request.param
    openat._openat2.available = before


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the volume, with something that nobody on the volume may read."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "config").write_text(SECRET)
    return directory


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    directory = tmp_path / "volume"
    directory.mkdir()
    replace(directory / "config", "good")
    return directory


def link_out(path: Path, outside: Path) -> None:
    path.symlink_to("../outside/config")


def absolute_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "config")


def absolute_link_inside(path: Path, outside: Path) -> None:
    """It points into the volume today; resolved from the root it can be bent tomorrow."""
    replace(path.with_name("..inside"), SECRET)
    path.symlink_to(path.with_name("..inside"))


def chain_out(path: Path, outside: Path) -> None:
    path.with_name("..one").symlink_to("..two")
    path.with_name("..two").symlink_to("../outside/config")
    path.symlink_to("..one")


def through_a_linked_directory(path: Path, outside: Path) -> None:
    path.with_name("..away").symlink_to("../outside")
    path.symlink_to("..away/config")


def loop(path: Path, outside: Path) -> None:
    path.symlink_to(path.name)


def magic_link(path: Path, outside: Path) -> None:
    path.symlink_to(f"/proc/self/root{outside}/config")


def descriptor_link(path: Path, outside: Path) -> None:
    path.symlink_to("/proc/self/fd/0")


def fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, outside: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def directory(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "inner").write_text("inner")


def sparse_giant(path: Path, outside: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def device(path: Path, outside: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero never ends


Plant = Callable[[Path, Path], None]
LINKS = [
    link_out,
    absolute_link,
    absolute_link_inside,
    chain_out,
    through_a_linked_directory,
    loop,
    magic_link,
    descriptor_link,
]
THINGS = [
    fifo,
    unix_socket,
    directory,
    sparse_giant,
    pytest.param(device, marks=pytest.mark.root),
]


@pytest.mark.parametrize("plant", LINKS + THINGS)
async def test_what_is_planted_in_the_place_of_the_file_is_not_read(
    volume: Path, outside: Path, plant: Plant
) -> None:
    """The last good content stays, `stale` says why, and a good file is read again as soon as it is there."""
    path = volume / "config"
    async with consumer(path, max_size=LIMIT) as seen:
        await seen.converge("good")
        path.unlink()
        plant(path, outside)
        await until(lambda: seen.watch.stale, timeout=BOUND)
        assert str(path) in str(seen.watch.stale)
        assert seen.watch.failure is None
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        replace(path, "good again")
        await seen.converge("good again")
        assert seen.watch.stale is None
    assert seen.texts == ["good", "good again"]


@pytest.mark.parametrize("plant", LINKS + THINGS)
async def test_what_is_planted_beside_the_files_of_a_set_is_a_problem_of_its_own(
    volume: Path, outside: Path, plant: Plant
) -> None:
    """The others are served, and followed, whatever lies beside them."""
    async with consumer(f"{volume}/", max_size=LIMIT) as seen:
        await seen.converge({"config": "good"})
        plant(volume / "planted", outside)
        replace(volume / "config", "better")
        await until(lambda: seen[-1]["config"] == b"better", timeout=BOUND)
        await until(lambda: seen[-1].keys() <= {"config", "planted/inner"}, timeout=BOUND)
        if plant is not directory:
            await until(lambda: "planted" in str(seen.watch.stale), timeout=BOUND)
        assert all(SECRET.encode() not in one.values() for one in seen)


@pytest.mark.parametrize("plant", LINKS + THINGS)
async def test_what_takes_the_place_of_a_file_of_a_set_leaves_its_last_good_content(
    volume: Path, outside: Path, plant: Plant
) -> None:
    """The set stays complete."""
    replace(volume / "other", "0")
    async with consumer(f"{volume}/", max_size=LIMIT) as seen:
        await seen.converge({"config": "good", "other": "0"})
        (volume / "config").unlink()
        plant(volume / "config", outside)
        replace(volume / "other", "1")
        if plant is directory:
            await seen.converge({"config/inner": "inner", "other": "1"}, BOUND + 1)
            return
        await seen.converge({"config": "good", "other": "1"})
        await until(lambda: "config" in str(seen.watch.stale), timeout=BOUND)


@pytest.mark.parametrize("plant", [link_out, fifo, sparse_giant])
async def test_what_is_planted_in_a_generation_does_not_mix_it_with_the_one_before(
    tmp_path: Path, outside: Path, plant: Plant
) -> None:
    """The files of a set are shown together: the whole last good set stays."""
    volume = ConfigMapVolume(tmp_path / "volume")
    volume.update({"a": "0", "b": "0"})
    async with consumer(volume.path, max_size=LIMIT) as seen:
        await seen.converge({"a": "0", "b": "0"})
        planted = volume.path / "..planted"
        planted.mkdir()
        (planted / "a").write_text("1")
        plant(planted / "b", outside)
        (volume.path / "..link").symlink_to(planted.name)
        (volume.path / "..link").rename(volume.path / "..data")
        await until(lambda: seen.watch.stale, timeout=BOUND)
        volume.update({"a": "2", "b": "2"})
        await seen.converge({"a": "2", "b": "2"})
    assert len(seen) == 2


async def test_a_directory_that_becomes_a_link_leads_nowhere(volume: Path, outside: Path) -> None:
    """The watched directory itself is a name that a neighbour may exchange."""
    async with consumer(f"{volume}/") as seen:
        await seen.converge({"config": "good"})
        volume.rename(volume.with_name("away"))
        volume.symlink_to(outside)
        await until(lambda: "leads out" in str(seen.watch.stale), timeout=BOUND)
        volume.unlink()
        volume.with_name("away").rename(volume)
        await until(lambda: seen.watch.stale is None, timeout=BOUND)
    assert len(seen) == 1


@pytest.mark.root
async def test_no_link_on_the_way_leads_out_of_the_mounted_volume(
    tmp_path: Path, outside: Path
) -> None:
    """The volume is the mount: a directory in it may be exchanged for a link."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    try:
        (mounted / "deep").mkdir()
        replace(mounted / "deep" / "config", "good")
        async with consumer(mounted / "deep" / "config") as seen:
            await seen.converge("good")
            (mounted / "deep").rename(mounted / "away")
            (mounted / "deep").symlink_to(outside)
            await until(lambda: "leads out" in str(seen.watch.stale), timeout=BOUND)
            (mounted / "deep").unlink()
            (mounted / "deep").symlink_to("away")
            replace(mounted / "away" / "config", "inside")
            await seen.converge("inside")
        assert seen.texts == ["good", "inside"]
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)


async def test_a_hard_link_is_a_file_like_others(volume: Path) -> None:
    """It cannot be told from a file, and our own history is made of them."""
    async with consumer(volume / "config") as seen:
        await seen.converge("good")
        replace(volume / "new", "linked")
        os.link(volume / "new", volume / "..tmp-1")
        (volume / "..tmp-1").rename(volume / "config")
        await seen.converge("linked")


SWAPPER = """
import ctypes, os, sys, time
renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
AT_FDCWD, RENAME_EXCHANGE = -100, 2
one, other = (os.fsencode(name) for name in sys.argv[1:3])
end, swaps = time.monotonic() + float(sys.argv[3]), 0
while time.monotonic() < end or swaps < int(sys.argv[4]):
    assert renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) == 0
    swaps += 1
print("swapped", swaps, flush=True)
"""
SWAPS = 20_000


def is_over(process: Process) -> bool:
    return process.output.endswith("\n")


@pytest.mark.parametrize("plant", [link_out, fifo, sparse_giant])
def test_no_race_of_the_name_reads_anything_else(
    start_process: StartProcess, volume: Path, outside: Path, plant: Plant
) -> None:
    """Checked and opened are one thing: while the name is exchanged, only the good file is ever read."""
    plant(volume / "bad", outside)
    process = start_process(
        sys.executable, "-c", SWAPPER, volume / "config", volume / "bad", 1.5, SWAPS
    )
    found = {"good": 0, "refused": 0}
    fd = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    while not is_over(process):
        for _ in range(200):
            try:
                read = read_beneath(fd, "config", LIMIT, "config")
                assert read.data == b"good"
                found["good"] += 1
            except _errors.ReadError:
                found["refused"] += 1
    os.close(fd)
    assert found["good"] > 100
    assert found["refused"] > 100


def test_no_race_of_a_directory_leads_outside(
    start_process: StartProcess, volume: Path, outside: Path
) -> None:
    """A directory on the way is exchanged for a link to another one, between any two steps."""
    (volume / "deep").mkdir()
    (volume / "deep" / "config").write_text("good")
    (volume / "bad").symlink_to("../outside")
    process = start_process(
        sys.executable, "-c", SWAPPER, volume / "deep", volume / "bad", 1.5, SWAPS
    )
    contents: set[bytes] = set()
    refused = 0
    fd = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    while not is_over(process):
        for _ in range(50):
            try:
                contents.add(read_beneath(fd, "deep/config", LIMIT, "config").data)
            except _errors.ReadError:
                refused += 1
            found = loader.read_directory(fd, "volume", limit=LIMIT, before=None)
            contents |= set(found.snapshot.values())
    os.close(fd)
    assert contents == {b"good"}
    assert refused > 50


async def test_a_watch_lives_through_the_race(
    start_process: StartProcess, volume: Path, outside: Path
) -> None:
    """Tens of thousands of exchanges, each with its events: one content, no thread and no descriptor left behind."""
    link_out(volume / "bad", outside)
    before = descriptors()
    async with consumer(volume / "config") as seen:
        await seen.converge("good")
        process = start_process(
            sys.executable, "-c", SWAPPER, volume / "config", volume / "bad", 1.0, SWAPS
        )
        await until(lambda: is_over(process), timeout=30)
        if (volume / "config").is_symlink():
            (volume / "bad").rename(volume / "config")
        await until(lambda: seen.watch.stale is None, timeout=BOUND)
        assert seen.watch.failure is None
        assert set(seen.texts) == {"good"}
    await until(lambda: descriptors() <= before, timeout=BOUND)


def test_many_fifos_block_no_thread(volume: Path) -> None:
    """Six of them use up the threads of `aiofiles`; here each is refused at once."""
    for number in range(200):
        os.mkfifo(volume / f"fifo-{number}")
    fd = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    found = loader.read_directory(fd, str(volume), limit=LIMIT, before=None)
    os.close(fd)
    assert len(found.problems) == 200
    assert dict(found.snapshot) == {"config": b"good"}


def test_thousands_of_files_cost_what_the_limit_permits(volume: Path) -> None:
    """Names cost memory too: more of them than the limit pays for are refused, and the last good content stays."""
    for number in range(3000):
        (volume / f"{number:05}").touch()
    fd = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    found = loader.read_directory(fd, str(volume), limit=4 << 20, before=None)
    assert len(found.snapshot) == 3001
    with pytest.raises(_errors.ReadError, match=f"cannot read {volume}: it holds more files"):
        loader.read_directory(fd, str(volume), limit=LIMIT, before=found)
    os.close(fd)


def test_thousands_of_directories_cost_no_more(volume: Path) -> None:
    """Those that hold no file cost as much: where they are too many, they are refused by name, and the rest is read."""
    for number in range(3600):
        (volume / f"{number // 60:02}" / f"{number % 60:02}").mkdir(parents=True)
    fd = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    found = loader.read_directory(fd, str(volume), limit=LIMIT, before=None)
    os.close(fd)
    assert dict(found.snapshot) == {"config": b"good"}
    assert len(found.states.folders) + len(found.problems) < 1200
    assert "it holds more files than fit into memory" in found.problems["59"]


def test_comparing_with_thousands_of_new_files_costs_no_memory(volume: Path) -> None:
    """Where no events come, each look compares first: that there are more than before is enough to know."""
    past = time.time() - 60
    os.utime(volume / "config", (past, past))
    fd = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    before = loader.read_directory(fd, str(volume), limit=LIMIT, before=None)
    before.states.unreliable.clear()  # type: ignore[attr-defined]  # as after two seconds
    assert loader.is_unchanged(fd, before)
    for number in range(20_000):
        os.mknod(volume / f"{number:05}")
    tracemalloc.start()
    assert not loader.is_unchanged(fd, before)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    os.close(fd)
    assert most < 2 << 20


async def test_a_list_of_files_has_an_end(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for it, a neighbour who makes names without end must not fill the memory of a server."""
    monkeypatch.setattr(models, "_MIN_LISTED_FILES", 100)
    writer = Volume(volume, max_size=1)
    for number in range(1200):
        os.mknod(volume / f"{number:05}")
    for listed in (writer.names(), writer.entries()):
        with pytest.raises(_errors.ReadError, match=f"cannot read {volume}: it holds more files"):
            await listed


RSS = """
import asyncio, resource, sys
from sidecar.volume.watch.watch import Watch

async def main() -> None:
    async with Watch(sys.argv[1], max_size=8 << 20) as watch:
        await watch.looked()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print("ready", flush=True)
        for _ in range(40):
            await asyncio.sleep(0.05)
        print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)

asyncio.run(main())
"""


def test_giants_do_not_fill_the_memory(
    start_process: StartProcess, volume: Path, outside: Path
) -> None:
    """Not a sparse terabyte, nor a file that grows while it is read: the limit holds for what is in memory."""
    process = start_process(sys.executable, "-c", RSS, f"{volume}/", until="ready")
    sparse_giant(volume / "giant", outside)
    stop = threading.Event()

    def grow() -> None:
        with (volume / "growing").open("wb") as file:
            while not stop.is_set() and file.tell() < 400 << 20:
                file.write(bytes(1 << 20))

    thread = threading.Thread(target=grow)
    thread.start()
    process.wait_until("grown", timeout=20)
    stop.set()
    thread.join()
    grown = int(process.output.split("grown")[1]) << 10
    assert grown < 40 << 20
