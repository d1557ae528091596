"""`sidecar demo`: run a writer and a reader on this machine, as two processes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Self

import click

from sidecar import _errors
from sidecar.cli import declare, envvars, escape, options, param_types
from sidecar.cli.impl import http_probe
from sidecar.process import parent_death, signals

_START_TIMEOUT = 15.0
_END_TIMEOUT = 15.0
"""Seconds for both processes to drain and exit, before they are killed."""
_POLL_INTERVAL = 0.02
_FILE = "config"
#: What the article shows: whom it asks, with which content, and the answer.
_TRANSCRIPT = (
    ("reader", None, ""),
    ("writer", "ok", "ok"),
    ("reader", None, "ok"),
    ("writer", "123", "ok"),
    ("reader", None, "123"),
)


@declare.command("demo")
@declare.option(
    "--path",
    type=param_types.nonempty_path,
    metavar="PATH",
    shell_complete=options.complete_path,
    help="File that both share; by default a temporary file, which is removed at the end.",
)
@declare.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    help="Address to listen on; 0.0.0.0 accepts connections from other machines.",
)
@declare.option(
    "--writer-port", type=param_types.port, metavar="PORT", default=8080, help="Port of the writer."
)
@declare.option(
    "--reader-port", type=param_types.port, metavar="PORT", default=8081, help="Port of the reader."
)
@options.logging(level="warning")
@click.pass_context
def command(
    ctx: click.Context, *, path: str | None, host: str, writer_port: int, reader_port: int
) -> int:
    """Run a writer and a reader on one file, and print commands to try.

    They are `sidecar write` and `sidecar read`, as separate processes, as in a Pod.
    Ctrl-C stops both. Their warnings and errors are shown; --log-level info shows everything.
    """
    level = str(ctx.params["log_level"])
    with _until_signal(), ExitStack() as stack:
        shared = path or os.path.join(stack.enter_context(_temporary_directory()), _FILE)
        urls = {
            "writer": _url(host, _free(host, writer_port, "--writer-port")),
            "reader": _url(host, _free(host, reader_port, "--reader-port")),
        }
        _refuse_equal(urls)
        common = ("--path", shared, "--host", host, "--log-level", level, "--drain-delay", "0")
        started = stack.enter_context(_Processes())
        # In sequence: the first read must find the initial file of the writer.
        started.start("write", *common, "--port", _port(urls["writer"]))
        started.wait_until(f"{urls['writer']}/readyz")
        started.start("read", *common, "--port", _port(urls["reader"]), "--missing", "ok")
        started.wait_until(f"{urls['reader']}/", None if path else b'""')
        _explain(urls, shared, empty=path is None)
        started.watch()
    return 0


class _Processes:
    """Processes that start and stop together."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def start(self, *arguments: str) -> None:
        """Start one command of ours, out of the reach of the terminal's Ctrl-C.

        That would reach it twice, by the terminal and by us, and the second signal exits without draining.
        """
        ours = {n: v for n, v in os.environ.items() if not n.startswith(envvars.PREFIX)}
        self._started.append(
            subprocess.Popen(
                [sys.executable, "-m", "sidecar.cli", *arguments],
                env=ours,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=partial(parent_death.die_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 (this process has one thread)
            )
        )

    def wait_until(self, url: str, body: bytes | None = None) -> None:
        """Wait until a server answers with success, and with this body, if one is given."""
        limit = time.monotonic() + _START_TIMEOUT
        while True:
            with contextlib.suppress(OSError, http_probe.ProbeError):
                answer = http_probe.get(http_probe.parse(url), timeout=1.0)
                if answer.status == 200 and body in (None, answer.body):
                    return
            self.check()
            if time.monotonic() > limit:
                raise _errors.SidecarError(
                    f"{url} did not answer as it should within {_START_TIMEOUT:g} s"
                )
            time.sleep(_POLL_INTERVAL)

    def watch(self) -> None:
        """Wait for a signal; if a process ends without one, that is a failure."""
        while True:
            self.check()
            time.sleep(0.2)

    def check(self) -> None:
        """Raise if one of them has ended. It has logged the reason to stderr."""
        for process in self._started:
            if (code := process.poll()) is not None:
                raise _errors.SidecarError(f"`sidecar {_command_of(process)}` ended with {code}")

    def __exit__(self, *_: object) -> None:
        """Terminate all, wait, and kill those that do not end."""
        for process in self._started:
            process.terminate()
        limit = time.monotonic() + _END_TIMEOUT
        for process in self._started:
            try:
                process.wait(max(0.1, limit - time.monotonic()))
            except (subprocess.TimeoutExpired, _Stopped):
                process.kill()
                process.wait()


class _Stopped(BaseException):
    """A signal has arrived. Not an `Exception`, so that no handler treats it as a failure."""


@contextmanager
def _until_signal() -> Iterator[None]:
    """Leave the block on SIGTERM, Ctrl-C, or when the terminal closes, as a normal end."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            # A closing terminal sends it twice, and the second one must not end the drain.
            signal.signal(number, signal.SIG_IGN)
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in signals.stop_signals()}
    try:
        with contextlib.suppress(_Stopped):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _temporary_directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="sidecar-demo-") as directory:
        yield directory


def _free(host: str, port: int, flag: str) -> int:
    """Return the port if it is free, or a free one for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        # As servers do: a port with connections in TIME_WAIT is free.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise _errors.ConfigError(
                f"cannot listen on {host} port {port}: {(error.strerror or str(error)).lower()}"
                f" (choose another port by {flag} or the variable"
                f" {envvars.name('demo', flag.removeprefix('--'))}, 0 for any free one)"
            ) from error
        chosen: int = trial.getsockname()[1]
        return chosen


