"""The life of a program: it runs, it is told to stop, it ends in order.

A Pod's end is SIGTERM, a grace period (30 s unless the Pod says otherwise), SIGKILL:
https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination
The first signal asks, the second one does not. A hang-up (SIGHUP) only ever asks:
a terminal that closes sends it twice, and who sends it to have something read anew wants nothing cut off.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any, TypeVar

from sidecar.process import arguments, memory, signals
from sidecar.process.logging import configure

T = TypeVar("T")

_log = logging.getLogger(__name__)
_END_TIMEOUT = 25.0
"""Seconds after which a program that has been told to stop is said to be still running:
more than `serve` and `logs.collect` take to drain, less than the grace period of a Pod."""

_SETTLED = 2.0
"""Seconds after the start in which a program imports, listens and loads what it needs."""


class _Process:
    """What is true of this process as a whole. A plain attribute: a signal handler must take no lock."""

    draining = False
    stop: _StopController | None = None


def run(main: Coroutine[Any, Any, T]) -> T | None:
    """Run a program until it returns or is told to stop.

    The first SIGTERM, SIGINT or SIGHUP makes `draining()` true and cancels `main`, once.
    What `main` does about it (`finally`, `async with`) is awaited without a limit of our own.
    If it ends with that cancellation, `run` returns None, and the process exits with 0.
    If it returns a value all the same, so does `run`.
    A second signal ends the process at once, with exit code 128 + the signal's number; a further SIGHUP is ignored,
    and so is the first one where it was ignored before (`nohup`).

    Every other exception of `main` comes out of `run`, those of its clean-up too.
    Logging goes to stderr at level INFO unless the program has configured it before.

    Raises:
        TypeError: `main` is not a coroutine.
        RuntimeError: not in the main thread, or inside a running event loop.
            Only the main thread can receive signals (https://docs.python.org/3/library/signal.html).

    >>> async def main() -> str:
    ...     return "done"
    >>> run(main())
    'done'
    """
    if not asyncio.iscoroutine(main):
        raise TypeError(f"sidecar.run() takes a coroutine, as in run(main()), not {main!r}")
    try:
        _require_a_place_to_run()
        if not logging.getLogger().handlers:
            configure()
        _Process.draining = False
        stop = _Process.stop = _StopController()
        with _handlers(stop), asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(_until_stopped(main, stop))
    finally:
        main.close()  # nothing to do, unless it was never started


def every(seconds: float) -> AsyncGenerator[datetime, None]:
    """Yield the time (aware, local), at once and then every so many seconds.

    The times lie on a fixed grid from the first one on, so work in between does not add up to a drift.
    Work that takes longer than a step skips the steps it missed: there is never a burst after a pause.
    The grid is that of the monotonic clock: setting the clock of the machine moves nothing.
    It ends with the cancellation of the program, at the latest when the process is draining.

    Raises:
        ConfigError: `seconds` is not a positive, finite number.

    >>> async def main() -> None:
    ...     async for now in every(0.001):
    ...         if now.tzinfo:
    ...             break
    >>> run(main())
    """
    arguments.check_seconds("the step of every()", seconds, zero=False)
    return _ticks(seconds)


def draining() -> bool:
    """Tell whether the process has been told to stop, and is finishing what it began."""
    return _Process.draining


def begin_drain() -> None:
    """Say that the process is about to stop: from now on it is not ready for new work."""
    _Process.draining = True


def stop() -> None:
    """End the program of `run` as the first SIGTERM does; if it has been told already, do nothing.

    To be called in its event loop.
    """
    if _Process.stop is not None:
        _Process.stop.cancel(signal.SIGTERM)


async def _ticks(seconds: float) -> AsyncGenerator[datetime, None]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    step = 0
    while not draining():
        yield datetime.now(UTC).astimezone()
        # A timer may fire a clock tick early: without `step + 1` that would repeat a step.
        step = max(step + 1, math.floor((loop.time() - start) / seconds) + 1)
        await asyncio.sleep(start + step * seconds - loop.time())


def _require_a_place_to_run() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "sidecar.run() must be called from the main thread, the only one that receives signals; "
            "in other threads use asyncio.run()"
        )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "sidecar.run() cannot be called inside a running event loop; await the coroutine instead"
    )


async def _until_stopped(main: Coroutine[Any, Any, T], stop: _StopController) -> T | None:
    """Await `main` in the task that a signal cancels."""
    if not stop.attach():
        return None
    settled = asyncio.get_running_loop().call_later(_SETTLED, memory.trim_heap)
    try:
        return await main
    except asyncio.CancelledError:
        if stop.requested:
            return None
        raise
    finally:
        settled.cancel()
        stop.detach()


class _StopController:
    """What the signals have said so far, and what they are to cancel."""

    def __init__(self) -> None:
        self.signals = signals.stop_signals()
        self.requested: signal.Signals | None = None
        self._handler_due: int | None = None
        """The signal of which the loop has told first: Python is still to call `on_signal` for it."""
        self._task: asyncio.Task[Any] | None = None
        self._reminder: asyncio.TimerHandle | None = None

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Act at once, even where the loop is blocked by Python code that never awaits."""
        if self.requested is None:
            self._request(number)
        elif number == self._handler_due:
            self._handler_due = None
        elif number != signal.SIGHUP:
            os._exit(128 + number)

    def on_wakeup(self, number: int) -> None:
        """Act on what the loop tells of a signal, which may be before Python calls `on_signal` for the same one.

        That happens where another thread has received it (https://docs.python.org/3/library/signal.html#signals-and-threads).
        """
        if self.requested is None:
            self._request(number)
            self._handler_due = number
        self.cancel(number)

    def attach(self) -> bool:
        """Take the current task as the one to cancel; False if a signal has come before it."""
        if self.requested:
            return False
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in self.signals:
            # Python runs a handler between two bytecodes; the loop may be asleep by then.
            # What the loop adds is the wake-up, what `on_signal` adds is that it needs no loop.
            loop.add_signal_handler(number, self.on_wakeup, number)
            signal.signal(number, self.on_signal)
        if self.requested:
            loop.call_soon(self.cancel, self.requested)  # it came while we were arming
        return True

    def detach(self) -> None:
        self._task = None
        if self._reminder:
            self._reminder.cancel()

    def _request(self, number: int) -> None:
        self.requested = signal.Signals(number)
        begin_drain()

    def cancel(self, number: int) -> None:
        if self.requested is None:
            self._request(number)
        if self._task is None or self._reminder:
            return
        _log.info("%s: draining, a second signal exits at once", signal.Signals(number).name)
        self._reminder = asyncio.get_running_loop().call_later(_END_TIMEOUT, self._remind)
        self._task.cancel()

    def _remind(self) -> None:
        if self._task is not None:
            _log.warning(
                "still running %.0f s after the signal to stop, at %s; "
                "if that is no clean-up, it has swallowed asyncio.CancelledError",
                _END_TIMEOUT,
                _position(self._task.get_coro()),
            )


@contextmanager
def _handlers(stop: _StopController) -> Iterator[None]:
    """Handle the signals by `stop`.

    Once one has come the handlers stay: until the process is gone the next one exits at once,
    also as process 1 of a container, where the kernel ignores a signal that nobody handles.
    """
    before = {number: signal.signal(number, stop.on_signal) for number in stop.signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, stop.on_signal if stop.requested else handler or signal.SIG_DFL)


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where it is installed: it halves the cost of a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _position(coroutine: Any) -> str:
    """Say where a suspended coroutine waits: the innermost `await` outside of asyncio itself."""
    place = "an unknown place"
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is not None and not frame.f_globals["__name__"].startswith("asyncio"):
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return place
