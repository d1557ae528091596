"""A user-defined command that validates a staged file; exit status 0 means valid."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from sidecar import _errors
from sidecar.process import arguments, executor, helper_process
from sidecar.volume.validation.command_process import CommandResult

_MODULE = "sidecar.volume.validation.command_process"
_MAX_PROCESSES = 4
_MARGIN = 15.0
"""Seconds after the timeout for the supervising process to kill all child processes of the command."""


class ValidatorCommand:
    """A validation command with a timeout in seconds. All processes that it starts are killed at its end.

    Raises:
        ConfigError: the command is empty or not found.
    """

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.command = _found(command)
        self.timeout = timeout
        self._helpers = helper_process.HelperPool(
            _MODULE, most=_MAX_PROCESSES, crowded=0.0, gently=True
        )

    async def run(self, name: str, path: Path, where: str) -> list[str]:
        """Run the command on a file to be published as `name`; return no reason if it is valid, else one.

        Raises:
            PublishError: the command cannot be started.
        """
        environment = {**os.environ, "CONTENT_NAME": name, "CONTENT_PATH": str(path)}
        order = ((*self.command, str(path)), environment, os.getcwd(), self.timeout)
        request = helper_process.Request()
        asking = executor.run_validation(self._helpers.ask, order, self.timeout + _MARGIN, request)
        command = self.command[0]
        try:
            ended = CommandResult(*await executor.finish_before_cancel(asking, request.withdraw))
        except helper_process.HelperLost as error:
            raise _errors.PublishError(
                f"cannot publish {where}: the check command {command} was not run to its end: {error}"
            ) from error
        except helper_process.HelperTimeout:
            ended = CommandResult(None, b"")
        if ended.error is not None:
            raise _errors.PublishError(
                f"cannot publish {where}: the check command {command} cannot be started:"
                f" {ended.error} (is it still there, and executable?)"
            )
        if ended.status is None:
            return [f"the check command {command} did not end within {self.timeout:g} s"]
        return [] if ended.status == 0 else [_verdict(command, ended.status, ended.output)]


def _found(command: Sequence[str]) -> tuple[str, ...]:
    if isinstance(command, str) or not all(isinstance(one, str) for one in command):
        raise arguments.argument_error("check", command, "a list of words, or a function")
    if not command:
        raise _errors.ConfigError("the check command is empty")
    if shutil.which(command[0]) is None:
        raise _errors.ConfigError(
            f"the check command {command[0]} is not found or not executable"
            " (give its full path, or put it on the PATH of the writer)"
        )
    return tuple(command)


def _verdict(command: str, status: int, output: bytes) -> str:
    how = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
    lines = output.decode(errors="replace").strip().splitlines()[-5:]
    said = "; ".join(line.strip() for line in lines)
    return (
        f"the check command {command} {how}: {said}"
        if said
        else f"the check command {command} {how}"
    )
