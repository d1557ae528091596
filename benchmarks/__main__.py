"""Run the benchmarks one after the other: `python -m benchmarks [NAME …] [--docs]`.

Each is a script of this directory and a process of its own, so that none warms up another.
At the end there is one table of all that were given as rows; numbers (JSON) and plots (SVG) are in `bench-results/`.
`--docs` writes table and plots into `docs/` as well: what is shown there was measured in one run, by this.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # as each of the scripts has it

from _rows import Curve, Row, markdown, table  # noqa: E402

RESULTS = HERE.parent / "bench-results"
DOCS = HERE.parent / "docs"
PAGE = DOCS / "benchmarks.md"
MARK = (
    "<!-- From here on written by `make bench ARGS=--docs`: measure again, and do not edit. -->\n"
)
#: What the pictures show, for those who do not see them.
ALT = {
    "overview": "Throughput, CPU time, latency, durable writes, propagation and memory beside the field",
    "growth": "How cost grows with size, files of a set, subscribers and kept versions",
}


def main() -> int:
    scripts = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem[0] != "_"}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(scripts))
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md and plots")
    options = parser.parse_args()
    if unknown := set(options.names) - set(scripts):
        parser.error(
            f"no such benchmark: {', '.join(sorted(unknown))} (there are {', '.join(scripts)})"
        )
    RESULTS.mkdir(exist_ok=True)
    results: dict[str, Any] = {}
    failed: list[str] = []
    for name in options.names or list(scripts):
        print(f"== {name}", flush=True)
        found = run(scripts[name])
        if found is None:
            failed.append(name)
        else:
            results[name] = found
    (RESULTS / "all.json").write_text(json.dumps(results, indent=2))
    rows = [Row(**row) for one in results.values() for row in one.get("rows", [])]
    curves = [Curve(**curve) for one in results.values() for curve in one.get("curves", [])]
    print(f"== all of it\n{table(rows)}\n{machine()}")
    draw(rows, curves, RESULTS)
    if options.docs:
        plots = draw(rows, curves, DOCS / "plots")
        shown = "".join(f"![{ALT[path.stem]}](plots/{path.name})\n\n" for path in plots)
        head = PAGE.read_text().partition(MARK)[0]
        PAGE.write_text(f"{head}{MARK}\n{machine()}\n\n{shown}{markdown(rows)}\n")
    if failed:
        print(f"== could not be measured: {', '.join(failed)}")
    return bool(failed)


def run(script: Path) -> dict[str, Any] | None:
    """Run one benchmark, and return what it has written; None if it failed."""
    found = RESULTS / f"{script.stem}.json"
    found.unlink(missing_ok=True)
    command = [sys.executable, str(script), "--json", str(found)]
    if subprocess.run(command, check=False).returncode or not found.exists():
        return None
    result: dict[str, Any] = json.loads(found.read_text())
    return result


def draw(rows: list[Row], curves: list[Curve], directory: Path) -> list[Path]:
    """Draw what there is, and return the pictures."""
    try:
        import _plots
    except ImportError:
        print("== no plots: matplotlib is not installed (pip install matplotlib)")
        return []
    drawn: list[Path] = _plots.draw(rows, curves, directory)
    for path in drawn:
        print(f"== drawn: {path.relative_to(HERE.parent)}")
    return drawn


def machine() -> str:
    """Return what it was measured on."""
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Linux {platform.release()},"
        f" Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end."
    )


if __name__ == "__main__":
    sys.exit(main())
