"""A directory is read as it was at one moment, and what is known already is not read again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar import NothingPublished
from sidecar.fs import open_file
from sidecar.testing import ConfigMapVolume
from sidecar.volume.content import listing, loader, read_state
from sidecar.volume.content.scan_result import ScanResult
from support.watching import replace

LIMIT = 1 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


def load(fd: int, before: ScanResult | None = None) -> ScanResult:
    return loader.read_directory(fd, "/shared", limit=LIMIT, before=before)


def test_a_directory_is_loaded_with_all_that_lies_in_it(fd: int, tmp_path: Path) -> None:
    """Hidden are `..` names, names that no URL can say, and `lost+found`; dot files are files."""
    for name in ("a", ".env", "deep/er/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("..tmp-1", "lost+found/x", "..versions/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("hidden")
    (tmp_path / os.fsdecode(b"\xff")).write_text("hidden")
    (tmp_path / "linked").symlink_to("deep")
    (tmp_path / "dangling").symlink_to("none")
    found = load(fd)
    assert dict(found.snapshot) == {n: n.encode() for n in ("a", ".env", "deep/er/b")}
    assert found.problems == {}
    assert listing.visible_sizes(fd, 10) == {n: len(n) for n in ("a", ".env", "deep/er/b")}


def test_an_empty_directory_holds_nothing_published(fd: int) -> None:
    """It is no set without files: more likely somebody is removing it."""
    with pytest.raises(NothingPublished, match="no file has been published"):
        load(fd)


def test_a_directory_that_is_gone_holds_nothing_published(fd: int, tmp_path: Path) -> None:
    """Its descriptor lives on."""
    tmp_path.rmdir()
    with pytest.raises(NothingPublished):
        load(fd)
    tmp_path.mkdir()


def test_an_empty_generation_is_a_set_without_files(fd: int, tmp_path: Path) -> None:
    """Somebody has published that on purpose."""
    ConfigMapVolume(tmp_path).update({})
    assert dict(load(fd).snapshot) == {}


def test_what_is_unchanged_is_not_read_again(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand files the one that changed is read; but nothing that is so fresh that a clock may hide a change."""
    for number in range(50):
        (tmp_path / str(number)).write_text("old")
    reads: list[str] = []
    read = open_file.read

    def count(dir_fd: int, name: str, limit: int, where: str, **more: Any) -> Any:
        reads.append(name)
        return read(dir_fd, name, limit, where, **more)

    monkeypatch.setattr(open_file, "read", count)
    first = load(fd)
    assert len(reads) == 50
    assert not loader.is_unchanged(fd, first)
    assert len(load(fd, first).snapshot) == 50
    assert len(reads) == 100
    monkeypatch.setattr(read_state, "_CLOCK_GRANULARITY", 0.0)
    second = load(fd, first)
    assert loader.is_unchanged(fd, second)
    reads.clear()
    replace(tmp_path / "7", "new")
    assert not loader.is_unchanged(fd, second)
    assert not loader.is_unchanged(fd, second, quick=True)
    third = load(fd, second)
    assert reads == ["7"]
    assert third.snapshot.changed(second.snapshot) == {"7"}


def test_a_quick_comparison_sees_what_came_and_went_and_not_what_was_rewritten(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks the directories, those below as well."""
    monkeypatch.setattr(read_state, "_CLOCK_GRANULARITY", 0.0)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_text("old")
    found = load(fd)
    with (tmp_path / "deep" / "a").open("r+") as file:
        file.write("new")
    assert loader.is_unchanged(fd, found, quick=True)
    assert not loader.is_unchanged(fd, found)
    (tmp_path / "deep" / "b").touch()
    assert not loader.is_unchanged(fd, found, quick=True)


def test_a_file_from_the_future_is_not_read_for_ever(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own clock says that it has just changed; ours says that it has not for long enough."""
    (tmp_path / "a").write_text("x")
    later = time.time_ns() + 10**12
    os.utime(tmp_path / "a", ns=(later, later))
    monkeypatch.setattr(read_state, "_CLOCK_GRANULARITY", 0.05)
    found = load(fd)
    assert not loader.is_unchanged(fd, found)
    limit = time.monotonic() + 5
    while not loader.is_unchanged(fd, found):
        assert time.monotonic() < limit
        found = load(fd, found)


def test_the_limit_is_that_of_all_files_together(fd: int, tmp_path: Path) -> None:
    """Those that fit are there; each of the others is a problem that says so."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("12345")
    found = loader.read_directory(fd, "/shared", limit=12, before=None)
    assert set(found.snapshot) == {"a", "b"}
    assert "cannot read /shared/c: its 5 bytes are more than what is left" in found.problems["c"]


def test_a_set_that_cannot_be_read_in_time_is_an_error_and_no_mixture(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it is listed another generation is in force."""
    volume = ConfigMapVolume(tmp_path)
    volume.update({"a": "0"})
    real = listing.list_visible

    def late(*arguments: Any) -> object:
        volume.update({"a": "0"})
        return real(*arguments)

    monkeypatch.setattr(loader, "list_visible", late)
    with pytest.raises(NothingPublished, match="faster than they can be read"):
        load(fd)


def test_a_link_to_a_generation_that_is_gone_is_nothing_published(fd: int, tmp_path: Path) -> None:
    """Whoever removed it did not know the layout."""
    (tmp_path / "..data").symlink_to("..gone")
    with pytest.raises(NothingPublished):
        load(fd)
    (tmp_path / "a").symlink_to("..data/a")
    with pytest.raises(NothingPublished):
        loader.read_file(fd, "/shared", "a", limit=LIMIT, before=None)
