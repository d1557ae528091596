"""Events by inotify: what is reported, what is not, and that nothing a neighbour does ends the reports."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.fs.notify.base import EventBatch, WatchTarget
from sidecar.fs.notify.inotify import Inotify, InotifyNotifier
from sidecar.fs.notify.wakeup import WakeupPipe
from support.watching import replace


@pytest.fixture
def notifier(wakeup: WakeupPipe, fd: int, tmp_path: Path) -> Iterator[InotifyNotifier]:
    """The events of a file `config` in a directory."""
    one = InotifyNotifier(wakeup)
    one.arm([WatchTarget(fd, str(tmp_path), frozenset({b"config", b"..data"}))])
    yield one
    one.close()


def test_draining_never_waits(notifier: InotifyNotifier) -> None:
    """The one thread that reads also reads the files."""
    assert not os.get_blocking(notifier._inotify.fd)
    assert notifier.drain() == EventBatch()


def test_a_neighbour_who_is_as_fast_as_we_are_does_not_hold_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited at the beginning is returned, all of it; what has come meanwhile is for the next time."""
    inotify = Inotify()
    inotify.add(str(tmp_path))
    real, names, reads = os.read, iter(range(10**6)), 0

    def make(count: int) -> None:
        for _ in range(count):
            (tmp_path / f"{next(names):0100}").touch()

    def read(fd: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 20, "it goes on reading"
        data = real(fd, size)
        make(1000)
        return data

    make(1000)
    monkeypatch.setattr(os, "read", read)
    found = {event.name for event in inotify.drain()}
    monkeypatch.undo()
    inotify.close()
    assert {b"%0100d" % number for number in range(1000)} <= found


def test_a_rename_over_the_file_is_urgent(notifier: InotifyNotifier, tmp_path: Path) -> None:
    """It is whole, so there is a reason to look now."""
    replace(tmp_path / "config", "x")
    seen = notifier.drain()
    assert seen.urgent
    assert seen.last == {b"config": Inotify.MOVED_TO}
    assert notifier.drain() == EventBatch()


def test_writing_is_no_reason_to_look_and_closing_is(
    notifier: InotifyNotifier, tmp_path: Path
) -> None:
    """Whoever looked at each `write` would read half of a file a thousand times."""
    (tmp_path / "config").touch()
    notifier.drain()
    with (tmp_path / "config").open("w", buffering=1) as file:
        file.write("half\n")
        seen = notifier.drain()
        assert seen.count
        assert not seen.urgent
        assert seen.last == {b"config": Inotify.MODIFY}
    seen = notifier.drain()
    assert seen.urgent
    assert seen.last == {b"config": Inotify.CLOSE_WRITE}


def test_other_names_are_not_told(notifier: InotifyNotifier, tmp_path: Path) -> None:
    """Neighbours, temporary files, generations."""
    for name in ("other", "..tmp-1", "..gen-1"):
        (tmp_path / name).touch()
    assert notifier.drain() == EventBatch()


@pytest.mark.parametrize(
    "change", ["rename", "remove", pytest.param("unmount", marks=pytest.mark.root)]
)
def test_the_end_of_the_directory_is_told(wakeup: WakeupPipe, tmp_path: Path, change: str) -> None:
    """The watch is of an inode: its path may mean another one by now."""
    directory = tmp_path / "directory"
    directory.mkdir()
    if change == "unmount":
        subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    fd = os.open(directory, os.O_RDONLY)
    notifier = InotifyNotifier(wakeup)
    notifier.arm([WatchTarget(fd, str(directory), None)])
    os.close(fd)
    {
        "rename": lambda: directory.rename(tmp_path / "away"),
        "remove": directory.rmdir,
        "unmount": lambda: subprocess.run(["umount", directory], check=True),
    }[change]()
    seen = notifier.drain()
    assert seen.moved
    assert seen.urgent
    notifier.close()


def test_a_way_tells_of_its_entry_and_not_of_what_is_written_there(
    wakeup: WakeupPipe, fd: int, tmp_path: Path
) -> None:
    """A link that is swapped, a directory that comes; not the noise of a busy `/tmp`."""
    notifier = InotifyNotifier(wakeup)
    notifier.arm([WatchTarget(fd, str(tmp_path), frozenset({b"link"}), is_path_link=True)])
    (tmp_path / "link").write_text("a file that is written to")
    seen = notifier.drain()
    assert seen.count == 1  # made
    assert not seen.renamed_in
    assert seen.last == {}
    replace(tmp_path / "link", "x")
    assert notifier.drain().renamed_in
    notifier.close()


def test_one_directory_may_be_two_targets(wakeup: WakeupPipe, fd: int, tmp_path: Path) -> None:
    """As the way to itself, and as what holds the content: each name counts for what it is."""
    notifier = InotifyNotifier(wakeup)
    notifier.arm(
        [
            WatchTarget(fd, str(tmp_path), frozenset({b"way"}), is_path_link=True),
            WatchTarget(fd, str(tmp_path), frozenset({b"config"})),
        ]
    )
    replace(tmp_path / "config", "x")
    (tmp_path / "way").mkdir()
    seen = notifier.drain()
    assert seen.count == 2
    assert seen.last == {b"config": Inotify.MOVED_TO}
    with (tmp_path / "config").open("a") as file:
        file.write("x")
    assert notifier.drain().last == {b"config": Inotify.CLOSE_WRITE}
    notifier.close()


def test_arming_again_forgets_the_directories_of_before(
    wakeup: WakeupPipe, fd: int, tmp_path: Path
) -> None:
    """And leaves nothing behind in the kernel or in memory, however often it happens."""
    notifier = InotifyNotifier(wakeup)
    for number in range(50):
        directory = tmp_path / str(number)
        directory.mkdir()
        one = os.open(directory, os.O_RDONLY)
        notifier.arm([WatchTarget(one, str(directory), None)])
        os.close(one)
    (tmp_path / "0" / "old").touch()
    notifier.drain()
    (tmp_path / "0" / "old").touch()
    assert not notifier.drain().count
    assert len(notifier._targets) == 1
    assert Path(f"/proc/self/fdinfo/{notifier.fd}").read_text().count("inotify wd:") == 1
    notifier.close()


def test_names_that_are_not_utf8_are_told_as_they_are(
    wakeup: WakeupPipe, fd: int, tmp_path: Path
) -> None:
    """Names are bytes."""
    notifier = InotifyNotifier(wakeup)
    notifier.arm([WatchTarget(fd, str(tmp_path), None)])
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    assert notifier.drain().last == {b"\xff\xfe": Inotify.CLOSE_WRITE}
    notifier.close()


def test_thousands_of_events_are_drained_at_once(
    wakeup: WakeupPipe, fd: int, tmp_path: Path
) -> None:
    """Whatever a `read` returns of them at a time."""
    notifier = InotifyNotifier(wakeup)
    notifier.arm([WatchTarget(fd, str(tmp_path), None)])
    for number in range(3000):
        (tmp_path / f"{number:0100}").touch()
    seen = notifier.drain()
    assert len(seen.last) == 3000
    assert not seen.lost
    notifier.close()
