"""A bell: wakes the one thread that waits, whoever rings it."""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading

#: Seconds from where on a time limit is none: poll(2) counts milliseconds in an int.
_MAX_POLL_SECONDS = 1e6
_PIPE_READ_BYTES = 1 << 16


class WakeupPipe:
    """Wakes the one thread that waits for it, from any other: a pipe that can be polled."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        # Without it a late `wake` could write into a descriptor that has become somebody else's.
        self._lock = threading.Lock()
        self._closed = False

    def wake(self) -> None:
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
        ready = poll.poll(
            math.ceil(max(seconds, 0.0) * 1000) if seconds < _MAX_POLL_SECONDS else None
        )
        if any(ready_fd == self._out for ready_fd, _ in ready):
            with contextlib.suppress(BlockingIOError):
                os.read(self._out, _PIPE_READ_BYTES)

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._in)
                os.close(self._out)
