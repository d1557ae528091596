"""A writer under load that is killed, or whose power is cut: every content that it has acknowledged is there, or a later one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sidecar.fs import layout
from support import FreePorts, WaitFor
from support.mounts import FileSystem, cut_power, image, loop

CLIENTS = 64
TIMES = 256
#: Acknowledged before anything happens: by then the fast path writes.
ENOUGH = 300


@dataclass
class Told:
    """What the clients know: the numbers that they have sent, in this order, and what was acknowledged when."""

    sent: int = 0
    acknowledged: dict[int, int] = field(default_factory=dict)
    """By number, how many had been sent when it was acknowledged: those after it came after it."""

    def wrong(self, content: bytes) -> str | None:
        """Say what is wrong with what the file holds at the end."""
        if not content and not self.acknowledged:
            return None
        number = int(content[:7]) if content[:7].isdigit() else -1
        if content != block(number):
            return f"torn: {content[:20]!r}, {len(content)} bytes"
        # One that was never acknowledged may have come last. Else nothing may have been that was sent after its answer.
        last = max(self.acknowledged, default=0)
        if last > self.acknowledged.get(number, last):
            return (
                f"{last} was sent when {number} had been acknowledged, and is acknowledged and lost"
            )
        return None


def block(number: int) -> bytes:
    """One number over and over: whatever is torn or mixed shows it."""
    return b"%07d-" % number * TIMES


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Told) -> bool:
    """Write the next number; return whether it was acknowledged."""
    told.sent += 1
    number = told.sent
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        writer.write(b"GET /?content=%s HTTP/1.1\r\nHost: a\r\n\r\n" % block(number))
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 200 "):
            told.acknowledged[number] = told.sent
            await reader.readexactly(len(b'"ok"'))
            return True
    return False


async def client(port: int, told: Told) -> None:
    """Write number after number on one connection, until something is wrong."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        while await ask(reader, writer, told):
            pass


async def under_load(port: int, told: Told, pause: float, what: object) -> None:
    """Let all clients write, do `what` in the middle of that, and wait until none of them is answered any more."""
    clients = [asyncio.create_task(client(port, told)) for _ in range(CLIENTS)]
    async with asyncio.timeout(30):
        while len(told.acknowledged) < ENOUGH:
            await asyncio.sleep(0.001)
        await asyncio.sleep(pause)
        assert callable(what)
        what()
        await asyncio.gather(*clients)


async def in_waves(port: int, told: Told, what: object) -> None:
    """Let all clients ask together, then again when all have been answered, and do `what` at the first answer of a wave.

    So everything that was answered before is older than what this answer promises, and nothing has been written since:
    on ext4 the sync of a later file brings an earlier rename to the disk, and would hide that nobody else did.
    """
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS)]
    async with asyncio.timeout(30):
        for _ in range(5):
            assert all(await asyncio.gather(*(ask(*one, told) for one in clients)))
        last = [asyncio.create_task(ask(*one, told)) for one in clients]
        await asyncio.wait(last, return_when=asyncio.FIRST_COMPLETED)
        assert callable(what)
        what()
        await asyncio.gather(*last)
    for _, connection in clients:
        connection.close()


@contextmanager
def writer(
    path: Path, port: int, wait_for: WaitFor, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a writer until the block ends, however it ends."""
    command = [
        sys.executable,
        "-m",
        "sidecar.cli",
        "write",
        "--path",
        str(path),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", *options], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: answers(port))
        yield process
    finally:
        process.kill()
        process.wait(20)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
        return True
    return False


async def killed(path: Path, port: int, wait_for: WaitFor, pause: float) -> str | None:
    told = Told()
    path.unlink(missing_ok=True)
    with writer(path, port, wait_for) as process:
        await under_load(port, told, pause, lambda: os.kill(process.pid, signal.SIGKILL))
    assert process.returncode == -signal.SIGKILL
    return told.wrong(path.read_bytes())


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_writer_that_is_killed_under_load_has_lost_nothing_that_it_acknowledged(
    tmp_path: Path, free_ports: FreePorts, wait_for: WaitFor
) -> None:
    """64 clients, SIGKILL at any moment; and the next start leaves no trace of it."""
    chance, path, (port,) = random.Random(3), tmp_path / "shared" / "config", free_ports(1)
    pauses = [chance.random() * 0.2 for _ in range(4)]
    assert [await killed(path, port, wait_for, pause) for pause in pauses] == [None] * len(pauses)
    with writer(path, port, wait_for):
        left = [e for e in os.listdir(path.parent) if e.startswith(layout.TEMPORARY)]
    assert left == []


async def cut(
    mount: Path, disk: Path, port: int, wait_for: WaitFor, pause: float | None, durability: str
) -> str | None:
    """Cut the power of a writer under load after a pause, or (None) at the first answer of a wave."""
    told = Told()
    with loop(mount, disk):
        path = mount / "shared" / "config"
        path.unlink(missing_ok=True)
        with writer(path, port, wait_for, "--durability", durability):
            if pause is None:
                await in_waves(port, told, lambda: cut_power(mount))
            else:
                await under_load(port, told, pause, lambda: cut_power(mount))
    with loop(mount, disk):
        return told.wrong(path.read_bytes() if path.exists() else b"")


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_a_power_cut_under_load_takes_nothing_that_was_acknowledged(
    tmp_path: Path, kind: FileSystem, free_ports: FreePorts, wait_for: WaitFor
) -> None:
    """64 clients, by the fast path and by group commit: after the cut the last content is there, or one sent after it."""
    chance, disk, (port,) = random.Random(4), image(tmp_path / "disk", kind), free_ports(1)
    pauses = [*(chance.random() * 0.2 for _ in range(4)), None, None]
    wrong = [await cut(tmp_path / "mnt", disk, port, wait_for, pause, "full") for pause in pauses]
    assert wrong == [None] * len(pauses)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_without_durability_a_power_cut_takes_what_was_acknowledged(
    tmp_path: Path, kind: FileSystem, free_ports: FreePorts, wait_for: WaitFor
) -> None:
    """What `--durability none` gives up; and the proof that the cut above is one."""
    disk, (port,) = image(tmp_path / "disk", kind), free_ports(1)
    assert await cut(tmp_path / "mnt", disk, port, wait_for, 0.1, "none") is not None


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_a_hundred_power_cuts_under_load_take_nothing(
    tmp_path: Path, kind: FileSystem, free_ports: FreePorts, wait_for: WaitFor
) -> None:
    """The same at many moments."""
    chance, disk, (port,) = random.Random(5), image(tmp_path / "disk", kind), free_ports(1)
    wrong = [
        await cut(tmp_path / "mnt", disk, port, wait_for, chance.random() * 0.3, "full")
        for _ in range(50)
    ]
    assert [one for one in wrong if one] == []
