"""`sidecar wait`: an init container ends well when the content is there and valid, and only then."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from sidecar.volume.content.snapshot import version_of
from support import Process, StartProcess
from support.commands import Command


@pytest.fixture
def waiting(sidecar_process: StartProcess, tmp_path: Path) -> StartProcess:
    """`waiting("--path", path)`: the command, running, once it has said what it is waiting for."""

    def start(*arguments: object) -> Process:
        return sidecar_process("wait", *arguments, cwd=tmp_path, until="waiting for ")

    return start


def replace(path: Path, content: str) -> None:
    temporary = path.with_name("..tmp-of-the-test")
    temporary.write_text(content)
    temporary.rename(path)


def test_what_is_there_already_is_not_waited_for(command: Command, tmp_path: Path) -> None:
    """Exit code 0, and the version for scripts that want to know which."""
    (tmp_path / "config").write_text("hello")
    done = command("wait", "--path", "config", "--timeout", "0")
    assert done == (0, version_of(b"hello") + "\n", "")


def test_what_is_not_there_is_a_failure_at_the_time_limit(command: Command) -> None:
    """Exit code 1, and the reason in one line."""
    done = command("wait", "--path", "shared/config", "--timeout", "200ms")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("sidecar: shared/config is not there after 0.2 s: ")
    assert len(done.err.splitlines()) == 1


def test_the_reason_is_one_line_whatever_the_files_are_called(
    command: Command, tmp_path: Path
) -> None:
    """Whoever writes to the volume chooses names, and must not choose what a log says."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a\nall is well").write_text("{")
    options = ("--path", tmp_path / "set", "--timeout", "1200ms", "--format", "json")
    done = command("wait", *options)
    assert done.code == 1
    assert all(line.startswith(("waiting for ", "sidecar: ")) for line in done.err.splitlines())


@pytest.mark.parametrize(
    ("options", "bad", "good", "said"),
    [
        (["--format", "json"], "{", "{}", "not valid JSON"),
        (["--min-size", "1"], "", "x", "it has 0 bytes, and 1 are the least"),
        (["--etag", f'"{version_of(b"new")}"'], "old", "new", "and not"),
        (["--etag", version_of(b"new")], "old", "new", "and not"),
        (["--check", "grep -q debug"], "nothing", "debug", "grep"),
    ],
)
def test_what_is_not_valid_is_waited_out(
    options: list[str],
    bad: str,
    good: str,
    said: str,
    command: Command,
    sidecar_process: StartProcess,
    tmp_path: Path,
) -> None:
    """At the time limit the reason is told; a valid content ends the wait well."""
    path = tmp_path / "config"
    replace(path, bad)
    failed = command("wait", "--path", path, "--timeout", "300ms", *options)
    assert failed.code == 1
    assert said in failed.err
    process = sidecar_process("wait", "--path", path, *options)
    replace(path, good)
    assert process.wait() == 0, process
    assert version_of(good.encode()) in process.output


def test_progress_says_what_is_missing_and_the_end_comes_at_once(
    waiting: StartProcess, tmp_path: Path
) -> None:
    """Whoever looks at the log of a Pod that hangs in Init sees why; the directory may be missing, too."""
    process = waiting("--path", "shared/config")
    assert (
        "waiting for shared/config: cannot read shared/config: nothing has been" in process.output
    )
    assert " s left)" in process.output
    (tmp_path / "shared").mkdir()
    replace(tmp_path / "shared" / "config", "hello")
    assert process.wait() == 0
    assert version_of(b"hello") in process.output


def test_a_directory_is_there_once_it_holds_a_file(
    sidecar_process: StartProcess, command: Command, tmp_path: Path
) -> None:
    """A directory alone is what an emptyDir gives to everybody."""
    shared = tmp_path / "shared"
    shared.mkdir()
    failed = command("wait", "--path", shared, "--timeout", "200ms")
    assert failed.code == 1
    assert "no file" in failed.err
    process = sidecar_process("wait", "--path", shared)
    replace(shared / "config", "hello")
    assert process.wait() == 0, process


def test_only_files_that_count_are_waited_for(command: Command, tmp_path: Path) -> None:
    """`--include` and `--exclude` as for the reader: what it would not show is no content."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.conf").write_text("hello")
    where = ("wait", "--path", "d/", "--timeout", "0")
    for left_out in (("--include", "*.json"), ("--exclude", "*.conf")):
        code, _, error = command(*where, *left_out)
        assert (code, "no file" in error) == (1, True)
    assert command(*where, "--include", "*.conf")[0] == 0


def test_a_signal_ends_it_and_is_no_success(waiting: StartProcess) -> None:
    """A Pod that is deleted while it initialises must not start its containers on the way out."""
    process = waiting("--path", "config")
    process.send(signal.SIGTERM)
    assert process.wait() == 1
    assert "sidecar: stopped while waiting for config" in process.output
