"""Test helpers for custom stages and sinks: a log file with every kind of rotation, and an in-memory sink.

Public as part of `sidecar.testing`.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks.base import BaseSink, Batching, Receipt, Rejected, SinkUnavailable


class LogFile:
    r"""A log file that is written as by an application (in append mode) and can be rotated. Blocking.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     log = LogFile(f"{directory}/app.log")
    ...     log.write("one", "two")
    ...     print(log.rotate().name)
    ...     log.write("still to the old file"); log.reopen(); log.write("to the new one")
    ...     log.path.read_text()
    app.log.1
    'to the new one\n'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = -1
        self.reopen()

    def write(self, *lines: str) -> None:
        """Append complete lines in a single system call."""
        self.write_raw("".join(line + "\n" for line in lines).encode())

    def write_raw(self, data: bytes) -> None:
        """Append bytes unchanged: a partial line, another encoding."""
        os.write(self._fd, data)

    def reopen(self) -> None:
        """Open the path again, as an application does after a rotation."""
        self.close()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def rotate(self) -> Path:
        """Rename to `.1` (older files to `.2`, …). Writes continue there until `reopen`."""
        target = self._shift()
        self.path.rename(target)
        return target

    def copytruncate(self) -> Path:
        """Copy to `.1`, then truncate in place (logrotate: `copytruncate`)."""
        target = self._shift()
        shutil.copyfile(self.path, target)
        self.truncate()
        return target

    def truncate(self) -> None:
        """Truncate the file to zero bytes."""
        os.truncate(self.path, 0)

    def delete(self) -> None:
        """Delete the name. Writes to the open file continue until `reopen`."""
        self.path.unlink()

    def compress(self, rotated: Path) -> Path:
        """Compress a rotated file with gzip, and return the path of the archive."""
        target = rotated.with_name(rotated.name + ".gz")
        with rotated.open("rb") as plain, gzip.open(target, "wb") as packed:
            shutil.copyfileobj(plain, packed)
        rotated.unlink()
        return target

    def _shift(self) -> Path:
        free = next(number for number in itertools.count(1) if not self._numbered(number).exists())
        for number in range(free, 1, -1):
            self._numbered(number - 1).rename(self._numbered(number))
        return self._numbered(1)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def __repr__(self) -> str:
        return f"<LogFile {self.path}>"


class MemorySink(BaseSink):
    """A sink that stores records in memory, and fails on demand.

    Args:
        refuse: returns the reason to reject a record, None to accept it.

    >>> sink = MemorySink()
    >>> sink.lines
    []
    """

    def __init__(
        self,
        name: str = "memory",
        *,
        refuse: Callable[[Record], str | None] | None = None,
        batching: Batching | None = None,
    ) -> None:
        self.name = name
        self.records: list[Record] = []
        """All acknowledged records, in order."""
        self.batches = 0
        self.resumed: Any = None
        """The argument of `open`."""
        self.closed = False
        self._refuse = refuse
        self._failure: str | None = None
        self._open_gate = asyncio.Event()
        self._open_gate.set()
        if batching is not None:
            self.batching = batching

    @property
    def lines(self) -> list[str]:
        """The texts of the records."""
        return [record.text for record in self.records]

    def fail(self, reason: str = "out of order") -> None:
        """Raise `SinkUnavailable` from now on."""
        self._failure = reason

    def hang(self) -> None:
        """Block every `write` from now on."""
        self._open_gate.clear()

    def recover(self) -> None:
        """Accept records again."""
        self._failure = None
        self._open_gate.set()

    async def open(self, resume: Any) -> None:
        self.resumed = resume

    async def write(self, batch: Batch) -> Receipt:
        await self._open_gate.wait()
        if self._failure is not None:
            raise SinkUnavailable(self._failure, retry_after=0.01)
        rejected = []
        for record in batch.records():
            reason = self._refuse(record) if self._refuse is not None else None
            if reason is None:
                self.records.append(record)
            else:
                rejected.append(Rejected(record, reason))
        self.batches += 1
        return Receipt(rejected)

    async def close(self) -> None:
        self.closed = True
