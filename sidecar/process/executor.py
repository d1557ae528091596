"""Blocking work in a thread, with an end that can be relied on.

One unit of work is one plain function and one hop.
The threads are our own, not the loop's default ones:
a disk that hangs must not also stop name resolution, and the other way round.
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
    """Make the threads of this process; those of the one that was forked are not there in the other."""
    global IO_POOL, _LOCK_POOL, _VALIDATION_POOL  # noqa: PLW0603 (one of each for a process)
    # Threads start when they are needed and then stay: most programs see two or three of the sixteen.
    IO_POOL = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sidecar-disk")
    # For work that waits for its turn, with a thread in its hands: all other work must not wait for those.
    _LOCK_POOL = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sidecar-turn")
    # For what may take as long as a content wants it to.
    _VALIDATION_POOL = ThreadPoolExecutor(max_workers=8, thread_name_prefix="sidecar-examine")


IO_POOL: ThreadPoolExecutor
_LOCK_POOL: ThreadPoolExecutor
_VALIDATION_POOL: ThreadPoolExecutor
_make_pools()
os.register_at_fork(after_in_child=_make_pools)


async def run_in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a thread, and return or raise what it does.

    When this returns or raises, the function is no longer running.
    A cancellation waits for it to end and is raised after that,
    with the function's own error, if it had one, as the cause.
    Work that was still waiting for a free thread is dropped instead and never begins.

    >>> import asyncio
    >>> asyncio.run(run_in_thread(pow, 2, 10))
    1024
    """
    return await _end_of(_submit(IO_POOL, function, *args, **kwargs))


async def run_queued(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Do as `run_in_thread`, with work that may wait for other work of its kind: for a lock, on a slow disk."""
    return await _end_of(_submit(_LOCK_POOL, function, *args, **kwargs))


async def run_validation(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Do as `run_in_thread`, with the examination of a content: nothing else waits for those."""
    return await _end_of(_submit(_VALIDATION_POOL, function, *args, **kwargs))


async def run_queued_cancellable(function: Callable[[], T], withdraw: Callable[[], None]) -> T:
    """Run a function as `run_queued` does; a cancellation withdraws it, waits for its end, and goes on after that.

    It is `finish_before_cancel` with fewer turns of the loop between the end of the function and that of the caller.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    submitted = _submit(_LOCK_POOL, function)
    submitted.add_done_callback(lambda _: _tell(loop, ended))
    try:
        await ended
    except asyncio.CancelledError as cancelled:
        withdraw()
        outcome = asyncio.wrap_future(submitted)
        await _until_done(outcome)
        raise cancelled from (None if outcome.cancelled() else outcome.exception())
    return submitted.result()


async def finish_before_cancel(
    work: Awaitable[T], withdraw: Callable[[], None] = lambda: None
) -> T:
    """Await work that must not be left running: a cancellation withdraws it, waits for it, and goes on after that."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError as cancelled:
        withdraw()
        await _until_done(task)
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


async def _end_of(submitted: Future[T]) -> T:
    outcome = asyncio.wrap_future(submitted)
    try:
        # `wait` leaves the future alone when it is cancelled, unlike a bare `await`.
        await asyncio.wait({outcome})
    except asyncio.CancelledError as cancelled:
        if not submitted.cancel():
            await _until_done(outcome)
            raise cancelled from outcome.exception()
        raise
    return outcome.result()


def _submit(
    pool: ThreadPoolExecutor, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> Future[T]:
    return pool.submit(partial(contextvars.copy_context().run, function, *args, **kwargs))


def _tell(loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
    """Wake who awaits `ended`, from any thread; nobody does once the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_set, ended)


def _set(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


async def _until_done(outcome: asyncio.Future[T]) -> None:
    """Wait through however many further cancellations; the first one is on its way already."""
    while not outcome.done():
        try:
            await asyncio.wait({outcome})
        except asyncio.CancelledError:
            continue
