"""Plant each known fault in a copy of the project, and see whether the tests that fit it notice.

    make mutants                      all of them
    make mutants ARGS="token dead"    those whose name contains one of these words
    make mutants ARGS="--jobs 4"      so many at a time (two by default)

The faults are in `faults.toml`: the file, the text, what replaces it, the tests, and the promise that is broken.
First the tests run without a fault: a red one would prove nothing.
The exit status is 1 when a fault survives that is not argued as `accepted`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FAULTS = Path(__file__).parent / "faults.toml"
TIMEOUT = 300.0
"""Seconds after which tests that hang count as red: a fault may be one that never ends."""

CAUGHT, SURVIVED, ACCEPTED = "caught", "SURVIVED", "accepted"


@dataclass(frozen=True)
class Fault:
    """One fault: in `file`, `old` is replaced by `new`; `tests` are to notice, because `promise` is broken.

    `accepted` says why nobody needs to notice, where that is so.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    promise: str
    accepted: str = ""

    def plant(self, root: Path) -> None:
        """Replace the text in a copy of the project.

        Raises:
            ValueError: the text is not there exactly once.
        """
        path = root / self.file
        text = path.read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: the text stands {count} times in {self.file}, not once")
        path.write_text(text.replace(self.old, self.new))


def faults(path: Path = FAULTS) -> list[Fault]:
    """Read the list."""
    found = tomllib.loads(path.read_text())["fault"]
    return [Fault(**{**one, "tests": tuple(one["tests"])}) for one in found]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="part of a fault's name")
    parser.add_argument("--jobs", type=int, default=2, help="copies at a time (default: 2)")
    options = parser.parse_args(arguments)
    chosen = [
        one
        for one in faults()
        if not options.words or any(word in one.name for word in options.words)
    ]
    if not chosen:
        parser.error("no fault has such a name")
    if failed := without_a_fault(chosen, options.jobs):
        print(f"Red without a fault: {', '.join(failed)}. Mend these first.")
        return 1
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(try_fault, chosen))
    survived = [one for one, result in zip(chosen, results, strict=True) if result == SURVIVED]
    print(
        f"{len(chosen)} faults: {results.count(CAUGHT)} caught,"
        f" {results.count(ACCEPTED)} accepted, {len(survived)} survived"
    )
    for one in survived:
        print(f"  {one.name}: {one.promise} ({one.file}; {' '.join(one.tests)})")
    return bool(survived)


def without_a_fault(chosen: Iterable[Fault], jobs: int) -> list[str]:
    """Run each test that is needed once, in the project as it is; return those that are red."""
    wanted = sorted({test for one in chosen for test in one.tests})
    print(f"{len(wanted)} files and tests without a fault", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        green = list(pool.map(lambda test: run_tests(ROOT, (test,)), wanted))
    return [test for test, is_green in zip(wanted, green, strict=True) if not is_green]


def try_fault(fault: Fault) -> str:
    """Plant one fault, run its tests, print a line of the table, and return the result."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sidecar-mutant-") as directory:
        root = copy(Path(directory) / "project")
        fault.plant(root)
        survived = run_tests(root, fault.tests)
    result = (ACCEPTED if fault.accepted else SURVIVED) if survived else CAUGHT
    took = time.monotonic() - began
    print(f"{result:9} {took:5.1f} s  {fault.name:46} {fault.promise}", flush=True)
    return result


def copy(root: Path) -> Path:
    """Copy what the tests need: all that is, or could be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (source := ROOT / name).is_file():
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return root


def run_tests(root: Path, tests: Sequence[str]) -> bool:
    """Run tests in a copy of the project until one is red; tell whether all are green."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            # What is installed is the project itself; the copy comes before it, also in programs that tests start.
            env=os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1, 2):
        # Nothing was collected, or pytest itself was called wrongly: that catches no fault.
        raise RuntimeError(f"{' '.join(command)}: {done.stdout.decode()[-2000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    raise SystemExit(main())
