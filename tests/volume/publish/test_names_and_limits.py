"""How often a watch at rest compares every file, where it has events and many files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from sidecar.volume.watch import thread
from sidecar.volume.watch.changes import Changes


class Clock:
    """Stands in for the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def rechecks(path: Path, monkeypatch: pytest.MonkeyPatch, *, mode: str, cost: float) -> list[bool]:
    """Let ten minutes pass, one look a second, and tell which of them trusted the directories alone."""
    clock = Clock()
    monkeypatch.setattr(thread, "time", clock)
    one = thread.WatchThread(
        f"{path}/",
        requested="auto",
        recheck=1.0,
        limit=1,
        notify=lambda _: None,
        ended=lambda: None,
    )
    seen: list[bool] = []

    def look(_: object, *, thoroughly: bool, quick: bool) -> None:
        seen.append(quick)
        clock.now += 0.0 if quick else cost

    coverage = SimpleNamespace(unsupported=False, failure=None)
    one._scanner = SimpleNamespace(scan=look, coverage=coverage, can_rescan=lambda _: False)  # type: ignore[assignment]
    one._notifier = SimpleNamespace(mode=mode)
    one._last_scan = SimpleNamespace(problems={})  # type: ignore[assignment]
    for _ in range(600):
        one._scan(Changes(), thoroughly=False)
        clock.now += 1.0
    one._wakeup.close()
    return seen


@pytest.mark.parametrize(
    ("cost", "least", "most"), [(0.0005, 600, 600), (0.006, 80, 100), (0.06, 9, 11), (0.6, 9, 11)]
)
def test_comparing_many_files_takes_a_thousandth_of_the_time_at_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: float, least: int, most: int
) -> None:
    """Few files each time, ten thousand once a minute, and more than those no more seldom."""
    quick = rechecks(tmp_path, monkeypatch, mode="inotify", cost=cost)
    assert least <= quick.count(False) <= most


def test_without_events_every_look_compares_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would tell of a file that is rewritten in place."""
    assert not any(rechecks(tmp_path, monkeypatch, mode="poll", cost=0.06))
