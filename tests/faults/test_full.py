"""Disks that are full, read-only or failing: real ones, small and mounted for the test."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from faults.publisher import left_over
from sidecar import _errors
from sidecar.volume.publish.models import Operation, VolumeConfig
from sidecar.volume.publish.store import Store
from sidecar.volume.validation.gate import Gate
from sidecar.volume.volume import Volume
from support.mounts import image, loop, mounted, tmpfs


@contextmanager
def limited(which: int, most: int) -> Iterator[None]:
    """Lower a limit of this process for a while."""
    before = resource.getrlimit(which)
    resource.setrlimit(which, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


def store_at(path: Path) -> Store:
    return Store(VolumeConfig(str(path), 0o644, None, 10, 0.0, 64 << 20))


@pytest.mark.root
async def test_a_full_volume_keeps_the_old_content(tmp_path: Path) -> None:
    """It says what to change, leaves nothing behind, and takes the next content that fits."""
    with tmpfs(tmp_path / "mnt", "size=200k") as path:
        volume = Volume(path)
        await volume.put("config", b"x" * 60_000)
        for content in (
            volume.put("config", b"y" * 190_000),
            volume.publish({"a": b"y" * 300_000}),
        ):
            with pytest.raises(_errors.VolumeFull, match="space for the new content") as caught:
                await content
            assert caught.value.errno == errno.ENOSPC
            assert (path / "config").read_bytes() == b"x" * 60_000
            assert left_over(str(path)) == []
        await volume.put("config", b"z" * 60_000)
        assert (path / "config").read_bytes() == b"z" * 60_000


@pytest.mark.root
@pytest.mark.parametrize("gate", [None, Gate(format="json", check=("cat",))])
async def test_a_trial_on_a_full_volume_answers_as_the_publish_would_and_forgets_nothing(
    tmp_path: Path, gate: Gate | None
) -> None:
    """The history would give way, so it says yes; what could not fit at all is refused (issue 10, point 11)."""
    with tmpfs(tmp_path / "mnt", "size=400k") as path:
        volume = Volume(path, gate=gate)
        for digit in range(5):
            await volume.put("config", b'"%s"' % (b"%d" % digit * 60_000))
        kept = await volume.versions("config")
        content = b'"%s"' % (b"7" * 150_000)
        assert (await volume.put("config", content, dry_run=True)).changed
        async with volume.stage("config", dry_run=True) as upload:
            await upload.write(content)
            assert (await volume.put("config", upload, dry_run=True)).size == len(content)
        (path / "taken").mkdir()
        (path / "taken" / "file").touch()
        with pytest.raises(_errors.NameTaken, match="taken: "):
            await volume.publish({"taken": content}, dry_run=True)
        with pytest.raises(_errors.VolumeFull):
            await volume.put("config", b'"%s"' % (b"1" * 500_000), dry_run=True)
        assert await volume.versions("config") == kept
        assert (await volume.put("config", content)).changed


@pytest.mark.root
async def test_a_stream_that_fills_the_volume_keeps_the_old_content(tmp_path: Path) -> None:
    """Found while it comes in: nothing of it stays."""
    with tmpfs(tmp_path / "mnt", "size=1m") as path:
        volume = Volume(path)
        await volume.put("config", b"x" * 1000)

        async def receive(pieces: int) -> None:
            async with volume.stage() as upload:
                for _ in range(pieces):
                    await upload.write(b"y" * 100_000)
                await volume.put("config", upload)

        with pytest.raises(_errors.VolumeFull):
            await receive(14)
        assert (path / "config").read_bytes() == b"x" * 1000
        assert left_over(str(path)) == []
        await receive(9)


@pytest.mark.root
@pytest.mark.parametrize("layout", ["file", "set", "stream"])
async def test_the_history_gives_way_to_a_new_content(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A small volume would be full after three publishes for ever: what is kept must not stop what is new."""
    with tmpfs(tmp_path / "mnt", "size=2m") as path:
        volume = Volume(path, keep=10)
        for number in range(12):
            content = b"%d" % (number % 10) * 600_000
            if layout == "file":
                await volume.put("config", content)
            elif layout == "set":
                await volume.publish({"config": content, "other": b"x"})
            else:
                async with volume.stage() as upload:
                    await upload.write(content)
                    await volume.put("config", upload)
            assert (path / "config").read_bytes() == content
            assert left_over(str(path)) == []
        found = await volume.versions(None if layout == "set" else "config")
        assert found[0].current
        assert len(found) > 1
    assert "removed older versions to free space" in caplog.text


@pytest.mark.root
@pytest.mark.parametrize("who", ["writer", "consumer"])
async def test_what_is_kept_of_deleted_files_gives_way_too(tmp_path: Path, who: str) -> None:
    """As in a spool, whose names never come again: what was taken from it must not fill it for ever."""
    with tmpfs(tmp_path / "mnt", "size=2m") as path:
        volume = Volume(path)
        await volume.put("stays", "old")
        for number in range(8):
            await volume.put(f"job-{number}", b"x" * 600_000)
            if who == "writer":
                await volume.delete(f"job-{number}")
            else:
                (path / f"job-{number}").unlink()
        assert [one.current for one in await volume.versions("stays")] == [True]
        assert len(os.listdir(path / "..versions")) < 5


