"""One large content: 8 clients download it, one uploads another; beside nginx with sendfile.

    python benchmarks/large.py [--size 1024] [--rounds 3] [--json FILE]

Servers on one core, the clients on another, the servers in turn, several rounds.
The file is in the page cache, and the clients throw away what comes.
Memory is the highest that the kernel has seen (`VmHWM`), against that before the content was there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from _options import arguments
from _rows import Row, cpu_seconds, of_rounds, percentile, report, resident
from _servers import available, cores, nginx, side_by_side, sidecar

CLIENTS = 8
MOST_GROWTH = 16
#: A client costs as little as possible: with MSG_TRUNC, TCP throws away what has come.
CLIENT = """
import socket, sys, threading
port, path, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def fetch():
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall(f"GET {path} HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n".encode())
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            head += one.recv(1)
        assert b" 200 " in head, head
        left = int(head.lower().split(b"content-length:")[1].split()[0])
        buffer = bytearray(1 << 20)
        while left:
            got = one.recv_into(buffer, 0, socket.MSG_TRUNC)
            assert got, left
            left -= got
threads = [threading.Thread(target=fetch) for _ in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def content_of(size: int) -> bytes:
    """Return so many MiB that no file system can leave out."""
    block = os.urandom(1 << 20)
    return b"".join(number.to_bytes(8, "big") + block[8:] for number in range(size))


def download(port: int, path: str, count: int) -> subprocess.Popen[bytes]:
    command = ["taskset", "-c", str(cores()[1]), sys.executable, "-c", CLIENT]
    return subprocess.Popen([*command, str(port), path, str(count)])


def downloads(pid: int, port: int, path: str) -> tuple[float, float]:
    """Return the seconds that 8 downloads take together, and the CPU seconds of the server."""
    spent, begun = cpu_seconds(pid), time.perf_counter()
    if download(port, path, CLIENTS).wait():
        raise RuntimeError("a download has failed")
    return time.perf_counter() - begun, cpu_seconds(pid) - spent


def upload(port: int, name: str, source: Path) -> float:
    """Send a file by PUT, and return the seconds until it is acknowledged as durable."""
    begun = time.perf_counter()
    head = (
        f"PUT /files/{name} HTTP/1.1\r\nHost: a\r\nContent-Length: {source.stat().st_size}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as one, source.open("rb") as file:
        one.sendall(head.encode())
        one.sendfile(file)
        answer = one.recv(4096)
    if answer.split()[1] not in (b"201", b"204"):
        raise RuntimeError(f"the upload has failed: {answer!r}")
    return time.perf_counter() - begun


def highest(pid: int) -> float:
    """Return the most memory that a process has had since `forget`, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("\nVmHWM:")[1].split()[0]) / 1024


def forget(pid: int) -> float:
    """Let the highest begin anew, and return what it is now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return resident(pid)


def until_served(port: int, size: int) -> None:
    """Wait until `/raw` is the content: it is hashed first."""
    limit, found = time.monotonic() + 120, -1
    while found != size:
        if time.monotonic() > limit:
            raise RuntimeError(f"nothing of {size} bytes is served at port {port}")
        time.sleep(0.05)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/raw", method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = int(answer.headers["Content-Length"])
        except OSError:
            found = -1


class Prober(threading.Thread):
    """Asks for something small all the time, to see how long others wait."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._waits: list[float] = []
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as one:
            while not self._over.wait(0.005):
                begun = time.perf_counter()
                one.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
                one.recv(65536)
                self._waits.append(time.perf_counter() - begun)

    def stop(self) -> float:
        """Return the time within which 99 of 100 were answered, in milliseconds."""
        self._over.set()
        self.join()
        return percentile(self._waits, 99) * 1000


def beside_nginx(content: bytes, rounds: int) -> Iterator[Row]:
    """Yield time and CPU time of 8 downloads."""
    servers = available({"sidecar": sidecar("read", "--max-size", "4Gi"), "nginx": nginx})
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    with side_by_side(servers, content) as places:
        for _, port in places.values():
            until_served(port, len(content))
        for number in range(rounds):
            print(f"downloads: round {number + 1} of {rounds}", flush=True)
            for name, (pid, port) in places.items():
                took[name].append(downloads(pid, port, "/raw"))
    gib = CLIENTS * len(content) / (1 << 30)
    for number, (what, goal) in enumerate((("time", 1.25), ("CPU time", None))):
        ours = [one[number] / gib for one in took["sidecar"]]
        theirs = sorted(one[number] / gib for one in took.get("nginx", ()))
        more = {"peer": theirs[len(theirs) // 2], "peer_name": "nginx"} if theirs else {}
        yield of_rounds(f"{CLIENTS} downloads: {what}", ours, "s/GiB", goal_ratio=goal, **more)


def together(content: bytes, source: Path) -> Iterator[Row]:
    """Yield memory and waits while 8 clients download from the reader and one uploads to the writer."""
    gib = len(content) / (1 << 30)
    servers = {role: sidecar(role, "--max-size", "4Gi") for role in ("read", "write")}
    with side_by_side(servers, b"small") as places:
        (reader, port), (writer, at) = places["read"], places["write"]
        time.sleep(1)
        rest = {pid: forget(pid) for pid in (reader, writer)}
        config = Path(config_of(reader))
        new = config.with_name("..new")
        shutil.copyfile(source, new)
        new.rename(config)
        until_served(port, len(content))
        probers = [Prober(port), Prober(at)]
        clients = download(port, "/raw", CLIENTS)
        took = upload(at, "large", source)
        if clients.wait():
            raise RuntimeError("a download has failed")
        waits = [prober.stop() for prober in probers]
        what = f"{CLIENTS} downloads and an upload"
        for name, pid, wait in (("reader", reader, waits[0]), ("writer", writer, waits[1])):
            yield Row(f"{what}: growth of the {name}", highest(pid) - rest[pid], "MiB", MOST_GROWTH)
            yield Row(f"{what}: p99 of a probe of the {name}", wait, "ms")
        yield Row(f"{what}: the upload", took / gib, "s/GiB")
        spent = cpu_seconds(writer)
        took = upload(at, "other", source)
        yield Row("an upload alone: time", took / gib, "s/GiB")
        yield Row("an upload alone: CPU time", (cpu_seconds(writer) - spent) / gib, "s/GiB")
        downloads(writer, at, "/files/large")
        growth = highest(writer) - rest[writer]
        yield Row("the same and downloads from the writer: growth", growth, "MiB", MOST_GROWTH)


def config_of(pid: int) -> str:
    """Return the path that a process of ours was started with."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return os.fsdecode(command[command.index(b"--path") + 1])


def main() -> int:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    options = parser.parse_args()
    content = content_of(options.size)
    rows = list(beside_nginx(content, options.rounds))
    with tempfile.NamedTemporaryFile(dir=os.environ.get("BENCH_DIR")) as source:
        source.write(content)
        source.flush()
        os.fsync(source.fileno())
        rows += together(content, Path(source.name))
    report(rows, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
