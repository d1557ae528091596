"""What a process owes to the one that has started it: not to outlive it."""

from __future__ import annotations

import os
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: int) -> None:
    """Have this process get a signal when its parent dies, even by SIGKILL.

    Only on Linux, see https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html;
    elsewhere it does nothing.

    Args:
        parent: the process number of the parent; if that has died already, the signal comes at once.
        number: the signal.
    """
    if sys.platform != "linux":
        return
    import ctypes  # a fifth of a megabyte: only for those who come here

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
