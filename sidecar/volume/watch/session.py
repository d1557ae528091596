"""A session of a watch: from the first user who enters to the last who leaves, in one event loop of one process."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from sidecar.volume.watch.thread import WatchThread, WatchUpdate

logger = logging.getLogger(__name__)

#: Seconds to wait for the thread on exit: a thread that hangs in the kernel must not block the program.
_JOIN_TIMEOUT = 2.0


class Session:
    """The period in which a watch is in use: one event loop, one watch thread."""

    def __init__(
        self, make: Callable[..., WatchThread], receive: Callable[[Session, WatchUpdate], None]
    ) -> None:
        self.first_scan_done = False
        """Whether the first scan is complete."""
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self.thread = make(notify=self._notify, ended=self._ended)
        self.thread.start()

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked after the thread started."""
        return os.getpid() != self._pid

    @property
    def is_over(self) -> bool:
        """Whether the event loop is closed, so that no updates can be delivered."""
        return self._loop.is_closed()

    def check(self, path: str) -> None:
        """Check that this is the process and the event loop of the session.

        Raises:
            RuntimeError: another process or event loop would get no updates, or late ones.
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
        """Stop the watch thread and wait until it has ended; a cancellation is raised after that."""
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
            logger.warning(
                "the scan of %s hangs; its thread is abandoned",
                self.thread.path,
                extra={"event": "watch.scan_hangs"},
            )
        if cancelled is not None:
            raise cancelled

    def _notify(self, update: WatchUpdate) -> None:
        self._call_soon(self._receive, self, update)

    def _ended(self) -> None:
        self._call_soon(self._over.set_result, None)

    def _call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the event loop is closed
            self.thread.stop()
