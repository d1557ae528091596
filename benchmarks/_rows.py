"""Numbers as rows: ours, beside another one and beside the goal; one table for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One number; `goal` is the most that it should be, `peer` the same of whom `peer_name` says."""

    what: str
    ours: float
    unit: str
    goal: float | None = None
    peer: float | None = None
    peer_name: str = ""


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text for a terminal."""
    lines = [("", "ours", "", "goal", "", "peer", "")]
    for row in rows:
        goal = "" if row.goal is None else f"≤ {row.goal:g}"
        met = "" if row.goal is None else "ok" if row.ours <= row.goal else "MISSED"
        peer = "" if row.peer is None else f"{row.peer:,.3g} {row.peer_name}"
        ratio = f"{row.ours / row.peer:.3f}×" if row.peer else ""
        lines.append((row.what, f"{row.ours:,.3g}", row.unit, goal, met, peer, ratio))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column == 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Print the rows, and write them where `--json` says."""
    print(table(rows))
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which so many per cent of them lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep of their own will: something woke them as often."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        total += int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return total


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads, from the scheduler's own count in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def resident(pid: int) -> float:
    """Return the resident memory in MiB, as ps(1) has it in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("\nVmRSS:")[1].split()[0]) / 1024
