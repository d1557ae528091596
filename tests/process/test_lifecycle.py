"""The end of a program: real processes, real signals."""

import asyncio
import inspect
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from textwrap import dedent

import pytest

import sidecar
from sidecar import logs
from sidecar._errors import ConfigError
from sidecar.process import lifecycle
from support import Process, StartProcess

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def program(tmp_path: Path, sidecar_process: StartProcess) -> StartProcess:
    """Run a text as a program that has imported what it needs, until it says "up"."""

    def start(text: str, until: str | None = "up") -> Process:
        path = tmp_path / "program.py"
        path.write_text(
            "import asyncio, os, signal, time\nfrom sidecar.process import lifecycle\n"
            + dedent(text)
        )
        return sidecar_process(path, until=until)

    return start


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_the_first_signal_cancels_and_the_clean_end_is_exit_0(
    program: StartProcess, number: int
) -> None:
    """First signal: draining, then the cancellation; what `finally` does is awaited."""
    process = program("""
        async def main():
            try:
                print("up", lifecycle.draining())
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                print("cleaned up, draining:", lifecycle.draining())
        lifecycle.run(main())
        """)
    process.send(number)
    assert process.wait() == 0
    assert "up False" in process.output
    assert "cleaned up, draining: True" in process.output


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "busy", ["await asyncio.Event().wait()", "time.sleep(60)", "while True: pass"]
)
def test_the_second_signal_exits_at_once(program: StartProcess, number: int, busy: str) -> None:
    """Second signal: exit code 128 + n now, whether the clean-up awaits, blocks or spins."""
    process = program(f"""
        async def main():
            try:
                print("up")
                await asyncio.Event().wait()
            finally:
                print("cleaning up")
                {busy}
        lifecycle.run(main())
        """)
    process.send(signal.SIGTERM)
    process.wait_until("cleaning up")
    process.send(number)
    assert process.wait() == 128 + number


def test_a_terminal_that_closes_does_not_cut_the_clean_up_off(program: StartProcess) -> None:
    """It sends SIGHUP twice, one from the kernel and one from the shell: the second is no second signal."""
    process = program("""
        async def main():
            try:
                print("up")
                await asyncio.Event().wait()
            finally:
                os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.sleep(0.01)
                print("cleaned up")
        lifecycle.run(main())
        """)
    process.send(signal.SIGHUP)
    assert process.wait() == 0, process
    assert "cleaned up" in process.output


