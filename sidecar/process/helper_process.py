"""Helper processes, for work that must be cancellable: a thread cannot be ended, and C code may hold the GIL.

A helper is a fresh interpreter that runs the `main` of one module, and answers requests over a socket, one at a time.
It starts on demand and stays for further requests, which then cost a fraction of a millisecond.
Whatever becomes of this process, a helper ends: its socket closes, and a kernel timer ends an endless request.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sidecar._errors import SidecarError

T = TypeVar("T")

_LENGTH_BYTES = 8
_PACKAGE_PATH = str(Path(__file__).parents[2])
_START_TIMEOUT = 60.0
_EXIT_TIMEOUT = 10.0
"""Seconds that a helper has to stop its work, before it is killed."""
_KILL_MARGIN_SECONDS = 5.0
_SCALE_UP_DELAY = 0.25
"""Seconds that a request waits for a busy helper before another one is started."""


class HelperLost(SidecarError):
    """The helper has ended without an answer: it crashed, or was killed, by the OOM killer for example."""


class HelperTimeout(SidecarError):
    """The helper did not answer in time, and was ended."""


class RequestCancelled(SidecarError):
    """The request was cancelled, and its helper was ended."""


class Request:
    """A request that another thread may cancel."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._withdrawn = False
        self._end: Callable[[], None] | None = None

    def withdraw(self) -> None:
        """Cancel the request: end its helper, or keep it from being sent."""
        with self._lock:
            self._withdrawn = True
            if self._end is not None:
                self._end()

    @contextmanager
    def worked_at(self, end: Callable[[], None]) -> Iterator[None]:
        """Within this block, cancelling calls `end`."""
        with self._lock:
            self.check()
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None
            self.check()

    def check(self) -> None:
        """Raise `RequestCancelled` if the request was cancelled."""
        if self._withdrawn:
            raise RequestCancelled("the request was withdrawn")


class HelperPool:
    """The helpers of one module: one as a rule, more while it is busy, never more than `most`.

    Args:
        module: its function `main` gets the connection and the setup.
        setup: sent to each helper at its start.
        most: maximum number of helpers.
        crowded: seconds that a request waits for a busy helper before another one is started.
        gently: end a helper by closing its socket, so that it can stop its own work.
    """

    def __init__(
        self,
        module: str,
        setup: Any = None,
        *,
        most: int,
        crowded: float = _SCALE_UP_DELAY,
        gently: bool = False,
    ) -> None:
        self._module, self._setup = module, setup
        self._most, self._crowded, self._gently = most, crowded, gently
        self._reset()

    def __repr__(self) -> str:
        return f"<HelperPool {self._module} count={self._count}>"

    def ask(self, message: Any, timeout: float, request: Request | None = None) -> Any:
        """Return a helper's answer to a message of plain data. Blocking.

        `timeout` in seconds starts when a helper receives the message.

        Raises:
            HelperTimeout, HelperLost, RequestCancelled: see there; no helper works on it any more.
        """
        request = request or Request()
        helper = self._acquire(request)
        healthy = False
        try:
            with request.worked_at(helper.end):
                answer = helper.ask(message, timeout)
            healthy = True
        finally:
            self._release(helper, healthy=healthy)
        return answer

    def _acquire(self, request: Request) -> _HelperProcess:
        if os.getpid() != self._pid:
            self._reset()  # after a fork, the helpers belong to the parent
        limit = time.monotonic() + self._crowded
        with self._changed:
            while True:
                request.check()
                if self._idle:
                    return self._idle.pop()
                if self._count < self._most and (not self._count or time.monotonic() >= limit):
                    self._count += 1
                    break
                self._changed.wait(0.05)
        try:
            return _HelperProcess(self._module, self._setup, gently=self._gently)
        except BaseException:
            with self._changed:
                self._count -= 1
                self._changed.notify()
            raise

    def _release(self, helper: _HelperProcess, *, healthy: bool) -> None:
        with self._changed:
            keep = healthy and not self._idle
            if keep:
                self._idle.append(helper)
            else:
                self._count -= 1
            self._changed.notify()
        if not keep:
            helper.end()
            helper.wait()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._idle: list[_HelperProcess] = []
        self._count = 0
        self._changed = threading.Condition()


