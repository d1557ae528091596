"""The output of the stdout and file sinks: original lines, or JSON for records that a stage has changed."""

from __future__ import annotations

from sidecar.logs.records import Batch
from sidecar.logs.sinks.schemas import Schema, json_line, json_lines


def encode_batch(batch: Batch, *, json: bool, schema: Schema | None = None) -> list[bytes]:
    """Return the pieces to write, in order: complete lines with their newlines."""
    if json:
        return [json_lines(batch, schema)]
    if batch.raw:
        return [block.data for block in batch.blocks]
    lines = [
        json_line(record, schema) if record.changed else record.raw for record in batch.records()
    ]
    lines.append(b"")
    return [b"\n".join(lines)]
