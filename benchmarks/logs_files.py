"""MB a CPU second from a file to a file, beside rsyslog (imfile) and syslog-ng, in one run on one core.

    python benchmarks/logs_files.py [--megabytes 300] [--rivals DIR] [--json FILE]

Every program starts with the complete file, and is counted until the output is complete:
user and system time of the whole process, less what it needs to start and to copy a single line.
Offsets are saved by all of them; ours only after the output has them.

The two packages exclude each other in Debian, so both are unpacked beside each other, into a cache;
`--rivals DIR` names a directory where that has been done.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _options import arguments
from _rows import Row, cpu_seconds, of_rounds, report

Start = Callable[[Path, Path, Path, Path], "list[str] | None"]

GOAL = 4.0
PACKAGES = (
    *("rsyslog", "libestr0", "libfastjson4", "liblognorm5"),
    *("syslog-ng-core", "libivykis0", "libnet1", "libwrap0", "libpcre3"),
)
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
global(workDirectory="{workdir}")
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
    parser = arguments(__doc__, megabytes=300, rounds=3)
    parser.add_argument("--rivals", type=Path)
    options = parser.parse_args()
    rivals = options.rivals or unpacked()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows: list[Row] = []
    for width in (256, 1024):
        rates: dict[str, list[float]] = {}
        for number in range(options.rounds):
            print(f"lines of {width} bytes: round {number + 1} of {options.rounds}", flush=True)
            for name, start in (
                ("rsyslog", rsyslog),
                ("syslog-ng", syslog_ng),
                ("sidecar", sidecar),
            ):
                begun = measure(start, rivals, width, width)
                spent = measure(start, rivals, options.megabytes * 1_000_000, width)
                if begun is None or spent is None:
                    print(f"left out: {name} is not installed")
                    continue
                rates.setdefault(name, []).append(options.megabytes / max(spent - begun, 0.01))
        ours = rates.pop("sidecar")
        rows += [
            of_rounds(
                f"file → file, {width}-byte lines",
                ours,
                "MB/CPU s",
                peer=statistics.median(theirs),
                peer_name=name,
                least_ratio=GOAL,
            )
            for name, theirs in rates.items()
        ] or [of_rounds(f"file → file, {width}-byte lines", ours, "MB/CPU s")]
    report(rows, options.json)


def unpacked() -> Path:
    """Return a directory with both rivals as Debian has them; without apt-get, what is installed has to do."""
    place = Path(tempfile.gettempdir()) / f"sidecar-bench-rivals-{os.getuid()}"
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return Path("/")
    if not (place / "usr/sbin/syslog-ng").exists():
        place.mkdir(exist_ok=True)
        print(f"unpacking {', '.join(PACKAGES)} into {place}", flush=True)
        subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *PACKAGES],
            cwd=place,
            check=False,
        )
        for package in place.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, place], check=True)
    return place


def measure(start: Start, rivals: Path, size: int, width: int) -> float | None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as directory:
        workdir = Path(directory)
        source, out = workdir / "in.log", workdir / "out.log"
        count = size // width
        with source.open("wb") as file:
            line = b"%012d " + b"x" * (width - 14) + b"\n"
            for number in range(0, count, 1000):
                file.write(b"".join(line % n for n in range(number, min(number + 1000, count))))
        size = source.stat().st_size
        command = start(workdir, rivals, source, out)
        if command is None:
            return None
        process = subprocess.Popen(
            command,
            env=os.environ if start is sidecar else environment(rivals),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
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


def environment(rivals: Path) -> dict[str, str]:
    libraries = [
        rivals / "usr/lib/x86_64-linux-gnu",
        rivals / "usr/lib/syslog-ng",
        rivals / "lib/x86_64-linux-gnu",
    ]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}


def sidecar(workdir: Path, _: Path, source: Path, out: Path) -> list[str]:
    program = workdir / "ours.py"
    program.write_text(OURS)
    return [sys.executable, str(program), str(source), str(workdir / "offsets.json"), str(out)]


def rsyslog(workdir: Path, rivals: Path, source: Path, out: Path) -> list[str] | None:
    program, modules = (
        find(rivals, "usr/sbin/rsyslogd"),
        find(rivals, "usr/lib/x86_64-linux-gnu/rsyslog"),
    )
    if program is None or modules is None:
        return None
    config = workdir / "rsyslog.conf"
    config.write_text(RSYSLOG.format(workdir=workdir, modules=modules, source=source, out=out))
    return [program, "-n", "-f", str(config), "-i", str(workdir / "pid"), "-M", modules]


def syslog_ng(workdir: Path, rivals: Path, source: Path, out: Path) -> list[str] | None:
    program = find(rivals, "usr/sbin/syslog-ng")
    modules = find(rivals, "usr/lib/syslog-ng/3.38") or find(rivals, "usr/lib/syslog-ng")
    if program is None or modules is None:
        return None
    config = workdir / "syslog-ng.conf"
    config.write_text(SYSLOG_NG.format(source=source, out=out))
    return [
        *(program, "-F", "--no-caps", "-f", str(config), "-R", str(workdir / "persist")),
        *("-p", str(workdir / "pid"), "-c", str(workdir / "control"), f"--module-path={modules}"),
    ]


def find(rivals: Path, path: str) -> str | None:
    for root in (rivals, Path("/")):
        if (root / path).exists():
            return str(root / path)
    return shutil.which(Path(path).name)


if __name__ == "__main__":
    main()
