"""What the page `/ui` of `sidecar collect` shows: files with their lag, and sinks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sidecar.cli.impl import file_positions
from sidecar.logs.collector import Collector
from sidecar.logs.pipelines import Topology
from sidecar.process import executor

MAX_FILES = 200
"""Files shown of one pipeline, those with the largest lag first; `omitted` counts the others."""


async def describe(topology: Topology) -> Mapping[str, object]:
    """Return what `/ui/state` says of the collections that run now."""
    pipelines = [
        await executor.run_in_thread(_describe_pipeline, name, collector)
        for name, collector in topology.collectors.items()
    ]
    return {
        "role": "collect",
        "started": topology.started,
        "problem": topology.failure(),
        "pipelines": pipelines,
    }


def _describe_pipeline(name: str, collector: Collector) -> dict[str, Any]:
    """Describe one collection. Blocking: it looks for the sizes of the files."""
    state = collector.last_state
    files = [
        _describe_file(rows)
        for rows in map(file_positions.rows, state.entries if state else ())
        if rows
    ]
    files.sort(key=lambda file: (-file["lag"], file["file"]))
    return {
        "name": name,
        "checkpoint": collector.source.checkpoint_path,
        "lines": collector.summary.lines,
        "refused": collector.summary.refused,
        "lag": sum(file["lag"] for file in files),
        "sinks": [
            {
                "name": worker.name,
                "pending": worker.pending_bytes,
                "budget": worker.budget,
                "failure": worker.failure,
                "failing_seconds": 0.0
                if worker.failing_since is None
                else time.monotonic() - worker.failing_since,
            }
            for worker in collector.workers
        ],
        "files": files[:MAX_FILES],
        "omitted": max(len(files) - MAX_FILES, 0),
    }


def _describe_file(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe a file by its position for each sink; its lag is that of the sink that is furthest behind."""
    return {
        "file": rows[0]["file"],
        "size": rows[0]["size"],
        "state": rows[0]["state"],
        "lag": max(row["lag"] for row in rows),
        "positions": [{"sink": row["sink"], "lag": row["lag"]} for row in rows],
    }
