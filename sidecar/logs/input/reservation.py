"""Which collection uses a tail: one at a time, and only in the process that opened the files."""

from __future__ import annotations

import os


class Reservation:
    """The reservation of a tail for one collection.

    Args:
        what: the patterns of the tail, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._in_use = False
        self._pid = os.getpid()
        """The process that opens the files."""

    def acquire(self) -> None:
        """Reserve, until `release`.

        Raises:
            RuntimeError: another collection has the reservation.
        """
        if self._in_use:
            raise RuntimeError("this tail is in use already: make one for each collection")
        self._in_use = True

    def release(self) -> None:
        """End the reservation."""
        self._in_use = False

    def failure(self, *, opened: bool) -> str | None:
        """Return why this process cannot use the tail: it was forked while the tail was reserved or open. None if it can."""
        if os.getpid() == self._pid or not (self._in_use or opened):
            return None
        return (
            f"the tail of {self._what} was in use when this process was forked: it shares files and"
            " checkpoint with the other one (call logs.tail here, with a checkpoint of its own)"
        )

    def check(self, *, opened: bool) -> None:
        """Check that this process can use the tail.

        Raises:
            RuntimeError: see `failure`.
        """
        if (failure := self.failure(opened=opened)) is not None:
            raise RuntimeError(failure)
        self._pid = os.getpid()
