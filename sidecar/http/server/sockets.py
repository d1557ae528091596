"""Places to listen at, opened before anything else starts: a busy port is told at once.

All of this is blocking, and short.
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
"""Who may connect to a unix socket: user and group, as with an `fsGroup` that containers share."""
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.EINVAL)
"""What a kernel without IPv6 says, or one that has been told to do without."""
BACKLOG = 1024
"""Connections that may wait until somebody takes them."""


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Bind all addresses of a host; `::` takes IPv4 as well, as people expect of it.

    An empty host is `::`, and where this machine has no IPv6, `0.0.0.0`.

    Raises:
        ConfigError: the port is busy, not permitted, or no such address is on this machine.
    """
    if not host:
        return [_of_both_families(port)]
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
    """Bind all addresses of a host for each of so many processes; the kernel spreads the connections evenly.

    On one socket that all share, whoever wakes up first takes what is there: of 64 connections one process
    got from 6 to 32, with a socket each from 25 to 32. See `SO_REUSEPORT` in
    https://man7.org/linux/man-pages/man7/socket.7.html.

    `SO_REUSEPORT` would let any other program of the same user take a share of the connections, and nobody would know.
    So the first socket listens without it; from then on the port is busy for whoever does not ask to share it,
    and that is what another `sidecar` finds.

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
    ours, owner = _identity(path), os.getpid()
    try:
        yield one
    finally:
        one.close()
        with contextlib.suppress(OSError):
            # A process that was forked meanwhile has the socket, but the file is not its own.
            if os.getpid() == owner and _identity(path) == ours:
                os.unlink(path)


def drop_new_syns(one: socket.socket) -> None:
    """Let the kernel begin no further connections at a socket that listens, before it is closed.

    Between the last `accept` and `close` another connection could be made, and would be reset with its request.
    With this its first packet is dropped: the client repeats it a second later, and finds that nobody listens.
    """
    if sys.platform != "linux":
        return
    import ctypes  # a fifth of a megabyte: only for those who come here

    program = ctypes.create_string_buffer(_DROP_SYN)
    described = struct.pack("@HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):  # a sandbox that does not allow it
        one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def accept_syns(one: socket.socket) -> None:
    """Undo `drop_new_syns`, at a socket that another process has ended with and that is still there."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # there is no filter
            one.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


#: Names that the `socket` module does not have, see https://docs.kernel.org/networking/filter.html.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
#: At a TCP socket a filter sees segments from their header on; byte 13 holds the flags, and 2 is SYN.
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


def _of_both_families(port: int) -> socket.socket:
    """Bind all addresses by one socket, as Go does: IPv4 clients have IPv6 addresses there (RFC 4291 section 2.5.5.2)."""
    try:
        return _bind(socket.AF_INET6, ("::", port), "", port)
    except _errors.ConfigError as error:
        found = error.__cause__
        if not (isinstance(found, OSError) and found.errno in _NO_IPV6):
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
    """Bind another socket to the same address, to share its connections."""
    address = first.getsockname()
    return _bind(socket.AddressFamily(first.family), address, host, address[1], shared=True)


@contextmanager
def _bind_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _errors.ConfigError(
            f"cannot listen on {host or 'any address'}:{port}: {_remedy(error, port)}"
        ) from error


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
            pass  # whoever listens there has not taken those that have come before
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
