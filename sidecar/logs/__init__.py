"""Collect log files: follow them through rotation, process lines in stages, and deliver them at least once.

    source = logs.tail("/var/log/app/*.log", checkpoint="/state/offsets.json")
    await logs.collect(source, logs.parse_json, sink=logs.StdoutSink())

The names below are public; the modules that contain them may change.
Each is imported on first use: a collector that writes to standard output never loads an HTTP client.

`collector` drives a source (`input/`), until it is cancelled or one of the `stop_conditions` is met,
in the rounds of its `read_loop`, and for each sink a `sink_worker` that runs the stages, delivers and acknowledges. `records` are the data between them,
and `source_metrics` exports how far a source is behind.
`stages/` and `sinks/` contain the stages and sinks; `json_encoding` encodes records, `regex` compiles patterns,
and `pod_metadata` reads the labels of the Pod.
`config_file` reads a configuration with `process.config_types`, after `config_references` are resolved; `pipeline` creates
the objects of one pipeline, and `pipelines` runs them all.
`replay` delivers dead letters again. `testing` contains test helpers for users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar import _exports

if TYPE_CHECKING:
    from sidecar.logs.collector import Collector as Collector
    from sidecar.logs.collector import Summary as Summary
    from sidecar.logs.collector import collect as collect
    from sidecar.logs.input.framing import Multiline as Multiline
    from sidecar.logs.input.partial_lines import CRI_LINES as CRI_LINES
    from sidecar.logs.input.partial_lines import DOCKER_LINES as DOCKER_LINES
    from sidecar.logs.input.stack_traces import stack_traces as stack_traces
    from sidecar.logs.input.tail import Tail as Tail
    from sidecar.logs.input.tail import tail as tail
    from sidecar.logs.pod_metadata import PodMetadata as PodMetadata
    from sidecar.logs.records import Batch as Batch
    from sidecar.logs.records import Block as Block
    from sidecar.logs.records import Record as Record
    from sidecar.logs.records import Stage as Stage
    from sidecar.logs.sinks.base import ACCEPTED as ACCEPTED
    from sidecar.logs.sinks.base import BaseSink as BaseSink
    from sidecar.logs.sinks.base import Batching as Batching
    from sidecar.logs.sinks.base import Receipt as Receipt
    from sidecar.logs.sinks.base import Rejected as Rejected
    from sidecar.logs.sinks.base import Route as Route
    from sidecar.logs.sinks.base import Sink as Sink
    from sidecar.logs.sinks.base import SinkUnavailable as SinkUnavailable
    from sidecar.logs.sinks.deadletter import DeadLetterFile as DeadLetterFile
    from sidecar.logs.sinks.elasticsearch import ElasticsearchSink as ElasticsearchSink
    from sidecar.logs.sinks.file import FileSink as FileSink
    from sidecar.logs.sinks.loki import LokiSink as LokiSink
    from sidecar.logs.sinks.ndjson import NdjsonSink as NdjsonSink
    from sidecar.logs.sinks.otlp import OtlpSink as OtlpSink
    from sidecar.logs.sinks.stdout import StdoutSink as StdoutSink
    from sidecar.logs.stages.ansi import strip_ansi as strip_ansi
    from sidecar.logs.stages.filter import drop as drop
    from sidecar.logs.stages.filter import keep as keep
    from sidecar.logs.stages.formats import parse_csv as parse_csv
    from sidecar.logs.stages.formats import parse_docker as parse_docker
    from sidecar.logs.stages.formats import parse_klog as parse_klog
    from sidecar.logs.stages.formats import parse_syslog as parse_syslog
    from sidecar.logs.stages.formats import parse_syslog_in as parse_syslog_in
    from sidecar.logs.stages.limiting import deduplicate as deduplicate
    from sidecar.logs.stages.limiting import keep_level as keep_level
    from sidecar.logs.stages.limiting import rate_limit as rate_limit
    from sidecar.logs.stages.limiting import sample as sample
    from sidecar.logs.stages.log_metrics import count_lines as count_lines
    from sidecar.logs.stages.log_metrics import observe_field as observe_field
    from sidecar.logs.stages.mutate import add_fields as add_fields
    from sidecar.logs.stages.mutate import redact as redact
    from sidecar.logs.stages.mutate import remove_fields as remove_fields
    from sidecar.logs.stages.mutate import rename_fields as rename_fields
    from sidecar.logs.stages.parse import parse_cri as parse_cri
    from sidecar.logs.stages.parse import parse_json as parse_json
    from sidecar.logs.stages.parse import parse_logfmt as parse_logfmt
    from sidecar.logs.stages.parse import parse_regex as parse_regex
    from sidecar.logs.stages.severity import find_level as find_level
    from sidecar.logs.stages.timestamp import find_time as find_time
    from sidecar.logs.stages.timestamp import find_time_in as find_time_in
    from sidecar.logs.stages.timestamp import parse_time as parse_time

_MODULES = {
    # Collect
    "tail": "sidecar.logs.input.tail",
    "Tail": "sidecar.logs.input.tail",
    "Multiline": "sidecar.logs.input.framing",
    "collect": "sidecar.logs.collector",
    "Collector": "sidecar.logs.collector",
    "Summary": "sidecar.logs.collector",
    # What flows
    "Record": "sidecar.logs.records",
    "Block": "sidecar.logs.records",
    "Batch": "sidecar.logs.records",
    "Stage": "sidecar.logs.records",
    # Stages
    "parse_json": "sidecar.logs.stages.parse",
    "parse_logfmt": "sidecar.logs.stages.parse",
    "parse_regex": "sidecar.logs.stages.parse",
    "parse_cri": "sidecar.logs.stages.parse",
    "CRI_LINES": "sidecar.logs.input.partial_lines",
    "keep": "sidecar.logs.stages.filter",
    "drop": "sidecar.logs.stages.filter",
    "redact": "sidecar.logs.stages.mutate",
    "add_fields": "sidecar.logs.stages.mutate",
    "find_level": "sidecar.logs.stages.severity",
    "find_time": "sidecar.logs.stages.timestamp",
    "find_time_in": "sidecar.logs.stages.timestamp",
    "strip_ansi": "sidecar.logs.stages.ansi",
    "parse_time": "sidecar.logs.stages.timestamp",
    "remove_fields": "sidecar.logs.stages.mutate",
    "rename_fields": "sidecar.logs.stages.mutate",
    "count_lines": "sidecar.logs.stages.log_metrics",
    "observe_field": "sidecar.logs.stages.log_metrics",
    "parse_csv": "sidecar.logs.stages.formats",
    "parse_docker": "sidecar.logs.stages.formats",
    "parse_klog": "sidecar.logs.stages.formats",
    "parse_syslog": "sidecar.logs.stages.formats",
    "parse_syslog_in": "sidecar.logs.stages.formats",
    "deduplicate": "sidecar.logs.stages.limiting",
    "keep_level": "sidecar.logs.stages.limiting",
    "rate_limit": "sidecar.logs.stages.limiting",
    "sample": "sidecar.logs.stages.limiting",
    "stack_traces": "sidecar.logs.input.stack_traces",
    "DOCKER_LINES": "sidecar.logs.input.partial_lines",
    "PodMetadata": "sidecar.logs.pod_metadata",
    # Sinks
    "StdoutSink": "sidecar.logs.sinks.stdout",
    "FileSink": "sidecar.logs.sinks.file",
    "NdjsonSink": "sidecar.logs.sinks.ndjson",
    "LokiSink": "sidecar.logs.sinks.loki",
    "ElasticsearchSink": "sidecar.logs.sinks.elasticsearch",
    "OtlpSink": "sidecar.logs.sinks.otlp",
    "DeadLetterFile": "sidecar.logs.sinks.deadletter",
    "Route": "sidecar.logs.sinks.base",
    # Sinks of one's own
    "Sink": "sidecar.logs.sinks.base",
    "BaseSink": "sidecar.logs.sinks.base",
    "Batching": "sidecar.logs.sinks.base",
    "Receipt": "sidecar.logs.sinks.base",
    "Rejected": "sidecar.logs.sinks.base",
    "SinkUnavailable": "sidecar.logs.sinks.base",
    "ACCEPTED": "sidecar.logs.sinks.base",
}

__all__ = [*_MODULES]  # noqa: PLE0604 (a name twice is a name that can differ)

__getattr__, __dir__ = _exports.lazy(__name__, _MODULES)
