"""A bell: wakes the one thread that waits, whoever rings it."""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading

#: Seconds from where on a time limit is none: poll(2) counts milliseconds in an int.
_LONG = 1e6
_MANY_RINGS = 1 << 16


class WakeupPipe:
    """Wakes the one thread that waits for it, from any other: a pipe that can be polled."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        # Without it a late `ring` could write into a descriptor that has become somebody else's.
        self._lock = threading.Lock()
        self._closed = False

    def ring(self) -> None:
        """End the wait that is going on, or the next one. No error after `close`."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._in, b"!")

    def wait(self, seconds: float, fd: int | None) -> None:
        """Wait until somebody rings, `fd` becomes readable, or the time is over."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if fd is not None:
            poll.register(fd, select.POLLIN)
        ready = poll.poll(math.ceil(max(seconds, 0.0) * 1000) if seconds < _LONG else None)
        if any(one == self._out for one, _ in ready):
            with contextlib.suppress(BlockingIOError):
                os.read(self._out, _MANY_RINGS)

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._in)
                os.close(self._out)
