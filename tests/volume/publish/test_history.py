"""What was published before stays for a while, and can be published again."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar import _errors
from sidecar.fs import atomic
from sidecar.volume.content.snapshot import Snapshot, version_of
from sidecar.volume.publish import history
from sidecar.volume.validation.gate import Gate
from sidecar.volume.volume import Volume
from support import Eventually


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


def kept(path: Path, name: str = "config") -> list[Path]:
    """The kept contents of a loose file, oldest first."""
    return sorted((path / "..versions" / f"file-{name}").iterdir())


async def test_the_last_contents_of_a_file_are_kept_as_hard_links(
    tmp_path: Path, eventually: Eventually
) -> None:
    """Newest first, the present one included; nothing is copied. What is older is removed after the answer."""
    volume = Volume(tmp_path, keep=3)
    for content in "12345":
        await volume.put("config", content)
    found = await volume.versions("config")
    assert [v.version for v in found] == [version_of(c) for c in (b"5", b"4", b"3")]
    assert [v.current for v in found] == [True, False, False]
    assert [(v.size, v.files, v.etag) for v in found] == [(1, 1, f'"{v.version}"') for v in found]
    await eventually(lambda: len(kept(tmp_path)) == 3)
    assert [path.read_text() for path in kept(tmp_path)] == ["3", "4", "5"]
    assert kept(tmp_path)[-1].samefile(tmp_path / "config")


async def test_the_history_is_written_while_the_directory_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not synced itself, so that nobody has to wait for it; after a failed sync nothing is kept twice."""
    volume = Volume(tmp_path)
    await volume.put("config", "1")
    real, linked = history.archive_file, threading.Event()

    def archive(*args: Any, **options: Any) -> Any:
        try:
            return real(*args, **options)
        finally:
            linked.set()

    def sync(_: int) -> None:
        assert linked.wait(10), "the sync does not end before the content is in the history"
        raise OSError(errno.EIO, "the sync failed")

    monkeypatch.setattr(history, "archive_file", archive)
    with monkeypatch.context() as failing:
        failing.setattr(atomic, "sync_directory", sync)
        with pytest.raises(_errors.PublishUncertain):
            await volume.put("config", "2")
    await volume.put("config", "2")
    assert [path.read_text() for path in kept(tmp_path)] == ["1", "2"]


async def test_the_last_generations_of_a_set_are_kept(tmp_path: Path) -> None:
    """Those in their grace period and those after it, in one list."""
    for content in "12345":
        await Volume(tmp_path, keep=3, grace=0.0 if content < "5" else 60.0).publish({"a": content})
    found = await Volume(tmp_path, keep=3).versions()
    assert [v.version for v in found] == [Snapshot.of({"a": c}).version for c in "543"]
    assert [(v.current, v.size, v.files) for v in found] == [
        (True, 1, 1),
        (False, 1, 1),
        (False, 1, 1),
    ]


@pytest.mark.parametrize("name", ["config", None])
async def test_only_the_newest_of_equal_contents_is_current(
    volume: Volume, name: str | None
) -> None:
    """A, then B, then A again: three entries, one of them in force."""
    for content in "ABA":
        await (volume.put("config", content) if name else volume.publish({"config": content}))
    assert [v.current for v in await volume.versions(name)] == [True, False, False]


async def test_a_content_is_kept_once_whatever_happens_to_its_file(tmp_path: Path) -> None:
    """Another writer, another mode: that is no version."""
    await Volume(tmp_path).put("config", "1")
    (tmp_path / "config").chmod(0o600)
    await Volume(tmp_path).put("config", "2")
    found = await Volume(tmp_path).versions("config")
    assert [one.version for one in found] == [version_of(b"2"), version_of(b"1")]


@pytest.mark.parametrize("keep", [0, 1])
async def test_without_history_nothing_is_kept(tmp_path: Path, keep: int) -> None:
    """`keep` counts the present content, too."""
    volume = Volume(tmp_path, keep=keep, grace=0.0)
    for content in "12":
        await volume.put("config", content)
    assert len(await volume.versions("config")) == keep
    for content in "34":
        await volume.publish({"config": content})
    assert len(await volume.versions()) == keep
    assert not list(tmp_path.glob("..versions/gen-*"))


async def test_a_file_is_rolled_back(volume: Volume, tmp_path: Path) -> None:
    """By version or entity tag; it is another publish, of old bytes."""
    old = await volume.put("config", "old")
    new = await volume.put("config", "new")
    done = await volume.rollback(old.etag, name="config")
    assert (done.version, done.changed, volume.published) == (old.version, True, done)
    assert (tmp_path / "config").read_text() == "old"
    assert (await volume.rollback(new.version, name="config")).version == new.version
    assert not (await volume.rollback(new.version, name="config")).changed


