"""Which files were written: what events say about directories that have several names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.logs.input.dir_watch import DirectoryWatcher


@pytest.mark.parametrize("left", ["real", "link"])
def test_a_directory_with_two_names_is_watched_as_long_as_one_is_asked_for(
    tmp_path: Path, left: str
) -> None:
    """The kernel has one watch for both: when a link goes, the lines of the directory must not become late."""
    names = [str(tmp_path / "real"), str(tmp_path / "link")]
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    watcher = DirectoryWatcher()
    watcher.watch(names)
    (tmp_path / "real" / "a.log").write_text("one")
    assert watcher.drain().written == {f"{name}/a.log" for name in names}

    watcher.watch([str(tmp_path / left)])
    (tmp_path / "real" / "a.log").write_text("two")
    assert watcher.drain().written == {f"{tmp_path}/{left}/a.log"}
    watcher.close()


def test_a_directory_that_is_gone_and_back_is_watched_again(tmp_path: Path) -> None:
    """Under each of its names."""
    names = [str(tmp_path / "real"), str(tmp_path / "link")]
    (tmp_path / "link").symlink_to("real")
    watcher = DirectoryWatcher()
    for _ in range(2):
        (tmp_path / "real").mkdir()
        watcher.watch(names)
        (tmp_path / "real" / "a.log").write_text("one")
        assert watcher.drain().written == {f"{name}/a.log" for name in names}
        (tmp_path / "real" / "a.log").unlink()
        (tmp_path / "real").rmdir()
        assert watcher.drain().changed == set(names)
        watcher.watch([])
    watcher.close()
