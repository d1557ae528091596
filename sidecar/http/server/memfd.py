"""Large responses in a memfd, sent by sendfile(2) without an extra copy.

write(2) copies the response to the kernel for each client; sendfile(2) from a memfd_create(2) file
passes the pages that hold it. For 64 KiB that saves a sixth of all the CPU time of a response.
"""

from __future__ import annotations

import asyncio
import os

from sidecar.fs import libc

_MIN_MEMFD_BYTES = 32 << 10
"""Size from which a memfd pays off: it costs one more system call, once a second."""
_MFD_CLOEXEC = 1  # linux/memfd.h


def create(name: str) -> int:
    """Return the descriptor of a new memfd. `name` is shown in /proc.

    Raises:
        OSError: no file descriptor is left, or the system has no memfd (`ENOSYS`).
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    # A Python that was built for a C library before 2.27 lacks it, wherever it runs: those of conda, older ones of uv.
    return libc.call("memfd_create", name.encode(), _MFD_CLOEXEC)


class MemFd:
    """Immutable bytes in a memfd. It is closed with the last reference.

    Raises:
        OSError: no file descriptor or memory is left.

    >>> MemFd(b"HTTP/1.1 200 OK").size
    15
    """

    __slots__ = ("_bytes", "_fd")

    def __init__(self, content: bytes) -> None:
        self._bytes = content
        self._fd = create("sidecar-answer")
        written = 0
        while written < len(content):
            written += os.pwrite(self._fd, memoryview(content)[written:], written)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    @property
    def size(self) -> int:
        return len(self._bytes)

    def send(self, transport: asyncio.WriteTransport, socket: int) -> None:
        """Write the bytes to a transport: as much as its `socket` accepts directly by sendfile, the rest through the transport.

        The order of earlier writes is kept, and the transport handles errors of the socket.
        """
        sent = 0
        # Once the transport is closing, the descriptor may belong to another connection.
        if socket >= 0 and not (transport.get_write_buffer_size() or transport.is_closing()):
            try:
                sent = os.sendfile(socket, self._fd, 0, len(self._bytes))
            except OSError:
                sent = 0
        if sent < len(self._bytes):
            transport.write(memoryview(self._bytes)[sent:])


def raw_fd(transport: asyncio.WriteTransport) -> int:
    """Return the descriptor that a transport writes to unchanged; -1 if there is none, as with TLS."""
    socket = transport.get_extra_info("socket")
    if socket is None or transport.get_extra_info("sslcontext") is not None:
        return -1
    number: int = socket.fileno()
    return number


def to_memfd(answer: bytes) -> bytes | MemFd:
    """Return a large response as a memfd; a small one, or if no descriptor is left, as bytes."""
    if len(answer) < _MIN_MEMFD_BYTES:
        return answer
    try:
        return MemFd(answer)
    except OSError:
        return answer
