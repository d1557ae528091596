"""Numbers as rows and curves: ours, beside another one and beside the goal; a table for people, JSON for machines."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEADINGS = ("", "ours", "", "from–to", "peer", "ratio", "goal", "")


@dataclass(frozen=True)
class Row:
    """One number, beside the same of a peer.

    `goal` is the most that it should be, `least` the least; of several rounds `low` and `high` are the spread.
    `goal_ratio` and `least_ratio` are the same for what it is divided by that of the peer: a ratio of one run
    holds on another machine too, a number alone hardly.
    """

    what: str
    ours: float
    unit: str
    goal: float | None = None
    peer: float | None = None
    peer_name: str = ""
    least: float | None = None
    low: float | None = None
    high: float | None = None
    goal_ratio: float | None = None
    least_ratio: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the goals are met, None where there is none."""
        bounds = [(self.ours, self.goal, self.least)]
        if self.ratio is not None:
            bounds.append((self.ratio, self.goal_ratio, self.least_ratio))
        held = [value <= most for value, most, _ in bounds if most is not None]
        held += [value >= least for value, _, least in bounds if least is not None]
        return all(held) if held else None


@dataclass(frozen=True)
class Curve:
    """How a number grows with another one: a point is (x, y), a series has a name."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]


def of_rounds(what: str, ours: Sequence[float], unit: str, **more: Any) -> Row:
    """Return the row of several rounds: the median, and the spread around it."""
    return Row(what, statistics.median(ours), unit, low=min(ours), high=max(ours), **more)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text for a terminal."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column == 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table for a page."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(rows: Sequence[Row], path: Path | None, curves: Sequence[Curve] = ()) -> None:
    """Print the rows, and write them and the curves where `--json` says."""
    print(table(rows), flush=True)
    if path is not None:
        found = {"rows": list(map(asdict, rows)), "curves": list(map(asdict, curves))}
        path.write_text(json.dumps(found, indent=2))


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
    """Return the CPU time of a process, with that of its threads that have ended.

    It is the clock that clock_getcpuclockid(3) names: as exact as the scheduler's own count.
    """
    return time.clock_gettime((~pid << 3) | 2)


def resident(pid: int) -> float:
    """Return the resident memory in MiB, as ps(1) has it in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("\nVmRSS:")[1].split()[0]) / 1024


def _cells(row: Row) -> tuple[str, ...]:
    spread = "" if row.low is None else f"{_number(row.low)}–{_number(row.high or 0.0)}"
    peer = "" if row.peer is None else f"{_number(row.peer)} {row.peer_name}"
    ratio = f"{row.ratio:.3f}×" if row.ratio is not None else ""
    met = {None: "", True: "ok", False: "MISSED"}[row.met]
    return (row.what, _number(row.ours), row.unit, spread, peer, ratio, _goal(row), met)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"


def _goal(row: Row) -> str:
    parts = [
        *([f"≤ {row.goal:g}"] if row.goal is not None else []),
        *([f"≥ {row.least:g}"] if row.least is not None else []),
        *([f"≤ {row.goal_ratio:g}×"] if row.goal_ratio is not None else []),
        *([f"≥ {row.least_ratio:g}×"] if row.least_ratio is not None else []),
    ]
    return ", ".join(parts)
