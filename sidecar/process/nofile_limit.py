"""The limit of open files and connections of a process."""

from __future__ import annotations

import contextlib
import resource

WANTED_OPEN_FILES = 1 << 16
"""The limit that a command sets. A higher one would slow down child processes: some close each possible descriptor."""


def raise_nofile_limit() -> int:
    """Raise the soft limit of this process towards the hard limit, to `WANTED_OPEN_FILES` at most; return the new limit.

    A container often starts with a soft limit of 1,024, which exists for programs that use `select`,
    and with a much higher hard limit: https://0pointer.net/blog/file-descriptor-limits.html.
    Only for our own processes: a user's program keeps its limit.

    >>> raise_nofile_limit() >= 1
    True
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    with contextlib.suppress(OSError, ValueError):  # refused by a sandbox: keep the current limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft
