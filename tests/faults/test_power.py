"""Power cuts: what was acknowledged is there afterwards, and nothing is torn."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.fs import atomic
from sidecar.fs import layout as naming
from sidecar.volume.publish.models import Operation, VolumeConfig
from sidecar.volume.publish.store import Store
from support.mounts import FileSystem, cut_power, image, loop

pytestmark = pytest.mark.root

SIZE = 32 << 10
#: Publishes numbers without end, and says each one only when it is acknowledged.
PUBLISHING = """
import sys
sys.path[:0] = sys.argv[3:]
from faults.test_power import contents, store_at
from sidecar.volume.publish.models import Operation

path, layout = sys.argv[1:3]
store, number = store_at(path), 0
store.prepare({}, Operation())
while True:
    number += 1
    if layout == "file":
        store.put("config", contents(number)["config"], Operation())
    else:
        store.publish(contents(number), Operation())
    print(number, flush=True)
"""


def store_at(path: str) -> Store:
    return Store(VolumeConfig(path, 0o644, None, 3, 0.0, 1 << 20))


def contents(number: int) -> dict[str, bytes]:
    """One number over and over: whatever is torn or mixed shows it."""
    block = b"%07d " % number
    return {
        "config": block * (SIZE // len(block)),
        "sub/other": block,
        f"name-{number % 2}": block,
    }


def cut(path: Path, disk: Path, layout: str, pause: float) -> list[str]:
    """Publish for a moment, cut the power, and return what is wrong after the next start."""
    with loop(path, disk):
        shared = path / "shared"
        writer = subprocess.Popen(
            [sys.executable, "-c", PUBLISHING, shared, layout, *sys.path],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it ends with an error: its disk is gone
            text=True,
        )
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        try:
            writer.wait(pause)
        except subprocess.TimeoutExpired:
            cut_power(path)
        said += writer.stdout
        assert writer.wait(20) != 0, "the power was not cut"
        writer.stdout.close()
    acknowledged = int(said[-1])
    with loop(path, disk):
        return examine(shared, layout, acknowledged)


def examine(shared: Path, layout: str, acknowledged: int) -> list[str]:
    store = store_at(str(shared))
    store.prepare({}, Operation())
    found = dict(store.snapshot())
    number = int(found["config"][:7])
    wanted = contents(number) if layout == "set" else {"config": contents(number)["config"]}
    left = [e for e in shared.iterdir() if e.name.startswith(naming.TEMPORARY)]
    visible = {str(p.relative_to(shared)) for p in shared.glob("[!.]*") if p.is_file()}
    rules = {
        f"acknowledged was {acknowledged}, found {number}": number >= acknowledged,
        "torn or mixed": found == wanted,
        "left over": left == [],
        "a name is not visible": visible == {name for name in wanted if "/" not in name},
        "the next publish fails": store.publish({"config": b"next"}, Operation()).changed,
    }
    shutil.rmtree(shared)
    return [what for what, holds in rules.items() if not holds]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("layout", ["file", "set"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_loses_nothing_that_was_acknowledged(
    tmp_path: Path, kind: FileSystem, layout: str
) -> None:
    """fsync, rename, fsync of the directory: DESIGN 2, "When the machine fails"."""
    chance, disk = random.Random(7), image(tmp_path / "disk", kind)
    pauses = [chance.choice((0.0, 0.002, 0.02, 0.05)) for _ in range(6)]
    assert [cut(tmp_path / "mnt", disk, layout, pause) for pause in pauses] == [[]] * len(pauses)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_sync_after_the_power_cut_is_an_error(tmp_path: Path, kind: FileSystem) -> None:
    """XFS lets fsync of a directory succeed then, and the rename before it is lost: nothing may be acknowledged."""
    with loop(tmp_path / "mnt", image(tmp_path / "disk", kind)) as path:
        (path / "new").write_bytes(b"x")
        fd = os.open(path, os.O_RDONLY)
        try:
            os.rename("new", "config", src_dir_fd=fd, dst_dir_fd=fd)
            cut_power(path)
            with pytest.raises(OSError, match=r"error|Read-only"):
                atomic.sync_directory(fd)
        finally:
            os.close(fd)


@pytest.mark.soak
@pytest.mark.parametrize("layout", ["file", "set"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_two_hundred_power_cuts_lose_nothing(tmp_path: Path, kind: FileSystem, layout: str) -> None:
    """The goal R2, on both file systems and for both layouts."""
    chance, disk = random.Random(8), image(tmp_path / "disk", kind)
    wrong = [cut(tmp_path / "mnt", disk, layout, chance.random() * 0.1) for _ in range(60)]
    assert [w for w in wrong if w] == []
