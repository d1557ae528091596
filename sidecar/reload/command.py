"""An action that runs a command."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sidecar import _errors
from sidecar.process import arguments, executor, helper_process
from sidecar.reload.change import ActionFailed, Change
from sidecar.volume.validation.command_process import CommandRequest, CommandResult

_MARGIN = 15.0
"""Seconds beyond the time limit in which the process around the command ends what that has started."""
_HELPERS = helper_process.HelperPool(
    "sidecar.volume.validation.command_process", most=8, crowded=0.0, gently=True
)


@dataclass(frozen=True, slots=True)
class Command:
    """Run a program, without a shell, for each version.

    SIDECAR_VERSION, SIDECAR_ETAG, SIDECAR_PATH and SIDECAR_CHANGED are in its environment, beside ours;
    SIDECAR_CHANGED has the names of the changed files on lines of their own, or `*` where that is longer than 4 KiB.
    Its standard input is a JSON object with `path`, `version`, `etag` and all names in `changed`.
    It has succeeded when it exits with 0. What it has started ends with it, and at the time limit, by SIGKILL.

    Args:
        command: the program and its arguments; it is looked for on the PATH.
        timeout: seconds until it must have ended.

    Raises:
        ConfigError: it is empty, or not found, or an argument makes no sense.

    >>> str(Command(["sh", "-c", "nginx -t && nginx -s reload"]))
    'command sh'
    """

    kind: ClassVar[str] = "command"

    command: Sequence[str]
    timeout: float = 10.0

    def __post_init__(self) -> None:
        words = arguments.words("command", self.command)
        if not words:
            raise _errors.ConfigError("the command is empty")
        if shutil.which(words[0]) is None:
            raise _errors.ConfigError(
                f"the command {words[0]} is not found or not executable"
                " (give its full path, or put it on the PATH)"
            )
        arguments.check_seconds("timeout", self.timeout, zero=False)

    def __str__(self) -> str:
        # Its arguments may hold a secret.
        return f"command {shlex.quote(self.command[0])}"

    async def run(self, change: Change) -> None:
        """Run it to its end. Raises `ActionFailed` if it cannot be started, fails, or takes too long."""
        order = CommandRequest(
            tuple(self.command),
            {**os.environ, **change.environment()},
            os.getcwd(),
            self.timeout,
            change.json(),
        )
        request = helper_process.Request()
        asking = executor.run_validation(
            _HELPERS.ask, tuple(order), self.timeout + _MARGIN, request
        )
        try:
            ended = CommandResult(*await executor.finish_before_cancel(asking, request.withdraw))
        except helper_process.HelperTimeout:
            ended = CommandResult(None, b"")
        except helper_process.HelperLost as error:
            raise ActionFailed(f"{self} was not run to its end: {error}") from error
        if ended.error is not None:
            raise ActionFailed(
                f"{self} cannot be started: {ended.error} (is it still there, and executable?)"
            )
        if ended.status is None:
            raise ActionFailed(
                f"{self} did not end within {self.timeout:g} s, and was killed (see --timeout)"
            )
        if ended.status:
            how = f"exited with {ended.status}"
            if ended.status < 0:
                how = f"was killed by signal {-ended.status}"
            lines = ended.output.decode(errors="replace").strip().splitlines()[-3:]
            said = "; ".join(line.strip() for line in lines)
            raise ActionFailed(f"{self} {how}{said and f': {said}'}", refused=True)
