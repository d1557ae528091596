"""The history is bounded as a whole: by bytes, by deleted files; and nothing that is planted in it ends it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.volume import Volume

KIB = 1024
FUTURE = "9" * 20 + "-" + "a" * 32


def contents(path: Path) -> list[Path]:
    return [file for file in (path / "..versions").rglob("*") if file.is_file()]


async def test_of_deleted_files_few_stay_in_the_history(tmp_path: Path) -> None:
    """Ever new names, each deleted, as in a spool: the last `keep_deleted` can be rolled back to (issue 10, point 8)."""
    volume = Volume(tmp_path, keep_deleted=3, durability="none")
    for number in range(8):
        await volume.put(f"job-{number}", str(number))
        await volume.delete(f"job-{number}")
    assert sorted(os.listdir(tmp_path / "..versions")) == [f"file-job-{n}" for n in (5, 6, 7)]
    assert (await volume.rollback(version_of(b"7"), name="job-7")).changed


async def test_a_start_counts_what_was_deleted_before_it(tmp_path: Path) -> None:
    """Another process may have deleted, or a consumer, with another bound."""
    for number in range(5):
        await Volume(tmp_path, keep_deleted=9).put(f"job-{number}", str(number))
        (tmp_path / f"job-{number}").unlink()
    await Volume(tmp_path).put("here", "x")
    await Volume(tmp_path, keep_deleted=2).prepare()
    assert sorted(os.listdir(tmp_path / "..versions")) == ["file-here", "file-job-3", "file-job-4"]


async def test_old_contents_of_all_files_together_take_no_more_than_their_bytes(
    tmp_path: Path,
) -> None:
    """The oldest go first, whosever they are; what is in force costs nothing and stays."""
    volume = Volume(tmp_path, keep_bytes=256 * KIB, durability="none")
    for number in range(40):
        await volume.put(f"file-{number % 4}", bytes([number]) * 32 * KIB)
    old = [file for file in contents(tmp_path) if file.stat().st_nlink == 1]
    assert 4 <= len(old) <= 8
    assert [len(await volume.versions(f"file-{n}")) >= 2 for n in range(4)] == [True] * 4


async def test_old_generations_take_no_more_than_their_bytes(tmp_path: Path) -> None:
    """A file that many generations share counts once, and goes with the last of them."""
    volume = Volume(tmp_path, keep_bytes=256 * KIB, grace=0.0, durability="none")
    await volume.publish({"same": b"s" * 300 * KIB, "new": b""})
    for number in range(12):
        await volume.put("new", bytes([number]) * 64 * KIB)
    old = {s.st_ino: s.st_size for f in contents(tmp_path) if (s := f.stat()).st_size < 100 * KIB}
    assert sum(old.values()) <= 256 * KIB
    assert 3 <= len(await volume.versions()) <= 5


@pytest.mark.parametrize("planted", ["zzz", FUTURE, "directory/" + FUTURE])
async def test_a_planted_entry_does_not_end_the_history_of_a_file(
    tmp_path: Path, planted: str
) -> None:
    """Whoever may write to the volume can plant a name that sorts behind all others."""
    volume = Volume(tmp_path, keep=2)
    await volume.put("config", "1")
    entry = tmp_path / "..versions" / "file-config" / planted.removeprefix("directory/")
    entry.mkdir() if planted.startswith("directory") else entry.write_text("planted")
    for content in "23":
        await Volume(tmp_path, keep=2).put("config", content)
    found = await volume.versions("config")
    assert [one.version for one in found] == [version_of(b"3"), version_of(b"2")]


@pytest.mark.parametrize("planted", ["gen-zzz", "gen-" + FUTURE])
async def test_a_planted_generation_does_not_end_the_history_of_a_set(
    tmp_path: Path, planted: str
) -> None:
    """As of a file."""
    volume = Volume(tmp_path, keep=3, grace=0.0)
    (tmp_path / "..versions" / planted).mkdir(parents=True)
    for content in "1234":
        await volume.publish({"a": content})
    assert len(await volume.versions()) == 3


async def test_a_link_in_the_place_of_a_files_history_is_replaced(tmp_path: Path) -> None:
    """It is not followed, and the history begins anew."""
    (tmp_path / "..versions").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "..versions" / "file-config").symlink_to(tmp_path / "elsewhere")
    await Volume(tmp_path).put("config", "1")
    assert len(await Volume(tmp_path).versions("config")) == 1
    assert not list((tmp_path / "elsewhere").iterdir())


async def test_what_came_from_elsewhere_is_in_the_history_of_a_deleted_file(
    tmp_path: Path,
) -> None:
    """What a delete takes away can be brought back, whoever had put it there."""
    (tmp_path / "config").write_text("theirs")
    volume = Volume(tmp_path)
    await volume.delete("config")
    assert (await volume.rollback(version_of(b"theirs"), name="config")).created


async def test_a_purged_file_leaves_nothing_behind(tmp_path: Path) -> None:
    """A secret that was published by mistake is readable nowhere after that."""
    volume = Volume(tmp_path)
    await volume.put("other", "stays")
    for content in ("secret 1", "secret 2"):
        await volume.put("sub/key", content)
    await volume.delete("sub/key", purge=True)
    assert [file.read_text() for file in contents(tmp_path)] == ["stays"]
    with pytest.raises(_errors.FileMissing):
        await volume.delete("sub/key", purge=True)


async def test_a_file_that_was_deleted_before_can_still_be_purged(tmp_path: Path) -> None:
    """Whoever forgot to say so; a trial says that it would, and does not."""
    volume = Volume(tmp_path)
    await volume.put("key", "secret")
    await volume.delete("key")
    await volume.delete("key", purge=True, dry_run=True)
    assert len(contents(tmp_path)) == 1
    await volume.delete("key", purge=True)
    assert not contents(tmp_path)


async def test_a_purge_of_a_file_of_a_set_takes_the_generations_that_have_it(
    tmp_path: Path,
) -> None:
    """A generation never changes, so it goes as a whole: those that never had the file stay."""
    volume = Volume(tmp_path)
    await volume.publish({"a": "before"})
    for content in ("secret 1", "secret 2"):
        await volume.publish({"a": content, "key": content})
    await volume.delete("key", purge=True)
    kept = [file.read_text() for file in tmp_path.rglob("key") if file.is_file()]
    assert (kept, len(await volume.versions())) == ([], 2)
