"""What tells a collection in a Job that the other containers have done their work: a file, or the end of a process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from sidecar import _errors
from sidecar.process import process_table

_log = logging.getLogger(__name__)

_PATIENCE = 60.0
"""Seconds after which a process that was never seen is taken for one that has ended before we looked."""


def file_exists(path: str) -> Callable[[], bool]:
    """Return what asks whether a file is there, whatever it holds.

    >>> file_exists("/shared/done")()
    False
    """
    return lambda: os.path.lexists(path)


def process_ended(name: str, *, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """Return what asks whether the processes of a name have ended. It must be asked now and then.

    The name is that of the program, of its first argument (a script), or what `ps -o comm` shows.
    A process that is not seen for a minute has ended before the first look, and that is said.

    Raises:
        ConfigError: the processes of other containers cannot be seen (`shareProcessNamespace`).

    >>> process_ended("worker")()
    False
    """
    if os.getpid() == 1:
        raise _errors.ConfigError(
            f"cannot wait for the end of {name!r}: this container sees its own processes alone"
            " (set shareProcessNamespace: true in the Pod, or let the application make a file: until_file)"
        )
    begun, seen = clock(), False

    def ended() -> bool:
        nonlocal seen
        if any(name in (*one.argv, one.comm) for one in process_table.others()):
            seen = True
            return False
        if not seen and clock() - begun >= _PATIENCE:
            _log.warning(
                "no process named %s was seen for %g s: taking it for ended", name, _PATIENCE
            )
            seen = True
        return seen

    return ended
