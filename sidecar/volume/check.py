"""A command of the user's that looks at a staged file, and says by its exit status whether it is good."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sidecar import _errors

_OUTPUT_BYTES = 16 << 10


class Check:
    """The command, and the seconds that it may take. Whatever it starts ends with it.

    Raises:
        ConfigError: it is empty, or not found.
    """

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.command = _found(command)
        self.timeout = timeout

    async def run(self, name: str, path: Path, where: str) -> list[str]:
        """Return what the command has against a file that is to be published as `name`: nothing, or one reason.

        Raises:
            PublishError: it cannot be started.
        """
        command = self.command
        environment = {**os.environ, "CONTENT_NAME": name, "CONTENT_PATH": str(path)}
        with _Output() as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    path,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output.end,
                    stderr=output.end,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise _errors.PublishError(
                    f"cannot publish {where}: the check command {command[0]} cannot be started:"
                    f" {error.strerror} (is it still there, and executable?)"
                ) from error
            try:
                async with asyncio.timeout(self.timeout):
                    status = await process.wait()
            except TimeoutError:
                limit = f"{self.timeout:g} s"
                return [f"the check command {command[0]} did not end within {limit}"]
            finally:
                await _end(process)
            return [] if status == 0 else [_verdict(command[0], status, output.read())]


def _found(command: Sequence[str]) -> tuple[str, ...]:
    if not command:
        raise _errors.ConfigError("the check command is empty")
    if shutil.which(command[0]) is None:
        raise _errors.ConfigError(
            f"the check command {command[0]} is not found or not executable"
            " (give its full path, or put it on the PATH of the writer)"
        )
    return tuple(command)


class _Output:
    """The end of what a command prints, taken from it as it comes, so that it is never blocked.

    A pipe of our own: with that of asyncio, a daemon that the command leaves behind
    keeps `wait()` from returning on some versions of Python.
    """

    def __enter__(self) -> Self:
        self._kept = b""
        self._ours, self.end = os.pipe()
        os.set_blocking(self._ours, False)
        asyncio.get_running_loop().add_reader(self._ours, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)
        os.close(self.end)

    def read(self) -> bytes:
        """Return the end of all output so far."""
        while self._take():
            pass
        return self._kept

    def _take(self) -> bool:
        try:
            chunk = os.read(self._ours, 1 << 16)
        except BlockingIOError:
            return False
        self._kept = (self._kept + chunk)[-_OUTPUT_BYTES:]
        return bool(chunk)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the command with all that it has started, and wait for it: the staged file goes away after this."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _verdict(command: str, status: int, output: bytes) -> str:
    how = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
    lines = output.decode(errors="replace").strip().splitlines()[-5:]
    said = "; ".join(line.strip() for line in lines)
    return (
        f"the check command {command} {how}: {said}"
        if said
        else f"the check command {command} {how}"
    )