async def test_a_set_is_rolled_back_as_a_whole(volume: Volume) -> None:
    """Names that came later are gone, names that went are back."""
    old = await volume.publish({"a": "1", "sub/gone": "1"})
    await volume.publish({"a": "2", "new": "2"})
    await volume.rollback(old.etag, if_match=(await volume.snapshot()).etag)
    assert dict(await volume.snapshot()) == {"a": b"1", "sub/gone": b"1"}


async def test_a_rollback_obeys_its_condition(volume: Volume) -> None:
    """Somebody may have published meanwhile; and a trial changes nothing."""
    old = await volume.put("config", "old")
    await volume.put("config", "new")
    with pytest.raises(_errors.VersionConflict):
        await volume.rollback(old.etag, name="config", if_match=old.etag)
    await volume.rollback(old.etag, name="config", dry_run=True)
    assert (await volume.read("config")).data == b"new"


async def test_a_rollback_asks_the_gate_that_is_there_now(tmp_path: Path) -> None:
    """A content that was good once may be refused by now: what is there stays."""
    before = Volume(tmp_path)
    old = await before.put("config", "no JSON at all")
    await before.put("config", "{}")
    strict = Volume(tmp_path, gate=Gate(format="json"))
    with pytest.raises(_errors.ContentRefused):
        await strict.rollback(old.etag, name="config")
    assert (await strict.read("config")).data == b"{}"

    first = await before.publish({"a.json": "no JSON", "b.json": "{}"})
    await before.publish({"a.json": "{}"})
    with pytest.raises(_errors.ContentRefused):
        await strict.rollback(first.etag)
    assert dict(await strict.snapshot()) == {"a.json": b"{}"}


async def test_an_unknown_version_is_an_error(volume: Volume) -> None:
    """Never held, or forgotten since."""
    await volume.put("config", "x")
    for name in ("config", "other", None):
        with pytest.raises(_errors.UnknownVersion, match="does not hold it"):
            await volume.rollback("0" * 32, name=name)


async def test_a_deleted_file_can_be_brought_back(volume: Volume, tmp_path: Path) -> None:
    """Its history outlives it."""
    done = await volume.put("sub/config", "x")
    await volume.delete("sub/config")
    assert [v.current for v in await volume.versions("sub/config")] == [False]
    await volume.rollback(done.version, name="sub/config")
    assert (tmp_path / "sub" / "config").read_text() == "x"


@pytest.mark.parametrize("where", ["file", "set"])
async def test_an_altered_content_is_not_rolled_back_to(
    volume: Volume, tmp_path: Path, where: str
) -> None:
    """A neighbour can write to the history; what is published must be what its name says."""
    if where == "file":
        old = await volume.put("a", "old")
        await volume.put("a", "new")
        target, name = kept(tmp_path, "a")[0], "a"
    else:
        old = await volume.publish({"a": "old"})
        await volume.publish({"a": "new"})
        target, name = min(tmp_path.glob("..gen-*")) / "a", None
    target.chmod(0o600)
    target.write_text("evil")
    with pytest.raises(_errors.UnknownVersion, match="altered"):
        await volume.rollback(old.version, name=name)
    assert (tmp_path / "a").read_text() == "new"


async def test_an_altered_content_that_was_kept_twice_is_found_in_its_other_copy(
    volume: Volume, tmp_path: Path
) -> None:
    """The same content may have been published more than once."""
    for content in ("old", "between", "old", "new"):
        await volume.put("config", content)
    kept(tmp_path)[2].write_text("evil")
    await volume.rollback(version_of(b"old"), name="config")
    assert (tmp_path / "config").read_text() == "old"


async def test_a_content_that_a_naive_writer_left_is_kept_when_it_is_replaced(
    volume: Volume, tmp_path: Path
) -> None:
    """Listed as the present one before that, so that it can be gone back to."""
    (tmp_path / "config").write_text("theirs")
    theirs = version_of(b"theirs")
    (only,) = await volume.versions("config")
    assert (only.version, only.current, only.size) == (theirs, True, 6)
    await volume.put("config", "ours")
    assert [v.version for v in await volume.versions("config")] == [version_of(b"ours"), theirs]
    await volume.rollback(theirs, name="config")
    assert (tmp_path / "config").read_text() == "theirs"


async def test_loose_files_of_others_that_a_set_replaces_are_kept(
    volume: Volume, tmp_path: Path
) -> None:
    """What is replaced enters the history, nested files too; it is rolled back to within the set (issue 10, point 8)."""
    (tmp_path / "sites").mkdir()
    for name in ("config", "sites/a"):
        (tmp_path / name).write_text(f"their {name}")
    await volume.publish({"config": "1", "sites/a": "2"})
    for name in ("config", "sites/a"):
        theirs = version_of(f"their {name}".encode())
        assert (await volume.versions(name))[-1].version == theirs
        await volume.rollback(theirs, name=name)
        assert (tmp_path / name).read_text() == f"their {name}"
    await volume.delete("sites/a", purge=True)
    purged = version_of(b"their sites/a")
    assert purged not in [one.version for one in await volume.versions("sites/a")]


