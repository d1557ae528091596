"""The table of docs/volume.md: what works on which kind of volume."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.cli.doctor import runner
from sidecar.fs import flock
from sidecar.volume.volume import Volume
from support import StartProcess, WaitFor, mounts, opened

pytestmark = pytest.mark.root

Make = Callable[[Path], AbstractContextManager[Path]]
VFAT = ("modes", "nosymlinks", "nolinks", "coarse")


@dataclass(frozen=True)
class Kind:
    """A kind of volume, and what does not work there."""

    make: Make | None
    rules: tuple[str, ...] = ()
    sets: bool = True
    history: bool = True
    modes: bool = True


def loop(kind: mounts.FileSystem) -> Make:
    @contextmanager
    def make(path: Path) -> Iterator[Path]:
        with mounts.loop(path / "mount", mounts.image(path / "image", kind)) as mount:
            yield mount

    return make


@contextmanager
def memory(path: Path) -> Iterator[Path]:
    with mounts.tmpfs(path / "mount", "size=4m") as mount:
        yield mount


@contextmanager
def sticky_memory(path: Path) -> Iterator[Path]:
    with mounts.tmpfs(path / "mount", "size=4m,mode=1777") as mount:
        yield mount


@contextmanager
def overlay(path: Path) -> Iterator[Path]:
    for name in ("lower", "upper", "work"):
        (path / name).mkdir()
    layers = ",".join(f"{name}dir={path / name}" for name in ("lower", "upper", "work"))
    with mounts.mounted(path / "mount", "-t", "overlay", "-o", layers, "overlay") as mount:
        yield mount


@contextmanager
def bound(path: Path) -> Iterator[Path]:
    """A directory of another file system, as `hostPath`, and `subPath` of a directory, mount it."""
    (path / "host" / "sub").mkdir(parents=True)
    with mounts.mounted(path / "mount", "--bind", path / "host" / "sub") as mount:
        yield mount


KINDS = {
    "ext4": Kind(loop("ext4")),
    "xfs": Kind(loop("xfs")),
    "tmpfs": Kind(memory),
    "emptyDir in memory, sticky": Kind(sticky_memory),
    "overlay": Kind(overlay),
    "hostPath, subPath of a directory": Kind(bound),
    "FUSE": Kind(None, ("plain",)),
    "FUSE with fixed modes": Kind(None, ("modes",), modes=False),
    "FUSE without symbolic links": Kind(None, ("nosymlinks",), sets=False),
    "FUSE with the rules of vfat": Kind(None, VFAT, sets=False, history=False, modes=False),
}


@pytest.fixture(params=list(KINDS))
def volume(
    request: pytest.FixtureRequest, start_process: StartProcess, wait_for: WaitFor, tmp_path: Path
) -> Iterator[tuple[Path, Kind]]:
    """A volume of one kind."""
    kind = KINDS[request.param]
    if kind.make is not None:
        with kind.make(tmp_path) as path:
            yield path, kind
        return
    pytest.importorskip("mfusepy")
    source, target = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    target.mkdir()
    start_process(
        sys.executable, Path(__file__).parent / "fuse_rules.py", source, target, *kind.rules
    )
    wait_for(target.is_mount)
    yield target, kind
    subprocess.run(["umount", "--lazy", target], check=False)


async def test_what_works_on_a_kind_of_volume_is_what_the_table_says(
    volume: tuple[Path, Kind],
) -> None:
    """Files everywhere; what a file system has not is refused with that reason, or left out as the table says."""
    path, kind = volume
    await check_files(path, kind)
    await check_sets(path, kind)
    check_lock(path)
    wrong = [finding for finding in runner.examine(str(path)) if finding.state == "wrong"]
    assert wrong == []


async def check_files(path: Path, kind: Kind) -> None:
    """Publish, replace, do nothing, roll back, and take a mode."""
    one = Volume(path)
    first = await one.put("nested/config", "1")
    assert (await one.put("nested/config", "2")).changed
    assert not (await Volume(path).put("nested/config", "2")).changed
    assert (path / "nested" / "config").read_text() == "2"
    assert len(await one.versions("nested/config")) == (2 if kind.history else 1)
    if kind.history:
        await one.rollback(first.version, name="nested/config")
        assert (path / "nested" / "config").read_text() == "1"
    secret = Volume(path, mode=0o600)
    if kind.modes:
        await secret.put("secret", "1")
        assert (path / "secret").stat().st_mode & 0o777 == 0o600
    else:
        with pytest.raises(_errors.VolumeUnavailable, match="mode 0600 cannot be set"):
            await secret.put("secret", "1")
    assert not [name for name in os.listdir(path) if name.startswith("..tmp-")]


async def check_sets(path: Path, kind: Kind) -> None:
    """Publish a set, take over from it, roll back."""
    one = Volume(path / "set", grace=0.0)
    if not kind.sets:
        with pytest.raises(_errors.VolumeUnavailable, match="no symbolic links"):
            await one.publish({"a": "1"})
        assert dict(await Volume(path / "set").names()) == {}
        return
    first = await one.publish({"a": "1", "sub/b": "1"})
    await one.put("a", "2")
    assert [(path / "set" / name).read_text() for name in ("a", "sub/b")] == ["2", "1"]
    await one.rollback(first.version)
    assert (path / "set" / "a").read_text() == "1"
    assert not (await Volume(path / "set").publish({"a": "1", "sub/b": "1"})).changed


def check_lock(path: Path) -> None:
    """One writer at a time."""
    with (
        opened(path) as fd,
        flock.directory_lock(fd, timeout=0, where=str(path)),
        opened(path) as other,
        pytest.raises(_errors.VolumeUnavailable),
        flock.directory_lock(other, timeout=0, where=str(path)),
    ):
        pytest.fail("two writers at a time")