def test_under_nohup_a_hang_up_stays_ignored(program: StartProcess) -> None:
    """Who has had SIGHUP ignored wants the program to go on without its terminal."""
    process = program(
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        async def main():
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0)
            print("draining:", lifecycle.draining())
        lifecycle.run(main())
        """,
        until="draining",
    )
    assert process.wait() == 0
    assert "draining: False" in process.output


def test_a_blocked_loop_drains_at_once_and_stops_when_it_can(program: StartProcess) -> None:
    """`draining()` is true from the signal on, also in code that never awaits."""
    process = program("""
        async def main():
            print("up")
            while not lifecycle.draining():
                pass
            print("saw it")
            await asyncio.Event().wait()
        lifecycle.run(main())
        """)
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "saw it" in process.output


def test_an_error_of_the_clean_up_comes_out(program: StartProcess) -> None:
    """A program that was told to stop and failed to do it in order does not exit 0."""
    process = program("""
        async def main():
            try:
                print("up")
                await asyncio.Event().wait()
            finally:
                raise OSError("could not flush")
        lifecycle.run(main())
        """)
    process.send(signal.SIGTERM)
    assert process.wait() == 1
    assert "OSError: could not flush" in process.output


def test_a_main_that_swallows_the_cancellation_is_named(
    program: StartProcess, tmp_path: Path
) -> None:
    """It is not cancelled twice (that would break a clean-up); the log says where it stands."""
    process = program("""
        lifecycle._STOP_WARNING_DELAY = 0.05
        async def stubborn():
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    print("no")
        async def main():
            print("up")
            await stubborn()
        lifecycle.run(main())
        """)
    process.send(signal.SIGTERM)
    process.wait_until("has swallowed asyncio.CancelledError")
    line = (tmp_path / "program.py").read_text().splitlines().index(
        "            await asyncio.Event().wait()"
    ) + 1
    assert f"program.py:{line};" in process.output
    assert process.output.count("no\n") == 1
    process.send(signal.SIGTERM)
    assert process.wait() == 143


def test_every_ends_even_where_the_cancellation_was_swallowed(program: StartProcess) -> None:
    """A body that catches everything does not keep the loop of a draining process alive."""
    process = program("""
        async def main():
            async for now in lifecycle.every(0.01):
                try:
                    print("up")
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    print("swallowed")
            print("after the loop")
        lifecycle.run(main())
        """)
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert process.output.endswith("swallowed\nafter the loop\n")


def test_every_ends_with_the_cancellation(program: StartProcess) -> None:
    """Program 1 of the design waits in `every` nearly all the time: SIGTERM there is exit 0."""
    process = program("""
        async def main():
            async for now in lifecycle.every(10.0):
                print("up")
            print("never here")
        lifecycle.run(main())
        """)
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "never here" not in process.output


def test_a_signal_before_main_starts_stops_it_before_it_does_anything(
    program: StartProcess,
) -> None:
    """No window between the start of `run` and the first step of `main`."""
    process = program(
        """
        class Early(asyncio.Runner):
            def __enter__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                return super().__enter__()
        asyncio.Runner = Early
        async def main():
            print("main ran")
        assert lifecycle.run(main()) is None
        print("returned")
        """,
        until=None,
    )
    assert process.wait() == 0
    assert process.output == "returned\n"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_while_the_handlers_are_being_set_is_not_lost(
    program: StartProcess, when: str
) -> None:
    """The loop's handler and ours are set one after the other; either alone must do."""
    process = program(
        f"""
        class Loop(asyncio.SelectorEventLoop):
            def add_signal_handler(self, *args):
                if "{when}" == "before":
                    os.kill(os.getpid(), signal.SIGTERM)
                super().add_signal_handler(*args)
                if "{when}" == "after":
                    os.kill(os.getpid(), args[0])
                self.add_signal_handler = super().add_signal_handler
        class Runner(asyncio.Runner):
            def __init__(self, **_):
                super().__init__(loop_factory=Loop)
        asyncio.Runner = Runner
        async def main():
            print("waiting")
            await asyncio.Event().wait()
        lifecycle.run(main())
        """,
        until=None,
    )
    assert process.wait() == 0


def test_a_second_signal_counts_when_main_has_already_ended(program: StartProcess) -> None:
    """A thread that hangs keeps the interpreter from exiting; the second signal still does."""
    process = program("""
        import threading
        async def main():
            print("up")
            await asyncio.Event().wait()
        lifecycle.run(main())
        threading.Thread(target=time.sleep, args=[60]).start()
        print("main has ended")
        """)
    process.send(signal.SIGTERM)
    process.wait_until("main has ended")
    process.send(signal.SIGTERM)
    assert process.wait() == 143


def test_no_drain_of_ours_is_taken_for_a_program_that_hangs() -> None:
    """The reminder is for clean-up that never ends: who reads it looks for a mistake."""
    serving, collecting = (
        {name: one.default for name, one in inspect.signature(function).parameters.items()}
        for function in (sidecar.serve, logs.collect)
    )
    assert serving["drain_delay"] + serving["drain_timeout"] < lifecycle._STOP_WARNING_DELAY
    assert collecting["drain_timeout"] + collecting["drain_quiet"] < lifecycle._STOP_WARNING_DELAY


