"""A dead sink costs time and never memory: the files are the buffer."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

from logs.fakes.loki import FakeLoki
from logs.fakes.ndjson import FakeNdjson
from logs.fakes.receiver import Hang, Receiver
from support import Eventually, FreePorts, StartProcess

BEFORE = 20_000
"""Lines that are delivered first, so that the memory of a collector at work is compared."""
GROWTH = 10 << 20
BUDGET = 8 << 20
LINE = "line %08d " + "x" * 230


def resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def unacknowledged(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = re.search(rb"^sidecar_logs_unacked_bytes (\S+)$", answer.read(), re.MULTILINE)
    return int(float(found[1])) if found else 0


@pytest.mark.parametrize("kind", [FakeLoki, FakeNdjson])
@pytest.mark.parametrize("dead", ["refuses", "hangs"])
@pytest.mark.parametrize(
    "count", [100_000, pytest.param(1_200_000, marks=[pytest.mark.soak, pytest.mark.timeout(240)])]
)
async def test_memory_stays_bounded_while_a_sink_is_dead_and_then_all_arrives(
    sidecar_process: StartProcess,
    eventually: Eventually,
    free_ports: FreePorts,
    tmp_path: Path,
    kind: type[Receiver],
    dead: str,
    count: int,
) -> None:
    """20 MB, more than twice the budget, into a dead sink: RSS grows by 10 MiB at most; nothing is lost, nothing comes twice."""
    log = tmp_path / "app.log"
    log.write_text("".join(LINE % number + "\n" for number in range(BEFORE)))
    [port] = free_ports(1)
    async with kind() as receiver:
        scheme = "loki+" if kind is FakeLoki else ""
        process = sidecar_process(
            *("collect", log, "--checkpoint", tmp_path / "offsets.json", "--port", port),
            *("--sink", f"{scheme}{receiver.address}#timeout=20"),
        )
        await eventually(lambda: len(receiver.texts) == BEFORE, timeout=30)
        if dead == "refuses":
            await receiver.refuse()
        else:
            receiver.always = Hang()
        before = resident(process.pid)
        most = [before]

        def is_blocked() -> bool:
            most.append(resident(process.pid))
            return unacknowledged(port) > BUDGET - (1 << 20)

        with log.open("a") as file:
            for start in range(BEFORE, count, 20_000):
                file.write("".join(LINE % number + "\n" for number in range(start, start + 20_000)))
                file.flush()
                most.append(resident(process.pid))
        await eventually(is_blocked, timeout=30)
        receiver.always = None
        await receiver.refuse()  # whoever hangs is let go
        await receiver.listen()
        await eventually(lambda: len(receiver.texts) >= count, timeout=120)
        process.popen.terminate()
        await eventually(lambda: process.popen.poll() is not None, timeout=30)

    assert process.popen.returncode == 0, process
    print(f"RSS {before / 2**20:.1f} MiB, at most {max(most) / 2**20:.1f}; {count} lines")
    assert max(most) - before <= GROWTH, f"{(max(most) - before) / 2**20:.1f} MiB"
    assert receiver.texts == [LINE % number for number in range(count)]
    assert receiver.wrong == []
