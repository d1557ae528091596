"""Stages between file and sink: synchronous functions from a record to a record, or to None to drop it.

`parse` and `formats` parse a line, `severity` finds its level, `timestamp` and `time_zones` its time.
`filter` drops lines, `conditions` are the conditions of routes, `limiting` reduces the number of lines.
`mutate` changes lines, with `escapes` for encoded text; `ansi` removes control sequences of terminals.
`log_metrics` derives metrics from lines. `options` creates stages from a configuration.
A stage never fails on a line: a line that it does not understand is passed on unchanged.
"""

from __future__ import annotations

from sidecar.logs.stages.ansi import strip_ansi
from sidecar.logs.stages.filter import drop, keep
from sidecar.logs.stages.formats import (
    parse_csv,
    parse_docker,
    parse_klog,
    parse_syslog,
    parse_syslog_in,
)
from sidecar.logs.stages.limiting import deduplicate, keep_level, rate_limit, sample
from sidecar.logs.stages.log_metrics import count_lines, observe_field
from sidecar.logs.stages.mutate import add_fields, redact, remove_fields, rename_fields
from sidecar.logs.stages.parse import parse_cri, parse_json, parse_logfmt, parse_regex
from sidecar.logs.stages.severity import find_level
from sidecar.logs.stages.timestamp import find_time, find_time_in, parse_time

__all__ = [
    "add_fields",
    "count_lines",
    "deduplicate",
    "drop",
    "find_level",
    "find_time",
    "find_time_in",
    "keep",
    "keep_level",
    "observe_field",
    "parse_cri",
    "parse_csv",
    "parse_docker",
    "parse_json",
    "parse_klog",
    "parse_logfmt",
    "parse_regex",
    "parse_syslog",
    "parse_syslog_in",
    "parse_time",
    "rate_limit",
    "redact",
    "remove_fields",
    "rename_fields",
    "sample",
    "strip_ansi",
]
