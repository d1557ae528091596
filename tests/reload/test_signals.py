"""A signal reaches the process that is meant, and no other one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import sidecar
from sidecar.reload import ActionFailed, Change, Signal, signals
from support import Process, StartProcess, environment

CHANGE = Change("/x", "e3b0c44298fc1c149afbf4c8996fb924", ("a",))
APPLICATION = (
    'trap "echo reloaded" HUP; echo ready; while :; do sleep 1000 & wait $!; kill $!; done'
)


@pytest.fixture
def name() -> str:
    """A name that no other process has; `comm` has room for 15 bytes."""
    return f"app-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def application(start_process: StartProcess, tmp_path: Path, name: str) -> Process:
    """A program of that name that says when it was told."""
    program = tmp_path / name
    shutil.copy(shutil.which("bash") or "", program)
    return start_process(program, "-c", APPLICATION, until="ready")


def beside(statement: str, name: str) -> str:
    """Run it in a process that is no ancestor of the application, as a sidecar is none."""
    program = (
        "import asyncio, sys; from sidecar.reload import Change, Signal, signals;"
        f" name = sys.argv[1]; {statement}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


SEND = "asyncio.run(Signal('HUP', process=name).run(Change('/x', '0', ())))"
FIND = "print(*signals._named(name))"


def test_a_process_is_told_by_its_name(application: Process, name: str) -> None:
    """As in a shared process namespace, where nobody knows its number."""
    beside(SEND, name)
    application.wait_until("reloaded")


def test_a_name_is_that_of_the_first_argument_too(start_process: StartProcess, name: str) -> None:
    """What a program calls itself, when it calls itself something: exec -a, setproctitle."""
    program = ("bash", "-c", f"exec -a /usr/sbin/{name} bash -c '{APPLICATION}'")
    application = start_process(*program, until="ready")
    beside(SEND, name)
    application.wait_until("reloaded")


def test_workers_of_the_same_name_are_left_to_their_master(
    start_process: StartProcess, tmp_path: Path, name: str
) -> None:
    """Apache's manual: signals are for the parent alone."""
    program = tmp_path / name
    shutil.copy(shutil.which("bash") or "", program)
    script = "(echo worker; sleep 1000; :) & (sleep 1000; :) & wait"
    master = start_process(program, "-c", script, until="worker")
    assert beside(FIND, name).split() == [str(master.pid)]


def test_a_file_that_a_process_was_given_is_no_name_of_it(
    start_process: StartProcess, tmp_path: Path, name: str
) -> None:
    """`less nginx` is no nginx."""
    (tmp_path / name).write_text("echo ready; sleep 1000; :")
    start_process("bash", tmp_path / name, until="ready")
    assert beside(FIND, name).split() == []


async def test_a_process_is_told_by_its_file(application: Process, tmp_path: Path) -> None:
    """The file is read each time: a restarted application has another number."""
    pid_file = tmp_path / "app.pid"
    action = Signal("HUP", pid_file=pid_file)
    with pytest.raises(ActionFailed, match=r"app\.pid: cannot read the file: No such file"):
        await action.run(CHANGE)
    pid_file.write_text(f"{application.pid}\n")
    await action.run(CHANGE)
    application.wait_until("reloaded")


@pytest.mark.parametrize("text", ["", "0", "-1", "nginx", "1\n2"])
async def test_what_is_no_number_of_a_process_reaches_nobody(text: str, tmp_path: Path) -> None:
    """0 and negative numbers are groups of processes (kill(2)), this one among them."""
    (tmp_path / "pid").write_text(text)
    with pytest.raises(ActionFailed, match="is no number of a process"):
        await Signal("HUP", pid_file=tmp_path / "pid").run(CHANGE)


@pytest.mark.parametrize("ours", [os.getpid, os.getppid])
async def test_this_process_and_its_parent_are_never_told(ours, tmp_path: Path) -> None:
    """A number of another process namespace may well be ours: 1, for example."""
    (tmp_path / "pid").write_text(str(ours()))
    with pytest.raises(ActionFailed, match="is this process or its parent"):
        await Signal("URG", pid_file=tmp_path / "pid").run(CHANGE)


def test_what_this_process_has_started_is_not_told(
    start_process: StartProcess, tmp_path: Path, name: str
) -> None:
    """Its helpers have the name of the interpreter, as an application in Python has."""
    program = tmp_path / name
    shutil.copy(shutil.which("bash") or "", program)
    started = start_process(program, "-c", "echo ready; sleep 1000; :", until="ready")
    assert list(signals._named(name)) == []
    assert started.popen.poll() is None


async def test_where_nobody_has_the_name_the_message_says_what_to_set(name: str) -> None:
    """Without a shared process namespace a container sees its own processes alone."""
    with pytest.raises(ActionFailed, match="shareProcessNamespace: true"):
        await Signal("HUP", process=name).run(CHANGE)


@pytest.mark.root
def test_a_process_of_another_user_is_named_with_the_remedy(
    application: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill(2): EPERM, where neither the real nor the effective user is that of the process."""
    (tmp_path / "pid").write_text(str(application.pid))
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    os.setresuid(65534, 65534, 0)
    try:
        with pytest.raises(ActionFailed, match="runAsUser"):
            Signal("HUP", pid_file="pid")._send()
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "HOP", "process": "x"}, "there is no signal 'HOP'"),
        ({"name": "HUP"}, "one of process and pid_file"),
        ({"name": "HUP", "process": "x", "pid_file": "y"}, "one of process and pid_file"),
        ({"name": "HUP", "process": ""}, "process must be"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, str], said: str) -> None:
    """At the border, by name."""
    with pytest.raises(sidecar.ConfigError, match=said):
        Signal(**arguments)
