"""Sets while they change as fast as they can, each generation removed the moment its successor is in force."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sidecar import NothingPublished, Snapshot
from sidecar.testing import ConfigMapVolume, until
from sidecar.volume.content import loader
from sidecar.volume.content.scan_result import ScanResult
from support import Process, StartProcess
from support.watching import BOUND, consumer

LIMIT = 1 << 20
SECONDS = 10
FLIPS = 2000
FILES = 5

KUBELET = """
import sys, time
from sidecar.testing import ConfigMapVolume
volume, end, number = ConfigMapVolume(sys.argv[1]), time.monotonic() + float(sys.argv[2]), 0
while number < int(sys.argv[3]) and time.monotonic() < end:
    number += 1
    names = {f"{n}-{number % 3}" for n in range(5)} | {"all"}
    volume.update({name: str(number) for name in names})
print("last", number, flush=True)
"""


def is_whole(found: Mapping[str, bytes]) -> bool:
    """Whether all are there and of one generation; names come and go, so that a missing one shows."""
    number = int(found["all"])
    names = {f"{n}-{number % 3}" for n in range(FILES)} | {"all"}
    return found.keys() == names and set(found.values()) == {b"%d" % number}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    names = {f"{n}-0" for n in range(FILES)} | {"all"}
    ConfigMapVolume(tmp_path).update(dict.fromkeys(names, "0"))
    return tmp_path


Read = Callable[[int, ScanResult | None], ScanResult]


def read_set(fd: int, before: ScanResult | None) -> ScanResult:
    found = loader.read_directory(fd, "/shared", limit=LIMIT, before=before)
    assert is_whole(found.snapshot), dict(found.snapshot)
    assert not found.problems
    return found


def read_key(fd: int, before: ScanResult | None) -> ScanResult:
    found = loader.read_file(fd, "/shared", "all", limit=LIMIT, before=before)
    assert found.snapshot.data.isdigit()
    return found


class Readers:
    """Threads that read again and again; what went wrong is in `wrong`."""

    def __init__(self, directory: Path, *reads: Read) -> None:
        self.counts = [0] * len(reads)
        self.wrong: list[BaseException] = []
        self._directory = directory
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, read))
            for number, read in enumerate(reads)
        ]
        for one in self._threads:
            one.start()

    def _run(self, number: int, read: Read) -> None:
        fd = os.open(self._directory, os.O_RDONLY)
        before: ScanResult | None = None
        while not self._stop.wait(0.001):
            try:
                before = read(fd, before if number % 2 else None)
                self.counts[number] += 1
            except NothingPublished as error:
                if "faster" not in str(error):
                    self.wrong.append(error)
            except (OSError, AssertionError) as error:
                self.wrong.append(error)
        os.close(fd)

    def finish(self) -> None:
        self._stop.set()
        for one in self._threads:
            one.join()


def last(process: Process) -> int | None:
    return int(process.output.split()[1]) if process.output.endswith("\n") else None


async def test_no_reader_meets_a_mixed_or_partial_set(
    start_process: StartProcess, volume: Path
) -> None:
    """Four readers and a watch beside a kubelet in a hurry: 0 mixed, 0 partial, 0 errors."""
    async with consumer(volume) as seen:
        await until(lambda: seen, timeout=BOUND)
        readers = Readers(volume, read_set, read_set, read_set, read_key)
        process = start_process(sys.executable, "-c", KUBELET, volume, SECONDS, FLIPS)
        await until(lambda: last(process), timeout=SECONDS + 20)
        readers.finish()
        assert readers.wrong == []
        number = last(process)
        assert number is not None
        newest = b"%d" % number
        await until(lambda: seen[-1]["all"] == newest, timeout=BOUND)
        assert number > FLIPS / 10  # on a machine that others use as well
    assert min(readers.counts) > 100
    assert len(seen) > 50
    assert all(is_whole(one) for one in seen)
    print(number, "flips,", readers.counts, "reads,", len(seen), "seen")


async def test_a_reader_of_one_key_meets_no_gap(start_process: StartProcess, volume: Path) -> None:
    """The key is always there, whatever generation its link is followed to."""
    async with consumer(volume / "all") as seen:
        await until(lambda: seen, timeout=BOUND)
        problems: set[str | None] = set()
        seen.watch.subscribe(lambda: problems.add(seen.watch.stale))
        process = start_process(sys.executable, "-c", KUBELET, volume, 5, 500)
        await until(lambda: last(process), timeout=20)
        await until(lambda: seen[-1].data == b"%d" % (last(process) or 0), timeout=BOUND)
    numbers = [int(one.data) for one in seen]
    assert numbers == sorted(set(numbers))
    assert len(numbers) > 20
    assert problems == {None}


def newest(seen: list[Snapshot[Any]]) -> bytes:
    return seen[-1]["a"] if seen else b""


async def test_files_of_a_thousand_generations_leave_no_descriptor(tmp_path: Path) -> None:
    """Neither of the directories that were watched, nor of the files that were read."""
    volume = ConfigMapVolume(tmp_path)
    volume.update({"a": "0"})
    async with consumer(tmp_path) as seen:
        await until(lambda: newest(seen) == b"0", timeout=BOUND)
        gc.collect()  # a volume of an earlier test may have its directory open until it is collected
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1, 200):
            volume.update({"a": str(number)})
        await until(lambda: newest(seen) == b"199", timeout=BOUND)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before, timeout=BOUND)
