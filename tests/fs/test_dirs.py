"""Directories: made for all who share the volume, entered by no link, removed whatever lies in them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from sidecar.fs import dirs, flock, visible_links
from support import mounts


@pytest.mark.usefixtures("umask")
def test_a_new_directory_has_mode_0755(tmp_path: Path) -> None:
    """The other containers must be able to enter it, and all that are above it."""
    dirs.make_directory(str(tmp_path / "a" / "b"))
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_new_directories_stay_in_the_group_of_the_one_above(tmp_path: Path) -> None:
    """With fsGroup the root of a volume has the set-group-id bit: files deeper in it are to be of that group, too."""
    tmp_path.chmod(0o2775)
    dirs.make_directory(str(tmp_path / "a" / "b"))
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o2775


@pytest.mark.root
@pytest.mark.parametrize(
    ("above", "made"),
    [(0o777, 0o755), (0o2777, 0o2775), (0o775, 0o775), (0o1777, 0o755), (0o3775, 0o2755)],
    ids=oct,
)
def test_a_new_directory_is_open_to_the_group_that_shares_the_one_above(
    tmp_path: Path, above: int, made: int
) -> None:
    """To nobody where 0777 names no group, and not where the sticky bit protects users from each other."""
    os.chown(tmp_path, 0, 2000)
    tmp_path.chmod(above)
    dirs.make_directory(str(tmp_path / "a"))
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == made


@pytest.mark.root
def test_no_directory_is_made_outside_of_the_volume(tmp_path: Path) -> None:
    """A neighbour may have planted a link on the way to what is still to come."""
    (tmp_path / "outside").mkdir()
    with mounts.tmpfs(tmp_path / "volume", "size=1m") as volume:
        (volume / "out").symlink_to("../outside")
        (volume / "inside").mkdir()
        (volume / "in").symlink_to("inside")
        with pytest.raises(OSError, match="symbolic link") as caught:
            dirs.make_directory(str(volume / "out" / "a" / "b"))
        assert caught.value.errno == errno.ELOOP
        dirs.make_directory(str(volume / "in" / "a"))
        assert os.listdir(volume / "inside") == ["a"]
    assert list((tmp_path / "outside").iterdir()) == []


def test_the_names_of_new_directories_are_synced(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is lost with the directory that holds it: each one above is synced, the outermost first."""
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    dirs.make_directory(str(tmp_path / "a" / "b"))
    assert synced == [".", "a"]
    dirs.make_directory(str(tmp_path / "a" / "b"))  # whose maker may have been killed before
    assert synced == [".", "a", "a"]
    synced.clear()
    with dirs.open_subdir(fd, "c/d", make=True, durable=True):
        assert synced == [".", "c"]


def test_an_existing_directory_is_left_as_it_is(tmp_path: Path) -> None:
    """Whoever made it has chosen its mode."""
    os.chmod(tmp_path, 0o750)
    dirs.make_directory(str(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


def test_a_file_in_the_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    """Not a traceback in the first publish."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        dirs.make_directory(str(tmp_path / "file"))


@pytest.mark.usefixtures("umask")
def test_an_inner_directory_has_its_mode_before_its_name(fd: int, tmp_path: Path) -> None:
    """And inherits the group of a volume with fsGroup, whose directories have the set-group-id bit."""
    os.chmod(tmp_path, 0o2775)
    with dirs.open_subdir(fd, "a/b", make=True):
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o2775
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("make", [False, True])
def test_no_link_is_followed_on_the_way(fd: int, tmp_path: Path, make: bool) -> None:
    """A neighbour could have planted it: nothing outside the volume may be touched."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "link").symlink_to("outside")
    with pytest.raises(OSError) as caught, dirs.open_subdir(fd, "link/inner", make=make):  # noqa: PT011
        pytest.fail("went through the link")
    assert caught.value.errno in {errno.ENOTDIR, errno.ELOOP}
    assert list((tmp_path / "outside").iterdir()) == []


def test_empty_directories_are_pruned_upwards(fd: int, tmp_path: Path) -> None:
    """As far as they are empty."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "other").write_bytes(b"")
    dirs.remove_empty_parents(fd, "a/b/c")
    assert os.listdir(tmp_path / "a") == ["other"]


def plant_deep_tree(fd: int, top: str) -> None:
    """Nest directories deeper than any recursion may go."""
    inner = os.dup(fd)
    for name in [top, *(["d"] * 1500)]:
        os.mkdir(name, dir_fd=inner)
        above, inner = inner, os.open(name, os.O_RDONLY, dir_fd=inner)
        os.close(above)
    os.close(inner)


def test_a_tree_deeper_than_any_recursion_does_no_harm(fd: int, tmp_path: Path) -> None:
    """A neighbour can plant one; the sweep goes on without a traceback."""
    plant_deep_tree(fd, "..tmp-deep")
    (tmp_path / "..tmp-file").write_bytes(b"")
    flock.remove_orphans(fd)
    subprocess.run(["rm", "-rf", tmp_path / "..tmp-deep"], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_walk_ends_in_a_tree_deeper_than_any_recursion(fd: int, tmp_path: Path) -> None:
    """No error, and not one descriptor for each level; a set cannot take its place either."""
    plant_deep_tree(fd, "deep")
    before = len(os.listdir("/proc/self/fd"))
    walked = [(path, len(os.listdir("/proc/self/fd"))) for path, *_ in dirs.walk(fd, "deep")]
    path, opened = walked[-1]
    assert path == "deep" + "/d" * dirs.MAX_DEPTH
    assert opened < before + 100
    with pytest.raises(IsADirectoryError):
        visible_links.LinkUpdate(fd, None, ["deep/a", "deep" + "/d" * 32], str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)
