"""What stdout and file sinks write: lines as they came, JSON where a stage has changed what they say."""

from __future__ import annotations

from sidecar.logs import documents
from sidecar.logs.records import Batch


def output_of(batch: Batch, *, json: bool) -> list[bytes]:
    """Return the pieces to write, in order. Whole lines, each with its newline."""
    if json:
        return [documents.json_lines(batch)]
    if batch.raw:
        return [block.data for block in batch.blocks]
    lines = [
        documents.json_line(record) if record.changed else record.raw for record in batch.records()
    ]
    lines.append(b"")
    return [b"\n".join(lines)]
