"""What a collector costs while little happens: idle files, the way of one new line, a dead sink.

    python benchmarks/logs_idle.py [--files 1000] [--seconds 10] [--dead 60]

Each figure is of a process of its own: `sidecar.logs` and standard output or a file, nothing else.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = """
import sys
import sidecar
from sidecar import logs

class Dead(logs.BaseSink):
    name = "dead"
    async def write(self, batch):
        if not __import__("os").path.exists(sys.argv[4]):
            raise logs.SinkUnavailable("out of order", retry_after=0.5)
        with open(sys.argv[3], "ab") as out:
            for block in batch.blocks:
                out.write(block.data)
        return logs.ACCEPTED

async def main():
    sink = Dead() if len(sys.argv) > 4 else logs.FileSink(sys.argv[3])
    await logs.collect(logs.tail(sys.argv[1], checkpoint=sys.argv[2]), sink=sink)

sidecar.run(main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--dead", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        idle(Path(directory), options.files, options.seconds)
    if options.dead:
        with tempfile.TemporaryDirectory() as directory:
            dead(Path(directory), options.dead)


def idle(room: Path, count: int, seconds: float) -> None:
    logs = room / "log"
    logs.mkdir()
    for number in range(count):
        (logs / f"app{number:05d}.log").write_text(f"first line of {number}\n" * 50)
    out = room / "out"
    process = start(room, logs / "*.log", out)
    wait(lambda: out.exists() and out.stat().st_size >= total(logs))
    time.sleep(2)
    before = cpu_seconds(process.pid)
    time.sleep(seconds)
    share = (cpu_seconds(process.pid) - before) / seconds
    print(
        f"{count} idle files: {share:.2%} of a core, {rss(process.pid):.1f} MB resident"
        f" (goal 1 % and 45 MB: {verdict(share <= 0.01 and rss(process.pid) <= 45)})"
    )
    times = []
    with (logs / "app00042.log").open("ab", buffering=0) as log:
        for number in range(200):
            begun, before_it = time.monotonic(), out.stat().st_size

            def grown(size: int = before_it) -> bool:
                return out.stat().st_size > size

            log.write(b"line %d\n" % number)
            wait(grown, pause=0.0005)
            times.append((time.monotonic() - begun) * 1000)
            time.sleep(0.03)
    p99 = statistics.quantiles(times, n=100)[98]
    print(
        f"new line → sink: p50 {statistics.median(times):.1f} ms, p99 {p99:.1f} ms, most {max(times):.1f} ms"
        f" (goal p99 100 ms: {verdict(p99 <= 100)})"
    )
    stop(process)


def dead(room: Path, seconds: float) -> None:
    log, out, alive = room / "app.log", room / "out", room / "alive"
    log.write_bytes(b"")
    process = start(room, log, out, alive)
    time.sleep(2)
    before = rss(process.pid)
    written = 0
    with log.open("ab", buffering=0) as file:
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            file.write(b"".join(b"%08d %s\n" % (written + n, b"x" * 90) for n in range(100)))
            written += 100
            time.sleep(max(0.0, begun + written / 10_000 - time.monotonic()))
    growth = rss(process.pid) - before
    alive.touch()
    wait(lambda: out.exists() and out.stat().st_size >= log.stat().st_size)
    lines = out.read_bytes().splitlines()
    complete = [int(line[:8]) for line in lines] == list(range(written))
    print(
        f"sink dead for {seconds:g} s at {written / seconds:,.0f} lines/s: {growth:+.1f} MB resident,"
        f" then {'all' if complete else 'NOT ALL'} of {written:,} lines in order"
        f" (goal 10 MB: {verdict(growth <= 10 and complete)})"
    )
    stop(process)


def start(room: Path, *arguments: Path) -> subprocess.Popen[bytes]:
    program = room / "program.py"
    program.write_text(PROGRAM)
    pattern, *rest = arguments
    return subprocess.Popen(
        [sys.executable, program, pattern, room / "state.json", *rest], stderr=subprocess.DEVNULL
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait()


def wait(condition: Callable[[], object], pause: float = 0.02) -> None:
    limit = time.monotonic() + 60
    while not condition():
        if time.monotonic() > limit:
            sys.exit("waited in vain")
        time.sleep(pause)


def total(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def rss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
