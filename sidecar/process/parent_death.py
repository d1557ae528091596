"""End a process when its parent dies."""

from __future__ import annotations

import os
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: int) -> None:
    """Send a signal to this process when its parent dies, even by SIGKILL.

    Only on Linux, see https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html;
    elsewhere it does nothing.

    Args:
        parent: the process id of the parent; if that has already died, the signal is sent at once.
        number: the signal.
    """
    if sys.platform != "linux":
        return
    import ctypes  # 0.2 MB of memory, so not at module level

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
