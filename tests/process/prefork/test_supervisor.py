"""Several processes under one parent: how they begin, are replaced and end; with the smallest of workers."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from textwrap import dedent

import pytest

from support import Process, StartProcess

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="needs Linux")


@pytest.fixture
def program(tmp_path: Path, sidecar_process: StartProcess) -> StartProcess:
    """Run a text as what each worker does, `number` being its own."""

    def start(text: str, *, size: int = 2, before: str = "", until: str | None = None) -> Process:
        path = tmp_path / "program.py"
        path.write_text(
            dedent("""
                import asyncio, os, sys, time
                from sidecar.process import logging, lifecycle; from sidecar.process.prefork import worker, supervisor
                logging.configure()
                supervisor._FIRST_RESTART_DELAY = 0.01
                """)
            + dedent(before)
            + f"number = supervisor.fork_workers({size}, release=lambda: print('released', flush=True), drain=0.1)\n"
            + dedent(text)
        )
        return sidecar_process(path, until=until)

    return start


SERVE = """
    async def main():
        with worker.serve_queries({}):
            worker.started()
            await asyncio.Event().wait()
    lifecycle.run(main())
    """


def test_each_worker_returns_with_its_number_and_ends_with_the_parent(
    program: StartProcess,
) -> None:
    """The parent alone gives up what it holds, and the program ends with 0."""
    process = program(f"print('I am', number, flush=True)\n{dedent(SERVE)}", until="all 2 workers")
    assert sorted(re.findall(r"I am (\d)", process.output)) == ["1", "2"]
    assert process.stop() == 0
    assert process.output.count("released") == 1


def test_a_hang_up_drains_the_workers_however_often_it_comes(program: StartProcess) -> None:
    """A terminal that closes sends it to all of them, and the shell once more."""
    process = program(
        """
        async def main():
            with worker.serve_queries({}):
                worker.started()
                try:
                    await asyncio.Event().wait()
                finally:
                    print('drains', number, flush=True)
                    await asyncio.sleep(0.05)
                    print('ends', number, flush=True)
        lifecycle.run(main())
        """,
        until="all 2 workers",
    )
    os.killpg(process.pid, signal.SIGHUP)
    process.wait_until("drains")
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait() == 0, process
    assert {"ends 1", "ends 2"} <= set(process.output.splitlines())


def test_a_worker_that_hangs_is_killed_when_it_should_have_ended(program: StartProcess) -> None:
    """SIGSTOP stands for a disk that is gone; the others end in order, and the program says who it was."""
    process = program(SERVE, before="supervisor.KILL_GRACE_PERIOD = 1.9\n", until="all 2 workers")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGSTOP)
    assert process.stop() == 128 + signal.SIGKILL
    assert f"worker 2 (process {children[1]}) has not ended 2 s after" in process.output
    assert "worker 1" not in process.output


def test_a_first_worker_that_cannot_start_ends_the_program(program: StartProcess) -> None:
    """With its status, and without the others: what is wrong with all of them is said once."""
    process = program("print('no', flush=True); sys.exit(7)", size=4)
    assert process.wait() == 7
    assert process.output.count("no\n") == 1


@pytest.mark.parametrize(
    ("end", "status", "how"),
    [("os._exit(3)", 3, "with 3"), ("os.kill(os.getpid(), 9)", 128 + 9, "by SIGKILL")],
)
def test_a_worker_that_dies_again_and_again_ends_the_program(
    program: StartProcess, end: str, status: int, how: str
) -> None:
    """After five times within a minute, with growing pauses; the others drain first."""
    process = program(f"if number == 2: worker.started(); {end}\n{dedent(SERVE)}")
    assert process.wait() == status
    assert process.output.count("worker 2 (process") == 5
    assert f"has ended {how}, the 5th time within 60 s: giving up" in process.output
    pauses = re.findall(r"another one begins (?:now|in (\S+) s)", process.output)
    assert pauses == ["", "0.01", "0.02", "0.04"]
    assert "lifecycle[1]: SIGTERM: draining" in process.output


def test_deaths_that_are_far_apart_are_no_reason_to_end(program: StartProcess) -> None:
    """A worker that the kernel kills once a day is replaced each time."""
    process = program(
        f"if number == 2 and len(os.listdir('.')) < 12:\n"
        f"    open(f'{{time.time()}}', 'w').close(); os._exit(1)\n{dedent(SERVE)}",
        before="import tempfile; os.chdir(tempfile.mkdtemp()); supervisor.DEATH_WINDOW = 0.0\n",
    )
    process.wait_until("all 2 workers have started")
    assert process.output.count("another one begins") == 12
    assert process.stop() == 0


@pytest.mark.parametrize(
    ("call", "arguments", "error"),
    [
        ("os.fork", (), BlockingIOError(11, "Resource temporarily unavailable")),
        (
            "socket.socketpair",
            (int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET)),
            OSError(24, "Too many open files"),
        ),
    ],
)
def test_a_system_without_processes_to_give_ends_no_worker(
    program: StartProcess, call: str, arguments: tuple[int, ...], error: OSError
) -> None:
    """The limit of a Pod counts those of all its containers, and threads as well: it may be reached for a moment."""
    process = program(
        "print('begins', number, flush=True)\n"
        "if number == 2 and not os.listdir('.'):\n"
        f"    worker.started(); open('died', 'w').close(); os._exit(3)\n{dedent(SERVE)}",
        before=f"""
            import socket, tempfile; os.chdir(tempfile.mkdtemp())
            supervisor._REFUSED_PAUSE = 0.01
            call, calls = {call}, iter(range(100))
            def refused_twice(*args):
                if args == {arguments!r} and next(calls) in (2, 3):
                    raise {error!r}
                return call(*args)
            {call} = refused_twice
            """,
    )
    process.wait_until(lambda: process.output.count("begins 2") == 2)
    assert process.output.count(f"cannot begin worker 2: {error.strerror}") == 2
    assert process.output.count("begins 1") == 1
    assert process.stop() == 0


def test_what_nobody_waits_for_is_waited_for(program: StartProcess, wait_for) -> None:
    """As process 1 of a container the parent gets the orphans of all others; they must not stay as zombies."""
    process = program(
        SERVE,
        until="all 2 workers",
        before="""
            import ctypes
            ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: as if it were process 1
            import signal
            if os.fork() == 0:
                if os.fork() == 0:
                    print("orphan:", os.getpid(), flush=True); signal.pause()
                os._exit(0)
            os.wait()
            """,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (orphan,) = re.findall(r"orphan: (\d+)", process.output)
    assert orphan in children.read_text().split()
    os.kill(int(orphan), signal.SIGTERM)
    wait_for(lambda: len(children.read_text().split()) == 2)
    assert process.stop() == 0


def test_a_worker_that_hangs_up_does_not_keep_the_parent_busy(program: StartProcess) -> None:
    """Its end of the line may be closed for long before it ends; the parent waits for that, asleep."""
    process = program(
        f"if number == 2:\n"
        f"    worker.started(); worker._WorkerState.link._socket.close()\n"
        f"    print('hung up', flush=True); time.sleep(60)\n{dedent(SERVE)}",
        until="hung up",
        before="""
            import selectors
            parent, select, waits = os.getpid(), selectors.DefaultSelector.select, iter(range(100))
            def count(self, timeout=None):
                if os.getpid() == parent and next(waits, None) is None:
                    os._exit(99)
                return select(self, timeout)
            selectors.DefaultSelector.select = count
            """,
    )
    first, _ = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGKILL)
    process.wait_until("another one begins")  # that takes few waits
    assert process.stop() == 128 + signal.SIGTERM
