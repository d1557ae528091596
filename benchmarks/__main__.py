"""Run the benchmarks one after the other: `python -m benchmarks [NAME …]`.

Each is a script of this directory and a process of its own, so that none warms up another.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    scripts = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem[0] != "_"}
    wanted = sys.argv[1:] or list(scripts)
    if unknown := set(wanted) - set(scripts):
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(scripts)}")
        return 2
    failed = []
    for name in wanted:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(scripts[name])], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"== could not be measured: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
