"""What is called wrongly is told in one line: what, where it came from, what is allowed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import sidecar
from sidecar.cli import envvars, main
from support import environment
from support.commands import Command


def commands() -> dict[str, click.Command]:
    ctx = click.Context(main.sidecar)
    found = {name: main.sidecar.get_command(ctx, name) for name in main.COMMANDS}
    return {name: command for name, command in found.items() if command is not None}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(envvars.PREFIX)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["write", "--prot", "1"], "there is no option --prot (did you mean --port?)"),
        (["wirte"], "there is no command 'wirte' (did you mean write?)"),
        (["publich"], "there is no command 'publich' (did you mean publish?)"),
        (["reader"], "there is no command 'reader' (did you mean read?)"),
        (["relaod"], "there is no command 'relaod' (did you mean reload?)"),
        (["mirorr"], "there is no command 'mirorr' (did you mean mirror?)"),
        (["xyzzy"], "there is no command 'xyzzy' (there are write, read, "),
        (["write"], "--path is missing: give the flag or the variable SIDECAR_WRITE_PATH ("),
        (["publish", "--path", "x"], "SOURCE is missing"),
        (
            ["doctor", "/tmp"],
            "an argument too many: '/tmp', and --path is missing (did you mean --path",
        ),
        (["publish", "from", "to"], "'to', and --path is missing (did you mean --path to?)"),
        (["doctor", "--path", "x", "y"], "extra argument (y)"),
        (["check", "localhost:8080"], "begins neither with http:// nor https:// nor unix:"),
        (["check", "http://x:99999/"], "'99999' is no port"),
        (["check", "http://u:p@x/"], "a probe does not log in"),
        (["check", "http://x/a b"], "must encode as %XX"),
    ],
)
def test_a_mistake_in_the_command_line_exits_with_2_and_says_what(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, a line that begins with `sidecar:`, and where to read on."""
    assert main.run(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("sidecar: ")
    assert said in err
    assert "--help" in err


BAD_VALUES = [
    ("--port", "http", "'http' is no port: a number from 1 to 65535, or 0 for any free one"),
    ("--port", "70000", "'70000' is no port"),
    ("--max-size", "64Q", "'64Q' is no size: bytes, or a number with k, M, G, Ki, Mi or Gi"),
    ("--max-size", "-1", "'-1' is no size"),
    ("--mode", "rw", "'rw' is no file mode: three octal digits, as in 0644 or 640"),
    ("--mode", "999", "'999' is no file mode"),
    ("--group", "no-such-group", "'no-such-group' is no group of this machine"),
    ("--check", "a 'b", "cannot be split into words"),
    ("--check", "no-such-program x", "there is no program 'no-such-program'"),
    ("--check-timeout", "soon", "'soon' is no time: seconds, or a number with ms, s, m or h"),
    ("--check-timeout", "0", "0 is too short"),
    ("--format", "xml", "'xml' is not one of 'text', 'json', 'yaml', 'toml'"),
    ("--schema", "missing.json", "'missing.json' does not exist"),
    (
        "--confirm",
        "reader:8081",
        "'reader:8081' is no address: it must begin with http:// or https://",
    ),
    ("--keep", "-1", "-1 is not in the range"),
    ("--log-level", "loud", "'loud' is not one of"),
]


@pytest.mark.parametrize(("flag", "value", "said"), BAD_VALUES)
def test_a_bad_value_is_refused_and_names_the_flag(
    flag: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the flag, the value, and what is allowed."""
    assert main.run(["write", "--path", "x", flag, value]) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"sidecar: {flag}: ")
    assert said in first


@pytest.mark.parametrize(("flag", "value", "said"), BAD_VALUES)
def test_a_bad_value_of_a_variable_names_the_variable(
    flag: str,
    value: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who reads the message must know where to correct it: in the Pod's variables, not in its arguments."""
    variable = envvars.name("write", flag.removeprefix("--"))
    monkeypatch.setenv(variable, value)
    assert main.run(["write", "--path", "x"]) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"sidecar: {flag} (from the variable {variable}): ")
    assert said in first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["write", "--path", "x", "--tls-key", __file__], "--tls-key is of no use alone"),
        (["read", "--path", "x", "--poll", "--watch", "inotify"], "--poll contradicts"),
        (["read", "--path", ""], "--path: '' is no path"),
        (["write", "--path", ""], "--path: '' is no path"),
        (["doctor", "--path", ""], "--path: '' is no path"),
        (["write", "--path", "x", "--group", "4294967295"], "there is no group 4294967295"),
        (["publish", "-", "--path", "."], "standard input has no name"),
        (["publish", "no-such-file", "--path", "x"], "cannot read no-such-file: no such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Nothing is guessed where two options contradict each other."""
    monkeypatch.chdir(tmp_path)
    assert main.run(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("running", ["write", "read", "check"])
@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SIDECAR_WRITE_PROT", "SIDECAR_WRITE_PORT"),
        ("SIDECAR_READ_MISING", "SIDECAR_READ_MISSING"),
        ("SIDECAR_WRITE_PAHT", "SIDECAR_WRITE_PATH"),
    ],
)
def test_an_unknown_variable_is_an_error_that_suggests_the_nearest(
    running: str,
    variable: str,
    meant: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also that of another command: the containers of a Pod often share their variables."""
    monkeypatch.setenv(variable, "1")
    assert main.run([running]) == 2
    err = capsys.readouterr().err
    assert f"{variable} is set, and no option reads it (did you mean {meant}?)" in err


def test_a_variable_of_no_resemblance_is_an_error_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong suggestion would be worse than none."""
    monkeypatch.setenv("SIDECAR_XYZZY", "1")
    assert main.run(["check", "http://localhost:1/"]) == 2
    err = capsys.readouterr().err
    assert "SIDECAR_XYZZY is set, and no option reads it; correct the name or unset it" in err


SERVICE_LINKS = {
    # What Kubernetes sets for the Services `sidecar`, `sidecar-check` and `sidecar-write` of a namespace.
    "SIDECAR_SERVICE_HOST": "10.0.0.1",
    "SIDECAR_SERVICE_PORT": "8080",
    "SIDECAR_SERVICE_PORT_CONTAINER1": "8080",
    "SIDECAR_PORT": "tcp://10.0.0.1:8080",
    "SIDECAR_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "SIDECAR_PORT_8080_TCP_PROTO": "tcp",
    "SIDECAR_PORT_8080_TCP_PORT": "8080",
    "SIDECAR_PORT_8080_TCP_ADDR": "10.0.0.1",
    "SIDECAR_WRITE_SERVICE_HOST": "10.0.0.2",
    "SIDECAR_WRITE_PORT": "tcp://10.0.0.2:8080",
    "SIDECAR_DNS_PORT_53_UDP": "udp://10.0.0.3:53",
}


def test_variables_of_kubernetes_services_are_passed_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Service named like us must neither stop us nor configure us: here --path is what is missing."""
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    assert main.run(["write", "--mode", "0644"]) == 2
    assert "--path is missing" in capsys.readouterr().err


def test_a_port_of_a_service_is_not_taken_for_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tcp://…` in SIDECAR_WRITE_PORT is Kubernetes', a number there is the user's."""
    command = commands()["write"]
    for value, port in (("tcp://10.0.0.2:8080", 8080), ("9000", 9000)):
        monkeypatch.setenv("SIDECAR_WRITE_PORT", value)
        assert command.make_context("write", ["--path", "x"]).params["port"] == port


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The more specific place decides, as in the tools of the field."""
    monkeypatch.setenv("SIDECAR_WRITE_PORT", "9000")
    context = commands()["write"].make_context("write", ["--path", "x", "--port", "9001"])
    assert context.params["port"] == 9001


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_option_has_a_help_text_and_a_variable(name: str) -> None:
    """What nobody explains is of no use; what has no variable cannot be set in a Pod's `env`."""
    command = commands()[name]
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts} has no help"
            assert option.help.endswith("."), option.help
            (flag,) = [one for one in option.opts if one.startswith("--")]
            words = f"sidecar {name} {flag[2:]}".upper()
            assert option.envvar == words.replace(" ", "_").replace("-", "_")
            assert option.show_envvar
    assert command.get_short_help_str()


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_is_shown_even_where_a_variable_is_wrong(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is stuck asks for help, and must get it. The text names every option and every variable."""
    monkeypatch.setenv("SIDECAR_WRITE_PROT", "1")
    assert main.run([name, "--help"]) == 0
    out = capsys.readouterr().out
    for option in commands()[name].params:
        if isinstance(option, click.Option):
            assert option.opts[0] in out
            assert str(option.envvar) in "".join(out.split())


def test_without_a_command_the_help_is_shown_and_it_is_no_success(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a Pod a command that got lost must not look completed."""
    assert main.run([]) == 2
    err = capsys.readouterr().err
    for name in main.COMMANDS:
        assert f"\n  {name} " in err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "--help"], ["check", "http://localhost:1/"]]
)
def test_a_probe_does_not_pay_for_a_web_server(arguments: list[str]) -> None:
    """`check` runs every few seconds in every Pod: neither aiohttp nor asyncio may be imported for it."""
    program = (
        "import sys; from sidecar.cli import main; main.run(sys.argv[1:]);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    imported = set(done.stderr.split())
    assert not imported & {"aiohttp", "asyncio", "prometheus_client", "orjson", "ssl", "logging"}


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """For bug reports."""
    for flag in ("--version", "-V"):
        assert main.run([flag]) == 0
        assert capsys.readouterr().out == f"sidecar {sidecar.__version__}\n"


def test_the_package_runs_as_the_command() -> None:
    """`python -m sidecar`, where the directory of scripts is not on the PATH."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "--version"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert done.stdout == f"sidecar {sidecar.__version__}\n"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["rea"], ["read"]),
        (["write", "--confirm-"], ["--confirm-ca"]),
        (["write", "--durability", ""], ["full", "none"]),
        (["doctor", "--path", "here"], []),  # a file: the shell's own completion
        (["publish", "here"], []),
        (["wirte", "--wor"], []),
    ],
)
def test_bash_completes_commands_options_and_values(words: list[str], completed: list[str]) -> None:
    """As docs/cli.md says: the script that the command prints, in a real shell. Nothing is said of a line that is wrong."""
    program = (
        'eval "$(_SIDECAR_COMPLETE=bash_source sidecar)"; compopt() { echo "compopt $1 $2" >&2; };'
        ' COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _sidecar_completion sidecar;'
        ' printf "%s\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program, "bash", "sidecar", *words],
        capture_output=True,
        text=True,
        env=environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=True,
    )
    assert done.stdout.split() == completed
    assert done.stderr == ("compopt -o default\n" if words[-1] == "here" else "")


ENCODINGS = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    for encoding in ("ascii", "latin-1")
]


@pytest.mark.parametrize("env", ENCODINGS, ids=lambda env: env["PYTHONIOENCODING"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "--path", "."],
        ["doctor", "--path", ".", "--json"],
        ["publish", "source", "--path", "into/"],
        ["--help"],
        *([name, "--help"] for name in ("collect", "publish", "write")),
    ],
    ids=" ".join,
)
def test_without_a_locale_marks_are_in_ascii(
    arguments: list[str], env: dict[str, str], command: Command, tmp_path: Path
) -> None:
    """POSIX, 7.3: the locale C has the portable character set. A check mark must not end the program."""
    (tmp_path / "source").write_text("1")
    done = command(*arguments, env=env)
    assert done.code == 0, done
    assert done.out
    assert done.out.isascii()


def test_a_name_that_the_encoding_does_not_have_is_escaped(
    command: Command, tmp_path: Path
) -> None:
    """The euro sign is not in Latin-1, and an incomplete byte is in no text: what is told of them still comes."""
    (tmp_path / "\N{EURO SIGN}").mkdir()
    done = command("doctor", "--path", "\N{EURO SIGN}", env={"PYTHONIOENCODING": "latin-1"})
    assert done.code == 0, done
    assert "\\u20ac: fit for reading and writing" in done.out
    assert (
        json.loads(command("doctor", "--path", "\N{EURO SIGN}", "--json").out)["path"] == "\u20ac"
    )


def test_an_error_nobody_thought_of_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback in a Pod's log, and a hint how to get one."""
    monkeypatch.setattr("sidecar.cli.impl.http_probe.get", lambda *_, **__: 1 / 0)
    assert main.run(["check", "http://localhost:1/"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "sidecar: unexpected ZeroDivisionError: division by zero (--log-level debug shows where)"
    ]


def test_an_error_about_a_name_with_line_breaks_is_one_line(command: Command) -> None:
    """Whoever reads the log by lines must not be misled by a name."""
    result = command("publish", "a\nsidecar: all is well", "--path", "x")
    assert (
        result.err == "sidecar: cannot read a\\nsidecar: all is well: no such file or directory\n"
    )
