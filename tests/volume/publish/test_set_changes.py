"""A set that changes in part: files that stay are the same files, and what changes is seen at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.fs import atomic
from sidecar.volume.validation.gate import Gate
from sidecar.volume.volume import Volume


def inodes(path: Path) -> dict[str, int]:
    return {
        name: (path / name).stat().st_ino for name in os.listdir(path) if not name.startswith("..")
    }


def contents(path: Path) -> dict[str, str]:
    """Return what a reader sees that knows nothing of hidden entries."""
    visible = (
        one
        for name in path.iterdir()
        if not name.name.startswith("..")
        for one in (name, *name.rglob("*"))
    )
    return {str(one.relative_to(path)): one.read_text() for one in visible if one.is_file()}


async def test_publish_takes_unchanged_files_over_as_hard_links(tmp_path: Path) -> None:
    """A reader that follows a file by its inode sees no change where there is none; and it costs no write."""
    volume = Volume(tmp_path)
    await volume.publish({"a": "1", "b": "2"})
    before = inodes(tmp_path)
    done = await volume.publish({"a": "1", "b": "changed"})
    after = inodes(tmp_path)
    assert before["a"] == after["a"]
    assert before["b"] != after["b"]
    assert (done.changed, done.size) == (True, len("1changed"))


async def test_only_changed_files_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of a publish grows with the change, not with the set."""
    synced: list[int] = []
    real = atomic.sync_files
    monkeypatch.setattr(atomic, "sync_files", lambda fds: synced.append(len(fds)) or real(fds))
    volume, names = Volume(tmp_path), [str(number) for number in range(100)]
    await volume.publish(dict.fromkeys(names, "1"))
    synced.clear()
    await volume.publish({**dict.fromkeys(names, "1"), "0": "changed"})
    assert sum(synced) == 1


async def test_files_of_another_publisher_are_synced_when_they_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not have synced them (`durability="none"`), and the publish that takes them over promises a durable set."""
    await Volume(tmp_path, durability="none").publish({"a": "1", "b": "2"})
    synced: set[int] = set()
    real = atomic.sync_files
    monkeypatch.setattr(
        atomic,
        "sync_files",
        lambda fds: synced.update(os.fstat(fd).st_ino for fd in fds) or real(fds),
    )
    await Volume(tmp_path).publish({"a": "1", "b": "changed"})
    assert synced == set(inodes(tmp_path).values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"b": "new"}, {"a": "1", "b": "new", "dir/c": "3"}, id="replaced"),
        pytest.param({"d": "4"}, {"a": "1", "b": "2", "dir/c": "3", "d": "4"}, id="added"),
        pytest.param({"a": None, "dir/c": None}, {"b": "2"}, id="removed"),
        pytest.param({"nothing": None}, {"a": "1", "b": "2", "dir/c": "3"}, id="removed already"),
        pytest.param({"dir/c": None, "dir": "file"}, {"a": "1", "b": "2", "dir": "file"}, id="directory to file"),
        pytest.param({"a": None, "a/x": "5", "b": "6"}, {"a/x": "5", "b": "6", "dir/c": "3"}, id="file to directory"),
    ],
)  # fmt: skip
async def test_changes_of_a_set_are_one_new_generation(
    tmp_path: Path, changes: Mapping[str, str | None], expected: Mapping[str, str]
) -> None:
    """Added, replaced and removed together; everything else stays, as the same files."""
    volume = Volume(tmp_path)
    await volume.publish({"a": "1", "b": "2", "dir/c": "3"})
    before = len([name for name in os.listdir(tmp_path) if name.startswith("..gen-")])
    await volume.update(changes)
    generations = [name for name in os.listdir(tmp_path) if name.startswith("..gen-")]
    assert contents(tmp_path) == expected
    assert len(generations) == before + (list(changes) != ["nothing"])
    assert dict(await volume.snapshot()) == {name: data.encode() for name, data in expected.items()}


async def test_changes_make_a_set_where_there_is_none(tmp_path: Path) -> None:
    """As `publish` does; a directory that is not there is created."""
    volume = Volume(tmp_path / "new")
    done = await volume.update({"a": "1", "gone": None})
    assert (done.created, done.changed, done.size) == (True, True, 1)
    assert contents(tmp_path / "new") == {"a": "1"}


async def test_a_condition_of_a_change_is_the_version_of_the_set(tmp_path: Path) -> None:
    """Who changes what he has not seen is refused, and nothing happens."""
    volume = Volume(tmp_path)
    first = await volume.publish({"a": "1"})
    second = await volume.update({"b": "2"}, if_match=first.etag)
    with pytest.raises(_errors.VersionConflict):
        await volume.update({"c": "3"}, if_match=first.etag)
    assert (await volume.snapshot()).etag == second.etag


async def test_a_trial_of_changes_changes_nothing(tmp_path: Path) -> None:
    """It answers as the change would."""
    volume = Volume(tmp_path)
    await volume.publish({"a": "1"})
    before = os.listdir(tmp_path)
    tried = await volume.update({"b": "2"}, dry_run=True)
    assert os.listdir(tmp_path) == before
    assert (await volume.update({"b": "2"})).version == tried.version


async def test_the_whole_set_is_limited_and_not_only_the_change(tmp_path: Path) -> None:
    """`max_size` is what readers hold."""
    volume = Volume(tmp_path, max_size=10)
    await volume.publish({"a": "12345678"})
    with pytest.raises(_errors.ContentTooLarge):
        await volume.update({"b": "345"})
    await volume.update({"a": None, "b": "345"})


async def test_the_gate_judges_what_changes(tmp_path: Path) -> None:
    """One refused file refuses the whole change."""
    volume = Volume(tmp_path, gate=Gate(format="json"))
    await volume.publish({"a.json": "{}"})
    with pytest.raises(_errors.ContentRefused):
        await volume.update({"b.json": "[]", "c.json": "{"})
    assert contents(tmp_path) == {"a.json": "{}"}


async def test_a_content_can_be_validated_without_publishing_it(tmp_path: Path) -> None:
    """The gate's answer, and nothing on the disk."""
    volume = Volume(tmp_path / "new", gate=Gate(format="json"))
    await volume.validate("a.json", "{}")
    with pytest.raises(_errors.ContentRefused):
        await volume.validate("a.json", "{")
    assert not (tmp_path / "new").exists()


