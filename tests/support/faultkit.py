"""Faults at chosen syscalls: a publisher that strace is attached to, and what must hold afterwards.

The traps of this way of testing: `when=N` counts for each name of a syscall from the moment of attaching,
so what is counted has to be the same in every run; and a fault that was not injected makes a test green for nothing,
so every run says whether it was hit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from faults import publisher
from faults.publisher import Kind
from sidecar import _errors
from sidecar.fs import layout
from sidecar.volume.publish.models import Operation
from sidecar.volume.publish.store import Store

TESTS = Path(__file__).parents[1]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: What the interpreter does for itself, as it likes: neither the same in each run nor ours.
_RUNTIME = _words(
    "mmap munmap mremap mprotect brk madvise futex rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait"
    " getpid gettid sched_yield clock_nanosleep restart_syscall exit_group"
)
#: What `publisher.mark` calls.
MARKING = "newfstatat"
#: Between two of these nothing on the disk changes.
CHANGING = _words(
    "write pwrite64 fsync close rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat"
    " mkdir mkdirat rmdir fchmod fchmodat fchown ftruncate flock"
)


@dataclass(frozen=True)
class Point:
    """The `nth` call of a syscall, counted from the moment of attaching."""

    syscall: str
    nth: int

    def __str__(self) -> str:
        return f"{self.syscall} {self.nth}"


@dataclass(frozen=True)
class Run:
    """How one run ended: `outcome` is what the publisher was told, None if it did not live to hear it.

    `hit` says that the fault was injected, and before the end of the publish.
    `shown` is what a reader saw after it, `left` what lay around, `again` what a second publish made of it.
    """

    status: int
    outcome: str | None = None
    message: str = ""
    leaked: int = 0
    left: Sequence[str] = ()
    shown: str = ""
    again: str = ""
    ready: bool = False
    hit: bool = False
    broken: str | None = None


class Publisher:
    """The program of `faults/publisher.py`, and strace."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._points: dict[Kind, list[Point]] = {}
        self._program = subprocess.Popen(
            [sys.executable, str(TESTS / "faults" / "publisher.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join((str(TESTS.parent), *sys.path))},
        )

    def close(self) -> None:
        for pipe in (self._program.stdin, self._program.stdout):
            assert pipe is not None
            pipe.close()
        self._program.wait(10)

    def directory(self) -> Path:
        """Return an empty directory; the one before is gone."""
        directory = self._scratch / "volume"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return directory

    def points(self, kind: Kind, only: frozenset[str] | None = None) -> list[Point]:
        """Return every syscall of a publish of that kind, in order, from what a run without fault did."""
        if kind not in self._points:
            self._points[kind] = self._trace(kind)
        return [p for p in self._points[kind] if only is None or p.syscall in only]

    def run(self, kind: Kind, directory: Path, fault: str, point: Point) -> Run:
        """Publish with a fault (`signal=KILL`, `error=ENOSPC`) at a point."""
        inject = f"inject={point.syscall}:{fault}:when={point.nth}"
        trace = self._scratch / "fault"
        traced = f"trace={point.syscall},{MARKING}"
        run = self._strace(kind, directory, "-o", str(trace), "-e", traced, "-e", inject)
        within, _, _ = trace.read_text(errors="replace").partition(publisher.END)
        return replace(run, hit="(INJECTED)" in within)

    def _trace(self, kind: Kind) -> list[Point]:
        trace = self._scratch / "trace"
        run = self._strace(kind, self.directory(), "-o", str(trace))
        assert run.outcome == "published", run
        count: Counter[str] = Counter()
        points: list[Point] = []
        inside = False
        for line in trace.read_text(errors="replace").splitlines():
            if (call := re.match(r"(\w+)\(", line)) is None:
                continue
            count[call[1]] += 1
            if publisher.END in line:
                return points
            if inside and call[1] not in _RUNTIME:
                points.append(Point(call[1], count[call[1]]))
            inside = inside or publisher.BEGIN in line
        raise AssertionError("the trace has no end")

    def _strace(self, kind: Kind, directory: Path, *options: str) -> Run:
        begun = self._ask({"kind": kind, "directory": str(directory)})
        assert begun.get("ready"), begun
        strace = subprocess.Popen(
            ["strace", "-p", str(begun["pid"]), *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert strace.stderr is not None
        with strace.stderr:
            said = strace.stderr.readline()
            assert "attached" in said, said
            facts = self._ask({})
            assert strace.wait(10) == 0 or facts["status"] != 0
        return Run(**{key: value for key, value in facts.items() if key != "pid"})

    def _ask(self, request: Mapping[str, str]) -> dict[str, Any]:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps(request) + "\n")
        self._program.stdin.flush()
        answer: dict[str, Any] = json.loads(self._program.stdout.readline())
        return answer


def by_path(directory: Path) -> dict[str, bytes]:
    """What a reader sees who knows nothing of sets, and opens visible names."""
    found: dict[str, bytes] = {}
    for path in directory.glob("[!.]*"):
        files = [path, *path.rglob("*")] if path.is_dir() else [path]
        found |= {str(f.relative_to(directory)): f.read_bytes() for f in files if f.is_file()}
    return found


def examine(kind: Kind, directory: Path, run: Run) -> list[str]:
    """Return what is wrong after a run that was killed: on the disk, and after the next start."""
    old, new = publisher.STATES[kind]
    wrong: list[str] = []

    def check(what: str, holds: object) -> None:
        if not holds:
            wrong.append(what)

    found, paths = publisher.state(str(directory)), by_path(directory)
    check(f"torn: {found}", found in (old, new))
    check("an acknowledged content is lost", found == new or run.outcome is None)
    for name in old.keys() & new.keys():
        whole = kind == "prepare" or paths.get(name) in (old[name], new[name])
        check(f"{name} is missing or torn by its path", whole)

    store = publisher.store_at(str(directory), grace=60.0)  # nothing vanishes into the history
    store.prepare({}, Operation())
    check("something is left over", not publisher.left_over(str(directory)))
    check("the start has changed the content", publisher.state(str(directory)) == found)
    check("a file of the set is not visible by its path", by_path(directory) == found)
    wrong += history_of(store, sorted(found), in_set=(directory / layout.DATA).is_symlink())

    again = publisher.begin(kind, str(directory))
    again()
    check("the next publish does not work", publisher.state(str(directory)) == new)
    return wrong


def history_of(store: Store, names: list[str], *, in_set: bool) -> list[str]:
    """Return what is wrong with the history: each version must be one to which a rollback works."""
    wrong: list[str] = []
    for name in [None] if in_set else names:
        versions = store.versions(name)
        if sum(v.current for v in versions) != 1:
            wrong.append(
                f"{sum(v.current for v in versions)} of the versions of {name} are current"
            )
        for version in versions:
            try:
                store.load_version(version.version, name)
            except _errors.SidecarError as error:
                wrong.append(str(error))
    return wrong
