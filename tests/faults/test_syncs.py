"""What is on the disk before anything is acknowledged; a power cut shows it only by chance, this shows it each time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import sidecar
from sidecar.logs.input.checkpoint import Checkpoint, CheckpointState
from sidecar.logs.records import Record
from sidecar.logs.sinks.base import Rejected
from sidecar.logs.sinks.deadletter import DeadLetterFile


class Synced:
    """Files and directories that were synced, whatever they are called by now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._nodes: set[tuple[int, int]] = set()
        for name in ("fsync", "fdatasync"):
            self._note(monkeypatch, name)
        really_open = os.open

        def open_and_note(path, flags, *args, **options) -> int:
            fd = really_open(path, flags, *args, **options)
            if flags & os.O_SYNC == os.O_SYNC:  # each write(2) is synced by itself
                self._nodes.add(_node(os.fstat(fd)))
            return fd

        monkeypatch.setattr(os, "open", open_and_note)

    def __contains__(self, path: Path) -> bool:
        return _node(path.stat()) in self._nodes

    def _note(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        really = getattr(os, name)

        def sync(fd: int) -> None:
            really(fd)
            self._nodes.add(_node(os.fstat(fd)))

        monkeypatch.setattr(os, name, sync)


def _node(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    return Synced(monkeypatch)


async def test_each_file_and_each_directory_of_a_set_is_synced(
    tmp_path: Path, synced: Synced
) -> None:
    """A directory is a file of names: fsync(2) of a file does not make its name durable, on any level."""
    volume = sidecar.Volume(tmp_path / "shared")
    await volume.publish({"top": "1", "sub/middle": "2", "sub/deep/er/leaf": "3"})
    generation = (tmp_path / "shared" / "..data").resolve()
    below = [generation, *generation.rglob("*")]
    assert len(below) == 7
    assert [path for path in [tmp_path / "shared", *below] if path not in synced] == []


async def test_a_file_and_each_directory_on_the_way_is_synced(
    tmp_path: Path, synced: Synced
) -> None:
    """The same for a single file in directories that are made for it."""
    root = tmp_path / "shared"
    await sidecar.Volume(root).put("a/b/config", "1")
    wanted = [root, root / "a", root / "a/b", root / "a/b/config"]
    assert [path for path in wanted if path not in synced] == []


def test_a_checkpoint_is_synced_with_its_directory(tmp_path: Path, synced: Synced) -> None:
    """A position that a power cut takes back delivers lines twice."""
    path = tmp_path / "state" / "offsets.json"
    assert Checkpoint(str(path)).save(CheckpointState())
    assert [one for one in (path, path.parent, tmp_path) if one not in synced] == []


async def test_dead_letters_are_synced_with_their_directory(tmp_path: Path, synced: Synced) -> None:
    """The position passes a refused line once it is there: what a power cut takes from there is lost."""
    path = tmp_path / "state" / "refused.ndjson"
    refused = Rejected(Record(b"line", file="a.log"), "400: too long")
    await DeadLetterFile(path).write("loki", [refused])
    assert [one for one in (path, path.parent) if one not in synced] == []
