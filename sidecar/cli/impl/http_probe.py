"""A GET in a few milliseconds, for probes: no redirects, no proxy, no session, no library.

It sends HTTP/1.0, so that a response is never chunked and ends with the connection (RFC 9112 section 6.3).
"""

from __future__ import annotations

import socket
import time
from typing import NamedTuple

from sidecar.process import tls_trust

_MAX_RESPONSE_BYTES = 1 << 20
"""Bytes of a response that are read: enough for any problem document."""


class ProbeError(Exception):
    """There was no response; the message says why."""


class ProbeTarget(NamedTuple):
    """A parsed URL: where to connect, and the request target."""

    host: str
    port: int
    path: str
    unix_socket: str | None = None
    tls: bool = False


class ProbeResponse(NamedTuple):
    """A response."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes


def parse(url: str) -> ProbeTarget:
    """Parse a URL: `http://…`, `https://…`, or `unix:/run/sidecar.sock:/readyz`.

    Raises:
        ValueError: it is none of these.

    >>> parse("http://localhost:8081/readyz")
    ProbeTarget(host='localhost', port=8081, path='/readyz', unix_socket=None, tls=False)
    >>> parse("unix:/run/sidecar.sock:/readyz").unix_socket
    '/run/sidecar.sock'
    """
    scheme, _, rest = url.partition(":")
    if scheme == "unix" and rest:
        path, _, target_path = rest.partition(":")
        return ProbeTarget("localhost", 0, target_path or "/", unix_socket=path)
    if scheme not in ("http", "https") or not rest.startswith("//"):
        raise ValueError(f"{url!r} begins neither with http:// nor https:// nor unix:")
    authority, slash, path = rest[2:].partition("#")[0].partition("/")
    authority, question, query = authority.partition("?")
    host, port = _host_and_port(url, authority, 443 if scheme == "https" else 80)
    target_path = question + query + slash + path
    if not target_path.startswith("/"):
        target_path = "/" + target_path
    if not target_path.isascii() or any(c <= " " or c == "\x7f" for c in target_path):
        raise ValueError(f"{url!r} holds characters that a URL must encode as %XX")
    return ProbeTarget(host, port, target_path, tls=scheme == "https")


def get(
    target: ProbeTarget,
    *,
    timeout: float,
    ca: str | None = None,
    insecure: bool = False,
) -> ProbeResponse:
    """Send a GET and return the response, within `timeout` seconds.

    The certificate of an https server is verified, against `ca` or the CAs of the system;
    not with `insecure`, nor, without `ca`, if the server is this machine (see `process.tls_trust`).

    Raises:
        ProbeError: no response, or one that is not HTTP.
        OSError: as connect(2), recv(2); `TimeoutError` at the time limit.
    """
    deadline = time.monotonic() + timeout
    with _connect(target, timeout) as plain:
        plain.settimeout(_left(deadline))
        connection = _wrap_tls(plain, target, ca, insecure) if target.tls else plain
        with connection:
            host = f"[{target.host}]" if ":" in target.host else target.host
            name = host if target.port in (0, 80, 443) else f"{host}:{target.port}"
            connection.sendall(
                f"GET {target.path} HTTP/1.0\r\nHost: {name}\r\n"
                "User-Agent: sidecar-check\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode(
                    "latin-1"
                )
            )
            return _parse_response(_receive(connection, deadline))


def _host_and_port(url: str, authority: str, default: int) -> tuple[str, int]:
    if "@" in authority:
        raise ValueError(f"{url!r} holds a user name: a probe does not log in")
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or colon not in ("", ":"):
            raise ValueError(f"{url!r}: {authority!r} is no address")
    else:
        host, _, port = authority.partition(":")
    if not host:
        raise ValueError(f"{url!r} names no host")
    if not port:
        return host, default
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{url!r}: {port!r} is no port")
    return host, int(port)


def _connect(target: ProbeTarget, timeout: float) -> socket.socket:
    if target.unix_socket is None:
        return socket.create_connection((target.host, target.port), timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(target.unix_socket)
    except BaseException:
        connection.close()
        raise
    return connection


def _wrap_tls(
    plain: socket.socket, target: ProbeTarget, ca: str | None, insecure: bool
) -> socket.socket:
    import ssl

    # The peer's address decides, a name could resolve to anything.
    here = tls_trust.is_this_machine(str(plain.getpeername()[0]))
    context = tls_trust.client_context(ca, verify=not (insecure or (ca is None and here)))
    try:
        return context.wrap_socket(plain, server_hostname=target.host)
    except ssl.SSLCertVerificationError as error:
        raise ProbeError(
            f"its certificate was not accepted: {error.verify_message} (name the authority by --ca)"
        ) from error


def _receive(connection: socket.socket, deadline: float) -> bytes:
    """Read until the server closes, or the announced length is complete."""
    data = bytearray()
    while len(data) < _MAX_RESPONSE_BYTES and not _is_complete(data):
        connection.settimeout(_left(deadline))
        try:
            chunk = connection.recv(65536)
        except ConnectionResetError:
            if not data:
                raise
            break
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _is_complete(data: bytearray) -> bool:
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return False
    length = _headers(head.decode("latin-1")).get("content-length", "")
    return length.isdigit() and len(body) >= int(length)


def _parse_response(data: bytes) -> ProbeResponse:
    head, _, body = data.partition(b"\r\n\r\n")
    first, _, rest = head.decode("latin-1").partition("\r\n")
    protocol, _, status = first.partition(" ")
    code, _, reason = status.partition(" ")
    if not protocol.startswith("HTTP/") or not (code.isascii() and code.isdigit()):
        raise ProbeError(
            f"it answered {first[:60]!r}, which is not HTTP"
            if data
            else "it closed without an answer"
        )
    return ProbeResponse(int(code), reason, _headers(rest), body)


def _headers(lines: str) -> dict[str, str]:
    found = {}
    for line in lines.split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip().lower()] = value.strip()
    return found


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
