"""Has the client what it was sent? Of a Pod that ends the network ends too, with all that the kernel still has to send.

A socket that is closed hands its bytes to the kernel, and they arrive later; so the drain holds on to each socket
until its peer has acknowledged everything, the end included: `SIOCOUTQ` is 0 (tcp(7)).
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

_MOST = 16_384
"""Sockets that are held at a time: more than connections may be open by default."""
_MUCH = 4 << 10
"""Bytes on their way for which a socket is held that is closed before the drain: what is less arrives while that begins."""
_EVERY = 1.0
_LONGEST = 60.0
_CLOSED = 7
"""`TCP_CLOSE`: the first byte of `struct tcp_info` when the peer has gone, and nothing will be acknowledged any more."""


def unacked_bytes(number: int) -> int:
    """Return the bytes that the peer of a socket has not acknowledged yet; 0 where that cannot be known."""
    if sys.platform != "linux":
        return 0
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)))
    except (OSError, ValueError):  # it is closed
        return 0
    return int(count)


class Owner(Protocol):
    """Whose socket is held."""

    @property
    def busy(self) -> bool:
        """Whether more is still to be handed to the kernel."""


class UnackedSockets:
    """Sockets that are held until their peers have acknowledged everything.

    Before the drain those alone that are closed with much that is still on its way, and no longer than a minute:
    after that the kernel decides.
    """

    def __init__(self) -> None:
        self._sockets: dict[Owner, tuple[socket.socket, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, owner: Owner, wire: asyncio.BaseTransport | None) -> None:
        """Hold the socket of a transport, too. Without a descriptor to spare it is left to the kernel."""
        if len(self._sockets) >= _MOST:
            self.release()
        found = socket_of(wire)
        full = len(self._sockets) >= _MOST
        if (
            self._over
            or full
            or owner in self._sockets
            or found is None
            or found.family == socket.AF_UNIX
        ):
            return  # what is sent to a unix socket is with its peer at once
        with contextlib.suppress(OSError):
            held = socket.socket(fileno=os.dup(found.fileno()))
            self._sockets[owner] = held, asyncio.get_running_loop().time() + _LONGEST

    def close(self, owner: Owner, wire: asyncio.BaseTransport | None) -> None:
        """Send the end of a connection whose own socket is being closed: as long as this one is open, the kernel does not."""
        found = socket_of(wire)
        if found is not None and unacked_bytes(found.fileno()) > _MUCH and not _is_reset(found):
            self.add(owner, wire)
        if owner in self._sockets:
            with contextlib.suppress(OSError):
                self._sockets[owner][0].shutdown(socket.SHUT_WR)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_EVERY, self._look)

    def release(self) -> None:
        """Let go of those whose peers have everything, or have gone."""
        now = asyncio.get_running_loop().time()
        for owner, (held, limit) in list(self._sockets.items()):
            if owner.busy:
                continue
            if not unacked_bytes(held.fileno()) or _is_closed(held) or now > limit:
                held.close()
                del self._sockets[owner]

    def release_oldest(self) -> bool:
        """Let go of one, because others need its descriptor; False if there is none."""
        if not self._sockets:
            return False
        held, _ = self._sockets.pop(next(iter(self._sockets)))
        held.close()
        return True

    def release_all(self) -> None:
        """Let go of all of them, and hold no more: the drain is over."""
        self._over = True
        for held, _ in self._sockets.values():
            held.close()
        self._sockets.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        self.release()
        if self._sockets:
            self._timer = asyncio.get_running_loop().call_later(_EVERY, self._look)


def _is_reset(one: socket.socket) -> bool:
    """Whether it is closed with a reset, because its client has taken nothing for long."""
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[:4] != bytes(4)


def _is_closed(one: socket.socket) -> bool:
    try:
        return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED
    except OSError:
        return True


def socket_of(wire: asyncio.BaseTransport | None) -> socket.socket | None:
    """Return the socket of a transport, None if it has none any more."""
    if wire is None:
        return None
    try:
        found: socket.socket | None = wire.get_extra_info("socket")
    except (
        AttributeError
    ):  # asyncio's transport of TLS, once it is closed: it has lost its protocol
        return None
    return found
