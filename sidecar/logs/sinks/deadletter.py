"""The file for lines that a receiver will never take.

One JSON object a line: who refused it, when, why, and the record as it was to be delivered
(not the raw line: a stage may have taken a secret out of it).

    {"rejected_at": "…", "sink": "loki+http://loki:3100", "reason": "400: line too long", "record": {…}}

`write` returns when the lines are durable. Only then may the position pass them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence

import orjson

from sidecar.logs import documents
from sidecar.logs.sinks.base import Rejected, SinkUnavailable
from sidecar.runtime import metrics
from sidecar.runtime.threads import in_thread

_log = logging.getLogger(__name__)
_LOST = "dead_letters_full"


class DeadLetterFile:
    """Appends refused records to a file.

    A file that would grow beyond `max_bytes` becomes `PATH.1` first and replaces the one of that name:
    what that held is lost then, which is logged and counted (`sidecar_logs_lost_bytes_total`).
    A volume that fills up would take the whole Pod down, healthy lines included.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = 256 << 20) -> None:
        self.path = os.fspath(path)
        self.max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"<DeadLetterFile {self.path}>"

    async def write(self, sink: str, rejected: Sequence[Rejected]) -> None:
        """Append the records and sync; all of them are on disk when this returns.

        Raises:
            SinkUnavailable: the file cannot be written now (volume full, read-only).
                None of the records may be passed; try again later.
        """
        if not rejected:
            return
        now = documents.rfc3339(time.time_ns())
        lines = b"".join([_letter(now, sink, one) for one in rejected])
        try:
            await in_thread(self._append, lines)
        except OSError as error:
            raise SinkUnavailable(
                f"cannot write dead letters to {self.path}: {error.strerror or error}"
                " (lines that were refused wait until that is mended)"
            ) from error
        metrics.LOGS_DEAD_LETTERS_TOTAL.inc(len(rejected))
        first = rejected[0]
        _log.warning(
            "%s refused %d lines, the first at %s:%d: %s; they are in %s",
            sink,
            len(rejected),
            first.record.file,
            first.record.offset,
            first.reason,
            self.path,
        )

    def _append(self, lines: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path, flags, 0o640)
        try:
            size = os.fstat(fd).st_size
            if size and size + len(lines) > self.max_bytes:
                fd = self._turn_over(fd, flags)
                size = 0
            _write_all(fd, lines, size)
        finally:
            os.close(fd)
        if size == 0:
            _sync_directory(os.path.dirname(os.path.abspath(self.path)))

    def _turn_over(self, fd: int, flags: int) -> int:
        older = f"{self.path}.1"
        try:
            lost = os.stat(older).st_size
        except FileNotFoundError:
            lost = 0
        os.replace(self.path, older)
        if lost:
            metrics.LOGS_LOST_BYTES_TOTAL.labels(_LOST).inc(lost)
            _log.error(
                "%s is full again (%d bytes): the dead letters of %s are lost, %d bytes",
                self.path,
                self.max_bytes,
                older,
                lost,
            )
        fresh = os.open(self.path, flags, 0o640)
        os.dup2(fresh, fd, inheritable=False)
        os.close(fresh)
        return fd


def _letter(now: str, sink: str, one: Rejected) -> bytes:
    record = orjson.Fragment(documents.json_line(one.record))
    letter = {"rejected_at": now, "sink": sink, "reason": one.reason, "record": record}
    return orjson.dumps(letter) + b"\n"


def _write_all(fd: int, lines: bytes, size: int) -> None:
    """Write and sync, or leave the file as it was: half a line would spoil the next one."""
    try:
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, size)
        raise


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
