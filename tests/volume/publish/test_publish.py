"""One file: old or new, whole and durable, under its mode, whatever lies in its place."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sidecar
from sidecar import _errors
from sidecar.fs import atomic, flock, oserrors
from sidecar.process import metrics
from sidecar.volume.content.snapshot import Snapshot
from sidecar.volume.publish import single_files
from sidecar.volume.volume import Volume
from support import as_user


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


def entries(path: Path) -> list[str]:
    """All that lies in a directory and below, the history left out."""
    inside = [str(p.relative_to(path)) for p in path.rglob("*")]
    return sorted(p for p in inside if not p.startswith("..versions"))


def failing(error: int, *, after: Callable[..., object] | None = None) -> Callable[..., None]:
    """Return a call that fails, and that has done its work all the same if there is an `after`."""

    def fail(*args: object, **options: object) -> None:
        if after is not None:
            after(*args, **options)
        raise OSError(error, os.strerror(error))

    return fail


# Contents


@pytest.mark.parametrize("content", [b"", b"\x00\xff", "text: ä", b"x" * 3_000_000])
async def test_what_is_published_is_read(volume: Volume, content: bytes | str) -> None:
    """Bytes as they are, text as UTF-8; version, size and time are those of the file."""
    data = content.encode() if isinstance(content, str) else content
    done = await volume.put("config", content)
    found = await volume.read("config")
    assert (found.data, found.version, found.etag) == (data, done.version, done.etag)
    assert (done.size, done.modified) == (len(data), found.modified)


async def test_a_publication_says_what_it_did(volume: Volume) -> None:
    """Created, replaced, or there already."""
    first = await volume.put("config", "1")
    second = await volume.put("config", "2")
    same = await volume.put("config", "2")
    assert [(p.created, p.changed) for p in (first, second, same)] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    assert volume.published == same
    assert same.version[:8] in repr(volume)


async def test_publishing_what_is_there_touches_nothing(volume: Volume, tmp_path: Path) -> None:
    """Not even the time of the file: also by a writer that has just started."""
    await volume.put("config", "same")
    before = (tmp_path / "config").stat()
    for writer in (volume, Volume(tmp_path)):
        done = await writer.put("config", "same")
        assert not done.changed
        assert done.modified == before.st_mtime_ns / 1e9
    after = (tmp_path / "config").stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


async def test_what_another_has_written_is_synced_before_it_counts_as_published(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer may have been killed between rename and sync; what we say is published must survive a power cut."""
    (tmp_path / "config").write_bytes(b"same")
    await volume.prepare()
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd)))
    assert not (await volume.put("config", "same")).changed
    assert synced == [(tmp_path / "config").stat().st_ino, tmp_path.stat().st_ino]
    assert not (await volume.put("config", "same")).changed
    assert len(synced) == 2


