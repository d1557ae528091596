"""The benchmarks' own arithmetic, and that their page tells of each: nothing is measured here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if path.stem[0] != "_")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of rows, found as the scripts find it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import _rows

    yield _rows
    for name in ("_rows", "_plots"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("bounds", "met"),
    [
        ({}, None),
        ({"goal": 2.0}, True),
        ({"goal": 1.9}, False),
        ({"least": 2.0}, True),
        ({"least": 2.1}, False),
        ({"peer": 4.0, "goal_ratio": 0.5}, True),
        ({"peer": 4.0, "goal_ratio": 0.49}, False),
        ({"peer": 4.0, "least_ratio": 0.51}, False),
        ({"goal_ratio": 0.1}, None),
        ({"goal": 2.0, "peer": 4.0, "least_ratio": 0.6}, False),
    ],
)
def test_a_row_meets_all_of_its_goals_or_none(
    rows: Any, bounds: dict[str, float], met: bool | None
) -> None:
    """A ratio counts only where the peer was measured; what has no goal is neither met nor missed."""
    assert rows.Row("it", 2.0, "s", **bounds).met is met


def test_a_table_shows_ratio_goal_and_what_was_missed(rows: Any) -> None:
    """For a terminal, and for a page."""
    row = rows.of_rounds(
        "GET /", [1.0, 3.0, 2.0], "µs", peer=4.0, peer_name="nginx", goal_ratio=0.4
    )

    for shown in (rows.table([row]), rows.markdown([row])):
        for part in ("GET /", "1–3", "4 nginx", "0.500×", "≤ 0.4×", "MISSED"):
            assert part in shown


def test_the_same_numbers_draw_the_same_plots(rows: Any, tmp_path: Path) -> None:
    """Plots are committed: a run that changes nothing must not change a byte."""
    pytest.importorskip("matplotlib")
    import _plots

    measured = [rows.Row("GET /, 3 bytes: p99", 1.0, "ms", peer=2.0, peer_name="nginx")]
    curves = [rows.Curve("Size", "bytes", "ms", {"publish": [(1, 1.0), (10, 2.0)]})]
    drawn = [
        [path.read_bytes() for path in _plots.draw(measured, curves, tmp_path / name)]
        for name in ("one", "other")
    ]

    assert len(drawn[0]) == 2
    assert drawn[0] == drawn[1]
    assert b"nginx" in drawn[0][0]


def test_a_picture_shows_only_what_was_measured(rows: Any, tmp_path: Path) -> None:
    """An empty panel would read as nothing, and an overview of nothing is not drawn."""
    pytest.importorskip("matplotlib")
    import _plots

    served = rows.Row("GET /, 3 bytes: p99", 1.0, "ms", peer=2.0, peer_name="nginx")
    other = rows.Row("file → file", 1.0, "MB/CPU s")

    (overview,) = _plots.draw([served, other], [], tmp_path)
    text = overview.read_text()
    assert "99th percentile" in text
    assert "Memory at rest" not in text
    assert _plots.draw([other], [], tmp_path) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_page_tells_of_each_benchmark(script: Path) -> None:
    """And each says what it measures, and writes its numbers where it is told to."""
    text = script.read_text()

    assert f"| `{script.stem}` |" in (ROOT / "docs/benchmarks.md").read_text()
    assert text.startswith('"""')
    assert "arguments(__doc__" in text
    assert "options.json" in text
