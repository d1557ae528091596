"""Collect log files: tail them, pass the lines through stages, deliver them to sinks, lose nothing."""

from __future__ import annotations

from sidecar.logs.records import Batch, Block, Record, Stage
from sidecar.logs.sinks.base import (
    ACCEPTED,
    BaseSink,
    Batching,
    Receipt,
    Rejected,
    Sink,
    SinkUnavailable,
)

__all__ = [
    # what flows
    "Batch",
    "Block",
    "Record",
    "Stage",
    # sinks of one's own
    "ACCEPTED",
    "BaseSink",
    "Batching",
    "Receipt",
    "Rejected",
    "Sink",
    "SinkUnavailable",
]
