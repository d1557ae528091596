"""What tests import by name; `README.md` beside it names all modules, and says how to wait.

Here: a real process under test (`Process`), its environment, the types of the fixtures of `tests/conftest.py`,
another user for a while (`as_user`), an event at a time (`after`), and a system call that fails (`failing`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sidecar.fs import open_file
from sidecar.fs.openat import FileRead

Condition = Callable[[], object]
WaitFor = Callable[..., None]
Eventually = Callable[..., Awaitable[None]]
StartProcess = Callable[..., "Process"]
FreePorts = Callable[[int], list[int]]


MOST_OUTPUT = 64 << 20
"""Bytes of output that are read: a program that writes in a loop must not fill the memory of its test."""


class Process:
    """A program under test: a real process, with its output in a file."""

    def __init__(self, command: list[str], directory: Path, **options: object) -> None:
        self.command = command
        self._output = directory / "output"
        with self._output.open("wb") as output:
            self.popen: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its children end with it
                **{"stdin": subprocess.DEVNULL} | options,  # type: ignore[call-overload]
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        """All that it has written so far, stdout and stderr."""
        if self._output.stat().st_size > MOST_OUTPUT:
            self.kill()
            pytest.fail(f"says the same again and again: {self.command}: {self._begin()}")
        return self._output.read_text(errors="replace")

    def _begin(self) -> str:
        with self._output.open(errors="replace") as output:
            return output.read(4096)

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for its end and return the exit code, negative for a signal that killed it."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout} s: {self}")

    def stop(self, timeout: float = 15.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.popen.terminate()
        return self.wait(timeout)

    def wait_until(self, up: str | Condition, timeout: float = 15.0) -> None:
        """Wait until a URL answers (whatever it says), a text is in the output, or a condition holds."""
        limit = time.monotonic() + timeout
        while not self._is(up):
            if self.popen.poll() is not None:
                pytest.fail(f"ended with {self.popen.returncode}: {self}")
            if time.monotonic() > limit:
                pytest.fail(f"not within {timeout} s: {up}: {self}")
            time.sleep(0.01)

    def _is(self, up: str | Condition) -> bool:
        if callable(up):
            return bool(up())
        return _answers(up) if up.startswith("http://") else up in self.output

    def kill(self) -> bool:
        """End it and its children for good; tells whether it had to be forced."""
        if self.popen.poll() is None:
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(15.0)
        forced = self.popen.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()
        return forced

    def __str__(self) -> str:
        return f"{' '.join(self.command)}\n--- its output ---\n{self.output}"


def source(condition: Condition) -> str:
    code = getattr(condition, "__code__", None)
    return f"the condition at {code.co_filename}:{code.co_firstlineno}" if code else repr(condition)


def environment() -> dict[str, str]:
    """Ours without the variables that would configure the program under test; its warnings are errors."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    return ours | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error"}


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5.0).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError:
        return False
    return True


def read_beneath(dir_fd: int, path: str, limit: int, where: str) -> FileRead:
    """Read a file of at most 1 MiB as everything of ours does."""
    found = open_file.read(dir_fd, path, limit, where)
    assert isinstance(found, FileRead)
    return found


@contextmanager
def as_user(number: int, *supplementary: int) -> Iterator[None]:
    """Be another user for a while, with its group and these: needs root, and holds for all threads."""
    groups, group, user = os.getgroups(), os.getegid(), os.geteuid()
    os.setgroups(supplementary)
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)
        os.setgroups(groups)


def after(seconds: float) -> asyncio.Event:
    """Return an event that the loop sets after so many seconds: a test sees what has come before it, and what after."""
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, event.set)
    return event


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The descriptor of a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def failing(error: int, calls: list[int] | None = None) -> Callable[..., None]:
    """Return a system call that fails each time, and notes that it was called."""

    def fail(*args: object, **_: object) -> None:
        if calls is not None:
            calls.append(len(calls))
        raise OSError(error, os.strerror(error))

    return fail
