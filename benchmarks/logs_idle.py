"""What a collector costs while little happens: idle files, the way of one new line, a dead sink.

    python benchmarks/logs_idle.py [--files 1000] [--seconds 10] [--dead 60] [--json FILE]

Each figure is of a process of its own: `sidecar.logs` and standard output or a file, nothing else.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _options import arguments
from _rows import Row, cpu_seconds, percentile, report

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
    options = arguments(__doc__, files=1000, seconds=10.0, dead=60.0).parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = idle(Path(directory), options.files, options.seconds)
    if options.dead:
        with tempfile.TemporaryDirectory() as directory:
            rows += dead(Path(directory), options.dead)
    report(rows, options.json)


def idle(workdir: Path, count: int, seconds: float) -> list[Row]:
    logs = workdir / "log"
    logs.mkdir()
    for number in range(count):
        (logs / f"app{number:05d}.log").write_text(f"first line of {number}\n" * 50)
    out = workdir / "out"
    process = start(workdir, logs / "*.log", out)
    wait(lambda: out.exists() and out.stat().st_size >= total(logs))
    time.sleep(2)
    before = cpu_seconds(process.pid)
    time.sleep(seconds)
    share = (cpu_seconds(process.pid) - before) / seconds
    rows = [
        Row(f"collect, {count:,} idle files: share of a core", share * 100, "%", 1.0),
        Row(f"collect, {count:,} idle files: memory", rss(process.pid), "MB", 45.0),
    ]
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
    rows += [
        Row("collect, new line → sink, median", statistics.median(times), "ms"),
        Row("collect, new line → sink, p99", percentile(times, 99), "ms", 100.0),
    ]
    stop(process)
    return rows


def dead(workdir: Path, seconds: float) -> list[Row]:
    log, out, alive = workdir / "app.log", workdir / "out", workdir / "alive"
    log.write_bytes(b"")
    process = start(workdir, log, out, alive)
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
    stop(process)
    what = f"collect, sink dead for {seconds:g} s at {written / seconds:,.0f} lines/s"
    return [
        Row(f"{what}: growth", growth, "MB", 10.0),
        Row(f"{what}: lines lost or twice", 0.0 if complete else 1.0, "", 0.0),
    ]


def start(workdir: Path, *arguments: Path) -> subprocess.Popen[bytes]:
    program = workdir / "program.py"
    program.write_text(PROGRAM)
    pattern, *rest = arguments
    return subprocess.Popen(
        [sys.executable, program, pattern, workdir / "state.json", *rest], stderr=subprocess.DEVNULL
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


def rss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


if __name__ == "__main__":
    main()
