"""A reader at rest: the time to its first answer, its memory, its CPU.

python benchmarks/footprint.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

SETTLE = 3.0
IDLE = 10.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def start(path: Path, port: int) -> tuple[subprocess.Popen[bytes], float]:
    """Start a reader; return it, and the seconds until its first answer."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "sidecar.cli.main", "read", "--path", str(path)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--host", "127.0.0.1", "--drain-delay", "0"],
        stderr=subprocess.DEVNULL,
    )
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            return process, time.perf_counter() - begun
        except OSError:
            time.sleep(0.002)


def resident(pid: int) -> int:
    """Return the resident memory in KiB, as ps(1) shows it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads, from the scheduler's own count in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    firsts: list[float] = []
    sizes: list[int] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config")
        path.write_text("123")
        for number in range(options.rounds):
            process, first = start(path, free_port())
            firsts.append(first)
            time.sleep(SETTLE)
            sizes.append(resident(process.pid))
            if not number:
                before = cpu_seconds(process.pid)
                time.sleep(IDLE)
                shares.append((cpu_seconds(process.pid) - before) / IDLE)
            process.terminate()
            process.wait()
    print(
        f"sidecar read: first answer after {statistics.median(firsts):.2f} s"
        f" (best {min(firsts):.2f}, worst {max(firsts):.2f});"
        f" {statistics.median(sizes)} KiB resident; {shares[0]:.3%} of a core at rest"
    )
    print(f"on {os.cpu_count()} cores, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