async def test_files_that_are_copied_count_for_the_budget(tmp_path: Path) -> None:
    """Another mode cannot be linked: the old and the new file take their space side by side."""
    content = {"a": b"x" * 700_000}
    await Volume(tmp_path, volume_budget="1Mi").publish(content)
    with pytest.raises(_errors.VolumeFull, match="budget"):
        await Volume(tmp_path, volume_budget="1Mi", mode=0o640).publish(content)


async def test_without_hard_links_the_budget_is_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without them, or a kernel that protects files of others."""

    def link(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    volume = Volume(tmp_path, volume_budget="4Mi")
    for number in range(8):
        await volume.publish({"big": b"b" * (1 << 20), "n": str(number)})
        assert disk_usage(tmp_path) <= 4 << 20


def disk_usage(path: Path) -> int:
    found = {
        one.stat().st_ino: one.stat().st_blocks * 512
        for one in path.rglob("*")
        if one.is_file() and not one.is_symlink()
    }
    return sum(found.values())


async def test_a_file_that_generations_share_is_no_space_that_they_free(tmp_path: Path) -> None:
    """A content that does not fit takes no history away: removing it would free next to nothing."""
    volume = Volume(tmp_path, volume_budget="4Mi")
    for number in range(5):
        await volume.publish({"big": b"b" * (1 << 20), "n": str(number)})
    before = len(await volume.versions())
    with pytest.raises(_errors.VolumeFull):
        await volume.publish({"big": b"b" * (1 << 20), "new": b"n" * (4000 << 10)})
    assert len(await volume.versions()) == before


async def test_no_change_of_loose_files_makes_no_set(tmp_path: Path) -> None:
    """An empty set would hide them."""
    volume = Volume(tmp_path)
    await volume.put("a", "1")
    assert not (await volume.update({"a": None})).changed
    assert contents(tmp_path) == {"a": "1"}


async def test_a_change_does_not_depend_on_names_that_it_leaves(tmp_path: Path) -> None:
    """As `put` and `delete`: what lies in the place of another name is that one's affair."""
    volume = Volume(tmp_path)
    await volume.publish({"a": "1", "b": "2"})
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "foreign").touch()
    await volume.update({"a": "changed"})
    assert (tmp_path / "a").read_text() == "changed"


async def test_links_of_another_publisher_are_not_taken_over(tmp_path: Path) -> None:
    """They would show what they lead to, and not what was published under their name."""
    (tmp_path / "..2026_11_30").mkdir()
    (tmp_path / "..2026_11_30" / "b").write_text("old")
    (tmp_path / "..2026_11_30" / "a").symlink_to("b")
    (tmp_path / "..data").symlink_to("..2026_11_30")
    for name in "ab":
        (tmp_path / name).symlink_to(f"..data/{name}")
    await Volume(tmp_path).publish({"a": "old", "b": "new"})
    assert contents(tmp_path) == {"a": "old", "b": "new"}


async def test_a_file_that_was_rewritten_in_place_is_synced_when_it_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever rewrote it may not have synced it."""
    volume = Volume(tmp_path)
    await volume.publish({"a": "1", "b": "1"})
    (tmp_path / "a").write_text("2")
    synced: set[int] = set()
    real = atomic.sync_files
    monkeypatch.setattr(
        atomic,
        "sync_files",
        lambda fds: synced.update(os.fstat(fd).st_ino for fd in fds) or real(fds),
    )
    await volume.publish({"a": "2", "b": "2"})
    assert synced == set(inodes(tmp_path).values())
