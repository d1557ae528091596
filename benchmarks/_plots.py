"""Pictures of what was measured, for README and docs: an overview beside the field, and how cost grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from _rows import Curve, Row

mpl.use("svg")

import matplotlib.pyplot as plt

OURS = "#1b6ca8"
OTHERS = "#b8bec6"
LINES = ("#1b6ca8", "#e07b39", "#4f9d69")
#: What a panel shows: a title, a unit, and rows by their beginning, each with a name beneath its bar.
OVERVIEW = (
    ("Requests a second, one core", "1/s", (("GET /, 3 bytes: requests a second", ""),)),
    ("CPU for GET /", "µs a request", (("GET /, 3 bytes: CPU a request", ""),)),
    ("99th percentile of GET /", "ms", (("GET /, 3 bytes: p99", ""),)),
    ("Writes a second, 64 clients", "1/s", (("writes a second, 64 clients, durable", ""),)),
    ("From rename to memory, p99", "ms", (("rename → memory, p99", ""),)),
    ("Memory at rest", "MiB", (("sidecar read: memory at rest", ""),)),
)


def draw(rows: Sequence[Row], curves: Sequence[Curve], directory: Path) -> list[Path]:
    """Draw what there is, and return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    # The same numbers make the same file, byte for byte: no date, no random names.
    with mpl.rc_context({"svg.hashsalt": "sidecar", "svg.fonttype": "none", "font.size": 9}):
        shown = any(_bars(rows, wanted) for *_, wanted in OVERVIEW)
        drawn = [_overview(rows, directory / "overview.svg")] if shown else []
        return drawn + ([_growth(curves, directory / "growth.svg")] if curves else [])


def _overview(rows: Sequence[Row], path: Path) -> Path:
    measured = [
        (title, unit, bars) for title, unit, wanted in OVERVIEW if (bars := _bars(rows, wanted))
    ]
    figure, panels = plt.subplots(
        1, len(measured), figsize=(12, 2.6), layout="constrained", squeeze=False
    )
    for panel, (title, unit, bars) in zip(panels[0], measured, strict=True):
        panel.set_title(title, fontsize=9)
        panel.set_ylabel(unit)
        panel.bar(range(len(bars)), list(bars.values()), color=[_colour(name) for name in bars])
        panel.set_xticks(
            range(len(bars)), [name.replace(", ", ",\n") for name in bars], rotation=20
        )
        _bare(panel)
    return _saved(figure, path)


def _bars(rows: Sequence[Row], wanted: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return the heights by name: ours once, and each peer's."""
    bars: dict[str, float] = {}
    for begin, name in wanted:
        for row in rows:
            if row.what.startswith(begin):
                bars[f"sidecar {name}".strip()] = row.ours
                if row.peer is not None:
                    bars[f"{row.peer_name} {name}".strip()] = row.peer
    return bars


def _growth(curves: Sequence[Curve], path: Path) -> Path:
    figure, panels = plt.subplots(
        1, len(curves), figsize=(12, 2.6), layout="constrained", squeeze=False
    )
    for panel, curve in zip(panels[0], curves, strict=True):
        panel.set_title(curve.title, fontsize=9)
        panel.set_xlabel(curve.x)
        panel.set_ylabel(curve.y)
        for colour, (name, points) in zip(LINES, curve.series.items(), strict=False):
            # Nothing has no place on a logarithmic axis: it stands at the left end.
            xs = [max(x, 0.5) for x, _ in points]
            panel.plot(xs, [y for _, y in points], "o-", markersize=3, color=colour, label=name)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.legend(fontsize=7, frameon=False)
        _bare(panel)
    return _saved(figure, path)


def _colour(name: str) -> str:
    return OURS if name.startswith("sidecar") else OTHERS


def _bare(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)


def _saved(figure: Any, path: Path) -> Path:
    metadata: Mapping[str, None] = {"Date": None}
    figure.savefig(path, metadata=metadata)
    plt.close(figure)
    return path
