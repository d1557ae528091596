"""Collect log files: tail them, pass the lines through stages, deliver them to sinks, lose nothing."""

from __future__ import annotations

from sidecar.logs.collector import Collector, Summary, collect
from sidecar.logs.lines import Multiline
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
from sidecar.logs.sinks.file import FileSink
from sidecar.logs.sinks.stdout import StdoutSink
from sidecar.logs.source import Tail, tail

__all__ = [
    # the source and the run
    "Collector",
    "Multiline",
    "Summary",
    "Tail",
    "collect",
    "tail",
    # what flows
    "Batch",
    "Block",
    "Record",
    "Stage",
    # sinks
    "FileSink",
    "StdoutSink",
    # sinks of one's own
    "ACCEPTED",
    "BaseSink",
    "Batching",
    "Receipt",
    "Rejected",
    "Sink",
    "SinkUnavailable",
]
