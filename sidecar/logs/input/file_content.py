"""Random access to the content of open files: plain files here, compressed ones in `archives`.

Calls block. Nothing here knows lines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal

from sidecar.logs.input.archives import MAX_MAGIC_BYTES, Archive, open_archive

_F_SETSIG = 10  # asm-generic/fcntl.h; Python has no name for it


class PlainFile:
    """A regular file that is not compressed."""

    compressed = False
    ended = is_truncated = False
    damaged: str | None = None
    reported = False

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

    def length(self) -> int:
        """Return the length of the content."""
        return os.fstat(self.fd).st_size

    def next_data(self, offset: int) -> int | None:
        """Return the offset of the next data after a hole; None if there is none, or it is unknown."""
        with contextlib.suppress(OSError):
            return os.lseek(self.fd, offset, os.SEEK_DATA)
        return None

    def has_writer(self) -> bool | None:
        """Whether a process has the file open for writing; None if the kernel does not report it.

        The kernel grants a read lease only if there is no writer (fcntl(2), F_SETLEASE), and only to the owner
        of the file or with CAP_LEASE: others get EACCES.
        """
        try:
            # A process that opens the file for writing meanwhile waits for the release. The signal that
            # reports it to us must be one that is ignored by default.
            fcntl.fcntl(self.fd, _F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return True if error.errno == errno.EAGAIN else None
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


Content = PlainFile | Archive


def open_content(fd: int) -> Content:
    """Return the content of an open file. Archives are recognised by their first bytes, not by name.

    Raises:
        Unreadable: it is compressed in an unsupported format.
        OSError: as pread(2).
    """
    return open_archive(fd, os.pread(fd, MAX_MAGIC_BYTES, 0)) or PlainFile(fd)
