"""Stop conditions for a collector in a Job: a file exists, or a process of another container has ended."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from sidecar import _errors
from sidecar.process import process_table

_log = logging.getLogger(__name__)

_NEVER_SEEN_SECONDS = 60.0
"""A process that was never seen counts as ended after this time: it may have ended before the first check."""


def file_exists(path: str) -> Callable[[], bool]:
    """Return a condition that is true once the file exists.

    >>> file_exists("/shared/done")()
    False
    """
    return lambda: os.path.lexists(path)


def process_ended(name: str, *, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """Return a condition that is true once the processes of this name have ended. Call it regularly.

    The name is that of the program, of its first argument (a script), or what `ps -o comm` shows.
    A process that is not seen for a minute counts as ended, with a warning.

    Raises:
        ConfigError: the processes of other containers are not visible (`shareProcessNamespace`).

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
        if not seen and clock() - begun >= _NEVER_SEEN_SECONDS:
            _log.warning(
                "no process named %s was seen for %g s: assuming that it has ended",
                name,
                _NEVER_SEEN_SECONDS,
            )
            seen = True
        return seen

    return ended
