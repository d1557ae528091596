"""Servers side by side: ours and the peers, each pinned to the first core, until a block ends.

A server is a context manager that takes a directory of its own, with the content in `config`, and a free port,
and yields the number of the process whose CPU time counts.
What is not installed is named by `missing`, so that a benchmark can leave it out and say so.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import orjson

Server = Callable[[Path, int], AbstractContextManager[int]]

_PROGRAMS = Path(__file__).parent.parent / "tests/peers/gin"
_GIN = Path("/usr/share/gocode/src/github.com/gin-gonic/gin")
_NGINX = """
worker_processes 1; daemon off; pid {workdir}/pid; error_log {workdir}/error;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 100000000; sendfile on; tcp_nopush on; open_file_cache max=100;
  client_body_temp_path {workdir}/a; proxy_temp_path {workdir}/b; fastcgi_temp_path {workdir}/c;
  uwsgi_temp_path {workdir}/d; scgi_temp_path {workdir}/e;
  server {{ listen 127.0.0.1:{port}{tls}; root {workdir}/www; }}
}}
"""
#: What somebody writes by hand with the same libraries: the file is read once, and again when it has changed.
_AIOHTTP = """
import os, sys, uvloop
from aiohttp import web
path, port = sys.argv[1], int(sys.argv[2])
kept = [None, ""]
async def get(request):
    mark = os.stat(path).st_mtime_ns
    if mark != kept[0]:
        kept[:] = mark, open(path).read()
    return web.json_response(kept[1])
app = web.Application()
app.add_routes([web.get("/", get)])
uvloop.install()
web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)
"""


def cores() -> tuple[int, int]:
    """Return the core for the server and the one for its clients; they are the same where there is only one."""
    found = sorted(os.sched_getaffinity(0))
    return found[0], found[-1]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], port: int, **environment: str) -> Iterator[int]:
    """Run a server on its core until the block ends; yield its process number."""
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.sched_setaffinity(process.pid, {cores()[0]})
    try:
        _answers(process, port)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def sidecar(command: str, *options: str) -> Server:
    """Return `sidecar read` or `sidecar write` with further options."""

    @contextmanager
    def server(workdir: Path, port: int) -> Iterator[int]:
        base = [sys.executable, "-m", "sidecar.cli", command, "--path", str(workdir / "config")]
        where = ["--host", "127.0.0.1", "--port", str(port), "--drain-delay", "0"]
        with running([*base, *where, *options], port) as pid:
            yield pid

    return server


def nginx(workdir: Path, port: int) -> AbstractContextManager[int]:
    """Serve the answer of `GET /`, and the content itself as `/raw`, as static files."""
    return _nginx(workdir, port)


def nginx_tls(cert: Path, key: Path) -> Server:
    """Return nginx over TLS, with sessions that can be resumed by tickets, as its default is."""
    tls = f" ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key}"
    return lambda workdir, port: _nginx(workdir, port, tls)


@contextmanager
def _nginx(workdir: Path, port: int, tls: str = "") -> Iterator[int]:
    (workdir / "www").mkdir()
    content = (workdir / "config").read_bytes()
    (workdir / "www/raw").write_bytes(content)
    if len(content) <= 1 << 20:
        (workdir / "www/index.html").write_bytes(orjson.dumps(content.decode()))
    (workdir / "nginx.conf").write_text(_NGINX.format(workdir=workdir, port=port, tls=tls))
    workdir.chmod(0o755)
    with running(["nginx", "-c", str(workdir / "nginx.conf")], port) as pid:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        yield int(children[0])  # the worker


def gin(program: str) -> Server:
    """Return the article's `reader` or `writer`, built from Debian's packages."""

    @contextmanager
    def server(workdir: Path, port: int) -> Iterator[int]:
        cache = Path(tempfile.gettempdir()) / f"sidecar-bench-go-{os.getuid()}"
        build = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(cache)}
        command = ["go", "build", "-o", str(workdir / "gin"), str(_PROGRAMS / f"{program}.go")]
        subprocess.run(command, env=os.environ | build, check=True, capture_output=True)
        settings = {"CONFIG": str(workdir / "config"), "PORT": str(port), "GOMAXPROCS": "1"}
        with running([str(workdir / "gin")], port, **settings) as pid:
            yield pid

    return server


@contextmanager
def plain_aiohttp(workdir: Path, port: int) -> Iterator[int]:
    """Serve it with the twenty lines that one writes by hand."""
    with running([sys.executable, "-c", _AIOHTTP, str(workdir / "config"), str(port)], port) as pid:
        yield pid


def missing(*names: str) -> dict[str, str]:
    """Return what of `wrk`, `nginx`, `gin` is not here, and which Debian packages bring it."""
    wanted = {
        "wrk": (shutil.which("wrk"), "wrk"),
        "nginx": (shutil.which("nginx"), "nginx-light"),
        "gin": (
            shutil.which("go") and _GIN.is_dir(),
            "golang-go golang-github-gin-gonic-gin-dev",
        ),
    }
    return {name: wanted[name][1] for name in names if not wanted[name][0]}


def available(servers: Mapping[str, Server], *needs: str) -> dict[str, Server]:
    """Return those of the servers that can run here, and say which are left out and why."""
    absent = missing(*(name for name in servers if name in ("nginx", "gin")), *needs)
    for name, package in absent.items():
        print(f"left out: {name} (apt-get install {package})")
    if absent.keys() & set(needs):
        sys.exit(1)
    return {name: server for name, server in servers.items() if name not in absent}


@contextmanager
def side_by_side(
    servers: Mapping[str, Server], content: bytes
) -> Iterator[dict[str, tuple[int, int]]]:
    """Run all of them, each with the same content; yield process number and port by name."""
    with ExitStack() as stack:
        places: dict[str, tuple[int, int]] = {}
        for name, server in servers.items():
            workdir = Path(
                stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")))
            )
            (workdir / "config").write_bytes(content)
            port = free_port()
            places[name] = (stack.enter_context(server(workdir, port)), port)
        yield places


def _answers(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a server answers, whatever it answers."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        except (urllib.error.HTTPError, http.client.HTTPException, ConnectionResetError):
            return  # by TLS, plain HTTP is refused: it listens
        except OSError:
            time.sleep(0.005)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not answer at port {port}")