def _refuse_equal(urls: dict[str, str]) -> None:
    if urls["writer"] == urls["reader"]:
        raise _errors.ConfigError("writer and reader need a port each: change --reader-port")


def _url(host: str, port: int) -> str:
    """Return an address that works on this machine."""
    name = {"0.0.0.0": "localhost", "::": "localhost", "127.0.0.1": "localhost"}.get(host, host)  # noqa: S104 (not bound here)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _port(url: str) -> str:
    return url.rpartition(":")[2]


def _command_of(process: subprocess.Popen[bytes]) -> str:
    arguments = process.args
    return str(arguments[3]) if isinstance(arguments, list) else str(arguments)


def _explain(urls: dict[str, str], shared: str, *, empty: bool) -> None:
    """Print what runs, and the article's transcript as commands to paste; `empty`: its first answer holds."""
    arrow = escape.fit_marks("→")
    click.echo(f"\n  page    {urls['writer']}/ui    to read, publish and roll back in a browser")
    click.echo(f"  writer  {urls['writer']}    HTTP {arrow} {shared}")
    click.echo(f"  reader  {urls['reader']}    {shared} {arrow} HTTP")
    click.echo("\nTo try in another terminal:")
    for step, (who, content, answer) in enumerate(_TRANSCRIPT):
        address = urls[who].removeprefix("http://")
        asked = f"'{address}/?content={content}'" if content else address
        click.echo(f"\n  curl -w '\\n' {asked}")
        if step or empty:
            click.echo(f"      {json.dumps(answer)}")
    sidecar, path = _invocation(), shlex.quote(shared)
    click.echo("\nThe same file from a script, what its volume can do, and all commands:")
    click.echo(f"\n  printf 456 | {sidecar} publish - --path {path}")
    click.echo(f"  {sidecar} doctor --path {path}")
    click.echo(f"  {sidecar} --help")
    click.echo("\nCtrl-C stops both.")


def _invocation() -> str:
    """Return how this command was called, for a shell in the same directory."""
    called = sys.argv[0]
    if os.path.basename(called) != "sidecar":  # `python -m sidecar`
        return f"{shlex.quote(sys.executable)} -m sidecar"
    return "sidecar" if shutil.which("sidecar") == called else shlex.quote(called)
