"""The directory of a repository: its own as long as its process lives."""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path

import pytest

from sidecar.mirror.sources.git_command import GitAccess, Repository


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def repository() -> Repository:
    return Repository("git+https://host/repo.git", GitAccess(), 10.0, 1 << 20)


async def test_what_a_killed_process_has_left_is_removed(temporary: Path) -> None:
    """An emptyDir at /tmp outlives its containers; a directory that another process holds stays."""
    left, held = temporary / "sidecar-git-left", temporary / "sidecar-git-held"
    for path in (left, held):
        path.mkdir()
        (path / "in-use").touch()
    with (held / "in-use").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        one, other = repository(), repository()
        await one.prepare()
        await other.prepare()
    assert not left.exists()
    assert held.exists()
    assert (one.directory / "HEAD").exists()
    one.remove()
    assert not one.directory.exists()
    assert other.directory.exists()
