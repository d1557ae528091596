"""Whether anybody has a file open, or open for writing, as a lease tells: see fcntl(2), "Leases"."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import signal
from typing import Any

_SETLEASE: Any = getattr(fcntl, "F_SETLEASE", None)
_SETSIG: Any = getattr(fcntl, "F_SETSIG", None)


def is_open_for_writing(fd: int) -> bool | None:
    """Return whether any process of this machine can write to the file, None where the kernel does not say.

    A read lease is granted only while nobody has the file open for writing, or has it mapped so.
    It is given back at once: a writer that comes in between waits for microseconds.
    `fd` must be open for reading only, and the file be our user's own (or we have `CAP_LEASE`).
    File systems of other machines know nothing of writers there: do not ask for theirs.
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
    """Take a write lease on a file that nobody else on this machine has open or mapped; return whether it is held.

    Until `fd` is closed, whoever opens the file waits, or gets `EAGAIN` with `O_NONBLOCK`.
    `fd` must be open for writing, and the file be our user's own (or we have `CAP_LEASE`).
    """
    if _SETLEASE is None or _SETSIG is None:
        return False
    try:
        _set_lease(fd, fcntl.F_WRLCK)
    except OSError:
        return False
    return True


def _set_lease(fd: int, kind: int) -> None:
    # Who has to wait for us lets the kernel send a signal. Left alone it is SIGIO, which ends the process;
    # this one is ignored.
    fcntl.fcntl(fd, _SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, _SETLEASE, kind)
