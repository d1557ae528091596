"""Hints: what is told, what is not, and that nothing a neighbour does ends the telling."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.disk import events
from sidecar.disk.events import Activity, Bell, Inotify, InotifyHints, Target, WatchfilesHints
from watching import descriptors, replace, threads, wait


@pytest.fixture
def bell() -> Iterator[Bell]:
    one = Bell()
    yield one
    one.close()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path, os.O_RDONLY)
    yield opened
    os.close(opened)


@pytest.fixture
def hints(bell: Bell, fd: int, tmp_path: Path) -> Iterator[InotifyHints]:
    """Hints for a file `config` in a directory."""
    one = InotifyHints(bell)
    one.arm([Target(fd, str(tmp_path), frozenset({b"config", b"..data"}))])
    yield one
    one.close()


def test_a_bell_ends_a_wait_of_another_thread(bell: Bell) -> None:
    """At once, and also a wait that has not begun; then it is silent again."""
    threading.Timer(0.02, bell.ring).start()
    began = time.monotonic()
    bell.wait(30, None)
    assert time.monotonic() - began < 5
    for _ in range(100_000):
        bell.ring()
    bell.wait(30, None)
    began = time.monotonic()
    while time.monotonic() - began < 0.05:
        bell.wait(0.05, None)
    assert time.monotonic() - began >= 0.05


def test_a_bell_that_is_closed_may_be_rung() -> None:
    """Its descriptors belong to somebody else by now."""
    before = descriptors()
    bell = Bell()
    bell.close()
    other = os.pipe()
    bell.ring()
    bell.close()
    os.set_blocking(other[0], False)
    with pytest.raises(BlockingIOError):
        os.read(other[0], 1)
    for one in other:
        os.close(one)
    assert descriptors() == before


def test_draining_never_waits(hints: InotifyHints) -> None:
    """asyncinotify makes a descriptor that would block."""
    assert not os.get_blocking(hints._inotify.fd)
    assert hints.drain() == Activity()


def test_a_rename_over_the_file_is_urgent(hints: InotifyHints, tmp_path: Path) -> None:
    """It is whole, so there is a reason to look now."""
    replace(tmp_path / "config", "x")
    seen = hints.drain()
    assert seen.urgent
    assert seen.last == {b"config": Inotify.MOVED_TO}
    assert hints.drain() == Activity()


def test_writing_is_no_reason_to_look_and_closing_is(hints: InotifyHints, tmp_path: Path) -> None:
    """Whoever looked at each `write` would read half of a file a thousand times."""
    (tmp_path / "config").touch()
    hints.drain()
    with (tmp_path / "config").open("w", buffering=1) as file:
        file.write("half\n")
        seen = hints.drain()
        assert seen.count
        assert not seen.urgent
        assert seen.last == {b"config": Inotify.MODIFY}
    seen = hints.drain()
    assert seen.urgent
    assert seen.last == {b"config": Inotify.CLOSE_WRITE}


def test_other_names_are_not_told(hints: InotifyHints, tmp_path: Path) -> None:
    """Neighbours, temporary files, generations."""
    for name in ("other", "..tmp-1", "..gen-1"):
        (tmp_path / name).touch()
    assert hints.drain() == Activity()


@pytest.mark.parametrize(
    "change", ["rename", "remove", pytest.param("unmount", marks=pytest.mark.root)]
)
def test_the_end_of_the_directory_is_told(bell: Bell, tmp_path: Path, change: str) -> None:
    """The watch is of an inode: its path may mean another one by now."""
    directory = tmp_path / "directory"
    directory.mkdir()
    if change == "unmount":
        subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    fd = os.open(directory, os.O_RDONLY)
    hints = InotifyHints(bell)
    hints.arm([Target(fd, str(directory), None)])
    os.close(fd)
    {
        "rename": lambda: directory.rename(tmp_path / "away"),
        "remove": directory.rmdir,
        "unmount": lambda: subprocess.run(["umount", directory], check=True),
    }[change]()
    seen = hints.drain()
    assert seen.moved
    assert seen.urgent
    hints.close()


def test_a_way_tells_of_its_entry_and_not_of_what_is_written_there(
    bell: Bell, fd: int, tmp_path: Path
) -> None:
    """A link that is swapped, a directory that comes; not the noise of a busy `/tmp`."""
    hints = InotifyHints(bell)
    hints.arm([Target(fd, str(tmp_path), frozenset({b"link"}), way=True)])
    (tmp_path / "link").write_text("a file that is written to")
    seen = hints.drain()
    assert seen.count == 1  # made
    assert not seen.arrived
    assert seen.last == {}
    replace(tmp_path / "link", "x")
    assert hints.drain().arrived
    hints.close()


def test_one_directory_may_be_two_targets(bell: Bell, fd: int, tmp_path: Path) -> None:
    """As the way to itself, and as what holds the content: each name counts for what it is."""
    hints = InotifyHints(bell)
    hints.arm(
        [
            Target(fd, str(tmp_path), frozenset({b"way"}), way=True),
            Target(fd, str(tmp_path), frozenset({b"config"})),
        ]
    )
    replace(tmp_path / "config", "x")
    (tmp_path / "way").mkdir()
    seen = hints.drain()
    assert seen.count == 2
    assert seen.last == {b"config": Inotify.MOVED_TO}
    with (tmp_path / "config").open("a") as file:
        file.write("x")
    assert hints.drain().last == {b"config": Inotify.CLOSE_WRITE}
    hints.close()


def test_arming_again_forgets_the_directories_of_before(
    bell: Bell, fd: int, tmp_path: Path
) -> None:
    """And leaves nothing behind in the kernel or in memory, however often it happens."""
    hints = InotifyHints(bell)
    for number in range(50):
        directory = tmp_path / str(number)
        directory.mkdir()
        one = os.open(directory, os.O_RDONLY)
        hints.arm([Target(one, str(directory), None)])
        os.close(one)
    (tmp_path / "0" / "old").touch()
    hints.drain()
    (tmp_path / "0" / "old").touch()
    assert not hints.drain().count
    assert len(hints._targets) == 1
    assert len(hints._inotify._inotify._watches) == 1
    hints.close()


def test_names_that_are_not_utf8_are_told_as_they_are(bell: Bell, fd: int, tmp_path: Path) -> None:
    """Names are bytes."""
    hints = InotifyHints(bell)
    hints.arm([Target(fd, str(tmp_path), None)])
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    assert hints.drain().last == {b"\xff\xfe": Inotify.CLOSE_WRITE}
    hints.close()


def test_thousands_of_events_are_drained_at_once(bell: Bell, fd: int, tmp_path: Path) -> None:
    """Whatever a `read` returns of them at a time."""
    hints = InotifyHints(bell)
    hints.arm([Target(fd, str(tmp_path), None)])
    for number in range(3000):
        (tmp_path / f"{number:0100}").touch()
    seen = hints.drain()
    assert len(seen.last) == 3000
    assert not seen.lost
    hints.close()


def test_watchfiles_tells_of_changes_and_rings_the_bell(
    bell: Bell, fd: int, tmp_path: Path
) -> None:
    """From a thread of its own, which ends with it."""
    hints = WatchfilesHints(bell)
    hints.arm([Target(fd, str(tmp_path), frozenset({b"config"}))])
    replace(tmp_path / "config", "x")
    bell.wait(10, None)
    assert hints.drain().urgent
    hints.close()
    assert not [one for one in threading.enumerate() if one.name == "sidecar-watchfiles"]
    assert not threads()


def test_watchfiles_begins_again_after_a_name_that_it_cannot_read(
    bell: Bell, fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own loop ends with an exception; everything has to be looked at."""
    monkeypatch.setattr(events, "_WATCHFILES_LIVED", 0.0)
    hints = WatchfilesHints(bell)
    hints.arm([Target(fd, str(tmp_path), frozenset({b"config"}))])
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff", os.O_CREAT))
    bell.wait(10, None)
    assert hints.drain().lost
    hints._ready.clear()
    wait(hints._ready.is_set)
    replace(tmp_path / "config", "x")
    wait(lambda: hints.drain().urgent)
    hints.close()


