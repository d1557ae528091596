"""Use file leases to find out whether another process has a file open: see fcntl(2), "Leases"."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import signal
from typing import Any

_SETLEASE: Any = getattr(fcntl, "F_SETLEASE", None)
_SETSIG: Any = getattr(fcntl, "F_SETSIG", None)


def is_open_for_writing(fd: int) -> bool | None:
    """Return whether any process of this machine has the file open for writing; None if the kernel cannot say.

    A read lease is granted only if no process has the file open, or mapped, for writing.
    It is released immediately: a writer that opens the file in between waits for microseconds.
    `fd` must be open for reading only, and this user must own the file (or have `CAP_LEASE`).
    Not for network file systems, which do not know the writers on other machines.
    """
    if _SETLEASE is None or _SETSIG is None:
        return None
    try:
        _set_lease(fd, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _SETLEASE, fcntl.F_UNLCK)
    return False


def take_write_lease(fd: int) -> bool:
    """Take a write lease on a file; return False if another process on this machine has it open or mapped.

    Until `fd` is closed, other opens of the file wait, or fail with `EAGAIN` for `O_NONBLOCK`.
    `fd` must be open for writing, and this user must own the file (or have `CAP_LEASE`).
    """
    if _SETLEASE is None or _SETSIG is None:
        return False
    try:
        _set_lease(fd, fcntl.F_WRLCK)
    except OSError:
        return False
    return True


def _set_lease(fd: int, kind: int) -> None:
    # If another process waits for the lease, the kernel sends a signal. The default SIGIO ends the process;
    # SIGURG is ignored.
    fcntl.fcntl(fd, _SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, _SETLEASE, kind)
