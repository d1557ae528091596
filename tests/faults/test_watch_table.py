"""What watchers of the field miss: each row must converge to the latest content, in every mode.

The rows are those of a table of 17 cases in which `watchfiles` alone finds 3;
the promise is the interval of the re-check and 100 ms.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.testing import ConfigMapVolume, until
from sidecar.volume.watch.stability import QUIET_PERIOD
from sidecar.volume.watch.watch import Watch
from support.watching import BOUND, MODES, GitSync, consumer, remove, replace

mode = pytest.mark.parametrize("mode", MODES)


@mode
async def test_a_file_that_is_replaced_again_and_again_is_followed(
    tmp_path: Path, mode: str
) -> None:
    """The commonest bug of the field: who watches the file itself sees the first replacement only."""
    path = tmp_path / "config"
    replace(path, "0")
    async with consumer(path, watch=mode) as seen:
        await seen.converge("0")
        for number in range(1, 6):
            replace(path, str(number))
            await seen.converge(str(number))
        for number in range(6, 200):
            replace(path, str(number))
        await seen.converge("199")


@mode
async def test_a_key_of_a_configmap_is_followed_through_its_flips(
    tmp_path: Path, mode: str
) -> None:
    """The path is a link through `..data`, which is swapped, and its old target removed at once."""
    volume = ConfigMapVolume(tmp_path)
    volume.update({"config": "0", "other": "0"})
    async with consumer(tmp_path / "config", watch=mode) as seen:
        for number in range(1, 6):
            await seen.converge(str(number - 1))
            volume.update({"config": str(number), "other": "0"})
        await seen.converge("5")
        assert seen.watch.stale is None


@mode
async def test_a_configmap_is_followed_as_a_set(tmp_path: Path, mode: str) -> None:
    """Keys come and go with their generation: never a key of one beside a key of another."""
    volume = ConfigMapVolume(tmp_path)
    volume.update({"a": "0", "b": "0"})
    async with consumer(tmp_path, watch=mode) as seen:
        await seen.converge({"a": "0", "b": "0"})
        volume.update({"b": "1", "c": "1"})
        await seen.converge({"b": "1", "c": "1"})
        volume.update({"a": "2", "b": "2"})
        await seen.converge({"a": "2", "b": "2"})
        assert [sorted(set(one.values())) for one in seen] == [[b"0"], [b"1"], [b"2"]]


@mode
@pytest.mark.parametrize("inner", ["config", "deep/config"])
async def test_a_file_behind_the_link_of_git_sync_is_followed(
    tmp_path: Path, mode: str, inner: str
) -> None:
    """A link on the way to the file is exchanged; the directory of before goes away."""
    git = GitSync(tmp_path / "git")
    git.sync({inner: "0"})
    async with consumer(git.link / inner, watch=mode) as seen:
        for number in range(1, 5):
            await seen.converge(str(number - 1))
            git.sync({inner: str(number)})
        await seen.converge("4")


@mode
async def test_a_worktree_of_git_sync_is_followed_as_a_set(tmp_path: Path, mode: str) -> None:
    """The whole tree changes at once, whether a name is new or not."""
    git = GitSync(tmp_path / "git")
    git.sync({"a": "0", "b/c": "0"})
    async with consumer(git.link, watch=mode) as seen:
        await seen.converge({"a": "0", "b/c": "0"})
        git.sync({"a": "1", "b/c": "1", "d": "1"})
        await seen.converge({"a": "1", "b/c": "1", "d": "1"})
        git.sync({"a": "2"})
        await seen.converge({"a": "2"})
        assert len(seen) == 3


@mode
async def test_a_directory_that_is_removed_and_made_again_is_found_again(
    tmp_path: Path, mode: str
) -> None:
    """inotify falls silent with the directory, without an error."""
    path = tmp_path / "volume" / "config"
    path.parent.mkdir()
    replace(path, "old")
    async with consumer(path, watch=mode) as seen:
        await seen.converge("old")
        for text in ("first", "second"):
            remove(path.parent)
            path.parent.mkdir()
            replace(path, text)
            await seen.converge(text)
        replace(path, "and it is still followed")
        await seen.converge("and it is still followed")


@mode
async def test_a_directory_that_is_exchanged_by_rename_is_followed(
    tmp_path: Path, mode: str
) -> None:
    """The old directory lives on under another name; nothing that happens there counts any more."""
    path = tmp_path / "volume" / "config"
    path.parent.mkdir()
    replace(path, "old")
    async with consumer(path, watch=mode) as seen:
        await seen.converge("old")
        new = tmp_path / "new"
        new.mkdir()
        replace(new / "config", "new")
        path.parent.rename(tmp_path / "away")
        new.rename(path.parent)
        await seen.converge("new")
        replace(tmp_path / "away" / "config", "wrong")
        replace(path, "newer")
        await seen.converge("newer")
        assert "wrong" not in seen.texts


@mode
@pytest.mark.parametrize("missing", ["the file", "its directory", "the directory above as well"])
async def test_what_is_not_there_yet_is_found_when_it_comes(
    tmp_path: Path, mode: str, missing: str
) -> None:
    """A consumer may start before its volume is mounted."""
    path = tmp_path / "above" / "volume" / "config"
    if missing == "the file":
        path.parent.mkdir(parents=True)
    if missing == "its directory":
        path.parent.parent.mkdir()
    async with consumer(path, watch=mode) as seen:
        await seen.watch.looked()
        assert seen.watch.snapshot is None
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, "here")
        await seen.converge("here")
        replace(path, "and followed")
        await seen.converge("and followed")


@mode
async def test_a_neighbours_name_that_is_not_utf8_hurts_nobody(tmp_path: Path, mode: str) -> None:
    """One such name ends `watchfiles.awatch` with an exception, at any time."""
    path = tmp_path / "config"
    replace(path, "0")
    async with consumer(path, watch=mode) as one, consumer(tmp_path, watch=mode) as all_of_them:
        await one.converge("0")
        await all_of_them.converge({"config": "0"})
        for number in range(1, 4):
            with open(os.fsencode(tmp_path) + b"/\xff\xfe%d" % number, "wb") as odd:
                odd.write(b"?")
            replace(path, str(number))
            await one.converge(str(number))
            await all_of_them.converge({"config": str(number)})
        assert one.watch.failure is None


async def test_the_watched_name_itself_may_be_no_utf8(tmp_path: Path) -> None:
    """The file system knows bytes; Python's surrogates carry them."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    replace(path, "0")
    async with consumer(path) as seen:
        await seen.converge("0")
        replace(path, "1")
        await seen.converge("1")


