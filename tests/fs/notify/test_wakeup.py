"""A bell wakes the one who waits, from any thread, and harms nobody after its end."""

from __future__ import annotations

import os
import threading
import time

import pytest

from sidecar.fs.notify.wakeup import WakeupPipe
from support.watching import descriptors


def test_a_bell_ends_a_wait_of_another_thread(bell: WakeupPipe) -> None:
    """At once, and also a wait that has not begun; then it is silent again."""
    threading.Timer(0.02, bell.wake).start()
    began = time.monotonic()
    bell.wait(30, None)
    assert time.monotonic() - began < 5
    for _ in range(100_000):
        bell.wake()
    bell.wait(30, None)
    began = time.monotonic()
    while time.monotonic() - began < 0.05:
        bell.wait(0.05, None)
    assert time.monotonic() - began >= 0.05


def test_a_bell_that_is_closed_may_be_rung() -> None:
    """Its descriptors belong to somebody else by now."""
    before = descriptors()
    bell = WakeupPipe()
    bell.close()
    other = os.pipe()
    bell.wake()
    bell.close()
    os.set_blocking(other[0], False)
    with pytest.raises(BlockingIOError):
        os.read(other[0], 1)
    for one in other:
        os.close(one)
    assert descriptors() == before
