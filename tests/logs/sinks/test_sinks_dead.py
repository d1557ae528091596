"""A dead sink costs time and never memory: the files are the buffer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from logs.fakes.loki import FakeLoki
from logs.fakes.ndjson import FakeNdjson
from logs.fakes.receiver import Hang, Receiver
from support import Eventually, StartProcess

RATE = 10_000
GROWTH = 10 << 20
LINE = "line %08d " + "x" * 230


def resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * 4096


async def write_for(seconds: float, log: Path, start: int, watch: Any) -> int:
    """Append `RATE` lines a second, and return the number behind the last."""
    began = time.monotonic()
    number = start
    with log.open("a") as file:
        while (passed := time.monotonic() - began) < seconds:
            due = start + int(passed * RATE)
            file.write("".join(LINE % one + "\n" for one in range(number, due)))
            file.flush()
            number = max(number, due)
            watch()
            await asyncio.sleep(0.05)
    return number


@pytest.mark.parametrize("kind", [FakeLoki, FakeNdjson])
@pytest.mark.parametrize("dead", ["refuses", "hangs"])
@pytest.mark.parametrize(
    "seconds", [3.0, pytest.param(60.0, marks=[pytest.mark.soak, pytest.mark.timeout(240)])]
)
async def test_memory_stays_bounded_while_a_sink_is_dead_and_then_all_arrives(
    sidecar_process: StartProcess,
    eventually: Eventually,
    tmp_path: Path,
    kind: type[Receiver],
    dead: str,
    seconds: float,
) -> None:
    """10,000 lines a second into a dead sink: RSS grows by 10 MiB at most; nothing is lost, nothing comes twice."""
    log = tmp_path / "app.log"
    log.write_text("".join(LINE % number + "\n" for number in range(20_000)))
    async with kind() as receiver:
        scheme = "loki+" if kind is FakeLoki else ""
        process = sidecar_process(
            *("collect", log, "--checkpoint", tmp_path / "offsets.json"),
            *("--sink", f"{scheme}{receiver.address}#timeout=20"),
        )
        await eventually(lambda: len(receiver.texts) == 20_000, timeout=30)
        if dead == "refuses":
            await receiver.refuse()
        else:
            receiver.always = Hang()
        before = resident(process.pid)
        most = [before]
        count = await write_for(seconds, log, 20_000, lambda: most.append(resident(process.pid)))
        receiver.always = None
        await receiver.refuse()  # whoever hangs is let go
        await receiver.listen()
        await eventually(lambda: len(receiver.texts) >= count, timeout=60)
        process.popen.terminate()
        await eventually(lambda: process.popen.poll() is not None, timeout=30)

    assert process.popen.returncode == 0, process
    print(f"RSS {before / 2**20:.1f} MiB, at most {max(most) / 2**20:.1f}; {count} lines")
    assert max(most) - before <= GROWTH, f"{(max(most) - before) / 2**20:.1f} MiB"
    assert receiver.texts == [LINE % number for number in range(count)]
    assert receiver.wrong == []
