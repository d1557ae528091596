"""Plant each known fault in a copy of the project, and see whether the tests that fit it notice.

    make mutants                      all of them
    make mutants ARGS="token dead"    those whose name contains one of these words
    make mutants ARGS="--jobs 4"      so many at a time (two by default)

The faults are in `faults.toml`: the file, the text, what replaces it, the tests, and the promise that is broken.
First the tests run without a fault: a red one would prove nothing.
Each line of the table ends with the test that was red; the exit status is 1 when a fault survives that is not
argued as `accepted`. SIGINT and SIGTERM end the tests that run and remove the copies; the project is only read.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent.parent
FAULTS = Path(__file__).parent / "faults.toml"
TIMEOUT = 300.0
"""Seconds after which tests that hang count as red: a fault may be one that never ends."""
STOP_TIMEOUT = 30.0
"""Seconds that interrupted tests have to end the programs that they started."""

CAUGHT, SURVIVED, ACCEPTED = "caught", "SURVIVED", "accepted"

_RED = re.compile(r"^(?:FAILED|ERROR) ([^ \n\[]+)", re.MULTILINE)


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

    @contextmanager
    def planted(self, root: Path) -> Iterator[None]:
        """Replace the text in a copy of the project; afterwards the file is as before, with its time.

        Raises:
            ValueError: the text is not there exactly once.
        """
        path = root / self.file
        text, status = path.read_text(), path.stat()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: the text stands {count} times in {self.file}, not once")
        path.write_text(text.replace(self.old, self.new))
        try:
            yield
        finally:
            path.write_text(text)
            # The bytecode from the run without a fault fits again.
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


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
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sidecar-mutants-") as directory:
        trial = Trial([copy(Path(directory) / str(n) / "project") for n in range(options.jobs)])
        if failed := trial.without_a_fault(chosen):
            print(f"Red without a fault: {', '.join(failed)}. Mend these first.")
            return 1
        results = trial.with_each_fault(chosen)
    survived = [one for one, result in zip(chosen, results, strict=True) if result == SURVIVED]
    print(
        f"{len(chosen)} faults in {time.monotonic() - began:.0f} s: {results.count(CAUGHT)} caught,"
        f" {results.count(ACCEPTED)} accepted, {len(survived)} survived"
    )
    for one in survived:
        print(f"  {one.name}: {one.promise} ({one.file}; {' '.join(one.tests)})")
    return bool(survived)


@dataclass
class Trial:
    """Runs tests in copies of the project, in as many at a time as there are copies."""

    copies: Sequence[Path]
    _free: SimpleQueue[Path] = field(default_factory=SimpleQueue)
    _done: int = 0

    def __post_init__(self) -> None:
        for root in self.copies:
            self._free.put(root)

    def without_a_fault(self, chosen: Sequence[Fault]) -> list[str]:
        """Run each test that is needed once; return those that are red."""
        wanted = sorted({test for one in chosen for test in one.tests})
        print(f"{len(wanted)} files and tests without a fault", flush=True)
        # Each copy runs all its files: this writes the bytecode that the runs with a fault load.
        shares = [wanted[n :: len(self.copies)] for n in range(len(self.copies))]
        with ThreadPoolExecutor(len(self.copies)) as pool, _children_ended():
            found = pool.map(run_tests, self.copies, shares)
            return [test for red in found for test in red]

    def with_each_fault(self, chosen: Sequence[Fault]) -> list[str]:
        """Plant the faults one by one, print the table, and return the results."""
        with ThreadPoolExecutor(len(self.copies)) as pool, _children_ended():
            return list(pool.map(lambda fault: self._try(fault, len(chosen)), chosen))

    def _try(self, fault: Fault, count: int) -> str:
        began = time.monotonic()
        root = self._free.get()
        try:
            with fault.planted(root):
                red = run_tests(root, fault.tests, is_mutant=True)
        finally:
            self._free.put(root)
        result = CAUGHT if red else ACCEPTED if fault.accepted else SURVIVED
        self._done += 1
        print(
            f"{self._done:3}/{count}  {result:9} {time.monotonic() - began:5.1f} s "
            f" {fault.name:46} {' '.join(red) or fault.promise}",
            flush=True,
        )
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


_children: set[subprocess.Popen[bytes]] = set()


def run_tests(root: Path, tests: Sequence[str], *, is_mutant: bool = False) -> list[str]:
    """Run tests in a copy of the project and return those that are red.

    With a fault, the first red one ends the run, and no bytecode of the changed file is written.
    """
    if not tests:
        return []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:anyio"]
    command += ["--tb=no", f"--basetemp={root.parent / 'tmp'}", *["-x"] * is_mutant, *tests]
    # What is installed is the project itself; the copy comes before it, also in programs that tests start.
    variables = os.environ | {"PYTHONPATH": str(root)}
    if is_mutant:
        variables["PYTHONDONTWRITEBYTECODE"] = "1"
    with subprocess.Popen(
        command,
        cwd=root,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # `_stop` alone interrupts it, once
    ) as child:
        _children.add(child)
        try:
            told = child.communicate(timeout=TIMEOUT)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            _stop(child)
            return [f"no end within {TIMEOUT:.0f} s: {' '.join(tests)}"]
        finally:
            _children.discard(child)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # what a red test did not end
    red = list(dict.fromkeys(_RED.findall(told)))
    if child.returncode not in (0, 1) or bool(red) != bool(child.returncode):
        # Nothing was collected, or pytest itself was called wrongly or interrupted: that catches no fault.
        raise RuntimeError(f"{' '.join(command)}: {told[-2000:]}")
    return red


@contextmanager
def _children_ended() -> Iterator[None]:
    """When SIGINT or SIGTERM comes, end the tests that run, so that nothing of theirs stays behind."""
    try:
        yield
    except KeyboardInterrupt:
        for child in list(_children):
            _stop(child)
        raise


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Interrupt pytest: it ends the programs that its tests started."""
    child.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_TIMEOUT)
    child.kill()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets its background ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
