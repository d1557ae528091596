"""`sidecar check`: the probe of images without curl, against real servers."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.cli import main
from sidecar.cli.impl import http_probe
from sidecar.process import tls_trust
from support import FreePorts

Answering = Callable[..., str]


@contextmanager
def serving(listener: socket.socket, answer: bytes, tls: ssl.SSLContext | None) -> Iterator[None]:
    """Answer every connection with the same bytes, whatever it asks."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with tls.wrap_socket(connection, server_side=True) if tls else connection as one:
                    one.recv(65536)
                    one.sendall(answer)
            except OSError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def answering() -> Iterator[Answering]:
    """`answering(b"HTTP/1.1 200 OK…")`: the URL of a server that says just that."""
    servers = []

    def start(answer: bytes, tls: ssl.SSLContext | None = None) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        servers.append((listener, server := serving(listener, answer, tls)))
        server.__enter__()
        return f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}/readyz"

    yield start
    for listener, server in servers:
        server.__exit__(None, None, None)
        listener.close()


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "299 Odd"])
def test_an_answer_of_2xx_is_success(
    status: str, answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0, and the status for whoever runs it by hand."""
    url = answering(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok".encode())
    assert main.run(["check", url]) == 0
    assert capsys.readouterr().out == f"{status}\n"


PROBLEM = b'{"title": "Not ready", "detail": "nothing published in /shared yet"}'
REPORT = b'{"status": 503, "checks": {"content": "no file", "watch": "ok"}, "detail": "not ready"}'


FORGED = rb'{"detail": "a\nb\u001b[2J"}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", " answered 404\n"),
        (b"HTTP/1.1 500 X\r\n\r\nbroken\n", " answered 500: broken\n"),
        (
            b"HTTP/1.1 503 X\r\nContent-Type: application/problem+json\r\n\r\n" + PROBLEM,
            " answered 503: nothing published in /shared yet\n",
        ),
        (
            b"HTTP/1.1 503 X\r\nContent-Type: application/json\r\n\r\n" + REPORT,
            " answered 503: content: no file\n",
        ),
        (
            b"HTTP/1.1 503 X\r\nContent-Type: application/json\r\n\r\n" + FORGED,
            " answered 503: a\\nb\\x1b[2J\n",
        ),
        (b"HTTP/1.1 503 X\r\nContent-Type: application/json\r\n\r\n{", " answered 503\n"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n",
            " answered 302, a redirect to /elsewhere; ask there\n",
        ),
        (b"SSH-2.0-OpenSSH\r\n", "it answered 'SSH-2.0-OpenSSH', which is not HTTP\n"),
        (b"", "it closed without an answer\n"),
    ],
)
def test_any_other_answer_is_a_failure_that_says_why(
    answer: bytes, said: str, answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and one line with the detail of the problem: it ends up in `kubectl describe`."""
    assert main.run(["check", answering(answer)]) == 1
    assert capsys.readouterr().err.endswith(said)


def test_a_port_where_nobody_listens_is_a_failure(
    free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The most common one: the server has not started, or the port is another."""
    assert main.run(["check", f"http://127.0.0.1:{free_port}/"]) == 1
    assert "connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "dribble", [b"", b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nslow"]
)
def test_a_server_that_does_not_finish_is_a_failure_at_the_time_limit(
    dribble: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit is on the whole answer: a byte now and then does not extend it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        sender = threading.Thread(target=lambda: drip(listener, dribble))
        sender.start()
        assert main.run(["check", f"http://127.0.0.1:{port}/", "--timeout", "300ms"]) == 1
        sender.join()
    assert "no response within 0.3 s" in capsys.readouterr().err


def drip(listener: socket.socket, data: bytes) -> None:
    """Send the data, then a byte of it every 50 ms for as long as the other side listens."""
    connection, _ = listener.accept()
    with connection:
        connection.sendall(data)
        connection.settimeout(0.05)
        while True:
            try:
                connection.sendall(data[:1])
                if not connection.recv(65536):
                    return
            except TimeoutError:
                continue
            except OSError:
                return


def test_a_unix_socket_is_asked_by_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`unix:SOCKET:PATH`, as a server behind `--unix-socket` has no port."""
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with serving(listener, b"HTTP/1.1 200 OK\r\n\r\n", None):
            assert main.run(["check", f"unix:{path}:/readyz"]) == 0
    assert main.run(["check", f"unix:{tmp_path}/none:/readyz"]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_certificate_of_this_machine_is_taken_unless_an_authority_is_named(
    answering: Answering, certificate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On loopback nobody else can answer; with `--ca` the signature counts even there."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    url = answering(b"HTTP/1.1 200 OK\r\n\r\n", tls)
    other = tmp_path / "other.pem"
    other.write_bytes(Path(ssl.get_default_verify_paths().cafile or certificate).read_bytes())
    assert main.run(["check", url]) == 0
    assert main.run(["check", url, "--ca", str(certificate)]) == 0
    assert main.run(["check", url.replace("127.0.0.1", "localhost"), "--ca", str(certificate)]) == 1
    assert "certificate was not accepted" in capsys.readouterr().err


def test_a_certificate_of_another_machine_is_verified(
    answering: Answering,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What does not end on loopback could be anybody: only `--insecure` takes it unseen."""
    monkeypatch.setattr(tls_trust, "is_this_machine", lambda _: False)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    url = answering(b"HTTP/1.1 200 OK\r\n\r\n", tls)
    assert main.run(["check", url]) == 1
    assert "certificate was not accepted" in capsys.readouterr().err
    assert main.run(["check", url, "--insecure"]) == 0


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://localhost:8081/readyz", "localhost", 8081, "/readyz"),
        ("http://localhost", "localhost", 80, "/"),
        ("https://localhost", "localhost", 443, "/"),
        ("http://[::1]:8081/a/b?c=/d#e", "::1", 8081, "/a/b?c=/d"),
        ("http://h?a=b/c", "h", 80, "/?a=b/c"),
    ],
)
def test_urls_are_taken_apart_as_rfc_3986_says(url: str, host: str, port: int, path: str) -> None:
    """Addresses of IPv6, default ports, queries; a fragment never goes to the server."""
    assert http_probe.parse(url)[:3] == (host, port, path)


def test_many_probes_at_once_leave_nothing_open(
    answering: Answering, free_ports: FreePorts
) -> None:
    """Sockets are closed in every case; warnings about forgotten ones are errors here."""
    url = answering(b"HTTP/1.1 200 OK\r\n\r\n")
    (closed,) = free_ports(1)
    for _ in range(20):
        assert main.run(["check", url]) == 0
        assert main.run(["check", f"http://127.0.0.1:{closed}/"]) == 1
