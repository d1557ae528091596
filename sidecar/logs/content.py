"""Open files as contents that can be read from any offset: plain ones, and gzip ones by their decompressed bytes.

Blocking, and without any knowledge of lines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import zlib

GZIP_MAGIC = b"\x1f\x8b"
_COMPRESSED_CHUNK = 1 << 16
_F_SETSIG = 10  # asm-generic/fcntl.h; Python has no name for it
_GZIP_WINDOW = 31  # gzip wrapper, largest window; see zlib.decompressobj


class Plain:
    """A regular file as it lies there."""

    compressed = False
    damaged: str | None = None

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on; fewer only at the end."""
        data = os.pread(self.fd, size, offset)
        if len(data) == size or not data:
            return data
        # A short read inside the file is legal (signals, network file systems).
        while len(data) < size and (
            more := os.pread(self.fd, size - len(data), offset + len(data))
        ):
            data += more
        return data

    def measure(self) -> int:
        """Return the length of the content."""
        return os.fstat(self.fd).st_size

    def next_data(self, offset: int) -> int | None:
        """Return where the next bytes that are no hole begin; None if there are none, or nobody knows."""
        with contextlib.suppress(OSError):
            return os.lseek(self.fd, offset, os.SEEK_DATA)
        return None

    def has_no_writer(self) -> bool:
        """Whether surely no process has the file open for writing.

        The kernel grants a read lease only then (fcntl(2), F_SETLEASE), and only to the file's owner
        or with CAP_LEASE; where it refuses, nobody knows, and the answer is False.
        """
        try:
            # Whoever opens the file for writing in between waits for the release; the signal that tells us
            # of it must be one that is ignored by default.
            fcntl.fcntl(self.fd, _F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            return False
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Gzip:
    """A gzip file, of one member or several, by its decompressed content.

    Forward reads cost what they decompress; a read behind the last one starts again from the beginning.
    A file that is still being written is read as far as it goes, and further later.
    """

    compressed = True

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.damaged: str | None = None
        """Why no more can be read, once that is so."""
        self.reported = False
        """That, or that it is cut off."""
        self._rewind()

    def _rewind(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP_WINDOW)
        self._source = 0
        self._position = 0
        self._ready = b""
        self._kept = b""
        self._ended = False

    @property
    def ended(self) -> bool:
        """True if the last member is complete and nothing follows it."""
        return self._ended and not self._ready

    @property
    def cut_off(self) -> bool:
        """True if all of the file was read, and it ends in the middle of a member: perhaps more of it is to come."""
        if self.damaged or self._ended or self._inflate.eof or self._inflate.unconsumed_tail:
            return False
        return 0 < os.fstat(self.fd).st_size <= self._source

    def measure(self) -> int:
        """Return the length of the content, as far as it can be read. Decompresses all of it."""
        while self._forward(_COMPRESSED_CHUNK):
            pass
        return self._position

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` decompressed bytes from `offset` on."""
        back = self._position - offset
        if 0 < back <= len(self._kept):
            # Just behind: the mark before an offset is asked for with each read.
            start = len(self._kept) - back
            first = self._kept[start : start + size]
            if len(first) == size:
                return first
            return first + self._forward(size - len(first))
        if back > 0:
            self._rewind()
        while self._position < offset:
            if not self._forward(min(offset - self._position, _COMPRESSED_CHUNK)):
                return b""
        return self._forward(size)

    def next_data(self, _: int) -> int | None:
        """Decompressed content has no holes that could be skipped."""
        return None

    def has_no_writer(self) -> bool:
        """Whether the archive is complete, so that nobody needs to be asked."""
        return self.ended

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _forward(self, size: int) -> bytes:
        parts: list[bytes] = []
        missing = size
        while missing and (piece := self._inflated(missing)):
            parts.append(piece)
            missing -= len(piece)
        data = b"".join(parts)
        self._position += len(data)
        self._kept = (self._kept + data)[-_COMPRESSED_CHUNK:]
        return data

    def _inflated(self, most: int) -> bytes:
        while not self.damaged:
            if self._inflate.eof:
                self._next_member()
            waiting = self._inflate.unconsumed_tail
            if not waiting:
                waiting = os.pread(self.fd, _COMPRESSED_CHUNK, self._source)
                self._source += len(waiting)
            if not waiting and not self._ready:
                return b""
            feed, self._ready = self._ready + waiting, b""
            if self._ended and not feed.lstrip(b"\0"):
                continue  # padding behind the last member, as tape tools leave it
            self._ended = False
            try:
                piece = self._inflate.decompress(feed, most)
            except zlib.error as error:
                self.damaged = str(error)
                return b""
            if piece:
                return piece
        return b""

    def _next_member(self) -> None:
        self._ready = self._inflate.unused_data
        self._inflate = zlib.decompressobj(_GZIP_WINDOW)
        self._ended = True


Content = Plain | Gzip


def recognise(fd: int) -> Content:
    """Return the content of an open file. What begins as gzip does is gzip, whatever its name."""
    if os.pread(fd, len(GZIP_MAGIC), 0) == GZIP_MAGIC:
        return Gzip(fd)
    return Plain(fd)
