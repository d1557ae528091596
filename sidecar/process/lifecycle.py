"""The life cycle of a program: run, stop on a signal, shut down in order.

A Pod ends with SIGTERM, a grace period (30 s unless the Pod sets another) and SIGKILL:
https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination
The first signal starts a graceful shutdown, the second one exits at once. SIGHUP is always graceful:
a closing terminal sends it twice, and an operator who sends it for a reload does not want requests cut off.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any, TypeVar

from sidecar.process import arguments, memory, signals, tracing
from sidecar.process.logging import configure

T = TypeVar("T")

_log = logging.getLogger(__name__)
_STOP_WARNING_DELAY = 25.0
"""Seconds after the signal until a warning says that the program is still running:
more than `serve` and `logs.collect` take to drain, less than the grace period of a Pod.
"""

_STARTUP_SECONDS = 2.0
"""Seconds after the start in which a program imports, binds and loads what it needs."""


class _LifecycleState:
    """State of the process. Plain attributes: a signal handler must not take a lock."""

    draining = False
    stop: _StopController | None = None


def run(
    main: Coroutine[Any, Any, T],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T | None:
    """Run a program until it returns or is stopped.

    The first SIGTERM, SIGINT or SIGHUP makes `draining()` true and cancels `main`, once.
    The clean-up in `main` (`finally`, `async with`) is awaited without a timeout.
    If `main` ends with that cancellation, `run` returns None, and the process exits with 0.
    If it returns a value, `run` returns that value.
    A second signal ends the process at once, with exit code 128 + the signal's number; a further SIGHUP is ignored,
    and so is the first one if it was ignored before (`nohup`).

    `run` raises every other exception of `main`, including those of its clean-up.
    Logging goes to stderr at level INFO unless the program has configured it before.

    `loop_factory` is that of `asyncio.Runner`. None takes the event loop of uvloop, if that is installed;
    `asyncio.new_event_loop` needs 3 MB less, for a program that serves few requests.

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
        _check_run_context()
        if not logging.getLogger().handlers:
            configure()
        _LifecycleState.draining = False
        stop = _LifecycleState.stop = _StopController()
        with (
            _handlers(stop),
            tracing.exporting(),
            asyncio.Runner(loop_factory=loop_factory or _new_loop) as runner,
        ):
            return runner.run(_until_stopped(main, stop))
    finally:
        main.close()  # nothing to do, unless it was never started


def every(seconds: float) -> AsyncGenerator[datetime, None]:
    """Yield the time (aware, local), at once and then every `seconds` seconds.

    The times lie on a fixed grid from the first one on, so the duration of the loop body causes no drift.
    A loop body that takes longer than a step skips the missed steps: there is no burst after a pause.
    The grid is that of the monotonic clock: setting the system clock has no effect.
    It ends with the cancellation of the program, at the latest when the process drains.

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
    """Return whether the process is shutting down: it finishes its work in progress."""
    return _LifecycleState.draining


def begin_drain() -> None:
    """Start draining: from now on the process is not ready for new work."""
    _LifecycleState.draining = True


def stop() -> None:
    """Stop the program of `run` as the first SIGTERM does; without effect if it is stopping already.

    Call it in the program's event loop.
    """
    if _LifecycleState.stop is not None:
        _LifecycleState.stop.cancel(signal.SIGTERM)


async def _ticks(seconds: float) -> AsyncGenerator[datetime, None]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    step = 0
    while not draining():
        yield datetime.now(UTC).astimezone()
        # A timer may fire a clock tick early: without `step + 1` that would repeat a step.
        step = max(step + 1, math.floor((loop.time() - start) / seconds) + 1)
        await asyncio.sleep(start + step * seconds - loop.time())


def _check_run_context() -> None:
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
    trim_timer = asyncio.get_running_loop().call_later(_STARTUP_SECONDS, memory.trim_heap)
    try:
        return await main
    except asyncio.CancelledError:
        if stop.requested:
            return None
        raise
    finally:
        trim_timer.cancel()
        stop.detach()


class _StopController:
    """The signals received so far, and the task that they cancel."""

    def __init__(self) -> None:
        self.signals = signals.stop_signals()
        self.requested: signal.Signals | None = None
        self._handler_due: int | None = None
        """The signal that the event loop reported first: Python will still call `on_signal` for it."""
        self._task: asyncio.Task[Any] | None = None
        self._stop_warning: asyncio.TimerHandle | None = None

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal at once, even if Python code blocks the event loop."""
        if self.requested is None:
            self._request(number)
        elif number == self._handler_due:
            self._handler_due = None
        elif number != signal.SIGHUP:
            os._exit(128 + number)

    def on_wakeup(self, number: int) -> None:
        """Handle a signal reported by the event loop, possibly before Python calls `on_signal` for it.

        That happens if another thread receives the signal (https://docs.python.org/3/library/signal.html#signals-and-threads).
        """
        if self.requested is None:
            self._request(number)
            self._handler_due = number
        self.cancel(number)

    def attach(self) -> bool:
        """Make the current task the one to cancel; False if a signal has already arrived."""
        if self.requested:
            return False
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in self.signals:
            # Python runs a handler between two bytecodes; the event loop may be asleep then.
            # The event loop's handler wakes it up; `on_signal` works without the loop.
            loop.add_signal_handler(number, self.on_wakeup, number)
            signal.signal(number, self.on_signal)
        if self.requested:
            loop.call_soon(self.cancel, self.requested)  # it arrived during the registration
        return True

    def detach(self) -> None:
        self._task = None
        if self._stop_warning:
            self._stop_warning.cancel()

    def _request(self, number: int) -> None:
        self.requested = signal.Signals(number)
        begin_drain()

    def cancel(self, number: int) -> None:
        if self.requested is None:
            self._request(number)
        if self._task is None or self._stop_warning:
            return
        _log.info(
            "%s: draining, a second signal exits at once",
            signal.Signals(number).name,
            extra={"event": "process.draining"},
        )
        self._stop_warning = asyncio.get_running_loop().call_later(
            _STOP_WARNING_DELAY, self._warn_still_running
        )
        self._task.cancel()

    def _warn_still_running(self) -> None:
        if self._task is not None:
            _log.warning(
                "still running %.0f s after the signal to stop, at %s; "
                "if that is no clean-up, it has swallowed asyncio.CancelledError",
                _STOP_WARNING_DELAY,
                _position(self._task.get_coro()),
                extra={"event": "process.does_not_end"},
            )


@contextmanager
def _handlers(stop: _StopController) -> Iterator[None]:
    """Handle signals with `stop`.

    After a signal the handlers stay installed: until the process has ended, the next signal exits at once,
    also as process 1 of a container, where the kernel ignores unhandled signals.
    """
    before = {number: signal.signal(number, stop.on_signal) for number in stop.signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, stop.on_signal if stop.requested else handler or signal.SIG_DFL)


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop if installed: it halves the cost of a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _position(coroutine: Any) -> str:
    """Return where a suspended coroutine waits: the innermost `await` outside of asyncio."""
    position = "an unknown place"
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is not None and not frame.f_globals["__name__"].startswith("asyncio"):
            position = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return position
