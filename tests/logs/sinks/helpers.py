"""Batches, and what the collector does with a sink that is not available."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sidecar.logs.records import Batch, Block, Record
from sidecar.logs.sinks.base import Receipt, SinkUnavailable

READ_AT = 1_795_440_111_000_000_000


def block(
    *lines: str | bytes, file: str = "/log/app.log", start: int = 0, file_id: str = "f1"
) -> Block:
    raw = [line.encode() if isinstance(line, str) else line for line in lines]
    data = b"".join(line + b"\n" for line in raw)
    return Block(data, file, file_id, start, start + len(data), READ_AT)


def batch(*lines: str | bytes, **options: Any) -> Batch:
    return Batch([block(*lines, **options)])


def records(*made: Record) -> Batch:
    """A batch that has been through stages."""
    return Batch([block(*(record.raw for record in made))], list(made))


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"line {number}" for number in range(start, start + count)]


async def deliver(sink: Any, given: Batch, *, tries: int = 50) -> Receipt:
    """Write until it is acknowledged, without the collector's pauses; keeps what was said on the way."""
    for _ in range(tries):
        try:
            return await sink.write(given)
        except SinkUnavailable as error:
            said.append(error)
            await asyncio.sleep(0)
    raise AssertionError(f"not delivered after {tries} tries: {said[-1]}")


said: list[SinkUnavailable] = []


class opened:  # noqa: N801 (used like a function)
    """`async with opened(LokiSink(url)) as sink`."""

    def __init__(self, sink: Any, resume: Any = None) -> None:
        self.sink, self.resume = sink, resume

    async def __aenter__(self) -> Any:
        said.clear()
        await self.sink.open(self.resume)
        return self.sink

    async def __aexit__(self, *_: object) -> None:
        await self.sink.close()


def reasons(receipt: Receipt) -> Sequence[str]:
    return [one.reason for one in receipt.rejected]
