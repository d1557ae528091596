"""A set is in force wholly or not at all: what lies in the place of its names, and what becomes of its link."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.fs import atomic
from sidecar.volume.volume import Volume
from support import as_user, mounts

FILES = {"cfg": "new", "other": "new"}


def everything(path: Path) -> dict[str, str]:
    """What lies in a directory, and in those beneath it: links by their targets, files by their contents."""
    found = {}
    for entry in sorted(path.rglob("*")):
        if entry.is_symlink():
            found[str(entry.relative_to(path))] = f"-> {os.readlink(entry)}"
        elif entry.is_file() and entry.name != "..lock":
            found[str(entry.relative_to(path))] = entry.read_text()
    return found


def sticky(path: Path, _: ExitStack) -> None:
    path.chmod(0o1777)
    (path / "cfg").write_text("theirs")


def mount(path: Path, stack: ExitStack) -> None:
    (path.parent / "mounted").write_text("theirs")
    (path / "cfg").touch()
    stack.enter_context(mounts.bound(path.parent / "mounted", path / "cfg"))


def mounted_directory(path: Path, stack: ExitStack) -> None:
    stack.enter_context(mounts.tmpfs(path / "cfg", "size=100k"))


def directory(path: Path, _: ExitStack) -> None:
    (path / "cfg").mkdir()
    (path / "cfg" / "theirs").write_text("theirs")


@pytest.mark.root
@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (sticky, "user 0, and in a directory with the sticky bit"),
        (mount, "a mount of its own"),
        (mounted_directory, "a mount of its own"),
        (directory, "a directory lies in the place"),
    ],
    ids=["sticky", "mount", "mounted-directory", "directory"],
)
@pytest.mark.parametrize("before", [False, True], ids=["first", "second"])
async def test_a_name_that_cannot_be_replaced_keeps_the_set_out(
    open_path: Path, plant: Callable[[Path, ExitStack], None], reason: str, before: bool
) -> None:
    """Found before anything changes, by a trial as well, and named; other names can still be published."""
    path = open_path / "volume"
    path.mkdir()
    path.chmod(0o777)
    with ExitStack() as stack:
        if before:
            with as_user(65532):
                await Volume(path).publish({"other": "old"})
        plant(path, stack)
        was = everything(path)
        with as_user(65532 if plant is sticky else 0):
            volume = Volume(path)
            for dry_run in (True, False):
                with pytest.raises(_errors.PublishError) as caught:
                    await volume.publish(FILES, dry_run=dry_run)
                assert f"{path}/cfg: " in str(caught.value)
                assert reason in str(caught.value)
            assert everything(path) == was
            assert (await volume.put("unrelated", "1")).created
        assert (path / "unrelated").read_text() == "1"


@pytest.mark.parametrize("before", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("place", [".loose", ".nothing"])
async def test_a_set_that_cannot_be_shown_whole_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, place: str
) -> None:
    """Whatever could not be known before: all names are as they were, and the publish has failed."""
    volume = Volume(tmp_path, keep=0)
    if before:
        await volume.publish({"stays": "old"})
    else:
        await volume.prepare()
    if place == ".loose":
        (tmp_path / "a").write_text("loose")
        (tmp_path / "dir").mkdir()
    was, real = everything(tmp_path), atomic.rename_or_exchange

    def put_in_place(dir_fd: int, temporary: str, name: str) -> str | None:
        if name == "last":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return real(dir_fd, temporary, name)

    monkeypatch.setattr(atomic, "rename_or_exchange", put_in_place)
    with pytest.raises(_errors.VolumeUnavailable, match="last: "):
        await volume.publish({"a": "1", "dir/b": "1", "last": "1", "stays": "1"})
    assert everything(tmp_path) == was
    monkeypatch.undo()
    await volume.publish({"a": "1", "last": "1"})
    assert dict(await volume.snapshot()) == {"a": b"1", "last": b"1"}


async def test_one_name_that_is_in_the_way_keeps_no_other_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a set in force, as an earlier version may have left it: a start says which, and goes on."""
    await Volume(tmp_path).publish({"cfg": "1", "other": "1"})
    (tmp_path / "cfg").unlink()
    (tmp_path / "other").unlink()
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "theirs").write_text("theirs")
    volume = Volume(tmp_path)
    await volume.prepare()
    assert "cfg belongs to the active set and is not shown: a directory lies" in caplog.text
    assert (tmp_path / "other").read_text() == "1"
    await volume.put("other", "2")
    await volume.put("more", "2")
    with pytest.raises(_errors.NameTaken):
        await volume.put("cfg", "2")
    await volume.delete("cfg")
    assert dict(await volume.snapshot()) == {"more": b"2", "other": b"2"}
    assert (tmp_path / "cfg" / "theirs").exists()


# The link to the set in force


def removed(_: Path) -> None:
    pass


def dangling(data: Path) -> None:
    data.symlink_to("..gen-nowhere")


def outside(data: Path) -> None:
    data.symlink_to("../../etc")


def a_file(data: Path) -> None:
    data.write_text("theirs")


def a_directory(data: Path) -> None:
    data.mkdir()
    (data / "theirs").write_text("theirs")


DAMAGES = pytest.mark.parametrize("damage", [removed, dangling, outside, a_file, a_directory])