@pytest.mark.root
def test_process_1_of_a_container_obeys_both_signals(
    tmp_path: Path, start_process: StartProcess
) -> None:
    """The kernel drops a signal to process 1 that has no handler, so ours must be there all the time."""
    path = tmp_path / "program.py"
    path.write_text(
        "import asyncio, os, time\nfrom sidecar.process import lifecycle\n"
        "async def main():\n    print('up as', os.getpid())\n    await asyncio.Event().wait()\n"
        "lifecycle.run(main())\nprint('main has ended')\ntime.sleep(60)\n"
    )
    process = start_process("unshare", "--pid", "--fork", sys.executable, path, until="up as 1\n")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (inner,) = [int(pid) for pid in children.read_text().split()]
    os.kill(inner, signal.SIGTERM)
    process.wait_until("main has ended")
    os.kill(inner, signal.SIGTERM)
    assert process.wait() == 143


def test_run_returns_the_value_and_gives_the_handlers_back() -> None:
    """A program that ends by itself leaves the process as it was."""

    async def main() -> str:
        await asyncio.sleep(0)
        return "done"

    before = [signal.getsignal(number) for number in SIGNALS]
    assert lifecycle.run(main()) == "done"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_errors_of_main_come_out_of_run() -> None:
    """`run` hides nothing, a cancellation of main's own making included."""

    async def fails(error: BaseException) -> None:
        raise error

    for error in (ValueError("x"), SystemExit(3), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            lifecycle.run(fails(error))


async def _nothing() -> None: ...


def test_run_in_another_thread_is_refused_with_the_reason() -> None:
    """Only the main thread receives signals; and no "never awaited" warning on top."""
    errors: list[Exception] = []

    def elsewhere() -> None:
        try:
            lifecycle.run(_nothing())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


async def test_run_inside_a_loop_is_refused_with_the_reason() -> None:
    """A notebook, or `run` within `run`: await it instead."""
    with pytest.raises(RuntimeError, match="await the coroutine"):
        lifecycle.run(_nothing())


def test_run_of_a_function_is_refused_with_the_reason() -> None:
    """`run(main)` for `run(main())` is the usual slip."""
    with pytest.raises(TypeError, match=r"run\(main\(\)\)"):
        lifecycle.run(_nothing)  # type: ignore[arg-type]


def test_run_leaves_configured_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a program that has set up nothing gets our lines on stderr."""
    root, own = logging.getLogger(), logging.NullHandler()
    monkeypatch.setattr(root, "handlers", [own])
    lifecycle.run(_nothing())
    assert root.handlers == [own]


def test_run_configures_logging_where_nobody_has(program: StartProcess) -> None:
    """The line about the signal is seen without a word of the program's own."""
    process = program("""
        async def main():
            print("up")
            await asyncio.Event().wait()
        lifecycle.run(main())
        """)
    process.send(signal.SIGTERM)
    process.wait()
    assert "SIGTERM: draining, a second signal exits at once" in process.output


def test_draining_begins_and_a_new_run_begins_without_it() -> None:
    """`start_draining` is for what stops by other means than a signal."""

    async def main() -> bool:
        return lifecycle.draining()

    lifecycle.begin_drain()
    assert lifecycle.draining()
    assert lifecycle.run(main()) is False


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_every_refuses_a_step_that_is_no_time(seconds: float) -> None:
    """At the call, not at the first iteration."""
    with pytest.raises(ConfigError, match="number of seconds above 0"):
        lifecycle.every(seconds)


def test_one_signal_of_which_the_loop_tells_first_is_not_taken_for_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With several threads the loop may wake up before Python calls the handler: that is the same signal, the next is not."""
    exited: list[int] = []
    monkeypatch.setattr(os, "_exit", exited.append)
    monkeypatch.setattr(lifecycle._LifecycleState, "draining", False)
    stop = lifecycle._StopController()
    stop.on_wakeup(signal.SIGTERM)
    stop.on_signal(signal.SIGTERM, None)
    assert (stop.requested, exited) == (signal.SIGTERM, [])
    stop.on_signal(signal.SIGTERM, None)
    assert exited == [128 + signal.SIGTERM]
