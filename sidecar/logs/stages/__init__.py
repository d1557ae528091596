"""Steps between file and sink: plain functions from a record to a record, or to None.

`parsing` says what is in a line (`levels` how grave it is, `times` and `zones` when it was written), `selecting` which lines go on,
`changing` what they say, without what `ansi` knows of terminals and `escapes` of encodings; `pieces` puts together what a container runtime has cut.
A stage never fails on a line: what it does not understand it passes on as it came.
"""

from __future__ import annotations

from sidecar.logs.stages.ansi import strip_ansi
from sidecar.logs.stages.changing import add_fields, redact
from sidecar.logs.stages.levels import find_level
from sidecar.logs.stages.parsing import (
    parse_cri,
    parse_json,
    parse_logfmt,
    parse_regex,
)
from sidecar.logs.stages.selecting import drop, keep
from sidecar.logs.stages.times import find_time, find_time_in, parse_time

__all__ = [
    "add_fields",
    "drop",
    "find_level",
    "find_time",
    "find_time_in",
    "keep",
    "parse_cri",
    "parse_json",
    "parse_logfmt",
    "parse_regex",
    "parse_time",
    "redact",
    "strip_ansi",
]
