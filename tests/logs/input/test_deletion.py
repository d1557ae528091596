"""Delivered files are deleted where that is asked for, and never one line too early."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar import logs
from sidecar.fs import atomic
from sidecar.logs.input import close_policy, deletion
from sidecar.logs.testing import LogFile
from support.logs_support import Follower, numbered


@pytest.fixture
def finished(log: LogFile) -> Path:
    """A file of a program that has ended."""
    log.write(*numbered(1, 2))
    log.close()
    return log.path


def test_a_file_is_deleted_when_all_is_acknowledged_and_saved(
    finished: Path, tmp_path: Path
) -> None:
    """Issue 12.11: in this order, and after the time that was asked for."""
    follower = Follower(finished.with_name("*.log"), state=tmp_path / "state", remove_after=5)
    follower.news()
    follower.now += 10
    follower.tail.scan()
    follower.tail.remove_delivered()
    assert finished.exists(), "a kill now would deliver it again"
    follower.tail.save()
    follower.tail.remove_delivered()
    assert not finished.exists()
    assert follower.restart() == []
    assert not follower.tail.lost


def test_no_file_is_deleted_before_every_sink_has_acknowledged(finished: Path) -> None:
    """One that is away keeps the file, however long."""
    tail = logs.tail(finished, remove_after=0)
    tail.open(("here", "away"))
    tail.acknowledge("here", tail.read("here", 1 << 20))
    blocks = tail.read("away", 1 << 20)
    tail.save()
    tail.remove_delivered()
    assert finished.exists()
    tail.acknowledge("away", blocks)
    tail.save()
    tail.scan()
    tail.remove_delivered()
    assert not finished.exists()
    tail.close()


def test_a_file_that_is_open_for_writing_is_kept_and_an_unfinished_line_too(log: LogFile) -> None:
    """A program that holds it open writes into it next."""
    log.write("one")
    follower = Follower(log.path, remove_after=5, partial_timeout=None)
    follower.news()
    follower.later(60)
    follower.tail.save()
    follower.tail.remove_delivered()
    assert log.path.exists()
    log.write_raw(b"begun")
    log.close()
    follower.news()
    follower.later(60)
    follower.tail.save()
    follower.tail.remove_delivered()
    assert log.path.exists()


def test_what_is_written_to_a_file_that_was_deleted_is_delivered(
    log: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel does not tell who writes, only the time speaks for the deletion."""
    log.write("one")
    follower = Follower(log.path, remove_after=5)
    follower.news()
    [stream] = follower.tail._require().registry.streams
    monkeypatch.setattr(type(stream), "has_writer", lambda _: None)
    follower.later(6)
    follower.tail.save()
    follower.tail.remove_delivered()
    assert not log.path.exists()
    log.write("two")
    assert follower.news() == ["two"]
    log.reopen()
    log.write("three")
    assert follower.news() == ["three"]


def test_a_file_that_takes_the_name_meanwhile_is_not_deleted(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotation between the last scan and unlink(2): planted into the rename that comes between them."""
    status = finished.stat()
    key, changed = (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns)
    rename = atomic.rename

    def overtaken(path: str, target: str) -> None:
        os.rename(finished, finished.with_name("app.log.1"))
        finished.write_text("another\n")
        rename(path, target)

    monkeypatch.setattr(atomic, "rename", overtaken)
    assert not deletion.delete_delivered(str(finished), key, changed)
    assert finished.read_text() == "another\n"
    assert sorted(os.listdir(finished.parent)) == ["app.log", "app.log.1"]


def test_a_file_that_cannot_be_deleted_is_named_once(
    finished: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that is mounted read-only; it stays, and collecting goes on."""

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(atomic, "rename", refuse)
    follower = Follower(finished, remove_after=0)
    follower.news()
    follower.tail.save()
    for _ in range(3):
        follower.tail.scan()
        follower.tail.remove_delivered()
    assert caplog.text.count(f"cannot delete {finished}: read-only file system") == 1


def test_only_files_that_the_patterns_name_are_deleted(log: LogFile) -> None:
    """What rotation has put elsewhere is read to its end, and left to rotation."""
    log.write("one")
    follower = Follower(log.path, remove_after=0)
    follower.news()
    rotated = log.rotate()
    log.close()
    follower.later(1)
    follower.tail.save()
    assert close_policy.removable(follower.tail._require().registry.streams, 0, follower.now) == []
    follower.tail.remove_delivered()
    assert rotated.exists()
