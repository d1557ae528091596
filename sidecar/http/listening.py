"""Places to listen at, opened before anything else starts: a busy port is told at once.

All of this is blocking, and short.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sidecar import _errors

SOCKET_MODE = 0o660
"""Who may connect to a unix socket: user and group, as with an `fsGroup` that containers share."""


def tcp(host: str, port: int) -> list[socket.socket]:
    """Bind all addresses of a host; `::` takes IPv4 as well, as people expect of it.

    Raises:
        ConfigError: the port is busy, not permitted, or no such address is on this machine.
    """
    bound: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            # Port 0 is any free one; the further addresses of the host take the same.
            chosen = bound[0].getsockname()[1] if bound else port
            bound.append(_bind(family, (address[0], chosen, *address[2:]), host, chosen))
    except BaseException:
        for one in bound:
            one.close()
        raise
    return bound


@contextmanager
def unix(path: str) -> Iterator[socket.socket]:
    """Bind a unix socket, whose file goes away at the end. One that nobody listens at any more is replaced.

    Raises:
        ConfigError: another process listens there, or something else lies there.
    """
    _remove_stale(path)
    one = socket.socket(socket.AF_UNIX)
    try:
        one.bind(path)
        os.chmod(path, SOCKET_MODE)
    except OSError as error:
        one.close()
        raise _errors.ConfigError(
            f"cannot listen on the socket {path}: {error.strerror} (choose another path)"
        ) from error
    ours = _identity(path)
    try:
        yield one
    finally:
        one.close()
        with contextlib.suppress(OSError):
            if _identity(path) == ours:
                os.unlink(path)


def _addresses(host: str, port: int) -> Iterator[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise _errors.ConfigError(
            f"cannot listen on {host}: there is no such address ({error.strerror})"
        ) from error
    seen = set()
    for family, _, _, _, address in found:
        if address not in seen:
            seen.add(address)
            yield family, address


def _bind(
    family: socket.AddressFamily, address: tuple[Any, ...], host: str, port: int
) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        one.bind(address)
    except OSError as error:
        one.close()
        raise _errors.ConfigError(
            f"cannot listen on {host}:{port}: {_remedy(error, port)}"
        ) from error
    return one


def _remedy(error: OSError, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"port {port} is in use by another program"
                " (end that one, or choose another with --port; 0 is any free one)"
            )
        case errno.EACCES:
            return f"no permission for port {port} (choose one above 1023 with --port)"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address (choose another with --host)"
        case _:
            return error.strerror or str(error)


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise _errors.ConfigError(
                f"cannot listen on the socket {path}: another file lies there (choose another path)"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise _errors.ConfigError(
        f"cannot listen on the socket {path}: another process listens there"
        " (end it, or choose another path)"
    )


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
