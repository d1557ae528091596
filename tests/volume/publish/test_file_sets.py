"""A set: files that change together, in the layout of Kubernetes' own volumes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar import _errors
from sidecar.fs import atomic, atomic_writer
from sidecar.volume.content.snapshot import Snapshot
from sidecar.volume.volume import Volume


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


def in_force(path: Path) -> str:
    return os.readlink(path / "..data")


def generations_in(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if name.startswith("..gen-"))


def temporary_in(path: Path) -> list[str]:
    return [name for name in os.listdir(path) if name.startswith("..tmp-")]


def failing(error: int, *, at: str = "") -> Callable[..., None]:
    """Return an `os.rename` that fails; with `at`, only for that target."""
    real = os.rename

    def rename(source: str, target: str, **options: int) -> None:
        if at in ("", target):
            raise OSError(error, os.strerror(error))
        real(source, target, **options)

    return rename


# The layout


async def test_the_layout_is_that_of_kubelet(volume: Volume, tmp_path: Path) -> None:
    """A generation, `..data` to it, and visible links through `..data`; all links relative, all readable."""
    await volume.publish({"index.html": "1", "sub/deep/x": "2", "sub/y": "3"})
    generation = in_force(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["..data", generation, "index.html", "sub"]
    assert generation.startswith("..gen-")
    assert "/" not in generation
    assert os.readlink(tmp_path / "index.html") == "..data/index.html"
    assert os.readlink(tmp_path / "sub") == "..data/sub"
    assert (tmp_path / "sub" / "deep" / "x").read_text() == "2"


@pytest.mark.parametrize("umask", [0o077, 0o000], ids=oct)
async def test_a_generation_is_open_to_readers_whatever_the_umask(
    tmp_path: Path, umask: int
) -> None:
    """Directories 0755, files as asked for: before the generation is in force."""
    before = os.umask(umask)
    try:
        await Volume(tmp_path, mode=0o640).publish({"a": "1", "sub/b": "2"})
    finally:
        os.umask(before)
    found = {p: stat.S_IMODE((tmp_path / "..data" / p).stat().st_mode) for p in (".", "sub")}
    assert found == {".": 0o755, "sub": 0o755}
    files = [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("a", "sub/b")]
    assert files == [0o640, 0o640]


@pytest.mark.root
async def test_a_generation_has_the_group_that_was_asked_for(tmp_path: Path) -> None:
    """The directories as well as the files."""
    await Volume(tmp_path, group=4242).publish({"sub/b": "2"})
    found = [(tmp_path / "..data" / p).stat().st_gid for p in (".", "sub", "sub/b")]
    assert found == [4242, 4242, 4242]


async def test_the_set_group_id_bit_of_the_volume_is_inherited(
    volume: Volume, tmp_path: Path
) -> None:
    """Kubernetes sets it for fsGroup; without it the next files would belong to another group."""
    tmp_path.chmod(0o2775)
    await volume.publish({"sub/b": "2"})
    assert (tmp_path / "..data" / "sub").stat().st_mode & stat.S_ISGID


async def test_names_come_after_their_content_and_go_after_it(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step each name of the set in force leads to its content, and a name that stays is never missing."""
    await volume.publish({"stays": "1", "goes": "1"})
    seen: list[dict[str, str]] = []

    def look() -> None:
        visible = [p for p in tmp_path.iterdir() if not p.name.startswith("..")]
        seen.append({p.name: p.read_text() if p.exists() else "dangling" for p in visible})

    def watched(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **options: object) -> None:
            function(*args, **options)
            look()

        return call

    for name in ("rename", "unlink", "symlink", "fsync"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    await volume.publish({"stays": "2", "comes": "2"})
    assert len(seen) > 8
    assert all(state["stays"] in "12" for state in seen)
    assert all(state.get("comes", "2") == "2" for state in seen)
    # A name that goes may lead nowhere for a moment: its content is gone, and that is what it says.
    assert {state.get("goes", "gone") for state in seen} <= {"1", "dangling", "gone"}
    assert seen[-1] == {"stays": "2", "comes": "2"}


async def test_the_order_of_syncs_and_renames_is_the_guarantee(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content before directory, directory before the link to it, and the link before the answer."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_sync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path == tmp_path:
            calls.append("sync volume")
        else:
            calls.append("sync generation" if path.is_dir() else "sync file")
        fsync(fd)

    def note_rename(source: str, target: str, **options: int) -> None:
        calls.append(f"rename to {target[:6]}")
        rename(source, target, **options)

    await volume.prepare()
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    await volume.publish({"a": "1", "b": "2"})
    assert calls == [
        *("sync file", "sync file", "sync generation"),
        *("rename to ..gen-", "sync volume"),
        *("rename to ..data", "rename to a", "rename to b", "sync volume"),
    ]


# Publishing


async def test_every_file_of_a_large_set_is_synced_before_it_is_in_force(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side, each once; and one that fails drops the whole set when no other is under way any more."""
    files = {f"d{n % 3}/{n}": str(n) for n in range(200)}
    fsync, synced, running, bad = os.fsync, [], [], [-1]

    def note_sync(fd: int) -> None:
        running.append(fd)
        fsync(fd)
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            assert not (tmp_path / "..data").is_symlink()
            synced.append(os.fstat(fd).st_ino)
        running.remove(fd)
        if len(synced) == bad[0]:
            raise OSError(errno.EIO, "the disk is failing")

    monkeypatch.setattr(os, "fsync", note_sync)
    bad[0] = 100
    with pytest.raises(_errors.VolumeUnavailable):
        await volume.publish(files)
    assert running == []
    assert temporary_in(tmp_path) == generations_in(tmp_path) == []

    bad[0] = -1
    synced.clear()
    await volume.publish(files)
    generation = tmp_path / in_force(tmp_path)
    assert sorted(synced) == sorted((generation / name).stat().st_ino for name in files)


async def test_a_set_is_exactly_what_was_published_last(volume: Volume, tmp_path: Path) -> None:
    """Names that are not in it are gone; what others put beside it stays."""
    await volume.publish({"a": "1", "sub/b": "2", "gone": "3"})
    (tmp_path / "theirs").write_text("other")
    (tmp_path / "link").symlink_to("theirs")
    done = await volume.publish({"a": "1", "sub/c": "4"})
    snapshot = await volume.snapshot()
    assert dict(snapshot) == {"a": b"1", "sub/c": b"4"}
    assert (done.version, done.size) == (snapshot.version, 2)
    visible = [name for name in os.listdir(tmp_path) if not name.startswith("..")]
    assert sorted(visible) == ["a", "link", "sub", "theirs"]


async def test_the_version_of_a_set_is_that_of_its_contents(volume: Volume) -> None:
    """The same in writer and reader, and the same for the same files in another order."""
    one = await volume.publish({"a": "1", "b": "2"})
    other = await volume.publish({"b": "2", "a": "1"})
    assert one.version == other.version == Snapshot.of({"a": "1", "b": "2"}).version
    assert not other.changed
    assert one.modified == (await volume.snapshot()).modified


async def test_a_set_that_is_in_force_is_left_alone(volume: Volume, tmp_path: Path) -> None:
    """Also by a writer that has just started; a link that somebody removed is mended."""
    await volume.publish({"a": "1", "b": "2"})
    before = in_force(tmp_path)
    for writer in (volume, Volume(tmp_path)):
        (tmp_path / "b").unlink()
        assert not (await writer.publish({"a": "1", "b": "2"})).changed
        assert in_force(tmp_path) == before
        assert (tmp_path / "b").read_text() == "2"


async def test_a_trial_of_a_set_changes_nothing(volume: Volume, tmp_path: Path) -> None:
    """It writes everything, answers, and removes it."""
    await volume.publish({"a": "1"})
    before = sorted(os.listdir(tmp_path))
    assert (await volume.publish({"a": "2"}, dry_run=True)).changed
    assert (await volume.put("b", "2", dry_run=True)).created
    assert (await volume.delete("a", dry_run=True)) is not None
    assert sorted(os.listdir(tmp_path)) == before


async def test_an_empty_set_is_a_set(volume: Volume) -> None:
    """What was there is withdrawn, on purpose."""
    await volume.publish({"a": "1"})
    await volume.publish({})
    assert dict(await volume.snapshot()) == {}


@pytest.mark.parametrize("files", [{"a": "1", "a/b": "2"}, {"a/b": "1", "a/b/c": "2"}])
async def test_a_name_cannot_be_a_file_and_a_directory(
    volume: Volume, tmp_path: Path, files: dict[str, str]
) -> None:
    """Refused before anything is written."""
    with pytest.raises(_errors.NameTaken, match="is a file of the same set"):
        await volume.publish(files)
    assert os.listdir(tmp_path) == []


async def test_a_file_may_become_a_directory_and_a_directory_a_file(
    volume: Volume, tmp_path: Path
) -> None:
    """The visible link stays what it is."""
    for files in ({"a": "1"}, {"a/b": "2"}, {"a": "3"}):
        await volume.publish(files)
        assert {n: (tmp_path / n).read_text() for n in files} == files


# One file of a set


async def test_one_file_of_a_set_is_published_with_the_others(
    volume: Volume, tmp_path: Path
) -> None:
    """They are taken over into the new generation as links: nothing is copied."""
    await volume.publish({"a": "1", "sub/b": "2"})
    inode = (tmp_path / "sub" / "b").stat().st_ino
    done = await volume.put("a", "new", if_match=(await volume.read("a")).etag)
    assert (done.created, done.version) == (False, (await volume.read("a")).version)
    assert (await volume.put("c", "3")).created
    assert dict(await volume.snapshot()) == {"a": b"new", "c": b"3", "sub/b": b"2"}
    assert (tmp_path / "sub" / "b").stat().st_ino == inode


async def test_one_file_of_a_set_is_deleted_and_the_others_stay(
    volume: Volume, tmp_path: Path
) -> None:
    """The last one leaves an empty set."""
    await volume.publish({"a": "1", "sub/b": "2"})
    with pytest.raises(_errors.FileMissing):
        await volume.delete("missing")
    left = await volume.delete("a")
    assert left is not None
    assert left.version == (await volume.snapshot()).version
    assert not (tmp_path / "a").is_symlink()
    await volume.delete("sub/b")
    assert dict(await volume.snapshot()) == {}


async def test_a_set_cannot_grow_larger_than_readers_take(tmp_path: Path) -> None:
    """The limit holds for all its files together."""
    volume = Volume(tmp_path, max_size=10)
    with pytest.raises(_errors.ContentTooLarge):
        await volume.publish({"a": "x" * 6, "b": "x" * 6})
    await volume.publish({"a": "x" * 6})
    with pytest.raises(_errors.ContentTooLarge):
        await volume.put("b", "x" * 6)
    await volume.put("a", "y" * 10)


async def test_a_set_that_this_writer_cannot_take_in_loses_nothing(tmp_path: Path) -> None:
    """A writer with a lower limit must not publish the rest of the set as the whole."""
    await Volume(tmp_path).publish({"a": "x" * 6, "b": "x" * 6})
    small = Volume(tmp_path, max_size=10)
    for attempt in (small.put("c", "1"), small.delete("a")):
        with pytest.raises(_errors.VolumeUnavailable, match="none of it may be lost"):
            await attempt
    assert len(await Volume(tmp_path).snapshot()) == 2


async def test_a_damaged_set_is_mended_as_a_whole_only(volume: Volume, tmp_path: Path) -> None:
    """A file that cannot be read would be lost by publishing the others with a new one."""
    await volume.publish({"a": "1", "b": "2"})
    (tmp_path / "b").resolve().unlink()
    os.mkfifo(tmp_path / "..data" / "b")
    for writer in (volume, Volume(tmp_path)):
        with pytest.raises(_errors.VolumeUnavailable, match="publish the whole set again"):
            await writer.put("a", "new")
        with pytest.raises(_errors.VolumeUnavailable):
            await writer.publish({"a": "new"}, if_match="*")
    assert (await volume.publish({"a": "1", "b": "2"})).changed
    assert dict(await volume.snapshot()) == {"a": b"1", "b": b"2"}


async def test_a_link_that_leads_nowhere_is_mended_by_publishing(
    volume: Volume, tmp_path: Path
) -> None:
    """Somebody has removed the generation."""
    await volume.publish({"a": "1"})
    shutil.rmtree(tmp_path / in_force(tmp_path))
    await Volume(tmp_path).prepare(initial={"a": "initial"})
    with pytest.raises(_errors.VolumeUnavailable):
        await volume.put("a", "2")
    await volume.publish({"a": "2"})
    assert (tmp_path / "a").read_text() == "2"


async def test_an_error_while_asking_what_is_in_force_removes_nothing(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be taken for the answer that nothing is: the sweep would remove the generation itself."""
    await volume.publish({"a": "1"})
    for nth in range(12):
        calls = iter(range(100))
        real = os.readlink

        def readlink(path: str, nth: int = nth, **options: int) -> str:
            if path == "..data" and next(calls) == nth:  # noqa: B023
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, **options)  # noqa: B023

        with monkeypatch.context() as patched:
            patched.setattr(os, "readlink", readlink)
            with contextlib.suppress(_errors.PublishError):
                await volume.put("b", str(nth))
        assert (await volume.snapshot())["a"] == b"1"


async def test_a_set_of_which_one_file_cannot_be_read_is_not_returned_without_it(
    volume: Volume, tmp_path: Path
) -> None:
    """The files of a set belong together; of loose files the others are returned."""
    await volume.publish({"a": "1", "b": "22"})
    small = Volume(tmp_path, max_size=2)
    with pytest.raises(_errors.ReadError, match=r"cannot read .*/b"):
        await small.snapshot()
    for name, content in (("a", "1"), ("b", "22")):
        await Volume(tmp_path / "loose").put(name, content)
    assert dict(await Volume(tmp_path / "loose", max_size=2).snapshot()) == {"a": b"1"}


# From loose files to a set


async def test_loose_files_become_a_set(volume: Volume, tmp_path: Path) -> None:
    """Each name leads to the old content or the new one; loose files of other names stay beside it."""
    for name in ("config", "sub/inner", "other"):
        await volume.put(name, "loose")
    done = await volume.publish({"config": "1", "sub/inner": "2", "sub/new": "3"})
    assert done.created
    assert os.readlink(tmp_path / "config") == "..data/config"
    assert os.readlink(tmp_path / "sub") == "..data/sub"
    assert (tmp_path / "other").read_text() == "loose"
    assert dict(await volume.snapshot()) == {"config": b"1", "sub/inner": b"2", "sub/new": b"3"}
    assert temporary_in(tmp_path) == []


async def test_a_set_of_the_very_files_that_lie_there_is_still_to_be_made(
    volume: Volume, tmp_path: Path
) -> None:
    """Loose files do not change together."""
    await volume.put("config", "same")
    assert (await volume.publish({"config": "same"}, if_none_match="*")).changed
    assert os.readlink(tmp_path / "config") == "..data/config"


@pytest.mark.parametrize("theirs", ["file", "link", "deep"])
async def test_a_directory_with_other_files_is_not_replaced(
    volume: Volume, tmp_path: Path, theirs: str
) -> None:
    """They would be lost: refused before the set is in force, not in the middle of it."""
    await volume.put("sub/ours", "loose")
    if theirs == "file":
        (tmp_path / "sub" / "theirs").write_text("other")
    elif theirs == "link":
        (tmp_path / "sub" / "theirs").symlink_to("/etc", target_is_directory=True)
    else:
        (tmp_path / "sub" / "deeper").mkdir()
        (tmp_path / "sub" / "deeper" / "theirs").write_text("other")
    for dry_run in (True, False):
        with pytest.raises(_errors.NameTaken, match="sub: a directory lies in the place"):
            await volume.publish({"a": "1", "sub/ours": "2"}, dry_run=dry_run)
    assert sorted(os.listdir(tmp_path)) == ["..versions", "sub"]
    assert (tmp_path / "sub" / "ours").read_text() == "loose"


async def test_a_set_takes_the_place_of_kubelets(volume: Volume, tmp_path: Path) -> None:
    """Filled in the same layout by somebody else: their generation is left to them, and ours to our readers."""
    await volume.publish({"a": "ours in its grace"})
    ours = in_force(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "..data").unlink()
    (tmp_path / "..2024_01_01").mkdir()
    (tmp_path / "..2024_01_01" / "a").write_text("theirs")
    (tmp_path / "..data").symlink_to("..2024_01_01")
    (tmp_path / "a").symlink_to("..data/a")
    await volume.put("b", "ours")
    assert dict(await volume.snapshot()) == {"a": b"theirs", "b": b"ours"}
    assert (tmp_path / "..2024_01_01" / "a").read_text() == "theirs"
    assert (tmp_path / ours / "a").exists()


# Outcomes


@pytest.mark.parametrize("target", ["..data", "gen"])
async def test_a_switch_that_failed_leaves_the_old_set(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Nothing of the new one stays."""
    await volume.publish({"a": "1"})
    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing(errno.EIO, at="" if target == "gen" else target))
        with pytest.raises(_errors.VolumeUnavailable):
            await volume.publish({"a": "2", "b": "2"})
    assert sorted(os.listdir(tmp_path)) == before
    assert dict(await volume.snapshot()) == {"a": b"1"}


async def test_a_switch_that_failed_and_happened_is_uncertain(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rename(2) says that of NFS; what is in force decides."""
    await volume.publish({"a": "1"})
    real = os.rename

    def rename(source: str, target: str, **options: int) -> None:
        real(source, target, **options)
        if target == "..data":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename)
        with pytest.raises(_errors.PublishUncertain) as caught:
            await volume.publish({"a": "2"})
    assert caught.value.version == (await volume.snapshot()).version
    assert dict(await volume.snapshot()) == {"a": b"2"}
    assert temporary_in(tmp_path) == []


async def test_a_set_that_could_not_be_synced_is_published_anew(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same set again is no no-op: a later sync that succeeds proves nothing about the lost one."""
    await volume.publish({"a": "1"})
    calls = iter(range(100))
    real = atomic.sync_directory

    def sync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path == str(tmp_path) and next(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "sync_directory", sync)
        with pytest.raises(_errors.PublishUncertain):
            await volume.publish({"a": "2"})
    uncertain = in_force(tmp_path)
    assert (await volume.publish({"a": "2"})).changed
    assert in_force(tmp_path) != uncertain


async def test_no_room_for_a_new_name_is_found_before_the_switch(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inodes used up: a set must not be in force with half of its names."""
    await volume.publish({"a": "1"})
    made = iter(range(100))
    real = os.symlink

    def symlink(target: str, path: str, **options: Any) -> None:
        if next(made) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(target, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "symlink", symlink)
        with pytest.raises(_errors.VolumeFull):
            await volume.publish({"a": "2", "b": "2", "c": "2"})
    assert dict(await volume.snapshot()) == {"a": b"1"}
    assert temporary_in(tmp_path) == []
    assert len(generations_in(tmp_path)) == 1


# Generations


async def test_a_replaced_generation_stays_for_its_grace(tmp_path: Path) -> None:
    """A reader that has resolved the old link finds all its files; after that they are history."""
    await Volume(tmp_path, grace=60.0).publish({"a": "1"})
    old = in_force(tmp_path)
    await Volume(tmp_path, grace=60.0).publish({"a": "2"})
    assert (tmp_path / old / "a").read_text() == "1"
    await Volume(tmp_path, grace=0.0).publish({"a": "3"})
    assert generations_in(tmp_path) == [in_force(tmp_path)]
    kept = [path.read_text() for path in (tmp_path / "..versions").glob("gen-*/a")]
    assert sorted(kept) == ["1", "2"]


async def test_the_grace_counts_from_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the moment at which its successor was begun: a set of thousands takes a while to write."""
    volume = Volume(tmp_path, grace=30.0)
    await volume.publish({"a": "1"})
    old = in_force(tmp_path)
    now = [0]
    build, clock = atomic_writer.build, time.time_ns

    def slow(*args: object, **options: object) -> str:
        name = build(*args, **options)  # type: ignore[arg-type]
        now[0] += 60_000_000_000
        return name

    monkeypatch.setattr(atomic_writer, "build", slow)
    monkeypatch.setattr("time.time_ns", lambda: clock() + now[0])
    await volume.publish({"a": "2"})
    assert (tmp_path / old / "a").read_text() == "1"


async def test_generations_in_their_grace_do_not_pile_up(tmp_path: Path) -> None:
    """A set that is published again and again: at most sixteen wait, the oldest go first."""
    volume = Volume(tmp_path, grace=3600.0, keep=3)
    for number in range(25):
        await volume.publish({"a": str(number)})
    names = generations_in(tmp_path)
    assert len(names) == 17
    assert [(tmp_path / n / "a").read_text() for n in names] == [str(n) for n in range(8, 25)]
    assert len(list((tmp_path / "..versions").iterdir())) == 2


@pytest.mark.parametrize("complete", [True, False])
async def test_a_generation_that_never_came_in_force_is_no_history(
    volume: Volume, tmp_path: Path, complete: bool
) -> None:
    """Another writer was killed before its switch: our next publish removes what it left."""
    await volume.publish({"a": "1"})
    killed = tmp_path / f"..gen-{2**62:020d}-{'0' * 32}"
    killed.mkdir()
    if complete:
        (killed / "a").write_text("never published")
    await volume.publish({"a": "2"})
    assert not killed.exists()
    assert len(await volume.versions()) == 2


async def test_a_set_written_by_ours_is_read_as_a_configmap_is(
    volume: Volume, tmp_path: Path
) -> None:
    """By a program that knows of links and files only."""
    files = {"a.json": json.dumps({"x": 1}), "b.txt": "text"}
    await volume.publish(files)
    assert {p.name: p.read_text() for p in tmp_path.iterdir() if p.name[0] != "."} == files
    assert all(p.is_symlink() for p in tmp_path.iterdir() if p.name[0] != ".")
