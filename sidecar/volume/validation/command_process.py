"""The process that runs a validation command, and kills all processes that the command starts.

A command may leave processes behind in sessions of their own. Orphans become children of process 1,
which in a container is the writer. So this process adopts them (`PR_SET_CHILD_SUBREAPER`), kills them, and waits for
them: when the result is returned, no process of the command is running, and no zombie is left
(https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, Final, NamedTuple

from sidecar.process import helper_process

OUTPUT_BYTES: Final = 16 << 10
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.01
_PATIENCE = 5.0
"""Seconds for which this process tries to kill the processes that a command left behind."""


class CommandRequest(NamedTuple):
    """A command to run, as plain data."""

    command: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    timeout: float
    stdin: bytes = b""


class CommandResult(NamedTuple):
    """The result: `status` as in `subprocess`, None after a timeout; `error` if the command could not be started."""

    status: int | None
    output: bytes
    error: str | None = None


def main() -> None:
    """Run commands for the parent process, one after the other."""
    with helper_process.connected() as (connection, _):
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        helper_process.send(connection, None)

        def work(message: Any) -> tuple[Any, ...]:
            return tuple(_run(CommandRequest(*message), connection))

        helper_process.serve(work, connection)


def _run(order: CommandRequest, connection: socket.socket) -> CommandResult:
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    try:
        process = _start(order, theirs)
    except OSError as error:
        os.close(ours)
        return CommandResult(None, b"", error.strerror or str(error))
    finally:
        os.close(theirs)
    try:
        status, kept = _wait(process, ours, connection, order.timeout)
        _end_all(process)
        return CommandResult(status, _rest(ours, kept))
    finally:
        os.close(ours)


def _start(order: CommandRequest, output: int) -> subprocess.Popen[bytes]:
    with _input(order.stdin) as given:
        return subprocess.Popen(
            order.command,
            stdin=given,
            stdout=output,
            stderr=output,
            env=order.environment,
            cwd=order.directory,
            start_new_session=True,
        )


def _input(data: bytes) -> IO[bytes]:
    """Return a file with the standard input of a command: unlike a pipe, it never blocks, however much is not read."""
    if not data:
        return open(os.devnull, "rb")
    if sys.platform == "linux":
        file: IO[bytes] = os.fdopen(os.memfd_create("stdin"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    file.write(data)
    file.seek(0)
    return file


def _wait(
    process: subprocess.Popen[bytes], output: int, connection: socket.socket, timeout: float
) -> tuple[int | None, bytes]:
    """Wait until the command ends, the timeout expires, or the requester ends; return status and end of the output."""
    limit, kept = time.monotonic() + timeout, b""
    with _noticed(process.pid) as end:
        poll = select.poll()
        for fd in (output, connection.fileno(), *([end] if end >= 0 else [])):
            poll.register(fd, select.POLLIN)
        while (left := limit - time.monotonic()) > 0:
            ready = {
                fd for fd, _ in poll.poll((left if end >= 0 else min(left, _POLL_SECONDS)) * 1000)
            }
            if output in ready:
                chunk = _chunk(output)
                kept = (kept + chunk)[-OUTPUT_BYTES:]
                if not chunk:
                    poll.unregister(output)
            if process.poll() is not None:
                return process.returncode, kept
            if connection.fileno() in ready:
                break  # the requester no longer waits
    return None, kept


@contextlib.contextmanager
def _noticed(pid: int) -> Iterator[int]:
    """Yield a descriptor that becomes readable when the process ends, -1 if the kernel has none (pidfd)."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError):
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _chunk(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


def _rest(fd: int, kept: bytes) -> bytes:
    while chunk := _chunk(fd):
        kept = (kept + chunk)[-OUTPUT_BYTES:]
    return kept


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and all its child processes, and wait for them."""
    limit = time.monotonic() + _PATIENCE
    if process.returncode is None:
        _kill(process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while time.monotonic() < limit:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] != 0:
                continue
        except ChildProcessError:
            return  # the usual case: the command has left no process
        for pid in _descendants():
            _kill(pid)
        time.sleep(0.001)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _descendants() -> list[int]:
    """Return all descendants of this process, parents first; orphans are adopted by this process."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit():
            with (
                contextlib.suppress(OSError, IndexError, ValueError),
                open(f"/proc/{name}/stat") as file,
            ):
                parent = int(file.read().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    level = children.get(os.getpid(), [])
    while level:
        found += level
        level = [pid for parent in level for pid in children.get(parent, [])]
    return found
