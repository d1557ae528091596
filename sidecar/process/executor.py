"""Run blocking work in threads; the work has always ended when the call returns.

One unit of work is one plain function and one thread hop.
The threads are not the default executor of the event loop:
a hanging disk must not block name resolution, and vice versa.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def _make_pools() -> None:
    """Create the thread pools of this process; threads do not survive a fork."""
    global IO_POOL, _LOCK_POOL, _VALIDATION_POOL, _PUBLISH_THREAD, _SYNC_THREAD  # noqa: PLW0603 (one of each for a process)
    # Threads start on demand and then stay: most programs use two or three of the sixteen.
    IO_POOL = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sidecar-disk")
    # For work that blocks a thread while it waits for a lock: other work must not queue behind it.
    _LOCK_POOL = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sidecar-turn")
    # For validation, whose duration depends on the content.
    _VALIDATION_POOL = ThreadPoolExecutor(max_workers=8, thread_name_prefix="sidecar-examine")
    # A pool takes tens of microseconds more to hand over work and its result: much for a publish by one client.
    _PUBLISH_THREAD = _ReusedThread("sidecar-publish")
    _SYNC_THREAD = _ReusedThread("sidecar-beside-sync")


class _Job(Generic[T]):
    """A function that a `_ReusedThread` runs, and its result."""

    __slots__ = ("_function", "_value", "ended", "error", "on_done")

    def __init__(self, function: Callable[[], T], on_done: Callable[[], None]) -> None:
        self._function = function
        self.on_done = on_done
        self.ended = False
        self.error: BaseException | None = None

    def run(self, release: Callable[[], None]) -> None:
        """Run the function, call `release`, then `on_done`. Never raises."""
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001 (raised by `result`)
            self.error = error
        self.ended = True
        release()
        self.on_done()

    def result(self) -> T:
        """Return or raise the result. Call it after `on_done`."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # no cycle of the error and its frames
        return self._value


class _ReusedThread:
    """A thread that runs one function at a time. It starts on first use and ends with the process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._busy = threading.Lock()
        self._jobs: SimpleQueue[_Job[Any]] = SimpleQueue()
        self._started = False

    def submit(self, job: _Job[T]) -> bool:
        """Start a function; return False, without starting it, while another one is running, or without a thread."""
        if not self._busy.acquire(blocking=False):
            return False
        if not self._started:
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except RuntimeError:  # no thread can be had now (a limit of processes)
                self._busy.release()
                return False
            self._started = True
        self._jobs.put(job)
        return True

    def wait(self) -> None:
        """Wait until nothing is running, and let nothing run any more: the interpreter is ending."""
        self._busy.acquire()

    def _run(self) -> None:
        while True:
            self._jobs.get().run(self._busy.release)


IO_POOL: ThreadPoolExecutor
_LOCK_POOL: ThreadPoolExecutor
_VALIDATION_POOL: ThreadPoolExecutor
_PUBLISH_THREAD: _ReusedThread
_SYNC_THREAD: _ReusedThread
_make_pools()
os.register_at_fork(after_in_child=_make_pools)


@atexit.register
def _wait_for_threads() -> None:
    """Let a publish end that has begun, as the pools do."""
    _PUBLISH_THREAD.wait()
    _SYNC_THREAD.wait()


async def run_in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a thread and return its result.

    When this returns or raises, the function is no longer running.
    A cancellation waits for the function to end and is raised after that,
    with the function's error, if any, as its cause.
    Work that is still queued is dropped and never starts.

    >>> import asyncio
    >>> asyncio.run(run_in_thread(pow, 2, 10))
    1024
    """
    return await _result_of(_submit(IO_POOL, function, *args, **kwargs))


async def run_queued(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `run_in_thread`, for work that may wait for other work: for a lock, on a slow disk."""
    return await _result_of(_submit(_LOCK_POOL, function, *args, **kwargs))


async def run_validation(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `run_in_thread`, for the validation of a content: no other work queues behind it."""
    return await _result_of(_submit(_VALIDATION_POOL, function, *args, **kwargs))


async def run_queued_cancellable(function: Callable[[], T], cancel: Callable[[], None]) -> T:
    """Like `run_queued`; a cancellation calls `cancel`, waits for the function to end, and is raised after that.

    Equivalent to `finish_before_cancel`, with a faster hand-over while no other function runs this way.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    job = _Job(partial(contextvars.copy_context().run, function), partial(_notify, loop, done))
    if not _PUBLISH_THREAD.submit(job):
        _LOCK_POOL.submit(job.run, _nothing)
    try:
        await done
    except asyncio.CancelledError as cancelled:
        cancel()
        ended = loop.create_future()  # the cancellation has ended the other one
        job.on_done = partial(_notify, loop, ended)
        if not job.ended:
            await _until_done(ended)
        raise cancelled from job.error
    return job.result()


def run_beside(function: Callable[[], object], wait: Callable[[], object]) -> None:
    """Call `wait`, which waits for a device, and `function` in another thread meanwhile; blocking.

    Both have ended when this returns. It raises the error of `wait`, else that of `function`.
    """
    ended = threading.Lock()
    ended.acquire()
    job = _Job(partial(contextvars.copy_context().run, function), ended.release)
    if not _SYNC_THREAD.submit(job):
        job.run(_nothing)
    try:
        wait()
    finally:
        ended.acquire()
    job.result()


async def finish_before_cancel(work: Awaitable[T], cancel: Callable[[], None] = lambda: None) -> T:
    """Await work that must not be left running: a cancellation calls `cancel`, waits for the work, and is raised after that."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError as cancelled:
        cancel()
        await _until_done(task)
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


async def _result_of(future: Future[T]) -> T:
    result = asyncio.wrap_future(future)
    try:
        # `wait` does not cancel the future when it is cancelled, unlike `await`.
        await asyncio.wait({result})
    except asyncio.CancelledError as cancelled:
        if not future.cancel():
            await _until_done(result)
            raise cancelled from result.exception()
        raise
    return result.result()


def _submit(
    pool: ThreadPoolExecutor, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> Future[T]:
    return pool.submit(partial(contextvars.copy_context().run, function, *args, **kwargs))


def _notify(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]) -> None:
    """Set a future from any thread; without effect once the event loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_set_done, done)


def _nothing() -> None:
    """Do nothing."""


def _set_done(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def _until_done(result: asyncio.Future[T]) -> None:
    """Wait until a future is done, ignoring further cancellations; the first one is being raised already."""
    while not result.done():
        try:
            await asyncio.wait({result})
        except asyncio.CancelledError:
            continue
