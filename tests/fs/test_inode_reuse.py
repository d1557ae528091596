"""A file that has left the history is written anew only if nobody can tell it from a new one."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecar.fs import inode_reuse
from sidecar.fs.atomic import TempFile

OLD = b"an older content, and a longer one"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(inode_reuse, "_TICK_NS", -1)
    (tmp_path / "history").mkdir()
    path = tmp_path / "history" / "entry"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def take(file: Path, directory: int, *, fits: bool = True) -> tuple[str, int] | None:
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        return inode_reuse.try_reuse(folder, file.name, directory, lambda _: fits)
    finally:
        os.close(folder)


def test_the_next_content_lies_in_the_file_of_an_old_one(file: Path, directory: int) -> None:
    """Whole, however long the old one was, and of the old name nothing is left."""
    inode = file.stat().st_ino
    taken = take(file, directory)
    assert taken is not None
    assert not file.exists()
    staged = TempFile(directory, short_lived=True, reused=taken)
    staged.write(b"new")
    staged.finalize(0o644, None)
    staged.rename_into("config", directory)
    staged.discard()
    config = file.parent.parent / "config"
    assert (config.read_bytes(), config.stat().st_ino) == (b"new", inode)


def _open(file: Path, stack: ExitStack) -> None:
    stack.enter_context(file.open("rb"))


def _map(file: Path, stack: ExitStack) -> None:
    with file.open("rb") as opened:
        stack.enter_context(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


def _link(file: Path, _: ExitStack) -> None:
    (file.parent / "snapshot").hardlink_to(file)


@pytest.mark.parametrize("use", [_open, _map, _link])
def test_a_file_that_somebody_uses_is_left_alone(
    file: Path, directory: int, use: Callable[[Path, ExitStack], None]
) -> None:
    """A file that was replaced is still there for whoever has it open, mapped, or under a name of its own."""
    with ExitStack() as stack:
        use(file, stack)
        assert take(file, directory) is None
        assert file.read_bytes() == OLD


@pytest.mark.parametrize("unfit", ["young", "large", "of another mode"])
def test_a_file_that_would_differ_from_a_new_one_is_left_alone(
    file: Path, directory: int, monkeypatch: pytest.MonkeyPatch, unfit: str
) -> None:
    """Within one tick of the clock its signature could be that of the old content, for which readers would take it."""
    if unfit == "young":
        monkeypatch.setattr(inode_reuse, "_TICK_NS", 3600 * 10**9)
    if unfit == "large":
        monkeypatch.setattr(inode_reuse, "MAX_BYTES", len(OLD) - 1)
    assert take(file, directory, fits=unfit != "of another mode") is None
    assert file.read_bytes() == OLD


def test_who_opens_it_meanwhile_waits_until_it_is_complete(file: Path, directory: int) -> None:
    """A reader that was held up between the look-up of the name and the opening must not read half a content."""
    taken = take(file, directory)
    assert taken is not None
    staged = TempFile(directory, short_lived=True, reused=taken)
    staged.write(b"new")
    with pytest.raises(BlockingIOError):
        os.open(taken[0], os.O_RDONLY | os.O_NONBLOCK, dir_fd=directory)
    staged.finalize(0o644, None)
    with open(os.open(taken[0], os.O_RDONLY, dir_fd=directory), "rb") as late:
        assert late.read() == b"new"
    staged.discard()
