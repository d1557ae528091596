"""A trial (`dry_run`) answers as the publish would, and changes nothing on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar import _errors
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.validation.gate import Gate
from sidecar.volume.volume import Volume
from support import as_user

Trial = Callable[[Volume], Coroutine[Any, Any, object]]


async def stage(volume: Volume) -> object:
    async with volume.stage("config", dry_run=True) as upload:
        await upload.write(b"x" * 200_000)
        return await volume.put("config", upload, dry_run=True)


TRIALS: dict[str, Trial] = {
    "put": lambda volume: volume.put("config", "new", dry_run=True),
    "nested": lambda volume: volume.put("deep/er/config", "new", dry_run=True),
    "the same": lambda volume: volume.put("config", "2", dry_run=True),
    "set": lambda volume: volume.publish({"config": "new", "sub/b": "new"}, dry_run=True),
    "upload": stage,
    "delete": lambda volume: volume.delete("config", dry_run=True),
    "purge": lambda volume: volume.delete("config", purge=True, dry_run=True),
    "rollback": lambda volume: volume.rollback(version_of(b"1"), name="config", dry_run=True),
}


def listing(directory: Path) -> dict[str, object]:
    """Every entry with its inode, mode, links, size and target."""
    found: dict[str, object] = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        target = os.readlink(path) if path.is_symlink() else ""
        size = 0 if path.is_dir() and not target else status.st_size
        state = status.st_ino, status.st_mode, status.st_nlink, size, target
        found[str(path.relative_to(directory))] = state
    return found


async def nothing(_: Path) -> None:
    """There is no directory, and none above it."""


async def not_locked(path: Path) -> None:
    """The directory is there, and no writer has ever locked it."""
    path.mkdir(parents=True, mode=0o755)
    (path / "config").write_text("2")


async def loose(path: Path) -> None:
    volume = Volume(path)
    await volume.put("config", "1")
    await volume.put("config", "2")
    (path / "..tmp-dead").write_text("half")


async def in_set(path: Path) -> None:
    """With a generation that never came in force, and without a link that belongs to it."""
    volume = Volume(path)
    await volume.publish({"config": "1", "gone": "x"})
    await volume.publish({"config": "2", "sub/a": "x"})
    (path / "..gen-99999999999999999999-dead").mkdir()
    (path / "sub").unlink()


async def damaged(path: Path) -> None:
    """What a writer mends at its start, or with its next change."""
    await in_set(path)
    (path / "..data").unlink()


@pytest.mark.parametrize(
    "state", [nothing, not_locked, loose, in_set, damaged], ids=lambda state: state.__name__
)
@pytest.mark.parametrize("trial", TRIALS)
async def test_a_trial_changes_nothing_on_the_disk(
    tmp_path: Path, trial: str, state: Callable[[Path], Coroutine[Any, Any, None]]
) -> None:
    """Not even what a publish would repair, sweep or make first; whatever the trial says."""
    path = tmp_path / "not" / "yet"
    await state(path)
    before = listing(tmp_path)
    with suppress(_errors.SidecarError):
        await TRIALS[trial](Volume(path))
    assert listing(tmp_path) == before


async def test_a_trial_after_the_link_was_lost_mends_nothing(tmp_path: Path) -> None:
    """Also by the writer that knows the set, and would put it in force again."""
    volume = Volume(tmp_path)
    await volume.publish({"config": "1"})
    (tmp_path / "..data").unlink()
    before = listing(tmp_path)
    for trial in (TRIALS["put"], TRIALS["delete"]):
        with pytest.raises(_errors.VolumeUnavailable, match="a trial mends nothing"):
            await trial(volume)
    assert listing(tmp_path) == before
    assert (await volume.put("config", "2")).changed
    assert (tmp_path / "..data" / "config").read_text() == "2"


async def test_a_trial_without_a_directory_says_what_the_publish_would(tmp_path: Path) -> None:
    """The version, the refusal of the gate, the condition, the budget, and what is not there."""
    path = tmp_path / "not" / "yet"
    volume = Volume(path, gate=Gate(format="json"), volume_budget="1Mi")
    tried = await volume.put("config", "[1]", dry_run=True)
    tried_set = await volume.publish({"a": "[1]"}, dry_run=True)
    async with volume.stage("config", dry_run=True) as upload:
        await upload.write(b"[1]")
        assert (await volume.put("config", upload, dry_run=True)).version == tried.version
    with pytest.raises(_errors.ContentRefused):
        await volume.put("config", "[", dry_run=True)
    with pytest.raises(_errors.VersionConflict):
        await volume.put("config", "[1]", if_match="*", dry_run=True)
    with pytest.raises(_errors.VolumeFull):
        await volume.put("config", f'"{"x" * (2 << 20)}"', dry_run=True)
    with pytest.raises(_errors.FileMissing):
        await volume.delete("config", dry_run=True)
    with pytest.raises(_errors.UnknownVersion):
        await volume.rollback(tried.etag, name="config", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    for trial, done in (
        (tried, await volume.put("config", "[1]")),
        (tried_set, await Volume(tmp_path / "set").publish({"a": "[1]"})),
    ):
        assert (trial.version, trial.changed, trial.created, trial.size) == (
            done.version,
            done.changed,
            done.created,
            done.size,
        )


@pytest.mark.root
async def test_a_trial_where_the_directory_cannot_be_made_says_why(open_path: Path) -> None:
    """As the publish does: who may write above it."""
    open_path.chmod(0o755)
    with as_user(65532):
        for dry_run in (True, False):
            with pytest.raises(_errors.VolumeUnavailable):
                await Volume(open_path / "new").put("config", "1", dry_run=dry_run)
    (open_path / "file").touch()
    for dry_run in (True, False):
        with pytest.raises(_errors.VolumeUnavailable):
            await Volume(open_path / "file" / "new").put("config", "1", dry_run=dry_run)


async def test_a_trial_after_the_directory_was_removed_does_not_make_it(tmp_path: Path) -> None:
    """A writer that has published before makes it with its next publish, and not with a trial."""
    volume = Volume(tmp_path / "v")
    await volume.put("config", "1")
    shutil.rmtree(tmp_path / "v")
    assert (await volume.put("config", "2", dry_run=True)).created
    assert list(tmp_path.iterdir()) == []
