"""Lines to standard output: the streaming sidecar, whose own log is the application's.

https://kubernetes.io/docs/concepts/cluster-administration/logging/#streaming-sidecar-container
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import select
import stat
import termios
import threading
from collections.abc import Sequence
from dataclasses import replace

from sidecar._errors import SidecarError
from sidecar.logs.records import MAX_BLOCK_RECORDS, Batch
from sidecar.logs.sinks import schemas
from sidecar.logs.sinks.base import ACCEPTED, BaseSink, Batching, Receipt
from sidecar.logs.sinks.line_output import output_of
from sidecar.process import arguments
from sidecar.process.executor import run_in_thread

_PIPE_BUF = 4096
_PIPE_SIZE = 65536
_PATIENCE_MS = 200
_turns: dict[int, threading.Lock] = {}
"""Several pipelines may write to one descriptor: a piece that the kernel takes in parts must not be torn."""


class StdoutSink(BaseSink):
    """Writes each line to standard output: as it came where no stage changed it, else as a JSON object.

    A line counts as delivered when the kernel has taken it.
    A reader that stops reading stops the collection, and never hangs the process:
    a pipe is written to only while it has room.

    Args:
        json: write every line as a JSON object.
        schema, prefix: the shape of such an object; see `sidecar.logs.sinks.schemas`.
        fd: another descriptor than that of standard output.

    Raises:
        BrokenPipeError: from `write`, and so from `collect`: nobody will read standard output any more.
        SidecarError: in the same way: it is closed, or a file on a volume that is full.

    >>> StdoutSink(json=True).name
    'stdout'
    """

    takes_blocks = True
    batching = Batching(max_bytes=1 << 20)

    def __init__(
        self,
        *,
        json: bool = False,
        fd: int = 1,
        name: str = "stdout",
        schema: str = "plain",
        prefix: str | None = None,
    ) -> None:
        self.name = name
        self._schema = schemas.named(schema, prefix)
        self._json, self._fd = json, arguments.check_integer("fd", fd)
        if json:
            self.batching = replace(self.batching, max_lines=MAX_BLOCK_RECORDS)
        self.own_files = _file_behind(fd)

    async def write(self, batch: Batch) -> Receipt:
        pieces = output_of(batch, json=self._json, schema=self._schema)
        stop = threading.Event()
        work = asyncio.create_task(run_in_thread(_write_all, self._fd, pieces, stop))
        try:
            await asyncio.shield(work)
        except BrokenPipeError:
            raise
        except OSError as error:
            why = os.strerror(error.errno or 0).lower()
            raise SidecarError(f"cannot write to standard output: {why}") from error
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({work})
            raise
        return ACCEPTED


def _file_behind(fd: int) -> Sequence[str]:
    """Return the file to which standard output goes, if it goes to one (`> all.log`)."""
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return (os.readlink(f"/proc/self/fd/{fd}"),)
    except OSError:
        pass  # it is closed, which `write` will tell, or there is no /proc
    return ()


def _write_all(fd: int, pieces: Sequence[bytes], stop: threading.Event) -> None:
    """Write whole lines: no other sink of this process comes in between."""
    lock = _turns.setdefault(fd, threading.Lock())
    while not lock.acquire(timeout=_PATIENCE_MS / 1000):
        if stop.is_set():
            raise InterruptedError("told to stop while another sink was writing to standard output")
    try:
        _write_pieces(fd, pieces, stop)
    finally:
        lock.release()


def _write_pieces(fd: int, pieces: Sequence[bytes], stop: threading.Event) -> None:
    patient = not stat.S_ISREG(os.fstat(fd).st_mode)
    for piece in pieces:
        view = memoryview(piece)
        while view:
            most = _room(fd, stop) if patient else len(view)
            try:
                view = view[os.write(fd, view[:most]) :]
            except BlockingIOError:  # somebody has made it non-blocking, and it is full
                continue


def _room(fd: int, stop: threading.Event) -> int:
    """Wait until something can be written; return how much surely fits (pipe(7): the first page always does)."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while not poll.poll(_PATIENCE_MS):
        if stop.is_set():
            raise InterruptedError("told to stop while standard output was full")
    waiting = array.array("i", [1])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, waiting)
    except OSError:
        return _PIPE_BUF
    return _PIPE_SIZE if waiting[0] == 0 else _PIPE_BUF