def test_watchfiles_that_cannot_work_says_so(bell: Bell, tmp_path: Path) -> None:
    """An exception in a thread must not be a silence."""
    hints = WatchfilesHints(bell)
    with pytest.raises(OSError, match="No such file"):
        hints.arm([Target(-1, str(tmp_path / "missing"), None)])
    hints.close()


def test_a_source_that_does_not_exist_is_an_error_like_a_limit(
    bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wants hints falls back to polling, and does not die."""
    monkeypatch.setitem(sys.modules, "asyncinotify", None)
    with pytest.raises(OSError, match="inotify cannot be used here") as caught:
        events.source("inotify", bell)
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize(
    ("filesystem", "mode"),
    [
        ("ext4", "inotify"),
        ("tmpfs", "inotify"),
        ("overlay", "inotify"),
        ("fuseblk", "inotify"),
        ("nfs4", "poll"),
        ("fuse", "poll"),
        ("fuse.sshfs", "poll"),
        ("9p", "poll"),
        ("virtiofs", "poll"),
        ("unknown", "inotify"),
    ],
)
def test_the_best_mode_depends_on_the_file_system(filesystem: str, mode: str) -> None:
    """Changes that another machine makes send no event here."""
    assert events.best_mode(filesystem) == mode


def test_elsewhere_than_on_linux_it_is_watchfiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no inotify."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert events.best_mode("apfs") == "watchfiles"
