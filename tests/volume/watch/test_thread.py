"""The watch thread trusts nothing that it has armed or read before something went wrong: it begins again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sidecar.fs.notify import select
from sidecar.fs.notify.base import EventBatch, Mode, WatchTarget
from sidecar.fs.notify.wakeup import WakeupPipe
from sidecar.volume.watch.scanner import PathScanner
from sidecar.volume.watch.thread import WatchThread, WatchUpdate
from support.watching import replace, wait


class FakeNotifier:
    """A notifier that reports what a test lets it report, and counts how often it was armed."""

    mode: Mode = "inotify"
    fd: int | None = None
    supports_nested = True

    def __init__(self, wakeup: WakeupPipe) -> None:
        self._wakeup = wakeup
        self._seen = EventBatch()
        self.arms = 0
        self.fail_next = False

    def arm(self, targets: Sequence[WatchTarget]) -> None:
        assert targets
        self.arms += 1

    def follow(self, target: WatchTarget) -> None: ...

    def unfollow(self, key: str) -> None: ...

    def drain(self) -> EventBatch:
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("planted")
        seen, self._seen = self._seen, EventBatch()
        return seen

    def close(self) -> None: ...

    def tell(self, seen: EventBatch) -> None:
        self._seen = seen
        self._wakeup.wake()


class World:
    """The watch thread of a file, with a fake notifier; its updates, and for each scan what was known, and whether that was trusted."""

    def __init__(self, path: Path, recheck: float) -> None:
        self.told: list[WatchUpdate] = []
        self.looks: list[tuple[bool, bool]] = []
        self.fail_next = False
        self.notifier: FakeNotifier
        self.watcher = WatchThread(
            str(path),
            requested="inotify",
            recheck=recheck,
            limit=1 << 20,
            notify=self.told.append,
            ended=lambda: None,
        )

    def source(self, _: Mode, wakeup: WakeupPipe) -> FakeNotifier:
        self.notifier = FakeNotifier(wakeup)
        return self.notifier

    def look(
        self, real: Any, scanner: PathScanner, before: Any, *, thoroughly: bool, quick: bool
    ) -> Any:
        self.looks.append((before is not None, not thoroughly))
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("planted")
        return real(scanner, before, thoroughly=thoroughly, quick=quick)


@pytest.fixture
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A watch thread that has reported the first content, and scans again so many seconds later."""
    path = tmp_path / "config"
    replace(path, "0")
    made = World(path, request.param)
    real = PathScanner.scan
    monkeypatch.setattr(select, "open_notifier", made.source)
    monkeypatch.setattr(
        PathScanner, "scan", lambda scanner, *args, **more: made.look(real, scanner, *args, **more)
    )
    made.watcher.start()
    wait(lambda: made.told and not made.watcher._unstable)  # so young a file is looked at once more
    yield made
    made.watcher.stop()
    made.watcher.join()


@pytest.mark.parametrize("world", [60.0], indirect=True)
def test_after_lost_events_the_directories_are_armed_again(world: World) -> None:
    """One of those that were lost may have said that a watch has ended; and all is read again."""
    assert world.notifier.arms == 1
    before = len(world.looks)
    world.notifier.tell(EventBatch(urgent=True, lost=True))
    wait(lambda: len(world.looks) > before)
    assert world.notifier.arms == 2
    assert world.looks[before] == (True, False)


@pytest.mark.parametrize("world", [60.0], indirect=True)
def test_an_event_of_the_file_is_no_reason_to_arm_again(world: World) -> None:
    """What is armed stays so, and the content is read."""
    before = len(world.looks)
    world.notifier.tell(EventBatch(count=1, urgent=True))
    wait(lambda: len(world.looks) > before)
    assert world.notifier.arms == 1


@pytest.mark.parametrize("world", [0.05], indirect=True)
def test_after_an_exception_everything_is_read_and_armed_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody knows what was half done: the content is told anew, so the consumer knows that it is not stale."""
    before, looks, arms = len(world.told), len(world.looks), world.notifier.arms
    world.fail_next = True
    wait(lambda: len(world.told) >= before + 2)
    death, again = world.told[before : before + 2]
    assert "planted" in str(death.crash)
    assert again.snapshot is not None
    assert again.snapshot.text() == "0"
    assert world.notifier.arms == arms + 1
    assert (False, False) in world.looks[looks:]
    assert "failed and begins again" in caplog.text


@pytest.mark.parametrize("world", [0.05], indirect=True)
def test_an_exception_between_two_looks_does_not_end_it_unseen(world: World) -> None:
    """It is told as a failure, as a liveness probe must hear of it, and it begins again."""
    before, arms = len(world.told), world.notifier.arms
    world.notifier.fail_next = True
    wait(lambda: len(world.told) >= before + 2)
    death, again = world.told[before : before + 2]
    assert "planted" in str(death.crash)
    assert again.snapshot is not None
    assert world.notifier.arms == arms + 1
