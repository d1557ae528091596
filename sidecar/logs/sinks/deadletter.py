"""The dead-letter file: records that a receiver has rejected permanently.

One JSON object a line: the sink, the time, the reason, and the record as it was to be delivered
(not the raw line: a stage may have removed a secret from it).

    {"rejected_at": "…", "sink": "loki+http://loki:3100", "reason": "400: line too long", "record": {…}, "origin": {…}}

`origin` is for `sidecar collect --replay`, which restores the record and delivers it again.

`write` returns when the lines are durable. The position passes them only after that.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from sidecar.fs import atomic, dirs
from sidecar.logs import json_encoding
from sidecar.logs.records import Record
from sidecar.logs.sinks.base import Rejected, SinkUnavailable
from sidecar.process import arguments, metrics
from sidecar.process.executor import run_in_thread

_log = logging.getLogger(__name__)
_LOST = "dead_letters_full"
# O_SYNC: a write returns when it is on the disk, data and size (open(2)).
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_SYNC | os.O_NOFOLLOW | os.O_CLOEXEC


class DeadLetterFile:
    """Appends rejected records to a file.

    A file that would grow beyond `max_bytes` is renamed to `PATH.1` first and replaces the previous one:
    the content of that one is lost, which is logged and counted (`sidecar_logs_lost_bytes_total`).
    Without a limit a full volume would affect the whole Pod.

    >>> DeadLetterFile("/state/refused.ndjson", max_bytes=16 << 20)
    <DeadLetterFile /state/refused.ndjson>
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int | str = 256 << 20) -> None:
        self.path = arguments.check_path("path", path)
        self.max_bytes = arguments.check_size("max_bytes", max_bytes, least=1)

    def __repr__(self) -> str:
        return f"<DeadLetterFile {self.path}>"

    async def write(self, sink: str, rejected: Sequence[Rejected]) -> None:
        """Append the records and sync; all of them are on disk when this returns.

        Raises:
            SinkUnavailable: the file cannot be written now (volume full, read-only).
                The position must not pass the records; retry later.
        """
        if not rejected:
            return
        now = json_encoding.rfc3339(time.time_ns())
        lines = b"".join([_letter(now, sink, one) for one in rejected])
        try:
            await run_in_thread(self.append, lines)
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
            extra={"event": "logs.records_refused"},
        )

    def append(self, lines: bytes) -> None:
        """Append complete lines unchanged, and sync. Blocking.

        Raises:
            OSError: the file cannot be written.
        """
        directory, name = os.path.split(os.path.abspath(self.path))
        dirs.make_directory(directory)
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._is_full(dir_fd, name, len(lines)):
                self._turn_over(dir_fd, name)
            fd = _open_locked(dir_fd, name)
            try:
                is_new = os.fstat(fd).st_size == 0
                _write_all(fd, lines)
            finally:
                os.close(fd)
            if is_new:
                atomic.sync_directory(dir_fd)
        finally:
            os.close(dir_fd)

    def _is_full(self, dir_fd: int, name: str, more: int) -> bool:
        size = _size(dir_fd, name)
        return size > 0 and size + more > self.max_bytes

    def _turn_over(self, dir_fd: int, name: str) -> None:
        lost = _size(dir_fd, f"{name}.1")
        atomic.move(dir_fd, name, dir_fd, f"{name}.1")
        if lost:
            metrics.LOGS_LOST_BYTES_TOTAL.labels(_LOST).inc(lost)
            _log.error(
                "%s is full again (%d bytes), and its last generation is lost: %d bytes of dead letters",
                self.path,
                self.max_bytes,
                lost,
                extra={"event": "logs.dead_letters_lost"},
            )


def _letter(now: str, sink: str, one: Rejected) -> bytes:
    record = one.record
    letter = {
        "rejected_at": now,
        "sink": sink,
        "reason": one.reason,
        "record": orjson.Fragment(json_encoding.json_line(record)),
        "origin": orjson.Fragment(json_encoding.dumps(describe_origin(record))),
    }
    return orjson.dumps(letter) + b"\n"


def describe_origin(record: Record) -> dict[str, Any]:
    """Return what of a record its document does not say, or says under another name: with it the record can be made again.

    >>> describe_origin(Record(b"hello", file="/log/a", offset=7))["fields"]
    []
    """
    return {
        "time": record.time,
        "level": record.level,
        "file": json_encoding.readable(record.file),
        "file_id": record.file_id,
        "offset": record.offset,
        "labels": dict(record.labels),
        "text": record.text,
        "fields": [str(name) for name in record.fields],
        "as_it_came": record.structured and not record.changed,
    }


def restore_record(letter: Mapping[str, Any]) -> Record:
    """Make the record of a letter again, as the stages had left it.

    Raises:
        KeyError, TypeError, ValueError: it is no letter of ours.
    """
    document, origin = letter["record"], letter["origin"]
    fields = {name: document[name] for name in origin["fields"]}
    record = Record(
        str(origin["text"]).encode("utf-8", "replace"),
        file=str(origin["file"]),
        offset=int(origin["offset"]),
        file_id=str(origin["file_id"]),
        time=int(origin["time"]),
        level=origin["level"],
        labels=dict(origin["labels"]),
        fields=fields,
    )
    if fields and origin["as_it_came"]:
        record.parsed(fields, lambda _: fields)
    elif fields and "message" not in document:
        record.parsed(fields, lambda _: {})
    return record


def _open_locked(dir_fd: int, name: str) -> int:
    """Open and lock the file for appending, so that a replay cannot rename it during a write."""
    while True:
        fd = os.open(name, _FLAGS, 0o640, dir_fd=dir_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            there = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if (there.st_dev, there.st_ino) == (os.fstat(fd).st_dev, os.fstat(fd).st_ino):
                return fd
        except FileNotFoundError:
            pass  # it was renamed between the two calls
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _size(dir_fd: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _write_all(fd: int, lines: bytes) -> None:
    """Write all lines, or restore the old length of the file: a partial line would corrupt the next one."""
    before = os.fstat(fd).st_size
    try:
        atomic.write_all(fd, lines)
    except OSError:
        os.ftruncate(fd, before)
        raise
