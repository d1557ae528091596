"""Steps between file and sink: plain functions from a record to a record, or to None.

`parse` and `formats` read what is in a line, `severity` its level, `timestamp` and `time_zones` when it was written;
`filter` says which lines go on, `conditions` how a configuration puts that, `limiting` leaves lines out to have fewer;
`mutate` changes what they say, with `escapes` for what an encoding hides, and `ansi` for control sequences of terminals;
`log_metrics` makes metrics of lines. `options` makes stages of a configuration.
A stage never fails on a line: what it does not understand it passes on as it came.
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
