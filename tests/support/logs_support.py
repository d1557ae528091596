"""A collector without a clock or a loop: each call of `news` is one scan, one read to the end, one acknowledgement."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from sidecar.logs.input import tail as source

PAD = "." * 70
"""Long enough to be recognised by: the identity of a few bytes is a guess."""


def numbered(*numbers: int) -> list[str]:
    return [f"{number:04d} {PAD}" for number in numbers]


def calls_during(work: Callable[[], object]) -> int:
    """Return how many functions, of Python and of C, this thread calls for a piece of work.

    A cost that neither the machine nor its load changes. A loop within one function of C counts as one call.
    """
    count = 0

    def profile(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


class Follower:
    """Follows files step by step; `restart` and `kill` begin again from the checkpoint."""

    def __init__(self, *patterns: object, state: Path | None = None, **options: Any) -> None:
        self._made = (tuple(str(pattern) for pattern in patterns), state, options)
        self.now = 1000.0
        self.seen: list[str] = []
        self.tail = self._start()

    def _start(self) -> source.Tail:
        patterns, state, options = self._made
        tail = source.tail(*patterns, checkpoint=state, **options)
        tail._clock = lambda: self.now
        tail.open()
        return tail

    def news(self, *, acknowledge: bool = True, scan: bool = True) -> list[str]:
        """Return the lines that have come since the last time."""
        if scan:
            self.tail.scan()
            while self.tail.incomplete:
                self.tail.scan()
        lines: list[str] = []
        while blocks := self.tail.read("", 1 << 20):
            if acknowledge:
                self.tail.acknowledge("", blocks)
            lines += [record.text for block in blocks for record in block.records()]
        self.seen += lines
        return lines

    def later(self, seconds: float) -> list[str]:
        """Return what comes after so many seconds."""
        self.now += seconds
        self.tail.scan()
        return self.news()

    def stop(self) -> None:
        self.tail.save()
        self.tail.close()

    def restart(self) -> list[str]:
        """Stop in order, start again, and return what comes."""
        self.stop()
        return self.start()

    def start(self) -> list[str]:
        self.tail = self._start()
        return self.news()

    def kill(self) -> None:
        """Nothing is saved any more."""
        self.tail.close()