@pytest.mark.parametrize("umask", [0o077, 0o000], ids=oct)
async def test_file_and_directories_have_their_modes_whatever_the_umask(
    tmp_path: Path, umask: int
) -> None:
    """The reader is another container, with another user."""
    before = os.umask(umask)
    try:
        await Volume(tmp_path / "new", mode=0o640).put("sub/config", "x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("new", "new/sub")]
    assert modes == [0o755, 0o755]
    assert stat.S_IMODE((tmp_path / "new/sub/config").stat().st_mode) == 0o640


@pytest.mark.root
async def test_the_group_is_the_one_asked_for(tmp_path: Path) -> None:
    """As with fsGroup."""
    await Volume(tmp_path, group=4242).put("config", "x")
    assert (tmp_path / "config").stat().st_gid == 4242


def test_a_mode_that_is_not_octal_is_refused(tmp_path: Path) -> None:
    """644 without `0o` would be a sticky file that nobody can read."""
    with pytest.raises(_errors.ConfigError, match="0o1204"):
        Volume(tmp_path, mode=644)


@pytest.mark.parametrize("group", [-1, 2**32 - 1])
def test_a_group_that_the_kernel_would_pass_over_is_refused(tmp_path: Path, group: int) -> None:
    """To fchown(2) they mean "leave it as it is": the files would have another group than was asked for."""
    with pytest.raises(_errors.ConfigError, match=f"there is no group {group}"):
        Volume(tmp_path, group=group)


def test_an_empty_path_is_no_volume() -> None:
    """It would be the working directory, by accident."""
    with pytest.raises(_errors.ConfigError, match="'' is no path"):
        Volume("")


async def test_publish_file_takes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative ones too; the directory is made."""
    monkeypatch.chdir(tmp_path)
    await sidecar.publish_file("gin/config", "1")
    await sidecar.publish_file(tmp_path / "gin" / "config", "2")
    await sidecar.publish_file("plain", "3")
    assert (tmp_path / "gin" / "config").read_text() == "2"
    assert (tmp_path / "plain").read_text() == "3"


async def test_a_trial_changes_nothing(volume: Volume, tmp_path: Path) -> None:
    """`dry_run` answers as it would, and leaves no trace."""
    await volume.put("config", "old")
    done = volume.published
    before = sorted(tmp_path.rglob("*"))
    assert (await volume.put("config", "new", dry_run=True)).changed
    assert (await volume.put("sub/other", "new", dry_run=True)).created
    assert await volume.delete("config", dry_run=True) is None
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "config").read_text() == "old"
    assert volume.published == done


async def test_a_content_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    """Readers would not take it."""
    volume = Volume(tmp_path, max_size=10)
    await volume.put("config", b"x" * 10)
    with pytest.raises(_errors.ContentTooLarge, match="limit of 10 bytes"):
        await volume.put("config", b"x" * 11)
    assert (tmp_path / "config").read_bytes() == b"x" * 10


async def test_publishes_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    """`sidecar_publish_total{result}`."""

    def count() -> dict[str, float]:
        names = metrics.PUBLISH_RESULTS
        return {r: metrics.PUBLISH_TOTAL.labels(r)._value.get() for r in names}

    before = count()
    volume = Volume(tmp_path, max_size=10)
    await volume.put("config", "1")
    await volume.put("config", "1")
    for content, condition in (("x" * 11, None), ("2", '"no"')):
        with pytest.raises(_errors.PublishError):
            await volume.put("config", content, if_match=condition)
    await volume.put("config", "3", dry_run=True)
    gained = {result: count()[result] - before[result] for result in before}
    expected = {"published": 1, "unchanged": 1, "refused": 1, "conflict": 1}
    assert gained == {**dict.fromkeys(before, 0), **expected}


# Names


@pytest.mark.parametrize("name", ["a", ".hidden", "a b", "ä", "a/b/c", "x" * 255, "d/" * 32 + "x"])
async def test_a_name_that_is_accepted_is_seen_by_readers(volume: Volume, name: str) -> None:
    """Also the longest and the deepest."""
    await volume.put(name, "content")
    assert (await volume.snapshot()).text(name) == "content"
    assert await volume.names() == {name: 7}
    await volume.publish({name: "in a set"})
    assert (await volume.snapshot()).text(name) == "in a set"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "/",
            "/etc/passwd",
            "a/",
            "a//b",
            ".",
            "./a",
            "..",
            "../a",
            "a/../b",
            "..data",
            "a/..b",
        ),
        *("a\0b", "a\nb", "\udcff", "lost+found"),
        *("x" * 256, "ä" * 128, "d/" * 33 + "x", "x/" * 600 + "x"),
    ],
)
async def test_a_name_that_leaves_the_volume_or_hides_in_it_is_refused(
    volume: Volume, tmp_path: Path, name: str
) -> None:
    """By every way in, and before anything is written."""
    await volume.prepare()
    for attempt in (
        volume.put(name, "x"),
        volume.publish({name: "x"}),
        volume.delete(name),
        volume.read(name),
        volume.versions(name),
    ):
        with pytest.raises(_errors.NameRefused, match="as the name of a file"):
            await attempt
    assert entries(tmp_path) == []


# Deleting


async def test_a_deleted_file_is_gone_with_the_directories_that_held_nothing_else(
    volume: Volume, tmp_path: Path
) -> None:
    """So that a file of the directory's name can be published after that."""
    await volume.put("a/b/c", "x")
    await volume.put("a/other", "x")
    await volume.delete("a/b/c")
    assert entries(tmp_path) == ["a", "a/other"]
    await volume.delete("a/other")
    await volume.put("a", "now a file")
    assert entries(tmp_path) == ["a"]


@pytest.mark.parametrize("who", ["writer", "consumer"])
async def test_names_that_never_come_again_are_not_remembered_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """As in a spool: a process of weeks must not keep something of each."""
    monkeypatch.setattr(single_files, "_MAX_CACHED_NAMES", 5)
    monkeypatch.setattr(
        single_files, "_CLOCK_GRANULARITY_NS", -(10**18)
    )  # as if each had been there for a while
    volume = Volume(tmp_path, keep=0, durability="none")
    known: list[int] = []
    for number in range(40):
        name = f"job-{number}"
        done = await volume.put(name, "x")
        assert [entry.etag for entry in await volume.entries()] == [done.etag]
        if who == "writer":
            await volume.delete(name)
        else:
            (tmp_path / name).unlink()
        assert await volume.entries() == []
        files = volume._store._loose
        maps = files._version_cache, files._durable, files._last_written, files._uncertain
        known.append(sum(len(one) for one in maps))
    assert max(known) <= 2 * 5


async def test_deleting_nothing_is_an_error(volume: Volume, tmp_path: Path) -> None:
    """Neither does it remove a directory."""
    await volume.put("sub/file", "x")
    for name in ("missing", "sub"):
        with pytest.raises(_errors.FileMissing, match="no such file"):
            await volume.delete(name)
    assert entries(tmp_path) == ["sub", "sub/file"]


# What lies in the place of the file


async def test_a_planted_link_is_replaced_and_its_target_untouched(
    volume: Volume, tmp_path: Path
) -> None:
    """Also if its target holds the very content that is published."""
    same = "other"  # as long as the link itself, whose size is that of its target's name
    (tmp_path / "other").write_text(same)
    for target in ("other", "/etc/passwd", "nowhere"):
        (tmp_path / "config").unlink(missing_ok=True)
        (tmp_path / "config").symlink_to(target)
        assert (await volume.put("config", same)).changed
        assert not (tmp_path / "config").is_symlink()
    assert (tmp_path / "other").read_text() == same


async def test_a_planted_directory_link_is_not_followed(volume: Volume, open_path: Path) -> None:
    """Nothing outside is written, read or deleted, by whatever name."""
    (open_path / "secret").write_text("outside")
    await volume.prepare()
    Path(volume.path, "sub").symlink_to(open_path)
    with pytest.raises(_errors.NameTaken, match=r"symbolic link|not a directory"):
        await volume.put("sub/config", "x")
    with pytest.raises(_errors.FileMissing):
        await volume.delete("sub/secret")
    with pytest.raises(_errors.ReadError):
        await volume.read("sub/secret")
    assert [p.name for p in open_path.iterdir()] == ["secret"]


async def test_a_fifo_is_replaced_without_waiting(volume: Volume, tmp_path: Path) -> None:
    """Whoever opens it for reading waits for a writer that never comes."""
    os.mkfifo(tmp_path / "config")
    async with asyncio.timeout(5):
        await volume.put("config", "x", if_none_match="*")
    assert (tmp_path / "config").read_text() == "x"


async def test_a_directory_in_the_place_of_the_file_is_named(
    volume: Volume, tmp_path: Path
) -> None:
    """It may hold anything: it is not ours to remove."""
    (tmp_path / "config").mkdir()
    for dry_run in (True, False):
        with pytest.raises(_errors.NameTaken, match="a directory lies in the place"):
            await volume.put("config", "x", dry_run=dry_run)
    assert entries(tmp_path) == ["config"]


async def test_a_file_in_the_place_of_a_directory_is_named(volume: Volume, tmp_path: Path) -> None:
    """It is a content, too, and stays; a trial finds out as well."""
    await volume.put("config", "content")
    for dry_run in (True, False):
        with pytest.raises(_errors.NameTaken, match="config/x: a part of the path is a file"):
            await volume.put("config/x", "x", dry_run=dry_run)
    assert (tmp_path / "config").read_text() == "content"


async def test_a_planted_giant_is_replaced_without_being_read(
    volume: Volume, tmp_path: Path
) -> None:
    """A sparse file of 1 TiB costs nothing to plant."""
    with (tmp_path / "config").open("wb") as file:
        file.truncate(1 << 40)
    async with asyncio.timeout(10):
        with pytest.raises(_errors.VolumeUnavailable, match="cannot be compared"):
            await volume.put("config", "x", if_match='"abc"')
        await volume.put("config", "x")
    assert (tmp_path / "config").read_text() == "x"


# At the start


async def test_the_first_start_publishes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    """Content that is there survives every restart."""
    initial: dict[str, bytes | str] = {"config": b"", "other": "first"}
    await Volume(tmp_path / "new").prepare(initial=initial)
    await Volume(tmp_path / "new").put("config", "published")
    await Volume(tmp_path / "new").prepare(initial=initial)
    assert (tmp_path / "new" / "config").read_text() == "published"
    assert (tmp_path / "new" / "other").read_text() == "first"


@pytest.mark.root
async def test_the_start_keeps_a_content_that_it_may_not_read(open_path: Path) -> None:
    """Of another user, private: it is there, so nothing is missing."""
    (open_path / "config").write_text("private")
    (open_path / "config").chmod(0o600)
    with as_user(65532):
        await Volume(open_path).prepare(initial={"config": b""})
    assert (open_path / "config").read_text() == "private"


async def test_the_start_sweeps_what_the_dead_left_and_spares_the_living(
    tmp_path: Path,
) -> None:
    """Another process may be receiving a large upload at this moment."""
    (tmp_path / "..tmp-dead").write_bytes(b"half")
    program = (
        "import asyncio, sys\n"
        "from sidecar import Volume\n"
        "async def main():\n"
        "    volume = Volume(sys.argv[1])\n"
        "    async with volume.stage() as upload:\n"
        "        await upload.write(b'x' * 300_000)\n"
        "        print('receiving', flush=True); sys.stdin.readline()\n"
        "        print((await volume.put('large', upload)).size)\n"
        "asyncio.run(main())"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "receiving\n"
    await Volume(tmp_path).prepare()
    assert len(entries(tmp_path)) == 1
    said, _ = writer.communicate("go\n", timeout=30)
    assert said == "300000\n"
    assert entries(tmp_path) == ["large"]


@pytest.mark.root
async def test_a_single_file_mount_is_refused_at_the_start(tmp_path: Path) -> None:
    """`subPath`: the file can neither be replaced nor see updates, and the message says what to do."""
    for name in ("source", "config"):
        (tmp_path / name).write_text("mounted")
    subprocess.run(["mount", "--bind", tmp_path / "source", tmp_path / "config"], check=True)
    try:
        volume = Volume(tmp_path)
        with pytest.raises(_errors.VolumeUnavailable, match=r"subPath.*mount the directory"):
            await volume.prepare(initial={"config": b""})
        with pytest.raises(_errors.VolumeUnavailable, match="subPath"):
            await volume.put("config", "x")
        assert entries(tmp_path) == ["config", "source"]
    finally:
        subprocess.run(["umount", tmp_path / "config"], check=True)


@pytest.mark.root
@pytest.mark.parametrize("in_pod", [True, False])
async def test_a_directory_without_permission_is_named_with_its_remedy(
    open_path: Path, in_pod: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most frequent mistake in a Pod: the volume belongs to root. A laptop has no securityContext."""
    monkeypatch.setattr(oserrors, "_POD_SECRETS", str(open_path / "missing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if in_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    open_path.chmod(0o755)
    volume = Volume(open_path)
    with as_user(65532):
        with pytest.raises(_errors.VolumeUnavailable, match="for user 65532") as caught:
            await volume.put("config", "x")
        assert ("fsGroup" in str(caught.value)) == in_pod
        assert ("chgrp" in str(caught.value)) != in_pod
        with pytest.raises(_errors.VolumeUnavailable, match="permission denied"):
            await volume.check_writable()
    assert entries(open_path) == []


async def test_a_directory_that_vanished_is_made_again(volume: Volume, tmp_path: Path) -> None:
    """By the publish after the one that found it missing."""
    volume = Volume(tmp_path / "new")
    await volume.put("config", "1")
    subprocess.run(["rm", "-r", tmp_path / "new"], check=True)
    with pytest.raises(_errors.VolumeUnavailable, match="does not exist"):
        await volume.put("config", "2")
    await volume.put("config", "2")
    assert (tmp_path / "new" / "config").read_text() == "2"


async def test_a_directory_that_is_replaced_meanwhile_is_not_published_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is acknowledged must be where readers look, not in what the directory was."""
    shared = tmp_path / "shared"
    volume = Volume(shared)
    await volume.prepare()
    real, times = flock._lock, iter([1])

    def replaced(fd: int, *arguments: object) -> bool:
        for _ in times:
            shared.rename(tmp_path / "aside")
            shared.mkdir()
        return real(fd, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(flock, "_lock", replaced)
    await volume.put("config", "x")
    assert (shared / "config").read_text() == "x"


async def test_the_writability_can_be_asked_for(volume: Volume, tmp_path: Path) -> None:
    """For readiness: it tries what a publish needs and leaves nothing behind."""
    await volume.prepare()
    await volume.check_writable()
    assert entries(tmp_path) == []


# Three outcomes


async def test_a_rename_that_failed_is_not_published(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old content stands, and nothing is left over."""
    await volume.put("config", "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing(errno.EIO))
        with pytest.raises(_errors.VolumeUnavailable, match="storage behind the volume"):
            await volume.put("config", "new")
    assert (tmp_path / "config").read_text() == "old"
    assert entries(tmp_path) == ["config"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
async def test_a_rename_that_failed_and_happened_is_uncertain(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """rename(2) says that of NFS; the file is read back to know."""
    await volume.put("config", "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing(number, after=os.rename))
        with pytest.raises(_errors.PublishUncertain) as caught:
            await volume.put("config", "new")
    assert (tmp_path / "config").read_text() == "new"
    assert caught.value.version == (await volume.read("config")).version


async def test_a_directory_sync_that_failed_is_uncertain_and_mended_by_publishing_again(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same content again is no no-op: a later sync that succeeds proves nothing about the lost one."""
    await volume.put("config", "old")
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "sync_directory", failing(errno.EIO))
        with pytest.raises(_errors.PublishUncertain, match="perhaps not durably") as caught:
            await volume.put("config", "new")
    uncertain = (tmp_path / "config").stat().st_ino
    assert caught.value.version == (await volume.read("config")).version
    assert (await volume.put("config", "new")).changed
    assert (tmp_path / "config").stat().st_ino != uncertain
    assert not (await volume.put("config", "new")).changed


async def test_a_delete_that_could_not_be_synced_is_uncertain(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is gone, and a power cut may bring it back: that is not the same as not deleted."""
    await volume.put("config", "x")
    monkeypatch.setattr(atomic, "sync_directory", failing(errno.EIO))
    with pytest.raises(_errors.PublishUncertain, match="may bring it back"):
        await volume.delete("config")
    assert not (tmp_path / "config").exists()


async def test_without_hard_links_there_is_no_history_and_everything_else(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT, some network file systems: files of a set that stay are copied, with their mode."""
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    for content in ("1", "2"):
        await volume.put("config", content)
    assert [v.current for v in await volume.versions("config")] == [True]
    await volume.publish({"config": "3", "sub/same": "same"})
    await volume.put("config", "4")
    assert dict(await volume.snapshot()) == {"config": b"4", "sub/same": b"same"}
    assert stat.S_IMODE((tmp_path / "sub" / "same").stat().st_mode) == 0o644


# Streams


async def test_a_streamed_content_is_published_whole(volume: Volume, tmp_path: Path) -> None:
    """Its version is that of its bytes, known as soon as they have come."""
    async with volume.stage() as upload:
        for _ in range(40):
            await upload.write(b"x" * 25_000)
        done = await volume.put("large", upload)
        assert (upload.size, upload.version) == (1_000_000, done.version)
    assert (tmp_path / "large").read_bytes() == b"x" * 1_000_000
    assert done.version == (await volume.read("large")).version
    assert entries(tmp_path) == ["large"]


async def test_a_stream_into_a_set_replaces_one_file(volume: Volume, tmp_path: Path) -> None:
    """Twice the same changes nothing the second time."""
    await volume.publish({"a": "1", "b": "2"})
    for changed in (True, False):
        async with volume.stage() as upload:
            await upload.write(b"streamed")
            assert (await volume.put("b", upload)).changed is changed
    assert dict(await volume.snapshot()) == {"a": b"1", "b": b"streamed"}
    assert not [name for name in os.listdir(tmp_path) if name.startswith("..tmp-")]


async def test_a_stream_that_is_not_published_leaves_nothing(
    volume: Volume, tmp_path: Path
) -> None:
    """Dropped, broken off, or too large."""
    await volume.prepare()
    before = os.listdir("/proc/self/fd")
    async with volume.stage() as upload:
        await upload.write(b"x" * 500_000)

    async def receive(*chunks: bytes) -> None:
        async with volume.stage(limit=600_000) as upload:
            for chunk in chunks:
                await upload.write(chunk)
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await receive(b"x" * 500_000)
    with pytest.raises(_errors.ContentTooLarge, match="limit of 600000"):
        await receive(b"x" * 500_000, b"x" * 500_000)
    assert entries(tmp_path) == []
    assert os.listdir("/proc/self/fd") == before


async def test_a_stream_with_a_piece_missing_cannot_be_published(
    volume: Volume, tmp_path: Path
) -> None:
    """Whoever catches the error of one piece does not get the rest of them into the volume."""
    async with volume.stage(limit=10) as upload:
        await upload.write(b"begin")
        with pytest.raises(_errors.ContentTooLarge):
            await upload.write(b"too large")
        with pytest.raises(_errors.PublishError, match="5 of the 14 bytes"):
            await volume.put("config", upload)
    assert entries(tmp_path) == []


async def test_a_stream_can_be_published_once(volume: Volume) -> None:
    """After a conflict it is still there; after a publish it is not."""
    await volume.put("config", "old")
    async with volume.stage() as upload:
        await upload.write(b"new")
        with pytest.raises(_errors.VersionConflict):
            await volume.put("config", upload, if_match='"other"')
        await volume.put("config", upload)
        with pytest.raises(_errors.PublishError, match="this upload has ended"):
            await volume.put("config", upload)


async def test_a_full_disk_in_the_middle_of_a_stream_is_told_so(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the descriptor under the writing thread is never that of another file."""
    async with volume.stage("config") as upload:
        await upload.write(b"x" * 300_000)
        with Path("/dev/full").open("wb", buffering=0) as full:
            os.dup2(full.fileno(), upload._file.fileno())
        with pytest.raises(_errors.VolumeFull, match=f"cannot publish {tmp_path}/config: no space"):
            await upload.write(b"x" * 300_000)
        with pytest.raises(_errors.PublishError):
            await volume.put("config", upload)
    assert entries(tmp_path) == []


# Time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A wall clock that is set by hand: nanoseconds to add to the real one."""
    offset = [0]
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + offset[0])
    return offset


async def test_a_clock_that_goes_back_does_not_turn_the_order_round(
    volume: Volume, clock: list[int]
) -> None:
    """NTP sets it back by an hour: the history still goes from new to old, and nothing is swept."""
    for content in ("1", "2", "3"):
        await volume.put("config", content)
        clock[0] -= 3_600_000_000_000
    assert [v.current for v in await volume.versions("config")] == [True, False, False]
    for content in ("4", "5", "6"):
        await volume.publish({"config": content})
        clock[0] -= 3_600_000_000_000
    sets = [Snapshot.of({"config": content}).version for content in "654"]
    assert [v.version for v in await volume.versions()] == sets
    assert [v.current for v in await volume.versions()] == [True, False, False]
    await Volume(volume.path).prepare()
    assert (await volume.snapshot()).text("config") == "6"


@pytest.mark.parametrize("durability", ["full", "none"])
async def test_without_durability_nothing_is_synced_and_all_else_is_the_same(
    tmp_path: Path, durability: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way to publish: the same publications, names, contents and history, with syncs or without any."""
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd) or sync(fd))
    volume = Volume(tmp_path, durability=durability)
    await volume.prepare()
    synced.clear()
    done = [await volume.put("config", "one"), await volume.put("deep/er", "two")]
    async with volume.stage() as upload:
        await upload.write(b"three")
        done.append(await volume.put("config", upload))
    done += [
        await volume.put("config", "three"),
        await volume.rollback(done[0].etag, name="config"),
    ]
    await volume.delete("deep/er")
    assert [one.changed for one in done] == [True, True, True, False, True]
    assert entries(tmp_path) == ["config"]
    assert len(await volume.versions("config")) == 3
    done = [await volume.publish({"a": "1", "b": "2"}), await volume.publish({"a": "1", "b": "2"})]
    await volume.put("a", "3")
    await volume.delete("b")
    assert [one.changed for one in done] == [True, False]
    assert dict(await volume.snapshot()) == {"a": b"3"}
    assert bool(synced) is (durability == "full")


async def test_an_unknown_durability_is_refused(tmp_path: Path) -> None:
    """Before anything is done with it."""
    with pytest.raises(_errors.ConfigError, match="full, none"):
        Volume(tmp_path, durability="some")  # type: ignore[arg-type]
