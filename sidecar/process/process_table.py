"""The processes that this one can see: those of its container, or of the whole Pod (`shareProcessNamespace`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple


class RunningProcess(NamedTuple):
    """A process, with the names by which people know it."""

    pid: int
    parent: int
    argv: tuple[str, ...]
    """The last path components of its first two arguments: the program, and of an interpreter the script."""
    comm: str
    """What `ps -o comm` shows: at most 15 bytes."""


def others() -> Iterator[RunningProcess]:
    """Yield each process that is not this one, and not its parent.

    Threads of the kernel are left out, and so is a process that has ended and waits for its parent.

    >>> os.getpid() in [one.pid for one in others()]
    False
    """
    ours = {str(os.getpid()), str(os.getppid())}
    for number in os.listdir("/proc"):
        if not number.isdecimal() or number in ours:
            continue
        with contextlib.suppress(OSError):  # it has ended since
            with open(f"/proc/{number}/cmdline", "rb") as file:
                arguments = file.read(4096).split(b"\0")[:2]
            with open(f"/proc/{number}/stat", "rb") as file:
                head, _, fields = file.read().rpartition(b")")
            if arguments[0]:
                yield RunningProcess(
                    int(number),
                    int(fields.split()[1]),
                    tuple(os.fsdecode(os.path.basename(one)) for one in arguments),
                    os.fsdecode(head.partition(b"(")[2]),
                )
