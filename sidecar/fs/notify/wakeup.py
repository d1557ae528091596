"""A self-pipe that wakes one waiting thread from any other thread."""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading

#: Longer timeouts are treated as infinite: poll(2) takes milliseconds as an int.
_MAX_POLL_SECONDS = 1e6
_PIPE_READ_BYTES = 1 << 16


class WakeupPipe:
    """A pipe that can be polled; `wake` ends the wait of the one thread that waits for it."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        # Prevents a late `wake` from writing to a descriptor number that was reused.
        self._lock = threading.Lock()
        self._closed = False

    def wake(self) -> None:
        """End the current wait, or the next one. No error after `close`."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._in, b"!")

    def wait(self, seconds: float, fd: int | None) -> None:
        """Wait until `wake` is called, `fd` becomes readable, or the timeout ends."""
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
        """Close the descriptors."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._in)
                os.close(self._out)
