"""Lines a CPU second through each stage alone: a record is made, the stage is called, nothing is read or sent.

    python benchmarks/logs_stages.py [--lines 100000] [--json FILE]

The best of three runs counts. "record alone" is what every stage has beneath it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from _options import arguments
from _rows import Row, report

from sidecar import logs
from sidecar.logs import pipeline
from sidecar.logs.input.framing import MultilineGrouper
from sidecar.logs.records import Block, Stage

TEXT = b"2026-11-23T13:21:51.%06dZ INFO request %d done path=/api/v1/users/%d status=200 took=0.012"
JSON = b'{"time":"2026-11-23T13:21:51.%06dZ","level":"info","msg":"request %d done","path":"/api/v1/users/%d","status":200,"took":0.012}'
LOGFMT = b'time=2026-11-23T13:21:51.%06dZ level=info msg="request %d done" path=/api/v1/users/%d status=200'
CRI = b"2026-11-23T13:21:51.%06dZ stdout F request %d done path=/api/v1/users/%d"
DOCKER = b'{"log":"request %d done path=/api/v1/users/%d\\n","stream":"stdout","time":"2026-11-23T13:21:51.%06dZ"}'
SYSLOG = b"<165>1 2026-11-23T13:21:51.%06dZ web app 7 ID47 - request %d done path=/api/v1/users/%d"
RFC3164 = b"<165>Nov 23 13:21:51 web app[%d]: request %d done path=/api/v1/users/%d"
KLOG = b'I1123 13:21:51.%06d   7 pod.go:7] "Request %d done" path="/api/v1/users/%d"'
CSV = b"2026-11-23T13:21:51.%06dZ,request %d,/api/v1/users/%d,200"
COLOURS = b"\x1b[90m2026-11-23T13:21:51.%06dZ\x1b[0m \x1b[32mINFO\x1b[0m request %d done path=/api/v1/users/%d"

CASES: Sequence[tuple[str, bytes, Sequence[Any]]] = [
    ("record alone", TEXT, []),
    ("parse: text", TEXT, [{"parse": "text"}]),
    ("parse: json", JSON, [{"parse": "json"}]),
    ("parse: logfmt", LOGFMT, [{"parse": "logfmt"}]),
    ("parse: regex", TEXT, [{"parse": {"regex": r"path=(?P<path>\S+) status=(?P<status>\d+)"}}]),
    ("parse: cri", CRI, [{"parse": "cri"}]),
    ("parse: docker", DOCKER, [{"parse": "docker"}]),
    ("parse: syslog (RFC 5424)", SYSLOG, [{"parse": "syslog"}]),
    ("parse: syslog (RFC 3164)", RFC3164, [{"parse": "syslog"}]),
    ("parse: klog", KLOG, [{"parse": "klog"}]),
    ("parse: csv", CSV, [{"parse": {"csv": ["time", "msg", "path", "status"]}}]),
    ("keep", TEXT, [{"keep": r"status=\d+"}]),
    ("drop that finds nothing", TEXT, [{"drop": r"password=\S+"}]),
    ("min_level", TEXT, [{"min_level": "info"}]),
    ("redact that finds nothing", TEXT, [{"redact": r"password=\S+"}]),
    ("redact that finds one", TEXT, [{"redact": r"users/\d+"}]),
    ("add", TEXT, [{"add": {"site": "berlin"}}]),
    ("rename", TEXT, [{"rename": {"msg": "message"}}]),
    ("remove", TEXT, [{"remove": ["path"]}]),
    ("strip_ansi", COLOURS, ["strip_ansi"]),
    ("sample", TEXT, [{"sample": 0.5}]),
    ("rate_limit", TEXT, [{"rate_limit": 1e9}]),
    ("deduplicate", TEXT, [{"deduplicate": "60s"}]),
    ("count", TEXT, [{"count": {"name": "bench_lines_total", "labels": {"level": "level"}}}]),
    ("histogram", TEXT, [{"histogram": {"name": "bench_took", "field": "took"}}]),
]
AFTER_JSON = ("rename", "remove", "count", "histogram", "redact that finds nothing")
"""Stages for fields: timed behind `parse: json` as well."""


def main() -> None:
    options = arguments(__doc__, lines=100_000).parse_args()
    rows = []
    for name, form, specs in CASES:
        rows.append(Row(f"stage: {name}", rate(form, specs, options.lines), "lines/CPU s"))
    for name, _form, specs in CASES:
        if name in AFTER_JSON:
            both = [{"parse": "json"}, *specs]
            rows.append(
                Row(f"stages: parse: json, {name}", rate(JSON, both, options.lines), "lines/CPU s")
            )
    rows += [
        Row(f"multiline: {rule}", group(rule, options.lines), "lines/CPU s")
        for rule in (r"^\d{4}-", "java", "stack_traces")
    ]
    report(rows, options.json)


def rate(form: bytes, specs: Sequence[Any], lines: int) -> float:
    stages = pipeline.Pipeline(files=["x"], stages=specs).make_stages()
    data = b"".join(form % (number, number, number) + b"\n" for number in range(lines))
    read_at = 1_795_440_112 * 10**9
    block = Block(data, "/log/a", "id", 0, len(data), read_at)
    return max(lines / run(block, stages) for _ in range(3))


def run(block: Block, stages: Sequence[Stage]) -> float:
    began = time.process_time()
    for made in block.records():
        record: logs.Record | None = made
        for stage in stages:
            record = stage(record) if record is not None else None
    return time.process_time() - began


def group(rule: str, lines: int) -> float:
    data = b"".join(TEXT % (number, number, number) + b"\n" for number in range(lines))
    grouper = MultilineGrouper(pipeline.multiline(rule))
    best = 0.0
    for _ in range(3):
        began = time.process_time()
        grouper.group(data, final=True)
        best = max(best, lines / (time.process_time() - began))
    return best


if __name__ == "__main__":
    main()
