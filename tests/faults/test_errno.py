"""Every errno at every syscall of a publish: a documented outcome, the old content whole, and nothing left over."""

from __future__ import annotations

import itertools

import pytest

from faults.publisher import STATES, Kind
from sidecar import _errors
from support.faultkit import Point, Publisher, Run

ERRNOS = ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EMFILE", "EPERM", "ESTALE", "EXDEV"]
FULL = ["ENOSPC", "EDQUOT"]
KINDS = [kind for kind in STATES if kind != "prepare"]
#: Where storage fails in practice: there each errno is tried, elsewhere one in turn.
STORING = frozenset(("write", "fsync", "renameat", "symlinkat", "mkdirat", "fchmod"))

UNCERTAIN = _errors.PublishUncertain.__name__


def fail(publisher: Publisher, kind: Kind, point: Point, error: str) -> list[str]:
    """Let one syscall of a publish fail, and return what is wrong with the outcome."""
    directory = publisher.directory()
    run = publisher.run(kind, directory, f"error={error}", point)
    return [
        f"{kind}, {error} at {point}: {wrong}: {run}"
        for wrong in broken_promises(kind, error, point, run)
    ]


def within(publisher: Publisher, kind: Kind, only: frozenset[str] | None = None) -> list[Point]:
    """Return the syscalls of the publish itself: the last one tells of its outcome."""
    return [p for p in publisher.points(kind)[:-1] if only is None or p.syscall in only]


def broken_promises(kind: Kind, error: str, point: Point, run: Run) -> list[str]:
    """Return which of the promises a run has broken."""
    full = error in FULL
    failure = (_errors.VolumeFull if full else _errors.VolumeUnavailable).__name__
    if full and point.syscall not in STORING and run.outcome == _errors.VolumeUnavailable.__name__:
        failure = run.outcome  # no disk is full for a reader: what cannot be read is not available
    rules = {
        # Where mounts are not our own, others may come between: then their table takes another number of reads.
        "the fault did not come": run.hit or point.syscall == "read",
        "it broke": run.status == 0 and run.broken is None,
        "no documented outcome": run.outcome in ("published", UNCERTAIN, failure),
        "not published, and visible": run.outcome != failure or run.shown == "old",
        "published, and not visible": run.outcome == failure or run.shown == "new",
        "the message does not say where": run.outcome == "published" or "volume" in run.message,
        "the message is not ours": "[Errno" not in run.message,
        # The directory that a link has replaced: what cannot be removed at once is swept at the next start.
        "something is left over": not run.left
        or (kind, run.outcome) == ("transition", "published"),
        # strace lets a close fail by not doing it; without getrandom(2) Python keeps /dev/urandom open.
        "a descriptor is lost": run.leaked <= (point.syscall in ("close", "getrandom")),
        "the next publish does not work": run.again == "new",
    }
    return [rule for rule, kept in rules.items() if not kept]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_at_any_syscall_has_a_documented_outcome(publisher: Publisher, kind: Kind) -> None:
    """DESIGN 4: it did not happen (`PublishError`) or is visible but perhaps not durable; never in doubt which."""
    errors = itertools.cycle(ERRNOS)
    cases = [(point, next(errors)) for point in within(publisher, kind)]
    assert [w for point, error in cases for w in fail(publisher, kind, point, error)] == []


def test_no_fault_reaches_who_looks_at_the_outcome(publisher: Publisher) -> None:
    """Beyond the last read(2) of a publish: else a table of mounts that has become shorter looks like a torn set."""
    reads = publisher.points("transition", frozenset({"read"}))
    for further in range(1, 9):
        point = Point("read", reads[-1].nth + further)
        run = publisher.run("transition", publisher.directory(), "error=ENOSPC", point)
        assert (run.outcome, run.shown, run.again, run.hit) == ("published", "new", "new", False)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["file", "set"])
def test_every_error_of_the_storage_has_a_documented_outcome(
    publisher: Publisher, kind: Kind
) -> None:
    """The same with each errno, where storage fails in practice."""
    cases = itertools.product(within(publisher, kind, STORING), ERRNOS)
    assert [w for point, error in cases for w in fail(publisher, kind, point, error)] == []


@pytest.mark.soak
def test_every_error_at_every_syscall_has_a_documented_outcome(publisher: Publisher) -> None:
    """The goal R3: the whole matrix."""
    cases = [(kind, p, e) for kind in KINDS for p in within(publisher, kind) for e in ERRNOS]
    assert [w for kind, point, error in cases for w in fail(publisher, kind, point, error)] == []
