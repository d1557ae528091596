"""How many files and connections a process may have open at a time."""

from __future__ import annotations

import contextlib
import resource

WANTED_OPEN_FILES = 1 << 16
"""As many as a command asks for. More would slow down what it starts: some programs close each number there could be."""


def raise_nofile_limit() -> int:
    """Raise the limit of this process as far as it may itself, to `WANTED_OPEN_FILES` at most; return what it is now.

    A container often starts with a soft limit of 1,024, which is there for programs that use `select`,
    and with a hard one that is far higher: https://0pointer.net/blog/file-descriptor-limits.html.
    It is for a process that is ours. In a program of somebody else the limit stays what it is.

    >>> raise_nofile_limit() >= 1
    True
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    with contextlib.suppress(
        OSError, ValueError
    ):  # refused by a sandbox: it goes on with what it has
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft
