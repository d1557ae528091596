"""HTTPS: a new connection with one request, a resumed one, and requests on kept connections; ours beside nginx.

    python benchmarks/tls.py [--rounds 5] [--resumed 200] [--seconds 2] [--json FILE]

Both serve the same certificate (ECDSA P-256) with TLS 1.3, on one core each in turn, the clients on another.
What counts is the CPU time of the server. wrk resumes no session, so a client in Python does that:
its connections come one after the other, which makes them dearer for both servers than those of wrk.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from _load import load
from _options import arguments
from _rows import Row, cpu_seconds, of_rounds, report
from _servers import Server, available, nginx_tls, side_by_side, sidecar

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def main() -> int:
    options = arguments(__doc__, rounds=5, resumed=200, seconds=2).parse_args()
    if shutil.which("openssl") is None:
        print("left out: there is no openssl (apt-get install openssl)")
        return 1
    with certificate() as (cert, key):
        tls = ("--tls-cert", str(cert), "--tls-key", str(key))
        servers: dict[str, Server] = available(
            {"sidecar": sidecar("read", *tls), "nginx": nginx_tls(cert, key)}, "wrk"
        )
        costs: dict[str, dict[str, list[float]]] = {}
        with side_by_side(servers, b"123") as places:
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}", flush=True)
                for name, (pid, port) in places.items():
                    found = {
                        "a new connection with one request": load(
                            pid,
                            port,
                            scheme="https",
                            seconds=options.seconds,
                            connections=16,
                            headers=("Connection: close",),
                        ).cost,
                        "a resumed connection with one request": resumed(
                            pid, port, cert, options.resumed
                        ),
                        "a request on a kept connection": load(
                            pid, port, scheme="https", seconds=options.seconds
                        ).cost,
                    }
                    for what, value in found.items():
                        costs.setdefault(what, {}).setdefault(name, []).append(value)
    report([row(what, **one) for what, one in costs.items()], options.json)
    return 0


def row(what: str, sidecar: list[float], nginx: list[float] | None = None) -> Row:
    """Return ours beside nginx's, in µs of CPU."""
    peer = statistics.median(nginx) if nginx else None
    goal = 1.1 if "kept" in what else 2.5
    words = f"HTTPS: {what}, CPU"
    return of_rounds(words, sidecar, "µs", peer=peer, peer_name="nginx", goal_ratio=goal)


def resumed(pid: int, port: int, cert: Path, times: int) -> float:
    """Return the CPU time (µs) that a server spends on a connection with a resumed session and one request.

    Raises:
        RuntimeError: the answer is not 200, or the session was not resumed.
    """
    context = ssl.create_default_context(cafile=str(cert))
    session = ask(port, context, None)
    before = cpu_seconds(pid)
    for _ in range(times):
        session = ask(port, context, session)
    return (cpu_seconds(pid) - before) / times * 1e6


def ask(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession:
    """Open a connection, ask once, read to its end, and return its session."""
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with context.wrap_socket(plain, server_hostname="localhost", session=session) as wrapped:
        wrapped.sendall(REQUEST)
        answer = b""
        while piece := wrapped.recv(1 << 16):
            answer += piece
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"port {port} answers {answer[:100]!r}")
        if session is not None and not wrapped.session_reused:
            raise RuntimeError(f"port {port} does not resume a session")
        if wrapped.session is None:
            raise RuntimeError(f"port {port} gives no session")
        return wrapped.session


@contextmanager
def certificate() -> Iterator[tuple[Path, Path]]:
    """Make a certificate of its own for localhost, for the time of a block."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cert, key = directory / "cert.pem", directory / "key.pem"
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                ),
                *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert),
            ],
            check=True,
            capture_output=True,
        )
        yield cert, key


if __name__ == "__main__":
    raise SystemExit(main())
