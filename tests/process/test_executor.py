"""Blocking work, cancelled at every moment."""

import asyncio
import contextvars
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sidecar.process import executor
from sidecar.process.executor import run_in_thread, run_queued_cancellable
from support import Eventually


async def test_the_result_and_the_error_come_back() -> None:
    """As if it had been called, but beside the event loop."""
    assert await run_in_thread(divmod, 7, 2) == (3, 1)
    assert await run_in_thread(threading.current_thread) is not threading.main_thread()
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(divmod, 7, 0)


async def test_context_variables_are_seen_in_the_thread() -> None:
    """A request's context goes with its work."""
    variable = contextvars.ContextVar("variable", default="outside")
    variable.set("inside")
    assert await run_in_thread(variable.get) == "inside"


class Gate:
    """Work that begins, then waits until it may end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.may_end, self.ended = (threading.Event() for _ in range(3))
        self.error = error

    def work(self) -> str:
        self.begun.set()
        self.may_end.wait(10)
        self.ended.set()
        if self.error:
            raise self.error
        return "done"


async def test_a_cancellation_waits_for_the_thread(eventually: Eventually) -> None:
    """Whoever sees the CancelledError may rely on it: nothing is being written any more."""
    gate = Gate()
    task = asyncio.create_task(run_in_thread(gate.work))
    await eventually(gate.begun.is_set)
    for _ in range(3):  # an impatient caller changes nothing
        task.cancel("stop")
        done, _pending = await asyncio.wait({task}, timeout=0.01)
        assert not done
    gate.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.ended.is_set()


async def test_a_cancellation_that_waited_tells_the_error_of_the_work(
    eventually: Eventually,
) -> None:
    """The work failed after the cancel: still cancelled, and the failure is not lost."""
    gate = Gate(OSError("disk gone"))
    task = asyncio.create_task(run_in_thread(gate.work))
    await eventually(gate.begun.is_set)
    task.cancel()
    gate.may_end.set()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert cancelled.value.__cause__ is gate.error


async def test_a_time_limit_works_across_the_hop(eventually: Eventually) -> None:
    """`asyncio.timeout` sees its own cancellation come back, and says TimeoutError."""
    gate, limits = Gate(), list[asyncio.Timeout]()

    async def limited() -> None:
        async with asyncio.timeout(None) as limit:
            limits.append(limit)
            await run_in_thread(gate.work)

    task = asyncio.create_task(limited())
    await eventually(gate.begun.is_set)
    limits[0].reschedule(0.0)  # it is over
    done, _pending = await asyncio.wait({task}, timeout=0.01)
    assert not done
    gate.may_end.set()
    with pytest.raises(TimeoutError):
        await task
    assert gate.ended.is_set()


async def test_work_that_waits_for_a_thread_is_dropped_by_a_cancellation(
    eventually: Eventually,
) -> None:
    """All threads hang on a dead disk: what has not begun never will, and the caller goes on at once."""
    gates = [Gate() for _ in range(executor.IO_POOL._max_workers)]
    busy = [asyncio.create_task(run_in_thread(gate.work)) for gate in gates]
    await eventually(lambda: all(gate.begun.is_set() for gate in gates))
    late = Gate()
    waiting = asyncio.create_task(run_in_thread(late.work))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for gate in gates:
        gate.may_end.set()
    assert await asyncio.gather(*busy) == ["done"] * len(gates)
    assert not late.begun.is_set()


async def test_a_cancelled_publish_is_told_and_waited_for(eventually: Eventually) -> None:
    """It may still roll back; whoever sees the CancelledError may rely on it that it has ended."""
    gate = Gate(OSError("disk gone"))
    cancelled = threading.Event()
    task = asyncio.create_task(run_queued_cancellable(gate.work, cancelled.set))
    await eventually(gate.begun.is_set)
    for _ in range(3):
        task.cancel()
        done, _pending = await asyncio.wait({task}, timeout=0.01)
        assert not done
    assert cancelled.is_set()
    gate.may_end.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert gate.ended.is_set()
    assert raised.value.__cause__ is gate.error


async def test_a_publish_waits_for_no_other_publish(eventually: Eventually) -> None:
    """One that hangs on its disk has a thread of its own."""
    hanging, error = Gate(), Gate(OSError("disk gone"))
    task = asyncio.create_task(run_queued_cancellable(hanging.work, lambda: None))
    await eventually(hanging.begun.is_set)
    assert await run_queued_cancellable(lambda: "done", lambda: None) == "done"
    error.may_end.set()
    with pytest.raises(OSError, match="disk gone"):
        await run_queued_cancellable(error.work, lambda: None)
    hanging.may_end.set()
    assert await task == "done"


def test_work_beside_a_sync_runs_while_it_waits() -> None:
    """Both have ended afterwards, and either may take longer."""
    gate = Gate()

    def sync() -> None:
        assert gate.begun.wait(10)
        gate.may_end.set()

    executor.run_beside(gate.work, sync)
    assert gate.ended.is_set()


def test_the_error_of_the_sync_is_told_before_that_of_the_work() -> None:
    """And not before the work has ended."""
    gate = Gate(ValueError("work"))
    gate.may_end.set()

    def fail() -> None:
        raise OSError("sync")

    with pytest.raises(OSError, match="sync"):
        executor.run_beside(gate.work, fail)
    assert gate.ended.is_set()
    with pytest.raises(ValueError, match="work"):
        executor.run_beside(gate.work, lambda: None)


def test_work_beside_a_sync_waits_for_no_other_work() -> None:
    """Of several publishes at a time each goes on."""
    outer = Gate()

    def sync() -> None:
        assert outer.begun.wait(10)
        inner = Gate()
        inner.may_end.set()
        executor.run_beside(inner.work, lambda: None)
        assert inner.ended.is_set()
        outer.may_end.set()

    executor.run_beside(outer.work, sync)


async def test_without_a_thread_of_its_own_work_goes_to_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit of processes: it says so when a thread begins, and a publish must not be left half done for it."""
    executor._make_pools()
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name in ("sidecar-publish", "sidecar-beside-sync"):
            raise RuntimeError("can't start new thread")
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    assert await executor.run_queued_cancellable(lambda: 7, lambda: None) == 7
    called: list[str] = []
    executor.run_beside(lambda: called.append("beside"), lambda: called.append("waited"))
    assert sorted(called) == ["beside", "waited"]
    monkeypatch.undo()
    assert await executor.run_queued_cancellable(threading.current_thread, lambda: None) is not None


def test_a_publish_that_has_begun_ends_before_the_interpreter(tmp_path: Path) -> None:
    """As the threads of a pool: nothing is left half done because the event loop was stopped."""
    program = (
        "import asyncio, time\n"
        "from sidecar.process import executor\n"
        "loop = asyncio.new_event_loop()\n"
        "def work():\n"
        "    loop.call_soon_threadsafe(loop.stop)\n"
        "    time.sleep(0.2)\n"
        f"    open({str(tmp_path / 'done')!r}, 'w').close()\n"
        "try:\n"
        "    loop.run_until_complete(executor.run_queued_cancellable(work, lambda: None))\n"
        "except RuntimeError:\n"
        "    pass\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=30)
    assert (tmp_path / "done").exists()
