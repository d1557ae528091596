"""Mounts as a Pod has them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sidecar.fs import mounts


def test_the_mount_that_holds_a_path_is_the_nearest_above_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By whole components; the last one mounted at a point counts; spaces are escaped in the table."""
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"1 0 8:1 / / rw - ext4 /dev/a rw\n"
        b"2 1 8:2 / /shared rw shared:1 - tmpfs none rw\n"
        b"3 2 8:3 / /shared rw - nfs4 server:/ rw\n"
        b"4 1 8:4 / /with\\040space rw - fuse.sshfs host rw\n"
    )
    real = open

    def fake(file: object, *args: object, **kwargs: object) -> object:
        return real(table if file == "/proc/self/mountinfo" else file, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", fake)
    assert mounts.mount_point("/shared/config") == ("/shared", "nfs4")
    assert mounts.mount_point("/shared-not") == ("/", "ext4")
    assert mounts.mount_point("/with space/x") == ("/with space", "fuse.sshfs")
    table.unlink()
    assert mounts.mount_point("/shared/config") == ("/", "unknown")


@pytest.mark.root
def test_the_file_system_of_a_directory_is_that_of_its_mount(tmp_path: Path) -> None:
    """Whatever links lead there."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (tmp_path / "link").symlink_to("mounted")
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    try:
        fd = os.open(tmp_path / "link", os.O_RDONLY)
        assert mounts.filesystem(fd) == "tmpfs"
        os.close(fd)
        assert mounts.mount_point(str(mounted / "x"))[1] == "tmpfs"
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)
    assert mounts.filesystem(-1) == "unknown"


@pytest.mark.root
def test_a_directory_that_is_a_mount_of_its_own_is_no_single_file(tmp_path: Path) -> None:
    """That is what every volume is."""
    for name in ("source", "volume"):
        (tmp_path / name).mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "source", tmp_path / "volume"], check=True)
    try:
        assert not mounts.is_file_mount(str(tmp_path / "volume"))
    finally:
        subprocess.run(["umount", tmp_path / "volume"], check=True)


@pytest.mark.root
@pytest.mark.parametrize("name", ["config", "my config", "back\\slash", "re\rturn"])
def test_a_single_file_mount_is_recognised(tmp_path: Path, name: str) -> None:
    """`subPath` in a Pod: also by a path that goes through a link, and by a name that is written otherwise in the table of the kernel."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for path in (tmp_path / "source", tmp_path / "real" / name, tmp_path / "real" / "other"):
        path.write_bytes(b"")
    subprocess.run(["mount", "--bind", tmp_path / "source", tmp_path / "real" / name], check=True)
    try:
        assert mounts.is_file_mount(str(tmp_path / "link" / name))
        assert not mounts.is_file_mount(str(tmp_path / "link" / "other"))
        assert not mounts.is_file_mount(str(tmp_path / "real"))
    finally:
        subprocess.run(["umount", tmp_path / "real" / name], check=True)