class _HelperProcess:
    """One helper process."""

    def __init__(self, module: str, setup: Any, *, gently: bool) -> None:
        self._gently = gently
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-c", _program(module)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C must reach only this process, which then ends the helper
            )
        except OSError as error:
            self._socket.close()
            raise HelperLost(
                f"a helper process cannot be started: {error.strerror} ({sys.executable})"
            ) from error
        finally:
            theirs.close()
        self._finalize = weakref.finalize(
            self, _end, os.getpid(), self._process, self._socket, gently=False
        )
        try:
            self.ask(setup, _START_TIMEOUT)
        except BaseException:
            self.end()
            self.wait()
            raise

    def ask(self, message: Any, timeout: float) -> Any:
        try:
            self._socket.settimeout(timeout)
            send(self._socket, (timeout, message))
            return receive(self._socket, limit=time.monotonic() + timeout)
        except TimeoutError as error:
            raise HelperTimeout(f"no answer within {timeout:g} s") from error
        except (OSError, EOFError) as error:
            raise HelperLost("the helper process has ended") from error

    def end(self) -> None:
        """End the helper; any thread may call this, and `ask` raises then."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if not self._gently:
            self._process.kill()

    def wait(self) -> None:
        """Wait until the helper has ended."""
        _end(os.getpid(), self._process, self._socket, gently=self._gently)
        self._finalize.detach()


def serve(work: Callable[[Any], Any], connection: socket.socket) -> None:
    """Answer requests until the connection closes: runs in a helper."""
    connection.settimeout(None)
    while True:
        try:
            timeout, message = receive(connection)
        except (OSError, EOFError):
            return
        # By the kernel, whatever the interpreter does: the parent may be gone.
        signal.setitimer(signal.ITIMER_REAL, timeout + _KILL_MARGIN_SECONDS)
        answer = work(message)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            send(connection, answer)
        except OSError:
            return


@contextmanager
def connected() -> Iterator[tuple[socket.socket, Any]]:
    """Yield the connection of a helper and its setup, which it acknowledges by `send`; closed at the end.

    A closed connection ends the helper, and is not an error.
    """
    with socket.socket(fileno=0) as connection:
        try:
            _, setup = receive(connection)
            yield connection, setup
        except (EOFError, ConnectionError):
            sys.exit()


def send(connection: socket.socket, message: Any) -> None:
    """Send plain data between two processes of the same Python."""
    data = marshal.dumps(message)
    connection.sendall(len(data).to_bytes(_LENGTH_BYTES, "big"))
    connection.sendall(data)


def receive(connection: socket.socket, *, limit: float | None = None) -> Any:
    """Receive plain data, until `limit` on the monotonic clock.

    Raises:
        EOFError: the connection was closed.
        TimeoutError: the limit is reached.
    """
    length = int.from_bytes(_receive_exactly(connection, _LENGTH_BYTES, limit), "big")
    return marshal.loads(_receive_exactly(connection, length, limit))  # noqa: S302 (from ourselves)


def _receive_exactly(connection: socket.socket, size: int, limit: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        if limit is not None:
            connection.settimeout(max(limit - time.monotonic(), 0.001))
        piece = connection.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _program(module: str) -> str:
    """Return the program of a helper: it uses the same packages, without searching for them again."""
    path = [_PACKAGE_PATH, *(one for one in sys.path if one)]
    return f"import sys; sys.path[:] = {path!r}; from {module} import main; main()"


def _end(
    pid: int, process: subprocess.Popen[bytes], connection: socket.socket, *, gently: bool
) -> None:
    """End a helper and wait for it; in a forked process it belongs to the parent."""
    connection.close()
    if os.getpid() != pid:
        process.returncode = 0
        return
    if gently:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_TIMEOUT)
            return
    process.kill()
    process.wait()
