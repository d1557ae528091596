"""An action that sends a signal to a process, as kill(2) does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sidecar import _errors
from sidecar.process import arguments, executor, process_table
from sidecar.reload.change import ActionFailed, Change


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to a process for each version: one of the Pod (`shareProcessNamespace`), or of the same container.

    By name, each process of that name gets it whose parent has another name: the master of workers, and not the workers.
    A name is that of the program (the last part of its path), or what `ps -o comm` shows, of at most 15 bytes.
    This process, its parent, and what it has started itself never get one.
    It has succeeded when the signal was delivered to each of them, and there was one.

    Args:
        name: the signal, as `HUP` or `SIGHUP`.
        process: the name of the process.
        pid_file: or the file in which its number stands; read each time.

    Raises:
        ConfigError: there is no such signal, or not exactly one of `process` and `pid_file` is given.

    >>> str(Signal("HUP", process="nginx"))
    'signal SIGHUP to nginx'
    """

    kind: ClassVar[str] = "signal"

    name: str
    process: str | None = None
    pid_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        number(self.name)
        if (self.process is None) == (self.pid_file is None):
            raise _errors.ConfigError("a signal needs one of process and pid_file")
        if self.pid_file is not None:
            arguments.check_path("pid_file", self.pid_file)
        elif not isinstance(self.process, str) or not self.process:
            raise arguments.argument_error("process", self.process, "the name of a process")

    def __str__(self) -> str:
        target = self.process or f"the process of {os.fspath(self.pid_file or '')}"
        return f"signal {number(self.name).name} to {target}"

    async def run(self, change: Change) -> None:  # noqa: ARG002 (a signal carries nothing)
        """Send it. Raises `ActionFailed` if there is no such process, or no permission to signal it."""
        await executor.run_in_thread(self._send)

    def _send(self) -> None:
        pids = [self._from_file()] if self.process is None else list(_named(self.process))
        if not pids:
            raise ActionFailed(
                f"{self}: no process of that name is running here"
                " (set shareProcessNamespace: true in the Pod, and see `ps -e -o comm`)"
            )
        for pid in pids:
            try:
                os.kill(pid, number(self.name))
            except ProcessLookupError:
                raise ActionFailed(f"{self}: process {pid} has ended") from None
            except PermissionError:
                raise ActionFailed(
                    f"{self}: process {pid} belongs to another user"
                    " (give both containers the same runAsUser, or this one the capability KILL)"
                ) from None

    def _from_file(self) -> int:
        path = os.fspath(self.pid_file or "")
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                text = file.read(64).strip()
        except OSError as error:
            raise ActionFailed(f"{self}: cannot read the file: {error.strerror}") from error
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            raise ActionFailed(f"{self}: {text!r} is no number of a process")
        if int(text) in (os.getpid(), os.getppid()):
            raise ActionFailed(
                f"{self}: {text} is this process or its parent"
                " (a number is of use in the process namespace of its writer: shareProcessNamespace)"
            )
        return int(text)


def number(name: str) -> signal.Signals:
    """Return a signal by its name, with or without SIG.

    >>> number("hup"), number("SIGUSR1")
    (<Signals.SIGHUP: 1>, <Signals.SIGUSR1: 10>)

    Raises:
        ConfigError: there is none of that name.
    """
    found = str(name).upper()
    found = found if found.startswith("SIG") else f"SIG{found}"
    try:
        return signal.Signals[found]
    except KeyError:
        raise _errors.ConfigError(
            f"there is no signal {name!r}: it is a name, as HUP or USR1"
        ) from None


def _named(name: str) -> Iterator[int]:
    others = {one.pid: one for one in process_table.others()}
    named = {pid for pid, one in others.items() if name in (one.argv[0], one.comm)}
    for pid in sorted(named):
        parents = list(_ancestors(pid, others))
        if os.getpid() not in parents and not named & set(parents):
            yield pid


def _ancestors(pid: int, table: dict[int, process_table.RunningProcess]) -> Iterator[int]:
    while (found := table.get(pid)) is not None and found.parent:
        pid = found.parent
        yield pid
