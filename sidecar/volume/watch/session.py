"""One run of a watch: from the first user's entering to the last one's leaving, in one event loop of one process."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from sidecar.volume.watch.thread import WatchThread, WatchUpdate

logger = logging.getLogger(__name__)

#: Seconds that leaving waits for the thread: one that hangs in the kernel must not keep the program.
_JOIN_TIMEOUT = 2.0


class Session:
    """The time from the first user's entering to the last one's leaving: one loop, one lookout."""

    def __init__(
        self, make: Callable[..., WatchThread], receive: Callable[[Session, WatchUpdate], None]
    ) -> None:
        self.first_scan_done = False
        """The first look is over."""
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self.thread = make(notify=self._notify, ended=self._ended)
        self.thread.start()

    @property
    def is_forked(self) -> bool:
        """Whether this is another process than the one whose thread looks."""
        return os.getpid() != self._pid

    @property
    def is_over(self) -> bool:
        """Whether its event loop is closed: nobody can be told anything any more."""
        return self._loop.is_closed()

    def check(self, path: str) -> None:
        """Return if this is its process and its event loop.

        Raises:
            RuntimeError: another one would wait for ever, or be told late.
        """
        if self.is_forked:
            raise RuntimeError(
                f"the watch of {path} was entered before this process was forked: enter it here"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                f"the watch of {path} was entered in another event loop: make one for each loop"
            )

    async def end(self) -> None:
        """Stop the lookout and wait until its thread is over; a cancellation is raised after that."""
        self.thread.stop()
        limit = self._loop.time() + _JOIN_TIMEOUT
        cancelled: asyncio.CancelledError | None = None
        while not self._over.done() and (left := limit - self._loop.time()) > 0:
            try:
                await asyncio.wait({self._over}, timeout=left)
            except asyncio.CancelledError as error:
                cancelled = error
        if self._over.done():
            self.thread.join()
        else:
            logger.warning("a look at %s hangs and is left to itself", self.thread.path)
        if cancelled is not None:
            raise cancelled

    def _notify(self, update: WatchUpdate) -> None:
        self._call_soon(self._receive, self, update)

    def _ended(self) -> None:
        self._call_soon(self._over.set_result, None)

    def _call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody receives anything any more
            self.thread.stop()
