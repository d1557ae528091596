"""SIGKILL and SIGTERM at any moment: scenarios 34–36, goal C1. Real processes, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest
from aiohttp import web

from logs.fakes.ndjson import FakeNdjson
from logs.fakes.receiver import Request, SlowRead
from sidecar.logs.input.checkpoint import decode
from sidecar.logs.testing import LogFile
from support import Eventually, WaitFor, environment

PROGRAM = """
import os, sys
import sidecar
from sidecar import logs
from sidecar.logs.sinks.file import FileSink
from sidecar.logs.sinks.ndjson import NdjsonSink

pattern, state, out, limit = sys.argv[1:]
sidecar.run, logs.tail, logs.collect  # imported here, not in each child

async def main():
    source = logs.tail(pattern, checkpoint=state)
    if out.startswith("http"):
        sink = NdjsonSink(out, headers={"X-Life": str(os.getpid())})
    else:
        sink = FileSink(out, max_bytes=int(limit) or None, keep=1000)
    await logs.collect(source, sink=sink)

# Forking a process that has everything imported: 200 starts would take a minute else.
while (line := sys.stdin.readline()):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        sidecar.run(main())
        sys.exit(0)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Saves:
    """Counts the saves of a checkpoint, as far as they are seen: each is another file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[tuple[int, int]] = set()

    @property
    def count(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            status = self._path.stat()
            self._seen.add((status.st_ino, status.st_mtime_ns))
        return len(self._seen)

    def more(self, number: int) -> Callable[[], bool]:
        """Return a condition: so many saves have been seen from now on."""
        due = self.count + number
        return lambda: self.count >= due


class CollectorStarter:
    """Starts collectors, one after the other."""

    def __init__(self, program: Path, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, program, *map(str, arguments)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._pid = 0

    def start(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self._pid = int(self._said())
        return self._pid

    def ended(self) -> int:
        self._pid = 0
        return int(self._said())

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        self._process.communicate()


class Writer:
    """Writes numbered lines all the time and rotates, now by rename, now by copytruncate."""

    def __init__(self, log: LogFile, kinds: str) -> None:
        self.log, self.kinds, self.count = log, kinds, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        chance = random.Random(len(self.kinds))
        while not self._stop.is_set():
            for _ in range(chance.randrange(1, 20)):
                burst = range(self.count, self.count + chance.randrange(1, 30))
                self.log.write(*(f"{n:08d} {'.' * (n % 120)}" for n in burst))
                self.count = burst.stop
                self._stop.wait(0.005)
            if chance.choice(self.kinds) == "r":
                self.log.rotate()
                self.log.reopen()
            else:
                self.log.copytruncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def start_collectors(tmp_path: Path) -> Iterator[Callable[..., CollectorStarter]]:
    """`start_collectors(pattern)`: a place to start collectors from, all of which end with the test."""
    with contextlib.ExitStack() as stack:

        def make(pattern: Path, limit: int = 0, out: str | None = None) -> CollectorStarter:
            program = tmp_path / "program.py"
            program.write_text(PROGRAM)
            out = out or str(tmp_path / "out" / "lines")
            return stack.enter_context(
                CollectorStarter(program, pattern, tmp_path / "state" / "offsets.json", out, limit)
            )

        yield make


def delivered(out: Path) -> Counter[int]:
    """The numbers in all generations of the output, once nobody writes to it any more."""
    lines = written(out)
    assert all(len(line) == 9 + int(line[:8]) % 120 for line in lines), "a torn line"
    return Counter(int(line[:8]) for line in lines)


def written(out: Path) -> list[bytes]:
    """The lines that are there now; the last one may be in the middle of being written."""
    lines: list[bytes] = []
    for path in out.parent.glob(out.name + "*"):
        with contextlib.suppress(FileNotFoundError):  # rotated just now
            lines += path.read_bytes().splitlines()
    return lines


SOAK = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
@pytest.mark.parametrize("limit", [0, 30_000], ids=["one-file", "rotating-output"])
@pytest.mark.parametrize("kills", [50, pytest.param(500, marks=SOAK)])
def test_killed_at_random_moments_each_line_arrives_exactly_once(
    tmp_path: Path,
    log: LogFile,
    start_collectors: Callable[..., CollectorStarter],
    wait_for: WaitFor,
    pattern: str,
    limit: int,
    kills: int,
) -> None:
    """Scenario 34, goal C1: 4 × 50 SIGKILLs under rotation; nothing lost, nothing twice, nothing torn."""
    saves = Saves(tmp_path / "state" / "offsets.json")
    out = tmp_path / "out" / "lines"
    collectors = start_collectors(log.path.with_name(pattern), limit)
    chance = random.Random(f"{pattern}{limit}")
    # The first scan of all is what everything after it is promised from.
    pid = collectors.start()
    wait_for(saves.more(1))
    killed = 0
    with Writer(log, "rc") as writer:
        for number in range(kills):
            # Now and then it lives long enough to save its checkpoint several times.
            if number % 10 == 9:
                wait_for(saves.more(4), timeout=30)
            else:
                time.sleep(chance.uniform(0.005, 0.12))  # the kill comes at any moment
            os.kill(pid, signal.SIGKILL)
            killed += collectors.ended() == -signal.SIGKILL
            pid = collectors.start()
        wait_for(saves.more(1))  # the last one is at work
    expected = range(writer.count)
    # What may be a copy is delivered after ten quiet seconds, and a drain does not wait for that.
    wait_for(lambda: len(set(written(out))) >= len(expected), timeout=30)
    os.kill(pid, signal.SIGTERM)
    assert collectors.ended() == 0
    assert killed == kills
    got = delivered(out)
    assert sorted(set(expected) - set(got)) == []
    assert sorted(n for n, count in got.items() if count > 1) == []


class Arrivals(FakeNdjson):
    """Remembers for each line which collectors sent it, and how many saves there were by then."""

    def __init__(self, saves: Saves) -> None:
        super().__init__()
        self.saves = saves
        self.came: dict[int, list[tuple[int, int]]] = {}

    def take(self, request: Request) -> web.Response:
        before = len(self.texts)
        answer = super().take(request)
        arrival = int(request.headers["X-Life"]), self.saves.count
        for text in self.texts[before:]:
            self.came.setdefault(int(text[:8]), []).append(arrival)
        return answer


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kills", [60, pytest.param(600, marks=SOAK)])
async def test_killed_at_random_moments_a_receiver_misses_no_line_and_sees_one_window_again(
    tmp_path: Path,
    log: LogFile,
    start_collectors: Callable[..., CollectorStarter],
    eventually: Eventually,
    kills: int,
) -> None:
    """Scenario 34: what comes again was delivered around the last save before the kill, or after it."""
    chance, saves_at_end = random.Random(kills), dict[int, int]()
    saves = Saves(tmp_path / "state" / "offsets.json")
    async with Arrivals(saves) as receiver:
        collectors = start_collectors(log.path.with_name("app.log*"), out=receiver.address)
        pid = await asyncio.to_thread(collectors.start)
        await eventually(saves.more(1))
        with Writer(log, "rc") as writer:
            for number in range(kills):
                if number % 10 == 9:
                    await eventually(saves.more(4), timeout=30)
                else:
                    await asyncio.sleep(chance.uniform(0.005, 0.2))  # the kill comes at any moment
                os.kill(pid, signal.SIGKILL)
                await asyncio.to_thread(collectors.ended)
                saves_at_end[pid] = saves.count
                pid = await asyncio.to_thread(collectors.start)
            await eventually(saves.more(1))  # the last one is at work
        await eventually(lambda: len(receiver.came) == writer.count, timeout=30)
        os.kill(pid, signal.SIGTERM)
        assert await asyncio.to_thread(collectors.ended) == 0
    assert sorted(receiver.came) == list(range(writer.count))
    assert receiver.wrong == []
    for number, arrivals in receiver.came.items():
        for (life, saved), (other, _) in pairwise(arrivals):
            assert life != other, f"line {number} came twice without a kill"
            later = saves_at_end[life] - saved
            assert later <= 3, f"line {number} came again although it was saved {later} times"


def more_lines(out: Path) -> Callable[[], bool]:
    """Return a condition: there are more lines than now."""
    before = len(written(out))
    return lambda: len(written(out)) > before


def position(state: Path) -> int:
    """What is saved of the one file there is."""
    if not state.exists():
        return 0
    return sum(entry.lowest for entry in decode(state.read_bytes()).entries)


def test_killed_more_often_than_once_a_second_it_gets_on(
    tmp_path: Path,
    log: LogFile,
    start_collectors: Callable[..., CollectorStarter],
    wait_for: WaitFor,
) -> None:
    """Scenario 34: a crash loop with a backlog. What a life has delivered must not all be done again by the next."""
    state = tmp_path / "state" / "offsets.json"
    log.write_raw(b"".join(b"%08d %s\n" % (n, b"." * 1000) for n in range(100_000)))
    collectors = start_collectors(log.path)
    reached = 0
    for _ in range(3):
        pid = collectors.start()
        wait_for(lambda done=reached: position(state) > done)
        os.kill(pid, signal.SIGKILL)
        collectors.ended()
        assert reached < position(state) < log.path.stat().st_size
        reached = position(state)


def test_told_to_stop_with_a_backlog_it_delivers_and_exits_with_zero(
    tmp_path: Path,
    log: LogFile,
    start_collectors: Callable[..., CollectorStarter],
    wait_for: WaitFor,
) -> None:
    """Scenario 35: then nothing is left for the next start."""
    out = tmp_path / "out" / "lines"
    collectors = start_collectors(log.path)
    log.write("first")
    pid = collectors.start()
    wait_for(lambda: out.exists() and out.read_text() == "first\n")
    log.write(*(f"{n} {'.' * 200}" for n in range(50_000)))
    log.close()
    os.kill(pid, signal.SIGTERM)
    assert collectors.ended() == 0
    assert len(out.read_text().splitlines()) == 50_001


async def test_told_to_stop_it_ends_once_a_slow_receiver_has_acknowledged_everything(
    tmp_path: Path,
    log: LogFile,
    start_collectors: Callable[..., CollectorStarter],
    eventually: Eventually,
) -> None:
    """Issue 13.4: what only the kernel has is lost when the Pod's network ends; the answer is what counts."""
    chance = random.Random(1)
    lines = [f"{n:08d} {chance.randbytes(60).hex()}" for n in range(3000)]
    async with FakeNdjson() as receiver:
        receiver.always = SlowRead(rate=200_000)
        collectors = start_collectors(log.path, out=receiver.address)
        log.write(*lines)
        pid = await asyncio.to_thread(collectors.start)
        await eventually(lambda: receiver.seen > 0)
        assert receiver.texts == []
        os.kill(pid, signal.SIGTERM)
        assert await asyncio.to_thread(collectors.ended) == 0
        assert receiver.texts == lines
    [entry] = decode((tmp_path / "state" / "offsets.json").read_bytes()).entries
    assert entry.lowest == log.path.stat().st_size


def test_told_to_stop_and_killed_soon_after_it_loses_nothing(
    tmp_path: Path,
    log: LogFile,
    start_collectors: Callable[..., CollectorStarter],
    wait_for: WaitFor,
) -> None:
    """Scenario 36: the grace period was used up by somebody else."""
    out, state = tmp_path / "out" / "lines", tmp_path / "state" / "offsets.json"
    collectors = start_collectors(log.path)
    with Writer(log, "rc") as writer:
        for pause in (0.0, 0.01, 0.05, 0.2):
            pid = collectors.start()
            # The first scan of all is what everything after it is promised from.
            wait_for(state.exists)
            wait_for(more_lines(out))
            os.kill(pid, signal.SIGTERM)
            time.sleep(pause)
            with contextlib.suppress(ProcessLookupError):  # it has made it in time
                os.kill(pid, signal.SIGKILL)
            collectors.ended()
    log.close()
    pid = collectors.start()
    last = b"%08d" % (writer.count - 1)
    wait_for(lambda: any(line[:8] == last for line in written(out)), timeout=15)
    os.kill(pid, signal.SIGTERM)
    assert collectors.ended() == 0
    got = delivered(out)
    assert max(got.values()) == 1
    assert sorted(got) == list(range(min(got), writer.count))