@DAMAGES
@pytest.mark.parametrize("way", ["start", "put", "delete"])
async def test_a_damaged_link_never_takes_the_set_away(
    tmp_path: Path, damage: Callable[[Path], None], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Content that is there survives a restart (DESIGN section 2): the whole generation is put in force again."""
    running = Volume(tmp_path / "volume", grace=0.0)
    await running.publish({"a": "old", "b": "2"})
    await running.publish({"a": "precious", "b": "2"})
    data = tmp_path / "volume" / "..data"
    data.unlink()
    damage(data)
    if way == "start":
        await Volume(tmp_path / "volume").prepare()
        expected = {"a": b"precious", "b": b"2"}
    elif way == "put":
        await running.put("b", "3")
        expected = {"a": b"precious", "b": b"3"}
    else:
        await running.delete("b")
        expected = {"a": b"precious"}
    assert dict(await running.snapshot()) == expected
    assert (tmp_path / "volume" / "a").read_text() == "precious"
    assert "activated " in caplog.text
    theirs = [path for path in (tmp_path / "volume").rglob("*") if "replaced" in str(path)]
    assert bool(theirs) == (damage in {a_file, a_directory})


@DAMAGES
async def test_a_new_set_leaves_the_one_with_a_damaged_link_to_the_history(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """It is the only copy: it must not count as one that never came in force."""
    running = Volume(tmp_path / "volume", grace=0.0)
    old = await running.publish({"a": "precious"})
    data = tmp_path / "volume" / "..data"
    data.unlink()
    damage(data)
    await running.publish({"a": "new"})
    assert (await running.rollback(old.version)).version == old.version
    assert dict(await running.snapshot()) == {"a": b"precious"}


async def test_a_generation_that_is_not_whole_is_not_put_in_force_again(tmp_path: Path) -> None:
    """What its name says is what it must hold: the next older one is."""
    volume = Volume(tmp_path)
    await volume.publish({"a": "1"})
    await volume.publish({"a": "2"})
    (tmp_path / "..data" / "a").write_text("altered")
    (tmp_path / "..data").unlink()
    await Volume(tmp_path).prepare()
    assert (tmp_path / "a").read_text() == "1"


async def test_a_link_of_kubelets_that_leads_nowhere_is_left_to_kubelet(tmp_path: Path) -> None:
    """Two that mend one link would undo each other's work."""
    await Volume(tmp_path).publish({"a": "1"})
    (tmp_path / "..data").unlink()
    (tmp_path / "..data").symlink_to("..2024_01_01_00_00_00.1")
    await Volume(tmp_path).prepare()
    assert os.readlink(tmp_path / "..data") == "..2024_01_01_00_00_00.1"


# What others cannot see


@pytest.mark.parametrize("dry_run", [False, True])
async def test_without_symbolic_links_a_set_is_refused_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    """symlink(2), EPERM: no owner and no `fsGroup` changes that on vfat."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    volume = Volume(tmp_path)
    await volume.put("config", "1")
    was = everything(tmp_path)
    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(_errors.VolumeUnavailable, match=r"no symbolic links.*single files"):
        await volume.publish({"config": "2"}, dry_run=dry_run)
    assert everything(tmp_path) == was


async def test_files_beside_a_set_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No reader of the directory sees them: `..data` is what counts, as for kubelet's volumes."""
    volume = Volume(tmp_path)
    for name in ("ours", "lonely", "sub/lonely"):
        await volume.put(name, "loose")
    await volume.publish({"ours": "1"})
    told = f"{tmp_path} holds a set, and readers ignore the files beside it: lonely, sub"
    assert told in caplog.text
    caplog.clear()
    await Volume(tmp_path).prepare()
    assert told in caplog.text


@pytest.mark.root
@pytest.mark.parametrize("owner", [0, 65531])
async def test_links_that_other_users_cannot_follow_are_told(
    open_path: Path, owner: int, caplog: pytest.LogCaptureFixture, protected_symlinks: None
) -> None:
    """proc_sys_fs(5): in a sticky directory for all a link is followed by its owner, or if the directory is theirs.

    Our readers read such a link and open what it leads to, beneath the volume only.
    """
    open_path.chmod(0o1777)
    os.chown(open_path, owner, owner)
    caplog.set_level(logging.WARNING)
    with as_user(65531):
        await Volume(open_path).publish({"a": "1"})
    with as_user(65532):
        assert (await Volume(open_path).snapshot())["a"] == b"1"
        if owner == 65531:
            assert (open_path / "a").read_text() == "1"
        else:
            with pytest.raises(PermissionError):
                (open_path / "a").read_text()
    assert ("sticky bit" in caplog.text) == (owner == 0)


# Modes


async def test_the_same_set_takes_another_mode(tmp_path: Path) -> None:
    """All its files, and those that are kept, lose what the new mode does not permit."""
    await Volume(tmp_path).publish({"a": "0", "b": "2"})
    await Volume(tmp_path).publish({"a": "1", "b": "2"})
    strict = Volume(tmp_path, mode=0o600)
    assert (await strict.publish({"a": "1", "b": "2"})).changed
    assert not (await strict.publish({"a": "1", "b": "2"})).changed
    modes = {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.name in "ab"}
    assert modes == {0o600}


async def test_one_file_takes_the_mode_to_the_whole_set(tmp_path: Path) -> None:
    """What is taken over has the mode that is asked for, too: it is copied, as its link would have the old one."""
    await Volume(tmp_path).publish({"a": "1", "sub/b": "2"})
    await Volume(tmp_path, mode=0o640).put("a", "new")
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "sub/b")}
    assert modes == {0o640}
    assert (tmp_path / "sub" / "b").read_text() == "2"
    assert (await Volume(tmp_path, mode=0o600).put("a", "new")).changed
    assert (tmp_path / "sub" / "b").stat().st_mode & 0o777 == 0o600


async def test_where_modes_are_fixed_the_same_set_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On vfat and CIFS each start would make a new version of it otherwise."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refuse)
    for changed in (True, False, False):
        done = await Volume(tmp_path, mode=0o200).publish({"a": "1"})
        assert done.changed is changed
