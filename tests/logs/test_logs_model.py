"""Whatever a writer, its rotation and a collector do in whatever order: no line is lost, none comes twice."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.logs_world import Step, World

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 40)),
        st.tuples(st.just("partial"), st.integers(0, 80)),
        st.tuples(
            st.sampled_from(["rename", "copytruncate", "delete", "truncate"]), st.integers(0, 5)
        ),
        st.tuples(st.just("compress"), st.integers(0, 8)),
        st.tuples(st.sampled_from(["start", "scan", "save", "poll", "stop", "kill"]), st.just(0)),
        st.tuples(st.sampled_from(["read", "acknowledge"]), st.integers(0, 5)),
        st.tuples(st.just("race"), st.integers(0, 60)),
        st.tuples(st.just("copying"), st.just(0)),
        st.tuples(st.just("copy_race"), st.integers(0, 30)),
        st.tuples(st.just("prefix"), st.integers(0, 6)),
        st.tuples(st.sampled_from(["fault", "shortage"]), st.integers(1, 3)),
        st.tuples(st.just("wait"), st.sampled_from([1, 11, 31])),
    ),
    max_size=40,
)
PLACES = st.sampled_from(["beside", "olddir", "far", "scarce"])
"""Where rotation moves files to: another device is one of them. `scarce`: beside, and descriptors are wanting."""
PATTERNS = st.sampled_from(["app.log", "app.log*", "**/app.log*"])
RUNS = int(os.environ.get("MODEL_RUNS", "2000"))


@contextmanager
def scratch(base: str | None = None) -> Iterator[Path]:
    """A directory in memory where there is one: the model syncs thousands of times."""
    if base is None and os.access("/dev/shm", os.W_OK):
        base = "/dev/shm"
    path = Path(tempfile.mkdtemp(prefix="sidecar-model-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def play(pattern: str, place: str | bool, steps: list[Step]) -> None:
    options: dict[str, Any] = {
        "olddir": place in ("olddir", True),
        "scarce": place == "scarce",
    }
    with scratch() as directory, scratch(tempfile.gettempdir()) as far:
        if place == "far":
            options["far"] = far
        World(directory, pattern, **options).run(steps)


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=RUNS, deadline=None, suppress_health_check=list(HealthCheck))
@given(PATTERNS, PLACES, STEPS)
def test_no_order_of_events_loses_or_repeats_a_line(
    pattern: str, place: str, steps: list[Step]
) -> None:
    """Random steps; then the collector runs to the end and all lines are counted by their number."""
    play(pattern, place, steps)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@settings(max_examples=10 * RUNS, deadline=None, suppress_health_check=list(HealthCheck))
@given(PATTERNS, PLACES, STEPS)
def test_no_order_of_events_loses_or_repeats_a_line_in_the_long_run(
    pattern: str, place: str, steps: list[Step]
) -> None:
    """The same, ten times as often."""
    play(pattern, place, steps)


FOUND: dict[str, tuple[str, bool | str, list[Step]]] = {
    "a copy in another directory was found while its log could not be opened": (
        "app.log",
        "olddir",
        [("partial", 0), ("start", 0), ("copying", 0), ("rename", 0), ("shortage", 1), ("scan", 0)],
    ),
    "an idle file was closed because descriptors ran out, and deleted before it was opened again": (
        "app.log",
        "beside",
        [("start", 0), ("shortage", 1), ("copying", 0), ("scan", 0), ("delete", 1)],
    ),
    "copied and truncated before the first line was seen": (
        "app.log",
        False,
        [("start", 0), ("write", 1), ("copytruncate", 0)],
    ),
    "compressed before its first line was seen": (
        "app.log",
        False,
        [("start", 0), ("rename", 1), ("compress", 0)],
    ),
    "an unread archive outlived the waiting time": (
        "app.log",
        False,
        [
            *[("start", 0), ("rename", 1), ("kill", 0), ("rename", 0)],
            *[("compress", 1), ("start", 0), ("wait", 31)],
        ],
    ),
    "closed for being quiet, then compressed": (
        "app.log",
        False,
        [("rename", 1), ("start", 0), ("poll", 0), ("wait", 31), ("scan", 0), ("compress", 0)],
    ),
    "one byte of a line is no evidence": (
        "app.log*",
        False,
        [
            *[("rename", 1), ("partial", 0), ("start", 0), ("stop", 0)],
            *[("delete", 0), ("compress", 0)],
        ],
    ),
    "renamed between the listing and the opening of the first scan": (
        "app.log",
        False,
        [("start", 0), ("stop", 0), ("race", 4), ("start", 0)],
    ),
    "renamed on between the listing and the question for its age": (
        "app.log",
        False,
        [("start", 0), ("stop", 0), ("race", 0), ("race", 10), ("start", 0)],
    ),
    "renamed twice around the first scan": (
        "app.log",
        False,
        [("start", 0), ("stop", 0), ("race", 4), ("rename", 0), ("start", 0)],
    ),
    "an empty file beside an empty copy is held open": (
        "app.log*",
        False,
        [("copytruncate", 0), ("start", 0), ("delete", 1)],
    ),
    "an archive beside a file that is not its source": (
        "app.log*",
        False,
        [
            *[("write", 1), ("race", 2), ("rename", 0), ("rename", 0)],
            *[("compress", 1), ("start", 0)],
        ],
    ),
    "truncated, renamed and compressed between two scans": (
        "app.log*",
        False,
        [("write", 16), ("start", 0), ("copytruncate", 0), ("rename", 1), ("compress", 0)],
    ),
    "copying was under way at the first scan": (
        "app.log",
        False,
        [("delete", 0), ("copying", 0), ("partial", 0), ("start", 0)],
    ),
    "copying was under way at the first scan, and compressed before the second": (
        "app.log",
        False,
        [("write", 1), ("copying", 0), ("start", 0), ("compress", 0)],
    ),
    "one byte that another log begins with, too, and then deleted": (
        "app.log*",
        False,
        [("rename", 1), ("partial", 0), ("start", 0), ("delete", 0)],
    ),
    "half of a copy was there at the first scan": (
        "app.log*",
        False,
        [("copying", 0), ("write", 1), ("copying", 0), ("start", 0), ("poll", 0)],
    ),
    "written between copy and truncation, and not read when it was truncated": (
        "app.log",
        False,
        [
            *[("copying", 0), ("partial", 0), ("copying", 0), ("partial", 0)],
            *[("copying", 0), ("write", 1), ("start", 0)],
        ],
    ),
    "rotated on during the last scan before a stop, with a line that nobody has seen": (
        "app.log",
        False,
        [("start", 0), ("write", 1), ("copytruncate", 1), ("copy_race", 1), ("stop", 0)],
    ),
    "closed while empty and quiet, then copied into": (
        "app.log",
        False,
        [("copying", 0), ("write", 1), ("start", 0), ("wait", 31), ("scan", 0)],
    ),
    "a log that has only the beginning of a rotated one, written to and deleted": (
        "app.log*",
        "beside",
        [
            *[("write", 1), ("prefix", 3), ("partial", 0), ("prefix", 0)],
            *[("start", 0), ("delete", 0)],
        ],
    ),
    "taken for a short copy, and then written to: a receiver must not take its lines for those it has": (
        "app.log",
        "beside",
        [
            *[("write", 4), ("start", 0), ("prefix", 3), ("read", 0), ("copying", 0)],
            *[("compress", 0), ("copy_race", 3), ("scan", 0), ("prefix", 0)],
        ],
    ),
    "read between copy and truncation": (
        "app.log",
        False,
        [("write", 1), ("start", 0), *[("copying", 0)] * 3, ("write", 1), ("read", 0)],
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_the_model_has_found_stays_mended(case: str) -> None:
    """Each failure of the random model, kept under a name of its own."""
    play(*FOUND[case])