async def test_a_generation_of_another_publisher_is_kept(tmp_path: Path) -> None:
    """As one of ours: it can be rolled back to. Its directory stays, under the name that its publisher knows."""
    volume, theirs = Volume(tmp_path, grace=0.0), tmp_path / "..2026_11_29_10_00_00.1"
    (theirs / "sub").mkdir(parents=True)
    for name in ("config", "sub/a"):
        (theirs / name).write_text(f"their {name}")
    (tmp_path / "..data").symlink_to(theirs.name)
    version = (await volume.snapshot()).version
    for number in "12":
        await volume.publish({"config": number})
    assert [one.version for one in await volume.versions()][-1] == version
    await volume.rollback(version)
    assert (tmp_path / "sub" / "a").read_text() == "their sub/a"
    assert (theirs / "config").read_text() == "their config"


async def test_a_content_that_was_rewritten_in_place_is_kept_as_what_it_is(
    volume: Volume, tmp_path: Path
) -> None:
    """It shares its inode with what we kept, which is gone by that; nothing is ever called what it is not."""
    ours = await volume.put("config", "ours")
    (tmp_path / "config").write_text("theirs")
    await volume.put("config", "new")
    await volume.rollback(version_of(b"theirs"), name="config")
    assert (tmp_path / "config").read_text() == "theirs"
    with pytest.raises(_errors.UnknownVersion, match="altered"):
        await volume.rollback(ours.version, name="config")


async def test_a_trial_forgets_nothing(volume: Volume, tmp_path: Path) -> None:
    """It changes nothing: what is above the bounds goes with the publish itself (issue 10, point 11)."""
    for content in "123":
        await volume.put("config", content)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    trials: tuple[Callable[[Volume], Awaitable[object]], ...] = (
        lambda strict: strict.put("config", "4", dry_run=True),
        lambda strict: strict.publish({"config": "4"}, dry_run=True),
        lambda strict: strict.delete("config", dry_run=True),
        lambda strict: strict.rollback(version_of(b"1"), name="config", dry_run=True),
    )
    for trial in trials:
        await trial(Volume(tmp_path, keep_bytes=0))
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("planted", ["file", "link"])
async def test_what_lies_in_the_place_of_the_history_does_not_end_it(
    tmp_path: Path, open_path: Path, planted: str
) -> None:
    """The name is reserved: what is planted there is removed, and a link is not followed."""
    if planted == "file":
        (tmp_path / "..versions").write_text("in the way")
    else:
        (tmp_path / "..versions").symlink_to(open_path)
    volume = Volume(tmp_path, grace=0.0)
    for content in "12":
        await volume.put("config", content)
    assert len(await volume.versions("config")) == 2
    for content in "345":
        await volume.publish({"config": content})
    assert len(list(tmp_path.glob("..gen-*"))) == 1
    assert len(await volume.versions()) == 3
    assert list(open_path.iterdir()) == []


@pytest.mark.parametrize("others", ["a/b", "a%2Fb", "a", "a/b/c", "x" * 250, "x" * 251, "A"])
async def test_histories_of_different_names_are_apart(
    volume: Volume, tmp_path: Path, others: str
) -> None:
    """Whatever characters and lengths they have."""
    names = [n for n in ("a/b", "a%2Fb", "a", "a/b/c", "x" * 250, "x" * 251, "A") if n != others]
    await volume.put(others, "mine")
    for name in names:
        assert await volume.versions(name) == []


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 100, "d/" * 30 + "x" * 200])
async def test_a_long_name_has_a_history_too(volume: Volume, name: str) -> None:
    """Where the name of its directory would be too long, a digest stands for it."""
    old = await volume.put(name, "old")
    await volume.put(name, "new")
    assert len(await volume.versions(name)) == 2
    await volume.rollback(old.version, name=name)


async def test_the_history_can_be_listed_while_it_changes(volume: Volume) -> None:
    """Contents are forgotten at the same time: no error, and always one in force."""
    volume = Volume(volume.path, keep=2, grace=0.0)
    await volume.publish({"a": "0"})
    done = asyncio.Event()

    async def publish() -> None:
        for number in range(60):
            await volume.publish({"a": str(number)})
        done.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(publish())
        while not done.is_set():
            found = await Volume(volume.path, keep=2).versions()
            assert sum(v.current for v in found) <= 1
    assert len(await volume.versions()) == 2


async def test_strangers_in_the_history_are_ignored(volume: Volume, tmp_path: Path) -> None:
    """A file that somebody put there is no version."""
    await volume.put("config", "x")
    (kept(tmp_path)[0].parent / "notes.txt").write_text("theirs")
    os.mkfifo(tmp_path / "..versions" / "gen-fifo")
    assert len(await volume.versions("config")) == 1
    assert await volume.versions() == []
