"""The signals that stop a program, and signal delivery for programs without an event loop.

It has few imports, for commands without an event loop.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a program: SIGHUP only if it is not ignored (`nohup`)."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    asked = signal.SIGTERM, signal.SIGINT
    return asked if ignored else (*asked, signal.SIGHUP)


@contextmanager
def captured_signals(*numbers: int) -> Iterator[socket.socket]:
    """Deliver signals to a socket, one byte each, for a program without an event loop."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, _noted) for number in numbers}
        try:
            yield reader
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
            signal.set_wakeup_fd(wakeup)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the byte in the socket is the notification."""
