"""The grid of `every`, on a clock that the test turns by hand."""

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.process.lifecycle import every


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time passes only in sleeps (at once) and by `pass_by`."""

    def __init__(self, early: float = 0.0) -> None:
        self.now = 1000.0
        self.early = early
        clock = self

        class Leap(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> Any:
                if timeout:
                    clock.now += max(0.0, timeout - clock.early)
                return super().select(0)

        super().__init__(Leap())

    def time(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def run(clock: Clock, main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(main)


def ticks(clock: Clock, step: float, work: list[float]) -> list[float]:
    """The times of the ticks, when the work after each one takes so long."""
    seen: list[float] = []

    async def main() -> None:
        remaining = iter(work)
        async for _ in every(step):
            seen.append(clock.time() - 1000.0)
            duration = next(remaining, None)
            if duration is None:
                return
            clock.pass_by(duration)

    run(clock, main())
    return seen


def test_the_first_tick_is_at_once_and_the_rest_lie_on_the_grid() -> None:
    """Work of 3 s in a step of 10 s does not make it a step of 13 s."""
    assert ticks(Clock(), 10.0, [3.0, 0.0, 9.9]) == pytest.approx([0.0, 10.0, 20.0, 30.0])


def test_a_pause_is_followed_by_one_tick_and_no_burst() -> None:
    """35 s of work in a step of 10 s: the next tick is at 40 s, the three missed ones are gone."""
    assert ticks(Clock(), 10.0, [35.0, 0.0]) == pytest.approx([0.0, 40.0, 50.0])


def test_a_timer_that_fires_early_does_not_repeat_a_step() -> None:
    """Timers fire up to a clock tick early; the step must not be counted from that."""
    clock = Clock(early=1e-10)
    clock._clock_resolution = 1e-9  # type: ignore[attr-defined]
    assert ticks(clock, 10.0, [0.0, 0.0, 0.0]) == pytest.approx([0.0, 10.0, 20.0, 30.0])


@given(
    st.floats(0.001, 1e4),
    st.lists(st.floats(0, 1e5), max_size=20),
)
def test_ticks_never_bunch_and_never_leave_the_grid(step: float, work: list[float]) -> None:
    """Whatever the work takes: each tick on the grid, each gap at least a step."""
    seen = ticks(Clock(), step, work)
    for tick in seen:
        assert tick / step == pytest.approx(round(tick / step), abs=1e-3)
    for earlier, later in pairwise(seen):
        assert later - earlier >= step * 0.999 - 1e-6


async def test_ticks_are_aware_and_local() -> None:
    """`f"{now:%H:%M}"` in a page is what a clock on the wall says."""
    async for now in every(60.0):
        offset = now.utcoffset()
        assert isinstance(offset, timedelta)
        assert offset == now.astimezone().utcoffset()
        break
