"""`sidecar demo`: one command, two processes, the article's transcript to paste."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from sidecar.cli import envvars
from support import FreePorts, Process, StartProcess, WaitFor
from support.commands import Command

READY = "Ctrl-C stops both."


@pytest.fixture
def demo(sidecar_process: StartProcess, free_ports: FreePorts, tmp_path: Path) -> StartProcess:
    """`demo()`: the command on free ports, once it has said what to try."""

    def start(*options: object) -> Process:
        writer, reader = free_ports(2)
        (tmp_path / "tmp").mkdir(exist_ok=True)
        return sidecar_process(
            *("demo", "--writer-port", writer, "--reader-port", reader, *options),
            until=READY,
            env={"TMPDIR": str(tmp_path / "tmp")},
            cwd=tmp_path,
        )

    return start


def children(process: Process) -> list[int]:
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in listing.split()]


def running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")]


def test_the_printed_commands_give_the_printed_answers(
    demo: StartProcess, wait_for: WaitFor
) -> None:
    """What is shown can be pasted, and answers as shown: "", "ok", "ok", "ok", "123"."""
    output = demo().output
    steps = re.findall(r'^  (curl .*)\n      (".*")$', output, re.MULTILINE)
    assert [answer for _, answer in steps] == ['""', '"ok"', '"ok"', '"ok"', '"123"']
    for line, answer in steps:
        # With an end of line, so that the prompt does not stand behind the answer.
        wait_for(lambda line=line, answer=answer: shell(line) == f"{answer}\n")


def test_what_it_says_to_do_next_works_as_pasted(demo: StartProcess, wait_for: WaitFor) -> None:
    """In the same directory, whatever the PATH has: the command is named as it was called."""
    output = demo().output
    publish, doctor, usage = re.findall(
        r"^  ((?:printf .* \| )?\S*(?:python\S* -m )?sidecar .*)$", output, re.MULTILINE
    )
    assert re.fullmatch(r"[0-9a-f]+\n", shell(publish))
    (address,) = re.findall(r"^  reader  http://(localhost:\d+)", output, re.MULTILINE)
    wait_for(lambda: shell(f"curl {address}") == '"456"')
    assert shell(doctor).endswith(": fit for reading and writing\n")
    assert shell(usage).startswith("Usage: sidecar ")


def test_the_address_of_the_page_comes_first(demo: StartProcess) -> None:
    """What people open in a browser, before what programs ask."""
    first = demo().output.split()[:2]
    assert (first[0], first[1].endswith("/ui")) == ("page", True)
    assert "<title>sidecar</title>" in shell(f"curl -s {first[1]}")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_it_runs_without_a_locale(encoding: str, sidecar_process: StartProcess) -> None:
    """An arrow that the terminal does not have is no reason to end."""
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    process = sidecar_process(
        *("demo", "--writer-port", 0, "--reader-port", 0), until=READY, env=env
    )
    assert " HTTP -> /" in process.output
    assert process.stop() == 0


def shell(line: str) -> str:
    return subprocess.run(line, shell=True, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_both_and_removes_the_directory(
    number: int, demo: StartProcess, tmp_path: Path
) -> None:
    """Exit code 0; no process, no file and no word of complaint stays."""
    process = demo()
    pids = children(process)
    assert len(pids) == 2
    process.send(number)
    assert process.wait() == 0, process
    assert running(pids) == []
    assert os.listdir(tmp_path / "tmp") == []
    assert process.output.rstrip().endswith(READY)


def test_ctrl_c_reaches_the_servers_once(demo: StartProcess) -> None:
    """A terminal sends SIGINT to all its processes: a second signal would end the servers without draining."""
    process = demo("--log-level", "info")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 0
    assert process.output.count("SIGTERM: draining") == 2
    assert "SIGINT" not in process.output


def test_children_end_even_if_the_demo_is_killed(demo: StartProcess, wait_for: WaitFor) -> None:
    """SIGKILL leaves no servers behind that hold the ports."""
    process = demo()
    pids = children(process)
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: running(pids) == [])


def test_a_server_that_dies_ends_the_demo(demo: StartProcess) -> None:
    """Half a demonstration would only confuse: it says which one is gone, and exits with 1."""
    process = demo()
    os.kill(children(process)[1], signal.SIGKILL)
    assert process.wait() == 1
    assert "sidecar: `sidecar read` ended with -9" in process.output


def test_a_file_of_the_users_is_kept(demo: StartProcess, tmp_path: Path) -> None:
    """With --path nothing is emptied, neither at the start nor at the end."""
    (tmp_path / "config").write_text("mine")
    process = demo("--path", "config")
    assert '""' not in process.output
    assert process.stop() == 0
    assert (tmp_path / "config").read_text() == "mine"


@pytest.mark.parametrize("flag", ["--writer-port", "--reader-port"])
def test_a_busy_port_names_the_flag_to_use(
    flag: str, command: Command, free_ports: FreePorts
) -> None:
    """The newcomer's first hurdle: another program has the port already."""
    writer, reader = free_ports(2)
    busy = writer if flag == "--writer-port" else reader
    with socket.create_server(("127.0.0.1", busy)):
        done = command("demo", "--writer-port", writer, "--reader-port", reader)
    assert done.code == 2
    assert f"cannot listen on 127.0.0.1 port {busy}: address already in use" in done.err
    assert flag in done.err
    assert envvars.name("demo", flag.removeprefix("--")) in done.err  # `make run` takes no flags
    assert len(done.err.splitlines()) == 1


def test_any_free_ports_will_do(sidecar_process: StartProcess) -> None:
    """0 and 0: the addresses are in what it prints."""
    process = sidecar_process("demo", "--writer-port", 0, "--reader-port", 0, until=READY)
    first, *_, last = re.findall(r"localhost:(\d+)", process.output)
    assert first != last
    assert shell(f"curl localhost:{last}") == '""'
    assert process.stop() == 0


def test_one_port_for_both_is_refused(command: Command, free_port: int) -> None:
    """They are two servers."""
    done = command("demo", "--writer-port", free_port, "--reader-port", free_port)
    assert done.code == 2
    assert "need a port each" in done.err
