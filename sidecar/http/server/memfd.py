"""A long answer in a file in memory, from which the kernel sends it without one more copy.

write(2) copies the bytes of an answer to the kernel for each client; sendfile(2) from a file of memfd_create(2)
hands over the pages that hold them. For 64 KiB that is a sixth of all the CPU that an answer costs.
"""

from __future__ import annotations

import asyncio
import errno
import os

_LEAST = 32 << 10
"""Bytes from which on it is worth a second system call to have the file, once a second."""
_MFD_CLOEXEC = 1  # linux/memfd.h


def create(name: str) -> int:
    """Return the descriptor of a new file in memory. `name` is what /proc shows of it.

    Raises:
        OSError: there is no descriptor left for it, or no such thing on this system (`ENOSYS`).
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    # A Python that was built for a C library before 2.27 lacks it, wherever it runs: those of conda, older ones of uv.
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "memfd_create", None)
    fd: int = -1 if call is None else call(name.encode(), _MFD_CLOEXEC)
    if fd < 0:
        code = errno.ENOSYS if call is None else ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


class MemFd:
    """Bytes that do not change, as `send` needs them. It is closed when nobody refers to it any more.

    Raises:
        OSError: there is no descriptor left for it, or no memory.

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
        """Write it to a transport: as much as its `socket` takes at once past it, the rest by it.

        It keeps its place behind what was written before, and an error of the socket is the transport's to find.
        """
        sent = 0
        # The number may be another connection's as soon as the transport is closing.
        if socket >= 0 and not (transport.get_write_buffer_size() or transport.is_closing()):
            try:
                sent = os.sendfile(socket, self._fd, 0, len(self._bytes))
            except OSError:
                sent = 0
        if sent < len(self._bytes):
            transport.write(memoryview(self._bytes)[sent:])


def raw_fd(transport: asyncio.WriteTransport) -> int:
    """Return the descriptor that a transport writes to as it is told; -1 if there is none, as with TLS."""
    socket = transport.get_extra_info("socket")
    if socket is None or transport.get_extra_info("sslcontext") is not None:
        return -1
    number: int = socket.fileno()
    return number


def to_memfd(answer: bytes) -> bytes | MemFd:
    """Return a long answer as a file in memory, a short one, or one for which there is no descriptor, as it is."""
    if len(answer) < _LEAST:
        return answer
    try:
        return MemFd(answer)
    except OSError:
        return answer
