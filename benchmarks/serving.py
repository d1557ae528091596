"""GET / by 64 keep-alive clients: our reader, nginx with a static file, the article's Gin program.

    python benchmarks/serving.py [--rounds 3] [--seconds 3]

Servers on one core, the client (wrk) on another, the servers in turn, several rounds;
what counts is the CPU time of the server for one request. What is not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from footprint import cpu_seconds, free_port

GIN = Path(__file__).parent.parent / "tests/peers/gin/reader.go"
NGINX = """
worker_processes 1; daemon off; pid {room}/pid; error_log {room}/error;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; sendfile on; open_file_cache max=100;
  client_body_temp_path {room}/a; proxy_temp_path {room}/b; fastcgi_temp_path {room}/c;
  uwsgi_temp_path {room}/d; scgi_temp_path {room}/e;
  server {{ listen 127.0.0.1:{port}; root {room}/www; }}
}}
"""


@contextmanager
def running(command: list[str], port: int, **environment: str) -> Iterator[int]:
    """Run a server on the first core until the block ends; yield its process number."""
    cores = sorted(os.sched_getaffinity(0))
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {cores[0]}),  # noqa: PLW1509 (no thread runs yet)
    )
    try:
        for _ in range(2000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.005)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def sidecar(room: Path, port: int) -> Iterator[int]:
    command = [sys.executable, "-m", "sidecar.cli.main", "read", "--path", str(room / "config")]
    with running([*command, "--port", str(port), "--drain-delay", "0"], port) as pid:
        yield pid


@contextmanager
def nginx(room: Path, port: int) -> Iterator[int]:
    (room / "www").mkdir()
    (room / "www/index.html").write_text('"123"')
    (room / "nginx.conf").write_text(NGINX.format(room=room, port=port))
    room.chmod(0o755)
    with running(["nginx", "-c", str(room / "nginx.conf")], port) as pid:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        yield int(children[0])  # the worker


@contextmanager
def gin(room: Path, port: int) -> Iterator[int]:
    build = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(room / "cache")}
    command = ["go", "build", "-o", str(room / "gin"), str(GIN)]
    subprocess.run(command, env=os.environ | build, check=True, capture_output=True)
    settings = {"CONFIG": str(room / "config"), "PORT": str(port), "GOMAXPROCS": "1"}
    with running([str(room / "gin")], port, **settings) as pid:
        yield pid


def load(port: int, seconds: int) -> int:
    """Send requests from the last core, and return how many were answered."""
    core = str(max(os.sched_getaffinity(0)))
    url = f"http://127.0.0.1:{port}/"
    command = ["taskset", "-c", core, "wrk", "-t1", "-c64", f"-d{seconds}s", url]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"(\d+) requests in", printed)
    return int(found[1]) if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed: nothing can be measured")
        return 1
    servers = {"sidecar": sidecar}
    if shutil.which("nginx"):
        servers["nginx"] = nginx
    if shutil.which("go"):
        servers["gin"] = gin
    print("left out:", ", ".join({"nginx", "gin"} - set(servers)) or "nothing")
    costs: dict[str, list[float]] = {name: [] for name in servers}
    with ExitStack() as stack:
        places = {}
        for name, server in servers.items():
            room = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (room / "config").write_text("123")
            port = free_port()
            places[name] = (stack.enter_context(server(room, port)), port)
        for _ in range(options.rounds):
            for name, (pid, port) in places.items():
                before = cpu_seconds(pid)
                answered = load(port, options.seconds)
                costs[name].append((cpu_seconds(pid) - before) / answered * 1e6)
    ours = statistics.median(costs["sidecar"])
    for name, found in costs.items():
        cost = statistics.median(found)
        print(
            f"{name:8} {cost:6.2f} µs of CPU a request (from {min(found):.2f} to {max(found):.2f});"
            f" sidecar needs {ours / cost:.2f} times that"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
