"""`sidecar reload`: the options, the order of the actions, probes and the end."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sidecar.cli import envvars
from sidecar.reload import Change
from sidecar.volume.content.snapshot import version_of
from support import StartProcess, WaitFor
from support.commands import Command

VERSION = version_of(b"hello")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text("hello")
    return path


def append(word: str, log: Path) -> str:
    return f"sh -c 'echo {word} >> {log}'"


def test_once_ends_when_the_present_version_was_applied(
    command: Command, config: Path, tmp_path: Path
) -> None:
    """For an init container: exit code 0, and one line that says what was done."""
    log = tmp_path / "log"
    hook = f"sh -c 'echo $SIDECAR_VERSION >> {log}; cat >> {log}'"
    done = command("reload", "--path", config, "--exec", hook, "--once")
    assert done.code == 0, done.err
    first, _, told = log.read_text().partition("\n")
    assert first == VERSION
    assert json.loads(told)["changed"] == ["config"]
    assert f"version {VERSION} of {config}: command sh succeeded" in done.err


def test_actions_run_in_the_order_of_their_flags(
    command: Command, sidecar_process: StartProcess, config: Path, tmp_path: Path, free_port: int
) -> None:
    """Also those of different kinds: a command before a webhook is done, and the one behind it waits."""
    log = tmp_path / "log"
    url = f"http://ada:secret@127.0.0.1:{free_port}/?key=secret"
    flags = ("--exec", append("one", log), "--webhook", url, "--exec", append("two", log))
    process = sidecar_process("reload", "--path", config, *flags, until="trying again")
    assert process.stop() == 0
    assert log.read_text() == "one\n"
    assert "secret" not in process.output


def test_a_variable_holds_one_action_a_line(command: Command, config: Path, tmp_path: Path) -> None:
    """They hold spaces."""
    log = tmp_path / "log"
    variables = {"SIDECAR_RELOAD_EXEC": f"{append('one', log)}\n{append('two', log)}\n"}
    done = command("reload", "--path", config, "--once", env=variables)
    assert done.code == 0, done.err
    assert log.read_text() == "one\ntwo\n"


def test_a_command_may_be_one_of_ours(command: Command, config: Path) -> None:
    """The variables that it is told are none that a user has misspelt."""
    assert Change("/x", "0", ()).environment().keys() == envvars.CHANGE_VARIABLES
    sidecar = Path(sys.executable).with_name("sidecar")
    hook = f"{sidecar} wait --path {config} --timeout 5"
    done = command("reload", "--path", config, "--exec", hook, "--once", "--timeout", "30")
    assert done.code == 0, done.err


def test_it_is_ready_unless_the_last_version_has_failed_and_ends_with_sigterm(
    sidecar_process: StartProcess, config: Path, tmp_path: Path, free_port: int, wait_for: WaitFor
) -> None:
    """/readyz says why; the series of the metrics begin at 0."""
    good = tmp_path / "good"
    address = f"http://127.0.0.1:{free_port}"
    flags = ("--path", config, "--exec", f"test -e {good}", "--port", free_port)
    process = sidecar_process("reload", *flags, until="trying again")
    process.wait_until(f"{address}/livez")
    status, body = get(f"{address}/readyz")
    assert status == 503
    assert f"version {VERSION} of {config} was not applied: command test exited with 1" in body
    assert get(f"{address}/startupz")[0] == get(f"{address}/livez")[0] == 200
    assert 'sidecar_reload_total{action="command",result="ok"} 0.0' in get(f"{address}/metrics")[1]
    good.touch()
    wait_for(lambda: get(f"{address}/readyz")[0] == 200, timeout=40.0)
    assert 'sidecar_reload_total{action="command",result="ok"} 1.0' in get(f"{address}/metrics")[1]
    assert process.stop() == 0


def test_the_options_of_storage_are_those_of_what_it_publishes(
    command: Command, config: Path, tmp_path: Path
) -> None:
    """Here of the expansion: mode, and the number of versions in the history."""
    config.write_text("level = ${LEVEL}")
    output = tmp_path / "output" / "config"
    for level in ("1", "2", "3"):
        flags = ("--expand-to", output, "--mode", "0640", "--keep", "2", "--exec", "true")
        done = command("reload", "--path", config, *flags, "--once", env={"LEVEL": level})
        assert done.code == 0, done.err
    assert (output.read_text(), output.stat().st_mode & 0o777) == ("level = 3", 0o640)
    assert len(list((output.parent / "..versions" / "file-config").iterdir())) == 2


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10.0) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_once_that_is_stopped_is_no_success(sidecar_process: StartProcess, config: Path) -> None:
    """An init container that was stopped has applied nothing."""
    flags = ("--path", config, "--exec", "false", "--once")
    process = sidecar_process("reload", *flags, until="trying again")
    assert process.stop() == 1
    assert f"sidecar: stopped before {config} was applied" in process.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is nothing to do: give --webhook, --exec, --process or --pid-file"),
        (["--webhook", "localhost:80"], "--webhook: 'localhost:80' is no address"),
        (["--exec", "no-such-program x"], "--exec: there is no program 'no-such-program'"),
        (["--process", "x", "--signal", "HOP"], "there is no signal 'HOP'"),
        (["--webhook", "http://x", "--expect-status", "ok"], "--expect-status: 'ok' is no status"),
        (["--process", "x", "--once", "--no-initial"], "once applies the present version"),
        (["--process", "x", "--timeout", "0"], "--timeout: 0 is too short"),
        (["--process", "x", "--state-file", "s"], "--state-file needs --rollback-on-failure"),
        (["--process", "x", "--expect-status", "200"], "--expect-status needs --webhook"),
        (["--webhook", "ada:secret@host"], "--webhook: this is no address"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_happens(
    arguments: list[str], said: str, command: Command, config: Path
) -> None:
    """Exit code 2, and what to change."""
    done = command("reload", "--path", config, *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
