"""Deliver dead letters again, after a mapping, a limit or a licence was corrected.

The file is renamed first, so that a running collector can continue to write to it.
Records that are rejected again, cannot be delivered now, or have no configured sink are appended to it.
A replay that is killed leaves `FILE.replay`; the next one begins with it and delivers its records again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import orjson

from sidecar import _errors
from sidecar.fs import atomic, oserrors
from sidecar.logs.records import Batch, Block, Record
from sidecar.logs.sinks.base import Receipt, Sink, SinkUnavailable
from sidecar.logs.sinks.deadletter import DeadLetterFile, restore_record
from sidecar.process.executor import run_in_thread

_log = logging.getLogger(__name__)

_BATCH_LETTERS = 500
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.1, 2.0
_SUFFIX = ".replay"


@dataclass(slots=True)
class Replayed:
    """The result of a replay."""

    delivered: int = 0
    refused: int = 0
    """Records that were rejected again, and are dead letters again."""
    left: dict[str, int] = field(default_factory=dict)
    """Number of records that were appended to the file again, by reason."""


@dataclass(slots=True)
class _Letter:
    line: bytes
    sink: str
    record: Record


async def replay(path: str, sinks: Sequence[Sink], *, timeout: float = 20.0) -> Replayed:
    """Deliver the dead letters of a file to the sinks that rejected them; a single sink gets all of them.

    Stages and conditions do not run again.

    Args:
        path: the dead-letter file.
        sinks: the configured sinks; they are opened and closed here.
        timeout: seconds for which a sink may be unavailable before its records are appended to the file again.

    Raises:
        ConfigError: the file does not exist.
        SidecarError: a sink cannot be opened, or the file cannot be written.
    """
    done = Replayed()
    taken = path + _SUFFIX
    try:
        lines = await run_in_thread(_rename_file, path, taken)
    except FileNotFoundError as error:
        raise _errors.ConfigError(f"there are no dead letters in {path}: no such file") from error
    except OSError as error:
        raise _errors.SidecarError(f"cannot take {path}: {oserrors.hint(error)}") from error
    by_name = {sink.name: sink for sink in sinks}
    letters, back = dict[str, list[_Letter]](), list[bytes]()
    for line in lines:
        letter = _read(line, list(by_name))
        if isinstance(letter, str):
            back.append(line)
            _count(done, letter)
        else:
            letters.setdefault(letter.sink, []).append(letter)
    again = DeadLetterFile(path)
    try:
        for name, waiting in letters.items():
            await _deliver(by_name[name], waiting, again, timeout, done)
    finally:
        # Also after a cancellation: nothing is delivered twice, and nothing is lost.
        rest = [*back, *(one.line for waiting in letters.values() for one in waiting)]
        await run_in_thread(_append_rest, again, rest, taken)
    return done


def _read(line: bytes, names: Sequence[str]) -> _Letter | str:
    """Return the dead letter of a line, or the reason why it cannot be delivered."""
    try:
        found = orjson.loads(line)
        name, record = str(found["sink"]), restore_record(found)
    except (ValueError, KeyError, TypeError):
        return "not written by this version, or damaged"
    if len(names) == 1:
        name = names[0]
    return _Letter(line, name, record) if name in names else f"no sink is called {name}"


async def _deliver(
    sink: Sink, waiting: list[_Letter], again: DeadLetterFile, timeout: float, done: Replayed
) -> None:
    """Deliver, and remove from `waiting` what was delivered or is a dead letter again."""
    await sink.open(None)
    try:
        while waiting:
            some = waiting[:_BATCH_LETTERS]
            try:
                receipt = await _write_batch(sink, some, timeout)
                await sink.flush()
                await again.write(sink.name, receipt.rejected)
            except SinkUnavailable as error:
                _count(done, str(error), len(waiting))
                return
            del waiting[: len(some)]
            done.refused += len(receipt.rejected)
            done.delivered += len(some) - len(receipt.rejected)
    finally:
        await sink.close()


async def _write_batch(sink: Sink, some: Sequence[_Letter], timeout: float) -> Receipt:
    """Write one batch; retry for a limited time while the sink is unavailable."""
    records = [one.record for one in some]
    data = b"\n" * len(records)
    batch = Batch([Block(data, "", "", 0, len(data), time.time_ns())], records)
    end, pause = time.monotonic() + timeout, _MIN_BACKOFF_SECONDS
    while True:
        try:
            return await sink.write(batch)
        except SinkUnavailable as error:
            pause = min(error.retry_after or pause * 2, _MAX_BACKOFF_SECONDS)
            if time.monotonic() + pause > end:
                raise
            _log.warning("%s; trying again", error, extra={"event": "logs.sink_failing"})
            await asyncio.sleep(pause)


def _rename_file(path: str, taken: str) -> list[bytes]:
    """Rename the file, unless a killed replay has left a renamed one, and return its lines."""
    if not os.path.exists(taken):
        atomic.rename(path, taken)
    with open(taken, "rb") as file:
        fcntl.flock(
            file, fcntl.LOCK_EX
        )  # a collector that had opened it before has finished its write then
        return list(_lines(file.read()))


def _lines(data: bytes) -> Iterator[bytes]:
    for line in data.split(b"\n"):
        if line.strip():
            yield line + b"\n"


def _append_rest(again: DeadLetterFile, rest: Sequence[bytes], taken: str) -> None:
    if rest:
        again.append(b"".join(rest))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(taken)


def _count(done: Replayed, reason: str, count: int = 1) -> None:
    done.left[reason] = done.left.get(reason, 0) + count
