"""MB a CPU second from a file to a file, beside rsyslog (imfile) and syslog-ng, in one run on one core.

    python benchmarks/logs_files.py [--megabytes 300] [--rivals DIR]

Every program starts with the complete file, and is counted until the output is complete:
user and system time of the whole process, less what it needs to start and to copy a single line.
Offsets are saved by all of them; ours only after the output has them.

The two packages exclude each other in Debian, so unpack them beside each other:

    apt-get download rsyslog libestr0 libfastjson4 liblognorm5 syslog-ng-core libivykis0 libnet1 libwrap0
    for package in *.deb; do dpkg -x "$package" DIR; done
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Start = Callable[[Path, Path, Path, Path], "list[str] | None"]

GOAL = 4.0
OURS = """
import sys
import sidecar
from sidecar import logs

async def main():
    source = logs.tail(sys.argv[1], checkpoint=sys.argv[2])
    await logs.collect(source, sink=logs.FileSink(sys.argv[3]))

sidecar.run(main())
"""
RSYSLOG = """
global(workDirectory="{room}")
module(load="{modules}/imfile.so" mode="inotify")
input(type="imfile" file="{source}" tag="x" persistStateInterval="10000")
template(name="raw" type="string" string="%msg%\\n")
action(type="omfile" file="{out}" template="raw" asyncWriting="off" ioBufferSize="64k")
"""
SYSLOG_NG = """
@version: 3.38
options {{ flush-lines(1000); stats-freq(0); }};
source s {{ file("{source}" follow-freq(1) flags(no-parse) log-iw-size(100000) log-fetch-limit(1000)); }};
destination d {{ file("{out}" template("${{MSG}}\\n") log-fifo-size(200000)); }};
log {{ source(s); destination(d); flags(flow-control); }};
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rivals", type=Path, default=Path("/"))
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for width in (256, 1024):
        print(f"{options.megabytes} MB in lines of {width} bytes; MB a CPU second:")
        rates = {}
        for name, start in (("rsyslog", rsyslog), ("syslog-ng", syslog_ng), ("sidecar", sidecar)):
            begun = measure(start, options.rivals, width, width)
            spent = measure(start, options.rivals, options.megabytes * 1_000_000, width)
            if begun is None or spent is None:
                print(f"  {name:10} not installed")
                continue
            rates[name] = options.megabytes / max(spent - begun, 0.01)
            print(f"  {name:10} {rates[name]:7.0f}   (start: {begun:.2f} s)")
        if len(rates) > 1:
            best = max(rate for name, rate in rates.items() if name != "sidecar")
            ratio = rates["sidecar"] / best
            print(
                f"  {ratio:.1f}× the faster rival (goal {GOAL:g}×: {'met' if ratio >= GOAL else 'MISSED'})"
            )


def measure(start: Start, rivals: Path, size: int, width: int) -> float | None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as directory:
        room = Path(directory)
        source, out = room / "in.log", room / "out.log"
        count = size // width
        with source.open("wb") as file:
            line = b"%012d " + b"x" * (width - 14) + b"\n"
            for number in range(0, count, 1000):
                file.write(b"".join(line % n for n in range(number, min(number + 1000, count))))
        size = source.stat().st_size
        command = start(room, rivals, source, out)
        if command is None:
            return None
        process = subprocess.Popen(
            command, env=environment(rivals), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + 120
        while not out.exists() or out.stat().st_size < size:
            if process.poll() is not None or time.monotonic() > limit:
                process.kill()
                process.wait()
                return None
            time.sleep(0.02)
        spent = cpu_seconds(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait()
        return spent


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(rivals: Path) -> dict[str, str]:
    libraries = [
        rivals / "usr/lib/x86_64-linux-gnu",
        rivals / "usr/lib/syslog-ng",
        rivals / "lib/x86_64-linux-gnu",
    ]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}


def sidecar(room: Path, _: Path, source: Path, out: Path) -> list[str]:
    program = room / "ours.py"
    program.write_text(OURS)
    return [sys.executable, str(program), str(source), str(room / "offsets.json"), str(out)]


def rsyslog(room: Path, rivals: Path, source: Path, out: Path) -> list[str] | None:
    program, modules = (
        find(rivals, "usr/sbin/rsyslogd"),
        find(rivals, "usr/lib/x86_64-linux-gnu/rsyslog"),
    )
    if program is None or modules is None:
        return None
    config = room / "rsyslog.conf"
    config.write_text(RSYSLOG.format(room=room, modules=modules, source=source, out=out))
    return [program, "-n", "-f", str(config), "-i", str(room / "pid"), "-M", modules]


def syslog_ng(room: Path, rivals: Path, source: Path, out: Path) -> list[str] | None:
    program = find(rivals, "usr/sbin/syslog-ng")
    modules = find(rivals, "usr/lib/syslog-ng/3.38") or find(rivals, "usr/lib/syslog-ng")
    if program is None or modules is None:
        return None
    config = room / "syslog-ng.conf"
    config.write_text(SYSLOG_NG.format(source=source, out=out))
    return [
        *(program, "-F", "--no-caps", "-f", str(config), "-R", str(room / "persist")),
        *("-p", str(room / "pid"), "-c", str(room / "control"), f"--module-path={modules}"),
    ]


def find(rivals: Path, path: str) -> str | None:
    for root in (rivals, Path("/")):
        if (root / path).exists():
            return str(root / path)
    return shutil.which(Path(path).name)


if __name__ == "__main__":
    main()
