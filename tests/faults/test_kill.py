"""SIGKILL before every syscall of a publish: nothing is torn, nothing acknowledged is lost, nothing is left over."""

from __future__ import annotations

import itertools

import pytest

from faults.publisher import STATES, Kind
from support.faultkit import CHANGING, Point, Publisher, examine

#: Each way to the disk of its own; the others are made of the same steps in another order.
WHOLE: list[Kind] = ["file", "upload", "set"]


def kill(publisher: Publisher, kind: Kind, point: Point) -> list[str]:
    """Kill one publish, and return what is wrong afterwards."""
    directory = publisher.directory()
    run = publisher.run(kind, directory, "signal=KILL", point)
    if run.status != -9:
        return [f"{kind}, {point}: not killed: {run}"]
    return [f"{kind}, killed before {point}: {wrong}" for wrong in examine(kind, directory, run)]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", WHOLE)
def test_a_publish_killed_before_any_syscall_leaves_the_old_content_or_the_new(
    publisher: Publisher, kind: Kind
) -> None:
    """DESIGN 2: readers see the old content or the new one; leftovers of a killed writer are swept at its next start."""
    wrong = [w for point in publisher.points(kind) for w in kill(publisher, kind, point)]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", [kind for kind in STATES if kind not in WHOLE])
def test_a_publish_killed_before_anything_changes_on_the_disk_leaves_one_of_two_states(
    publisher: Publisher, kind: Kind
) -> None:
    """The same for every other way to publish, before each syscall that changes something."""
    wrong = [w for point in publisher.points(kind, CHANGING) for w in kill(publisher, kind, point)]
    assert wrong == []


@pytest.mark.soak
def test_two_thousand_kills_leave_no_trace(publisher: Publisher) -> None:
    """The goal R1, over all ways to publish and all of their syscalls."""
    everywhere = [(kind, point) for kind in STATES for point in publisher.points(kind)]
    runs = itertools.islice(itertools.cycle(everywhere), max(2000, len(everywhere)))
    assert [w for kind, point in runs for w in kill(publisher, kind, point)] == []
