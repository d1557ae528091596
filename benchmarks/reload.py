"""From the rename of a file to the start of its action, and what waits for it costs at rest; beside a loop of inotifywait.

    python benchmarks/reload.py [--publishes 500] [--json FILE]

The receiver notes when the request, or the line in a FIFO, has arrived; the next version follows a little later.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _options import arguments
from _rows import Row, cpu_seconds, percentile, report, resident
from _servers import free_port

SETTLE = 3.0
IDLE = 20.0
PAUSE = 0.03
LOOP = """
inotifywait -q -m -e moved_to --format %f "$1" | while read name; do
  [ "$name" = config ] && curl -s -o /dev/null -X POST "$2"
done
"""


class Receiver:
    """Takes one request a connection, and notes when it came: as little as that takes."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(20.0)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/"

    def next(self) -> float:
        """Wait for a request; return when its head was there."""
        connection, _ = self.listener.accept()
        with connection:
            connection.recv(65536)
            arrived = time.perf_counter()
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        return arrived


def publish(path: Path, number: int) -> float:
    """Replace the file, and return when."""
    draft = path.with_name(".draft")
    draft.write_text(f"version {number}")
    now = time.perf_counter()
    draft.rename(path)
    return now


@contextmanager
def sidecar(path: Path, url: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `sidecar reload` on the file."""
    command = [
        sys.executable,
        "-m",
        "sidecar",
        "reload",
        "--path",
        str(path),
        "--log-level",
        "error",
    ]
    process = subprocess.Popen([*command, "--webhook", url, *more])
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def loop(path: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run what is written by hand: Debian's inotifywait, and curl."""
    command = ["sh", "-c", LOOP, "sh", str(path.parent), url]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        time.sleep(1.0)
        yield process
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def latencies(path: Path, receiver: Receiver, publishes: int) -> list[float]:
    """Return the milliseconds from each rename to its request."""
    found = []
    for number in range(publishes):
        time.sleep(PAUSE)
        begun = publish(path, number)
        found.append((receiver.next() - begun) * 1000)
    return found


def at_rest(path: Path, receiver: Receiver, *more: str) -> tuple[float, float]:
    """Return MiB and the share of a core after some versions."""
    with sidecar(path, receiver.url, *more) as process:
        receiver.next()
        latencies(path, receiver, 5)
        time.sleep(SETTLE)
        spent = cpu_seconds(process.pid)
        time.sleep(IDLE)
        return resident(process.pid), (cpu_seconds(process.pid) - spent) / IDLE


def measure(start: Callable[[Path, str], object], *, publishes: int, initial: bool) -> list[float]:
    """Return the latencies of one program."""
    with tempfile.TemporaryDirectory() as directory:
        path, receiver = Path(directory, "config"), Receiver()
        path.write_text("first")
        with start(path, receiver.url):  # type: ignore[attr-defined]
            if initial:
                receiver.next()
            latencies(path, receiver, 20)
            return latencies(path, receiver, publishes)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--publishes", type=int, default=500)
    options = parser.parse_args()
    ours = measure(sidecar, publishes=options.publishes, initial=True)
    rows = []
    peer: list[float] = []
    if shutil.which("inotifywait") and shutil.which("curl"):
        peer = measure(loop, publishes=options.publishes, initial=False)
    for percent in (50, 99):
        beside = (
            {"peer": percentile(peer, percent), "peer_name": "inotifywait, curl"} if peer else {}
        )
        goal = 10.0 if percent == 99 else None
        name = f"sidecar reload: rename to webhook, p{percent}"
        rows.append(Row(name, percentile(ours, percent), "ms", goal, **beside))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config")
        path.write_text("first")
        for what, more in (("", ()), (" with --port", ("--port", str(free_port())))):
            size, share = at_rest(path, Receiver(), *more)
            rows.append(Row(f"sidecar reload{what}: memory at rest", size, "MiB", 40))
            rows.append(
                Row(f"sidecar reload{what}: share of a core at rest", share * 100, "%", 0.1)
            )
    report(rows, options.json)


if __name__ == "__main__":
    main()
