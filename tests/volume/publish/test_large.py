"""Contents that are too large for the memory: followed, published, kept and rolled back where they lie."""

from __future__ import annotations

import itertools
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from sidecar import (
    ContentAltered,
    ContentRefused,
    Gate,
    PublishError,
    Snapshot,
    UnknownVersion,
    Volume,
)
from sidecar.fs import atomic, open_file
from sidecar.testing import until
from sidecar.volume.content import loader, read_state
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.watch.watch import Watch
from support.httpkit import place
from support.watching import Scans, consumer, descriptors

LARGE = b"large \xc3\xa9 " * 300_000
OTHER = b"other \xc3\xa9 " * 300_000


async def test_a_large_file_is_followed_as_a_small_one_is(tmp_path: Path) -> None:
    """Its versions, names and bytes are the same; only where they are is not."""
    path = place(tmp_path / "config", LARGE)
    async with consumer(path, recheck=0.02) as seen:
        await until(lambda: seen)
        assert seen[0].version == version_of(LARGE)
        assert seen[0].content().is_large
        assert (seen[0].size, seen[0].data, seen[0].text()) == (len(LARGE), LARGE, LARGE.decode())
        place(path, OTHER)
        await until(lambda: len(seen) == 2)
        # The old one is still open: who works on it can finish.
        assert (seen[0].data, seen[1].data) == (LARGE, OTHER)
        assert seen[1].changed(seen[0]) == {"config"}


async def test_a_deleted_large_file_stays_the_last_good_content(tmp_path: Path) -> None:
    """Told as stale, and whole: its descriptor keeps it alive."""
    path = place(tmp_path / "config", LARGE)
    async with consumer(path, recheck=0.02) as seen:
        await until(lambda: seen)
        path.unlink()
        await until(lambda: seen.watch.stale)
        assert seen.watch.snapshot is not None
        assert seen.watch.snapshot.data == LARGE


