"""Run the benchmarks one after the other: `python -m benchmarks [NAME …]`.

Each is a script of this directory and a process of its own, so that none warms up another.
At the end there is one table of all that were given as rows, and everything as JSON in `bench-results/`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._rows import Row, table

HERE = Path(__file__).parent
RESULTS = HERE.parent / "bench-results"


def main() -> int:
    scripts = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem[0] != "_"}
    wanted = sys.argv[1:] or list(scripts)
    if unknown := set(wanted) - set(scripts):
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(scripts)}")
        return 2
    failed = []
    RESULTS.mkdir(exist_ok=True)
    results: dict[str, Any] = {}
    for name in wanted:
        print(f"== {name}", flush=True)
        found = RESULTS / f"{name}.json"
        found.unlink(missing_ok=True)
        given = ["--json", str(found)] if '"--json"' in scripts[name].read_text() else []
        if subprocess.run([sys.executable, str(scripts[name]), *given], check=False).returncode:
            failed.append(name)
        if found.exists():
            results[name] = json.loads(found.read_text())
    rows = [Row(**row) for one in results.values() for row in one.get("rows", [])]
    if rows:
        print(f"== all of it\n{table(rows)}")
    (RESULTS / "all.json").write_text(json.dumps(results, indent=2))
    if failed:
        print(f"== could not be measured: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
