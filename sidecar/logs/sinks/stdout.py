"""Write lines to standard output: a streaming sidecar, whose own log is that of the application.

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
from sidecar.logs.sinks.line_output import encode_batch
from sidecar.process import arguments
from sidecar.process.executor import run_in_thread

_PIPE_BUF = 4096
_PIPE_SIZE = 65536
_POLL_MS = 200
_turns: dict[int, threading.Lock] = {}
"""Several pipelines may write to one descriptor: a line that the kernel accepts in parts must not be interleaved."""


class StdoutSink(BaseSink):
    """Writes each line to standard output: unchanged, or as a JSON object if a stage has changed it.

    A line counts as delivered when the kernel has accepted it.
    If the reader of a pipe stops reading, the collection waits, and the process stays responsive:
    a pipe is written to only while it has space.

    Args:
        json: write every line as a JSON object.
        schema, prefix: the structure of such an object; see `sidecar.logs.sinks.schemas`.
        fd: a descriptor to use instead of standard output.

    Raises:
        BrokenPipeError: from `write`, and so from `collect`: standard output is a pipe without a reader.
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
        self.own_files = _redirect_target(fd)

    async def write(self, batch: Batch) -> Receipt:
        pieces = encode_batch(batch, json=self._json, schema=self._schema)
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


def _redirect_target(fd: int) -> Sequence[str]:
    """Return the file to which standard output goes, if it goes to one (`> all.log`)."""
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return (os.readlink(f"/proc/self/fd/{fd}"),)
    except OSError:
        pass  # it is closed, which `write` will report, or there is no /proc
    return ()


def _write_all(fd: int, pieces: Sequence[bytes], stop: threading.Event) -> None:
    """Write complete lines, without interleaving with other sinks of this process."""
    lock = _turns.setdefault(fd, threading.Lock())
    while not lock.acquire(timeout=_POLL_MS / 1000):
        if stop.is_set():
            raise InterruptedError("stopped while another sink was writing to standard output")
    try:
        _write_pieces(fd, pieces, stop)
    finally:
        lock.release()


def _write_pieces(fd: int, pieces: Sequence[bytes], stop: threading.Event) -> None:
    patient = not stat.S_ISREG(os.fstat(fd).st_mode)
    for piece in pieces:
        view = memoryview(piece)
        while view:
            most = _writable_bytes(fd, stop) if patient else len(view)
            try:
                view = view[os.write(fd, view[:most]) :]
            except BlockingIOError:  # it is non-blocking, and full
                continue


def _writable_bytes(fd: int, stop: threading.Event) -> int:
    """Wait until the descriptor is writable; return how many bytes fit at least (pipe(7): one page)."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while not poll.poll(_POLL_MS):
        if stop.is_set():
            raise InterruptedError("stopped while standard output was full")
    waiting = array.array("i", [1])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, waiting)
    except OSError:
        return _PIPE_BUF
    return _PIPE_SIZE if waiting[0] == 0 else _PIPE_BUF
