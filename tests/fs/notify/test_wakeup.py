"""A pipe wakes the one who waits, from any thread, and harms nobody after its end."""

from __future__ import annotations

import os
import threading
import time

import pytest

from sidecar.fs.notify.wakeup import WakeupPipe
from support.watching import descriptors


def test_a_wakeup_ends_a_wait_of_another_thread(wakeup: WakeupPipe) -> None:
    """Also a wait that has not begun; then it is silent again."""
    threading.Timer(0.02, wakeup.wake).start()
    wakeup.wait(600, None)
    for _ in range(100_000):
        wakeup.wake()
    wakeup.wait(600, None)
    began, waits = time.monotonic(), 0
    while time.monotonic() - began < 0.05:
        wakeup.wait(0.05, None)
        waits += 1
    assert waits <= 3


def test_a_pipe_that_is_closed_may_be_written_to() -> None:
    """Its descriptors belong to somebody else by now."""
    before = descriptors()
    wakeup = WakeupPipe()
    wakeup.close()
    other = os.pipe()
    wakeup.wake()
    wakeup.close()
    os.set_blocking(other[0], False)
    with pytest.raises(BlockingIOError):
        os.read(other[0], 1)
    for one in other:
        os.close(one)
    assert descriptors() == before