@pytest.mark.parametrize("watched", ["file", "directory"])
async def test_a_large_file_that_is_rewritten_in_place_is_read_when_it_is_whole(
    tmp_path: Path, watched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it held before is gone, and nobody is given a mixture."""
    scans, path = Scans(monkeypatch), place(tmp_path / "config", LARGE)
    async with consumer(path if watched == "file" else tmp_path, recheck=0.02) as seen:
        await until(lambda: seen)
        with path.open("r+b") as file:
            file.write(OTHER[: len(OTHER) // 2])
            file.flush()
            with pytest.raises(ContentAltered):
                _ = seen[0]["config"]
            await scans.more()
            assert len(seen) == 1
            file.write(OTHER[len(OTHER) // 2 :])
        await until(lambda: len(seen) == 2)
        assert seen[1]["config"] == OTHER


async def test_the_same_bytes_in_place_are_no_change_and_can_be_read(tmp_path: Path) -> None:
    """Nobody is told, and the content is held by the state that the file has now."""
    path = place(tmp_path / "config", LARGE)
    async with consumer(path, recheck=0.02) as seen:
        await until(lambda: seen)
        path.write_bytes(LARGE)

        def readable() -> bool:
            assert seen.watch.snapshot is not None
            try:
                return seen.watch.snapshot.data == LARGE
            except ContentAltered:
                return False

        await until(readable)
        assert len(seen) == 1


async def test_what_is_unchanged_is_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking once a second must not cost a gigabyte of reading each time."""
    monkeypatch.setattr(read_state, "_CLOCK_GRANULARITY", 0.0)
    scans, hashed = Scans(monkeypatch), list[str]()
    digest = open_file._digest
    monkeypatch.setattr(open_file, "_digest", lambda f, *a: hashed.append(f.where) or digest(f, *a))
    place(tmp_path / "config", LARGE)
    async with consumer(tmp_path / "config", recheck=0.01) as one, consumer(tmp_path) as two:
        await until(lambda: one and two)
        count = len(hashed)
        (tmp_path / "config").open("r+b").close()  # an event, and no change
        (tmp_path / "other").write_text("another one")
        await until(lambda: len(two) == 2)
        await scans.more(6)
        assert len(hashed) == count
        assert two[1]["config"] == LARGE


async def test_leaving_does_not_wait_for_a_gigabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that is left in the middle of a large file ends with the piece, and a long read is no hanging one."""
    monkeypatch.setattr(open_file.OpenFile, "pieces", lambda _: itertools.repeat(b"and so on"))
    place(tmp_path / "config", LARGE)
    one = Watch(tmp_path / "config")
    async with one:
        await until(lambda: one._session is not None and one._session.thread.busy_since is not None)
        assert one.failure is None
        assert one._session is not None
        thread = one._session.thread
    assert not thread._thread.is_alive()


def test_a_file_is_in_doubt_from_when_its_reading_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read in the first tick may have changed in it, however long the rest has taken."""
    monkeypatch.setattr(read_state, "_CLOCK_GRANULARITY", 0.05)
    (tmp_path / "config").write_bytes(LARGE)
    end = time.monotonic() + 0.2

    def take_long() -> None:
        while time.monotonic() < end:
            pass

    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    seen = loader.read_file(
        fd, "/shared", "config", limit=1 << 30, before=None, on_progress=take_long
    )
    assert "config" in seen.states.unreliable
    again = loader.read_file(fd, "/shared", "config", limit=1 << 30, before=seen)
    assert not again.states.unreliable
    os.close(fd)


async def test_a_set_of_many_large_files_does_not_use_up_the_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are held open, the others opened when they are wanted; all can be read."""
    monkeypatch.setattr(open_file, "LARGE_FILE_BYTES", 3)
    monkeypatch.setattr(open_file, "_MAX_OPEN_FILES", len(open_file._Descriptor.held) + 5)
    before = descriptors()
    volume = Volume(tmp_path)
    await volume.publish({f"{number}": f"content {number}" for number in range(100)})
    snapshot = await volume.snapshot()
    assert descriptors() <= before + 8
    assert {type(snapshot.content(name).held) for name in snapshot} == {
        open_file.OpenFile,
        open_file.LazyFile,
    }
    assert dict(snapshot) == {f"{n}": f"content {n}".encode() for n in range(100)}


async def test_a_large_upload_is_hashed_on_the_way_and_kept_in_the_history(tmp_path: Path) -> None:
    """And a rollback brings the old one back as a file of its own, with its own time."""
    volume = Volume(tmp_path)
    for data in (LARGE, OTHER):
        async with volume.stage() as upload:
            for start in range(0, len(data), 100_000):
                await upload.write(data[start : start + 100_000])
            assert upload.version == version_of(data)
            assert (await volume.put("config", upload)).version == version_of(data)
    kept = sorted((tmp_path / "..versions/file-config").iterdir())
    done = await volume.rollback(version_of(LARGE), name="config")
    assert (done.version, done.size) == (version_of(LARGE), len(LARGE))
    assert (tmp_path / "config").read_bytes() == LARGE
    assert not (tmp_path / "config").samefile(kept[0])
    assert (await volume.read("config")).version == version_of(LARGE)


async def test_an_upload_takes_pieces_of_any_size_out_of_one_buffer(tmp_path: Path) -> None:
    """In their order, whether they are gathered or written at once; what they lie in is used again meanwhile."""
    volume, expected = Volume(tmp_path), bytearray()
    buffer = bytearray(200_000)
    async with volume.stage() as upload:
        for number, size in enumerate((1, 200_000, 60_000, 7, 5000, 65_536, 65_535, 3)):
            piece = memoryview(buffer)[:size]
            piece[:] = bytes([number]) * size
            expected += piece
            await upload.write(piece)
            assert upload.version == version_of(bytes(expected))
        await volume.put("config", upload)
    assert (tmp_path / "config").read_bytes() == expected


async def test_an_upload_in_tiny_pieces_holds_no_more_than_their_bytes(tmp_path: Path) -> None:
    """Each as an object of its own would be thirty times as much, of a client that sends two bytes at a time."""
    piece = memoryview(b"ab")
    async with Volume(tmp_path).stage() as upload:
        tracemalloc.start()
        for _ in range(30_000):
            await upload.write(piece)
        now, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert now < 100_000


async def test_a_large_set_is_rolled_back(tmp_path: Path) -> None:
    """Large and small files of an older generation together."""
    volume = Volume(tmp_path)
    first = await volume.publish({"a": LARGE, "b": "1"})
    await volume.publish({"a": OTHER, "b": "2"})
    assert (await volume.rollback(first.version)).version == first.version
    assert dict(await volume.snapshot()) == {"a": LARGE, "b": b"1"}
    await volume.put("b", "3")
    await volume.delete("a")
    assert [entry.name for entry in await volume.entries()] == ["b"]


@pytest.mark.parametrize("when", ["before", "while it is copied"])
async def test_an_altered_old_content_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What is copied is compared with its version to the last byte; the present content stays."""
    volume = Volume(tmp_path)
    for data in (LARGE, OTHER):
        await volume.put("config", data)
    old = min((tmp_path / "..versions/file-config").iterdir())

    def alter() -> None:
        with old.open("r+b") as file:
            file.write(b"X")

    if when == "before":
        alter()
    else:
        copy = open_file.copy
        monkeypatch.setattr(open_file, "copy", lambda *a: alter() or copy(*a))
    with pytest.raises(UnknownVersion, match="altered"):
        await volume.rollback(version_of(LARGE), name="config")
    assert (tmp_path / "config").read_bytes() == OTHER
    assert not list(tmp_path.glob("..tmp-*"))


async def test_contents_of_one_volume_are_published_to_another(tmp_path: Path) -> None:
    """Piece by piece, one of them or all together."""
    source, target = Volume(tmp_path / "from"), Volume(tmp_path / "to")
    await source.publish({"a": LARGE, "b": "1"})
    seen = await source.snapshot()
    assert (
        await target.publish({name: seen.content(name) for name in seen})
    ).version == seen.version
    await target.put("c", seen.content("a"))
    assert (await target.snapshot())["c"] == LARGE


async def test_a_large_rollback_asks_the_gate(tmp_path: Path) -> None:
    """The gate sees a file of the old bytes, and is asked before anything changes."""
    for data in (LARGE, OTHER):
        await Volume(tmp_path).put("config", data)
    volume = Volume(tmp_path, gate=Gate(check=["sh", "-c", 'grep -q other "$CONTENT_PATH"', "-"]))
    with pytest.raises(ContentRefused):
        await volume.rollback(version_of(LARGE), name="config")
    await volume.rollback(version_of(OTHER), name="config")


@pytest.mark.parametrize(
    "wrong", [b"\xff", b"\xc3", b"a\n\n\xc3x", b"\n" * 300_000 + b"ok\xe2\x82"]
)
async def test_text_in_a_file_is_examined_as_text_in_memory(tmp_path: Path, wrong: bytes) -> None:
    """Piece by piece: the same reason, with the same offset and line."""
    gate = Gate(format="text")
    path = place(tmp_path / "staged", b"x\xc3\xa9" * 100_000 + wrong)
    reasons = []
    for content in (None, path.read_bytes()):
        with pytest.raises(ContentRefused) as refused:
            await gate.examine("config", path, path.stat().st_size, content)
        reasons.append(refused.value.reasons)
    assert reasons[0] == reasons[1]
    place(path, LARGE)
    await gate.examine("config", path, len(LARGE), None)


async def test_an_upload_that_has_ended_takes_nothing_more(tmp_path: Path) -> None:
    """Bytes that nobody will ever publish must not be taken in silence."""
    volume = Volume(tmp_path)
    async with volume.stage("config") as upload:
        await upload.write(b"all")
        await volume.put("config", upload)
        with pytest.raises(PublishError, match="has ended"):
            await upload.write(b"more")
    with pytest.raises(TypeError, match="the name of a file"):
        await volume.stage(5).__aenter__()  # type: ignore[arg-type]


async def test_a_failed_sync_ends_an_upload_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are lost, and a second sync would say that they are not."""

    def fail(_: int) -> None:
        raise OSError(5, "planted")

    volume = Volume(tmp_path)
    async with volume.stage() as upload:
        await upload.write(LARGE)
        monkeypatch.setattr(atomic, "sync_data", fail)
        with pytest.raises(PublishError, match=r"cannot publish .*input/output error"):
            await volume.put("config", upload)
        monkeypatch.undo()
        with pytest.raises(PublishError, match="ended"):
            await volume.put("config", upload)
    assert list(tmp_path.iterdir()) == []


async def test_a_large_upload_is_not_synced_where_it_need_not_be_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`durability="none"` has no sync at all, whatever the size."""
    synced: list[int] = []
    volume = Volume(tmp_path, durability="none")
    monkeypatch.setattr(atomic, "sync_data", synced.append)
    async with volume.stage() as upload:
        await upload.write(LARGE)
        await volume.put("config", upload)
    assert (synced, (tmp_path / "config").read_bytes()) == ([], LARGE)


def test_a_snapshot_in_memory_stays_there() -> None:
    """What a program gives is what it has, whatever the size."""
    one = Snapshot.of({"a": LARGE})
    assert (one["a"], one.content("a").is_large) == (LARGE, False)
