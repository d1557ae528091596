"""The command of a gate: what it gets, what becomes of its answer, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.volume.validation.command import ValidatorCommand
from sidecar.volume.validation.gate import Gate
from support import StartProcess, WaitFor


async def checked(command: list[str], path: Path, timeout: float = 10.0) -> tuple[str, ...]:
    """What a check command has against a staged file."""
    return tuple(await ValidatorCommand(command, timeout).run("config", path, "config"))


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    path = tmp_path / "staged"
    path.write_text("content")
    return path


@pytest.fixture
def bytes_at_stdin() -> Iterator[None]:
    """Something waits at our own standard input."""
    before = os.dup(0)
    ours, theirs = os.pipe()
    os.write(theirs, b"not for a check")
    os.close(theirs)
    os.dup2(ours, 0)
    os.close(ours)
    yield
    os.dup2(before, 0)
    os.close(before)


async def test_a_command_that_ends_with_0_lets_pass(staged: Path, bytes_at_stdin: None) -> None:
    """It gets the path as its last argument, name and path in its environment, and an empty stdin."""
    script = 'test "$(cat)" = "" && test "$(cat "$1")" = content'
    script += ' && test "$CONTENT_NAME" = config && test "$CONTENT_PATH" = "$1"'
    assert await checked(["sh", "-c", script, "sh"], staged) == ()


async def test_a_command_that_fails_refuses_with_its_last_words(staged: Path) -> None:
    """Exit status and the end of what it printed, on either stream."""
    (reason,) = await checked(["sh", "-c", "echo one; echo two >&2; exit 3"], staged)
    assert reason == "the check command sh ended with status 3: one; two"
    (reason,) = await checked(["sh", "-c", "kill -SEGV $$"], staged)
    assert reason == "the check command sh was killed by signal 11"


async def test_a_talkative_command_is_not_blocked(staged: Path) -> None:
    """More output than a pipe holds: read, and forgotten but for the end."""
    (reason,) = await checked(["sh", "-c", "yes no | head -c 3000000; exit 1"], staged)
    assert reason.endswith("no; no; no; no; no")


async def test_of_endless_output_only_the_end_is_kept(staged: Path) -> None:
    """However long a line is: the reason goes into an answer and a log."""
    script = "echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo last; exit 1"
    (reason,) = await checked(["sh", "-c", script], staged)
    assert reason.endswith("xxlast")
    assert "first" not in reason
    assert len(reason) < 17_000


async def test_a_command_that_hangs_is_killed_with_its_children(staged: Path) -> None:
    """After the time limit, the whole process group; the content is refused."""
    pids = staged.parent / "pids"
    script = f"sleep 600 & echo $! $$ > {pids}; wait"
    (reason,) = await checked(["sh", "-c", script], staged, timeout=1.5)
    assert reason == "the check command sh did not end within 1.5 s"
    assert [pid for pid in map(int, pids.read_text().split()) if runs(pid)] == []


async def test_what_a_command_leaves_behind_is_killed(staged: Path) -> None:
    """A child in the background keeps neither the gate waiting nor running itself."""
    pids = staged.parent / "pids"
    assert await checked(["sh", "-c", f"sleep 60 & echo $! > {pids}"], staged) == ()
    assert not runs(int(pids.read_text()))


@pytest.mark.parametrize("ending", ["exit 0", "sleep 60"])
async def test_what_a_command_sends_away_into_a_session_of_its_own_is_ended_too(
    staged: Path, ending: str
) -> None:
    """A daemon has another process group, and no parent: it would go on writing to a content that is published."""
    pids, log = staged.parent / "pids", staged.parent / "log"
    pids.touch()
    log.touch()
    daemon = f"echo $$ >> {pids}; while :; do echo x >> {log}; sleep 0.01; done"
    script = f"(setsid sh -c '{daemon}' &) ; setsid sh -c '{daemon}' & until [ $(wc -l < {pids}) = 2 ]; do :; done; {ending}"
    await checked(["sh", "-c", script], staged, timeout=2.0)
    written = log.stat().st_size
    assert [
        pid for pid in map(int, pids.read_text().split()) if Path(f"/proc/{pid}").exists()
    ] == []
    assert log.stat().st_size == written


@pytest.mark.root
def test_as_process_1_no_zombie_stays(tmp_path: Path) -> None:
    """The entry point of a container is the parent of every orphan: of a command that timed out, or left children."""
    (tmp_path / "staged").touch()
    program = tmp_path / "program.py"
    program.write_text(f"""
import asyncio, os
from pathlib import Path
from sidecar.volume.validation.command import ValidatorCommand
async def main():
    for script, limit in (("sleep 60 & exit 0", 10), ("sleep 60", 0.1), ("(setsid sleep 60 &) ; sleep 60", 0.1)):
        await ValidatorCommand(["sh", "-c", script], limit).run("c", Path({str(tmp_path / "staged")!r}), "c")
    left = [Path(f"/proc/{{one}}/stat").read_text() for one in os.listdir("/proc") if one.isdigit()]
    print([one for one in left if " Z " in one or "sleep" in one])
asyncio.run(main())
""")
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(program)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_command_does_not_outlive_a_writer_that_is_killed(
    tmp_path: Path, start_process: StartProcess, wait_for: WaitFor
) -> None:
    """SIGKILL, or the kernel for want of memory: nobody is left to end it but the process around it."""
    pids = tmp_path / "pids"
    (tmp_path / "program.py").write_text(f"""
import asyncio
from pathlib import Path
from sidecar.volume.validation.command import ValidatorCommand
script = "setsid sleep 60 & echo $! $$ > {pids}; wait"
asyncio.run(ValidatorCommand(["sh", "-c", script], 60).run("c", Path({str(tmp_path)!r}), "c"))
""")
    writer = start_process(sys.executable, tmp_path / "program.py")
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    writer.popen.kill()
    writer.popen.wait()
    wait_for(lambda: not any(runs(int(pid)) for pid in pids.read_text().split()))


async def test_a_cancelled_examination_kills_its_command(staged: Path) -> None:
    """Nobody waits for the answer any more, and the staged file goes away."""
    pids = staged.parent / "pids"
    script = f"echo $$ > {pids}; exec sleep 60"
    examining = asyncio.create_task(checked(["sh", "-c", script], staged))
    async with asyncio.timeout(5):
        while not pids.exists() or not pids.read_text():
            await asyncio.sleep(0.01)
    examining.cancel()
    await asyncio.wait({examining})
    assert examining.cancelled()
    assert not runs(int(pids.read_text()))


@pytest.mark.parametrize("command", [[], ["/nothing/here"], ["no-such-command-anywhere"]])
def test_a_command_that_is_not_there_is_told_at_the_start(command: list[str]) -> None:
    """Before anything is published."""
    with pytest.raises(_errors.ConfigError, match="check command"):
        Gate(check=command)


async def test_a_command_that_goes_away_later_publishes_nothing(staged: Path) -> None:
    """The gate cannot do its work: that is no refusal, and no pass either."""
    tool = staged.parent / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    gate = Gate(check=[str(tool)])
    tool.unlink()
    with pytest.raises(_errors.PublishError, match="cannot be started") as failed:
        await gate.examine("config", staged, 7, None)
    assert not isinstance(failed.value, _errors.ContentRefused)


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie; it is given a moment to go."""
    for _ in range(1000):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.01)
    return True
