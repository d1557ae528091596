"""Listening sockets. They are bound before anything else starts, so that a busy port is reported at once.

All functions block, for a short time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sidecar import _errors

SOCKET_MODE = 0o660
"""Mode of a unix socket: user and group may connect, as with an `fsGroup` that containers share."""
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.EINVAL)
"""Errors of a kernel without IPv6, or with IPv6 disabled."""
BACKLOG = 1024
"""Length of the accept queue (the backlog of listen(2))."""


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Bind all addresses of a host; `::` accepts IPv4 as well.

    An empty host is `::`, or `0.0.0.0` on a machine without IPv6.

    Raises:
        ConfigError: the port is busy or not permitted, or this machine has no such address.
    """
    if not host:
        return [_bind_dual_stack(port)]
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


def bind_reuseport(host: str, port: int, count: int) -> list[list[socket.socket]]:
    """Bind all addresses of a host once per process; the kernel distributes the connections evenly.

    With one shared socket the first process to wake up accepts what is there: of 64 connections one process
    got from 6 to 32, with a socket each from 25 to 32. See `SO_REUSEPORT` in
    https://man7.org/linux/man-pages/man7/socket.7.html.

    `SO_REUSEPORT` would let any other program of the same user take a share of the connections without notice.
    So the first socket listens without it: from then on the port is busy for a program that does not set the option,
    another `sidecar` for example.

    Raises:
        ConfigError: as for `bind_tcp`.
    """
    groups = [bind_tcp(host, port)]
    try:
        for _ in range(count - 1):
            groups.append([])
            for first in groups[0]:
                groups[-1].append(_reuseport_sibling(first, host))
        for first in groups[0]:
            with _bind_errors(host, first.getsockname()[1]):
                first.listen(BACKLOG)
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        for one in (one for group in groups for one in group):
            one.close()
        raise
    return groups


@contextmanager
def bind_unix(path: str) -> Iterator[socket.socket]:
    """Bind a unix socket, and remove its file at the end. A stale file, at which no process listens, is replaced.

    Raises:
        ConfigError: another process listens there, or the path is another kind of file.
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
    ours, owner = _identity(path), os.getpid()
    try:
        yield one
    finally:
        one.close()
        with contextlib.suppress(OSError):
            # A forked process has a copy of the socket, but must not remove the file.
            if os.getpid() == owner and _identity(path) == ours:
                os.unlink(path)


def drop_new_syns(one: socket.socket) -> None:
    """Make the kernel drop new connection requests to a listening socket, before it is closed.

    A connection established between the last `accept` and `close` would be reset with its request.
    With this filter its SYN is dropped: the client repeats it a second later, and finds the port closed.
    """
    if sys.platform != "linux":
        return
    import ctypes  # 0.2 MB of memory, so not at module level

    program = ctypes.create_string_buffer(_DROP_SYN)
    described = struct.pack("@HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):  # not permitted in some sandboxes
        one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def accept_syns(one: socket.socket) -> None:
    """Undo `drop_new_syns` on a socket that another process has stopped serving and that is still open."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # there is no filter
            one.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


#: Constants that the `socket` module lacks, see https://docs.kernel.org/networking/filter.html.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
#: The filter of a TCP socket sees segments from the TCP header on; byte 13 holds the flags, and 2 is SYN.
_DROP_SYN = b"".join(
    struct.pack("@HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load that byte
        (0x45, 0, 1, 2),  # is it a SYN?
        (0x06, 0, 0, 0),  # then take nothing of it
        (0x06, 0, 0, 0xFFFFFFFF),  # else take all
    )
)


def _addresses(host: str, port: int) -> Iterator[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        results = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise _errors.ConfigError(
            f"cannot listen on {host}: there is no such address ({error.strerror})"
        ) from error
    seen = set()
    for family, _, _, _, address in results:
        if address not in seen:
            seen.add(address)
            yield family, address


def _bind_dual_stack(port: int) -> socket.socket:
    """Bind all addresses with one socket, as Go does: IPv4 clients have IPv4-mapped addresses (RFC 4291 section 2.5.5.2)."""
    try:
        return _bind(socket.AF_INET6, ("::", port), "", port)
    except _errors.ConfigError as error:
        cause = error.__cause__
        if not (isinstance(cause, OSError) and cause.errno in _NO_IPV6):
            raise
    return _bind(socket.AF_INET, ("0.0.0.0", port), "", port)  # noqa: S104 (that is what is wanted)


def _bind(
    family: socket.AddressFamily,
    address: tuple[Any, ...],
    host: str,
    port: int,
    *,
    shared: bool = False,
) -> socket.socket:
    with _bind_errors(host, port):
        one = socket.socket(family, socket.SOCK_STREAM)
    try:
        with _bind_errors(host, port):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
            one.bind(address)
    except BaseException:
        one.close()
        raise
    return one


def _reuseport_sibling(first: socket.socket, host: str) -> socket.socket:
    """Bind another socket to the same address with `SO_REUSEPORT`."""
    address = first.getsockname()
    return _bind(socket.AddressFamily(first.family), address, host, address[1], shared=True)


@contextmanager
def _bind_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _errors.ConfigError(
            f"cannot listen on {host or 'any address'}:{port}: {_explain(error, port)}"
        ) from error


def _explain(error: OSError, port: int) -> str:
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
        case errno.EMFILE | errno.ENFILE:
            return (
                "no file descriptor is left"
                " (each of --workers needs one: choose fewer, or raise the limit `ulimit -n`)"
            )
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
        one.setblocking(False)
        try:
            one.connect(path)
        except BlockingIOError:
            pass  # the accept queue of the listener is full
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
