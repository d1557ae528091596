"""Run blocking work in threads; the work has always ended when the call returns.

One unit of work is one plain function and one thread hop.
The threads are not the default executor of the event loop:
a hanging disk must not block name resolution, and vice versa.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def _make_pools() -> None:
    """Create the thread pools of this process; threads do not survive a fork."""
    global IO_POOL, _LOCK_POOL, _VALIDATION_POOL  # noqa: PLW0603 (one of each for a process)
    # Threads start on demand and then stay: most programs use two or three of the sixteen.
    IO_POOL = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sidecar-disk")
    # For work that blocks a thread while it waits for a lock: other work must not queue behind it.
    _LOCK_POOL = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sidecar-turn")
    # For validation, whose duration depends on the content.
    _VALIDATION_POOL = ThreadPoolExecutor(max_workers=8, thread_name_prefix="sidecar-examine")


IO_POOL: ThreadPoolExecutor
_LOCK_POOL: ThreadPoolExecutor
_VALIDATION_POOL: ThreadPoolExecutor
_make_pools()
os.register_at_fork(after_in_child=_make_pools)


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

    Equivalent to `finish_before_cancel`, with fewer iterations of the event loop between the end of the function and the caller.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    future = _submit(_LOCK_POOL, function)
    future.add_done_callback(lambda _: _notify(loop, done))
    try:
        await done
    except asyncio.CancelledError as cancelled:
        cancel()
        result = asyncio.wrap_future(future)
        await _until_done(result)
        raise cancelled from (None if result.cancelled() else result.exception())
    return future.result()


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