async def test_changes_within_one_second_are_all_told_by_polling(tmp_path: Path) -> None:
    """Whole seconds are no times: `watchfiles` loses the second of two changes for ever."""
    path = tmp_path / "config"
    replace(path, "0")
    async with consumer(path, watch="poll", recheck=0.05) as seen:
        for number in range(1, 8):
            await seen.converge(str(number - 1))
            replace(path, str(number))
        await seen.converge("7")
    assert seen.texts == [str(number) for number in range(8)]


async def test_a_change_of_the_same_size_within_one_tick_is_found(tmp_path: Path) -> None:
    """The clock of a file system ticks every few milliseconds: the same times and size prove nothing so soon."""
    path = tmp_path / "config"
    path.write_text("0")
    async with consumer(path, watch="poll", recheck=0.05) as seen:
        await seen.converge("0")
        with path.open("r+") as file:
            before = os.fstat(file.fileno())
            file.write("1")
            file.flush()
            os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
        await seen.converge("1")


Mount = Callable[..., None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """`mount("-t", "tmpfs", "none", path)`: until the test ends."""
    mounted: list[str] = []

    def do(*arguments: object) -> None:
        subprocess.run(["mount", *map(str, arguments)], check=True)
        mounted.append(str(arguments[-1]))

    yield do
    for path in reversed(mounted):
        subprocess.run(["umount", "--lazy", path], check=False)


@mode
@pytest.mark.root
async def test_what_is_mounted_over_the_directory_is_seen_and_what_comes_back_as_well(
    tmp_path: Path, mount: Mount, mode: str
) -> None:
    """A mount sends no event to who watches what lies beneath it."""
    path = tmp_path / "volume" / "config"
    path.parent.mkdir()
    replace(path, "beneath")
    async with consumer(path, watch=mode) as seen:
        await seen.converge("beneath")
        mount("-t", "tmpfs", "none", path.parent)
        replace(path, "above")
        await seen.converge("above")
        replace(path, "followed")
        await seen.converge("followed")
        subprocess.run(["umount", "--lazy", path.parent], check=True)
        await seen.converge("beneath")


@mode
@pytest.mark.root
async def test_what_is_written_through_the_other_side_of_a_bind_mount_is_seen(
    tmp_path: Path, mount: Mount, mode: str
) -> None:
    """Two containers see one volume through two mounts."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    mount("--bind", source, target)
    replace(source / "config", "0")
    async with consumer(target / "config", watch=mode) as seen:
        await seen.converge("0")
        for number in range(1, 4):
            replace(source / "config", str(number))
            await seen.converge(str(number))


@mode
@pytest.mark.root
async def test_changes_that_send_no_event_are_found_by_the_re_check(
    tmp_path: Path, mount: Mount, mode: str
) -> None:
    """The upper directory of an overlay, written directly: in place, as an overlay permits no more behind its back.

    Of such a writer nothing is known, so its file must have been still for a second.
    """
    mount("-t", "tmpfs", "none", tmp_path)
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir()
    (upper / "config").write_text("0")
    mount(
        "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "none", merged
    )
    async with consumer(merged / "config", watch=mode) as seen:
        await seen.converge("0")
        (upper / "config").write_text("1")
        await seen.converge("1", BOUND + QUIET_PERIOD)


@pytest.mark.parametrize("path", ["config", "volume/"])
async def test_the_bound_is_that_of_the_re_check(tmp_path: Path, path: str) -> None:
    """With events nobody waits for the clock: an hour would be far too long."""
    (tmp_path / "volume").mkdir()
    whole = tmp_path / path
    file = whole / "config" if path.endswith("/") else whole
    replace(file, "0")
    async with consumer(f"{tmp_path}/{path}", recheck=3600) as seen:
        await seen.watch.looked()
        for number in range(1, 4):
            replace(file, str(number))
            await asyncio.wait_for(seen.watch.changed(seen[-1].etag if seen else None, 9), BOUND)
        remove(file.parent) if path.endswith("/") else file.unlink()
        await until(lambda: seen.watch.stale, timeout=BOUND)
        file.parent.mkdir(exist_ok=True)
        replace(file, "new")
        await seen.converge({"config": "new"} if path.endswith("/") else "new")


async def test_a_file_that_becomes_a_link_is_followed_through_it(tmp_path: Path) -> None:
    """From then on events of another name count, and none is waited for by the clock."""
    path, real = tmp_path / "config", tmp_path / "real"
    replace(path, "0")
    async with consumer(path, recheck=3600) as seen:
        await seen.converge("0")
        replace(real, "1")
        (tmp_path / "..link").symlink_to("real")
        (tmp_path / "..link").rename(path)
        await seen.converge("1")
        for number in range(2, 5):
            replace(real, str(number))
            await seen.converge(str(number))


async def test_events_of_other_names_wake_nobody_up(tmp_path: Path) -> None:
    """Temporary files of publishers and old generations are no reason to look."""
    replace(tmp_path / "config", "0")
    async with Watch(tmp_path / "config", recheck=3600) as watch:
        await watch.looked()
        thread = watch._session.thread  # type: ignore[union-attr]
        looks: list[object] = []
        thread._scanner.resolve = lambda turn=thread._scanner.resolve: looks.append(1) or turn()  # type: ignore[method-assign]
        for number in range(20):
            (tmp_path / f"..tmp-{number}").write_text("x")
            (tmp_path / f"neighbour-{number}").write_text("x")
        replace(tmp_path / "config", "1")
        await asyncio.wait_for(watch.changed(watch.etag, 9), BOUND)
        assert len(looks) <= 2
