"""The background event loop of a process, and calls to it from other threads."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent import futures
from typing import Any, Generic, TypeVar

R = TypeVar("R")

_END_TIMEOUT = 2.0


class Background:
    """The background event loop of this process, and its thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="sidecar-sync", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def end(self) -> None:
        """Stop the event loop, at the end of the program."""
        if os.getpid() == self.pid and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(_END_TIMEOUT)
            if not self.thread.is_alive():
                self.loop.close()


class _ProcessState:
    """The state of the process."""

    lock = threading.Lock()
    background: Background | None = None


def _reset_after_fork() -> None:
    """Reset the state in a forked process: the thread does not exist there, and the lock may be held."""
    _ProcessState.lock = threading.Lock()
    _ProcessState.background = None


os.register_at_fork(after_in_child=_reset_after_fork)


def _background() -> Background:
    with _ProcessState.lock:
        if _ProcessState.background is None:
            _ProcessState.background = Background()
            atexit.register(_ProcessState.background.end)
        return _ProcessState.background


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine in the background loop and wait; a KeyboardInterrupt cancels it, and is raised after it has ended."""
    background = _background()
    if threading.current_thread() is background.thread:
        work.close()
        raise RuntimeError(
            "sidecar.sync was called from its own event loop, which it would block for ever"
            " (a schema, a check or a callback that runs there uses sidecar itself, with await)"
        )
    call = _Call(background.loop, work)
    try:
        return call.outcome.result()
    except BaseException:
        if not call.outcome.done():
            call.cancel()
            futures.wait({call.outcome})
        raise


class _Call(Generic[R]):
    """A coroutine that runs in the background loop, and the future of its result."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, R]) -> None:
        self.outcome: futures.Future[R] = futures.Future()
        self._loop, self._work = loop, work
        self._task: asyncio.Task[R] | None = None
        loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[R]) -> None:
        if task.cancelled():
            self.outcome.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())