@pytest.mark.root
async def test_a_content_that_is_too_large_all_the_same_costs_no_history(tmp_path: Path) -> None:
    """Whoever may publish must not be able to take the way back from others; nor does a trial."""
    with tmpfs(tmp_path / "mnt", "size=1m") as path:
        volume = Volume(path)
        for content in "123":
            await volume.put("config", content * 100_000)
        for attempt in (
            volume.put("config", "x" * 2_000_000),
            volume.publish({"a": "x" * 2_000_000}),
            volume.put("config", "x" * 2_000_000, dry_run=True),
        ):
            with pytest.raises(_errors.VolumeFull):
                await attempt
            assert len(await volume.versions("config")) == 3


@pytest.mark.root
async def test_a_volume_without_inodes_keeps_the_old_set(tmp_path: Path) -> None:
    """A set needs one for each file, directory and new name."""
    with tmpfs(tmp_path / "mnt", "size=4m,nr_inodes=24") as path:
        volume = Volume(path)
        await volume.publish({"a": "1", "b": "1"})
        for count in (4, 8, 12, 30):
            files = {f"sub/{number}": "2" for number in range(count)}
            with suppress(_errors.VolumeFull):
                await volume.publish(files)
                assert count < 12
                await volume.publish({"a": "1", "b": "1"})
            assert dict(await volume.snapshot()) == {"a": b"1", "b": b"1"}
            assert left_over(str(path)) == []


@pytest.mark.root
@pytest.mark.parametrize("how", ["remount", "bind"])
async def test_a_read_only_volume_is_told_as_such(tmp_path: Path, how: str) -> None:
    """The old content is still read; when it becomes writable again, so does the writer."""
    with tmpfs(tmp_path / "mnt", "size=1m") as path:
        volume = Volume(path)
        await volume.put("config", "old")
        if how == "remount":
            subprocess.run(["mount", "-o", "remount,ro", path], check=True)
            await refuses(volume)
            subprocess.run(["mount", "-o", "remount,rw", path], check=True)
        else:
            with mounted(tmp_path / "bound", "--bind", path) as bound:
                subprocess.run(["mount", "-o", "remount,ro,bind", bound], check=True)
                await refuses(Volume(bound))
        await volume.put("config", "new")
        assert (path / "config").read_text() == "new"


async def refuses(volume: Volume) -> None:
    attempts = (
        volume.put("config", "x"),
        volume.publish({"config": "x"}),
        volume.delete("config"),
        volume.check_writable(),
    )
    for attempt in attempts:
        with pytest.raises(
            _errors.VolumeUnavailable, match=r"read-only file system.*readOnly"
        ) as caught:
            await attempt
        assert caught.value.errno == errno.EROFS
    assert (await volume.read("config")).data == b"old"
    # Publishing what is there needs no write.
    assert not (await volume.put("config", "old")).changed


@pytest.mark.root
def test_a_disk_that_fails_at_the_sync_alone_acknowledges_nothing(tmp_path: Path) -> None:
    """50 MB are taken by write(2) on a device that has not got them: only fsync says so, and only once or twice."""
    with (
        tmpfs(tmp_path / "small", "size=24m") as small,
        loop(tmp_path / "mnt", image(small / "disk", "ext4", 200 << 20)) as path,
    ):
        store = store_at(path)
        store.put("config", b"old", Operation())
        subprocess.run(["sync", "-f", path], check=True)
        for _ in range(3):
            with pytest.raises((_errors.VolumeFull, _errors.VolumeUnavailable)):
                store.put("config", b"x" * (50 << 20), Operation())
        assert store.read("config").data == b"old"


def test_the_limit_of_a_file_size_is_named(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the old content stands."""
    store = store_at(tmp_path)
    store.put("config", b"old", Operation())
    too_large = pytest.raises(_errors.VolumeUnavailable, match="RLIMIT_FSIZE")
    with too_large, limited(resource.RLIMIT_FSIZE, 100_000):
        store.put("config", b"x" * 200_000, Operation())
    assert store.read("config").data == b"old"
    assert left_over(str(tmp_path)) == []


def room_for(more: int) -> int:
    """The limit that leaves so many numbers of descriptors free, whatever others hold high ones."""
    free = (n for n in itertools.count() if not os.path.lexists(f"/proc/self/fd/{n}"))
    return next(itertools.islice(free, more, None))


@pytest.mark.parametrize("layout", ["file", "set"])
def test_without_descriptors_nothing_is_lost(tmp_path: Path, layout: str) -> None:
    """Wherever in a publish they run out: an error that says so, and the old content; or the new one."""
    store = store_at(tmp_path)

    def publish(content: bytes) -> None:
        if layout == "file":
            store.put("config", content, Operation())
        else:
            store.publish({"config": content, "sub/same": b"x"}, Operation())

    publish(b"old")
    outcomes = set()
    for more in range(12):
        number = b"%d" % more
        gc.collect()  # a volume of an earlier test may have its directory open until it is collected
        before = len(os.listdir("/proc/self/fd")) - 1
        with limited(resource.RLIMIT_NOFILE, room_for(more)):
            try:
                publish(number)
            except _errors.VolumeUnavailable as error:
                outcomes.add(str(error.args[-1]).split(": ", 1)[1])
            else:
                outcomes.add("published")
        shown = store.read("config").data
        assert shown == number if "published" in outcomes else shown == b"old"
        assert left_over(str(tmp_path)) == []
        assert len(os.listdir("/proc/self/fd")) - 1 == before
    assert outcomes == {"published", "no file descriptor is left (raise the limit RLIMIT_NOFILE)"}
