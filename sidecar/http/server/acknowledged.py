"""Keep sockets open until the client has acknowledged all data: the network of a Pod ends with its processes.

The kernel sends the remaining data of a closed socket later. So the drain keeps a duplicate of each socket
until its peer has acknowledged everything, the FIN included: `SIOCOUTQ` is 0 (tcp(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
from typing import Protocol

_MAX_SOCKETS = 16_384
"""Sockets that are kept at a time: more than connections may be open by default."""
_MIN_UNACKED_BYTES = 4 << 10
"""Unacknowledged bytes from which a socket closed before the drain is kept: fewer arrive while the drain starts."""
_CHECK_INTERVAL = 1.0
_HOLD_TIMEOUT = 60.0
_TCP_CLOSE = 7
"""`TCP_CLOSE`, the state in the first byte of `struct tcp_info` when the peer is gone and will acknowledge nothing."""


def unacked_bytes(number: int) -> int:
    """Return the bytes that the peer has not acknowledged yet; 0 where that is unknown."""
    if sys.platform != "linux":
        return 0
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)))
    except (OSError, ValueError):  # it is closed
        return 0
    return int(count)


class Owner(Protocol):
    """The connection whose socket is kept."""

    @property
    def busy(self) -> bool:
        """Whether the connection has more data for the kernel."""


class UnackedSockets:
    """Sockets that stay open until their peers have acknowledged everything.

    Before the drain only sockets that are closed with much unacknowledged data are kept, for a minute at most:
    after that the kernel decides.
    """

    def __init__(self) -> None:
        self._sockets: dict[Owner, tuple[socket.socket, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._finished = False

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, owner: Owner, transport: asyncio.BaseTransport | None) -> None:
        """Keep a duplicate of a transport's socket. Without a free file descriptor it is left to the kernel."""
        if len(self._sockets) >= _MAX_SOCKETS:
            self.release()
        sock = get_socket(transport)
        full = len(self._sockets) >= _MAX_SOCKETS
        if (
            self._finished
            or full
            or owner in self._sockets
            or sock is None
            or sock.family == socket.AF_UNIX
        ):
            return  # data sent to a unix socket is with its peer at once
        with contextlib.suppress(OSError):
            held = socket.socket(fileno=os.dup(sock.fileno()))
            self._sockets[owner] = held, asyncio.get_running_loop().time() + _HOLD_TIMEOUT

    def close(self, owner: Owner, transport: asyncio.BaseTransport | None) -> None:
        """Send the FIN of a connection whose socket is being closed: the duplicate would otherwise delay it."""
        sock = get_socket(transport)
        if (
            sock is not None
            and unacked_bytes(sock.fileno()) > _MIN_UNACKED_BYTES
            and not _is_reset(sock)
        ):
            self.add(owner, transport)
        if owner in self._sockets:
            with contextlib.suppress(OSError):
                self._sockets[owner][0].shutdown(socket.SHUT_WR)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_CHECK_INTERVAL, self._check)

    def release(self) -> None:
        """Close the sockets whose peers have acknowledged everything, or are gone."""
        now = asyncio.get_running_loop().time()
        for owner, (held, limit) in list(self._sockets.items()):
            if owner.busy:
                continue
            if not unacked_bytes(held.fileno()) or _is_closed(held) or now > limit:
                held.close()
                del self._sockets[owner]

    def release_oldest(self) -> bool:
        """Close the oldest socket to free its descriptor; False if there is none."""
        if not self._sockets:
            return False
        held, _ = self._sockets.pop(next(iter(self._sockets)))
        held.close()
        return True

    def release_all(self) -> None:
        """Close all sockets and keep no more: the drain is over."""
        self._finished = True
        for held, _ in self._sockets.values():
            held.close()
        self._sockets.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = None
        self.release()
        if self._sockets:
            self._timer = asyncio.get_running_loop().call_later(_CHECK_INTERVAL, self._check)


def _is_reset(sock: socket.socket) -> bool:
    """Whether the socket is closed with a reset (`SO_LINGER` 0), after the send timeout."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[:4] != bytes(4)


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:
        return True


def get_socket(transport: asyncio.BaseTransport | None) -> socket.socket | None:
    """Return the socket of a transport, None after it has been closed."""
    if transport is None:
        return None
    try:
        sock: socket.socket | None = transport.get_extra_info("socket")
    except AttributeError:  # asyncio's TLS transport has no protocol any more once it is closed
        return None
    return sock
