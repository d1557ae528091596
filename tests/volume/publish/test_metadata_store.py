"""Metadata is published with the content: it is visible with it, stays with it, and is that of no other bytes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar import _errors
from sidecar.fs import atomic, xattrs
from sidecar.volume.content.metadata import Metadata
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.volume import Volume

ALICE = Metadata(published_by="alice", content_type="text/css", request_id="r-1")
BOB = Metadata(published_by="bob", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")


@pytest.fixture(params=["attributes", "hidden files"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume, which takes extended attributes or refuses them as `tmpfs` did before Linux 6.6."""
    if request.param == "hidden files":
        refuse_attributes(monkeypatch)
    return tmp_path


def refuse_attributes(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOTSUP) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "setxattr", refuse)


async def who(volume: Volume, name: str = "config") -> str | None:
    found = (await volume.read(name)).metadata
    return None if found is None else found.published_by


async def test_a_content_has_the_metadata_it_was_published_with(shared: Path) -> None:
    """Also for who comes later, and in a snapshot; the time is that of the publish."""
    await Volume(shared).put("dir/config", "1", metadata=ALICE)
    later = Volume(shared)
    found = (await later.read("dir/config")).metadata
    assert found is not None
    assert found.published_at is not None
    assert found.published_at >= (shared / "dir/config").stat().st_mtime - 1
    assert (found.published_by, found.content_type, found.request_id, found.traceparent) == (
        "alice",
        "text/css",
        "r-1",
        None,
    )
    snapshot = await later.snapshot()
    assert snapshot.metadata_of("dir/config") == found
    assert snapshot.metadata is None, "the directory of loose files was published by nobody"


async def test_each_old_version_has_its_own(shared: Path) -> None:
    """A rollback is a publish by somebody else, of the type that the old content had."""
    volume = Volume(shared)
    first = await volume.put("config", "1", metadata=ALICE)
    await volume.put("config", "2", metadata=BOB)
    found = [version.metadata for version in await volume.versions("config")]
    assert [one and one.published_by for one in found] == ["bob", "alice"]
    await volume.rollback(first.version, name="config", metadata=Metadata(published_by="carol"))
    now = (await volume.read("config")).metadata
    assert now is not None
    assert (now.published_by, now.content_type, now.request_id) == ("carol", "text/css", None)
    assert now.published_at is not None
    assert found[0] is not None
    assert found[0].published_at is not None
    assert now.published_at >= found[0].published_at


async def test_what_is_there_keeps_its_metadata(shared: Path) -> None:
    """Nothing is written, unless the type or the signature of the content is another one."""
    volume = Volume(shared)
    await volume.put("config", "1", metadata=ALICE)
    before = (shared / "config").stat().st_ino
    for same in (BOB, Metadata(content_type="text/css"), None):
        assert not (await volume.put("config", "1", metadata=same)).changed
    assert await who(volume) == "alice"
    assert (shared / "config").stat().st_ino == before
    for other in (Metadata(content_type="text/plain"), Metadata(signature="s")):
        assert (await Volume(shared).put("config", "1", metadata=other)).changed
        assert not (await volume.put("config", "1", metadata=other)).changed
    found = (await volume.read("config")).metadata
    assert found is not None
    assert (found.published_by, found.signature) == (None, "s")
    assert len(await volume.versions("config")) == 1


async def test_a_set_has_the_metadata_of_its_publish(shared: Path) -> None:
    """Its files have it, too, each with a type of its own; in the history it stays with the generation."""
    volume = Volume(shared, grace=0.0)
    first = await volume.publish({"a": "1", "b/c": "1"}, metadata=Metadata(published_by="alice"))
    await volume.put("b/c", "2", metadata=Metadata(published_by="bob", content_type="text/css"))
    await volume.update({"a": "2"}, metadata=Metadata(published_by="carol"))
    snapshot = await volume.snapshot()
    assert snapshot.metadata is not None
    assert (snapshot.metadata.published_by, snapshot.metadata.content_type) == ("carol", None)
    for name, content_type in (("a", None), ("b/c", "text/css")):
        for found in (snapshot.metadata_of(name), (await volume.read(name)).metadata):
            assert found is not None
            assert (found.published_by, found.content_type) == ("carol", content_type)
    versions = [version.metadata for version in await volume.versions()]
    assert [one and one.published_by for one in versions] == ["carol", "bob", "alice"]
    bob = (await volume.versions())[1].version
    await volume.rollback(first.version)
    assert (await volume.snapshot()).metadata_of("b/c") is None
    await volume.rollback(bob, metadata=Metadata(published_by="dave"))
    back = (await volume.snapshot()).metadata_of("b/c")
    assert back is not None
    assert (back.published_by, back.content_type) == ("dave", "text/css")


async def test_a_file_of_a_set_takes_another_type(shared: Path) -> None:
    """The same bytes are another publication then, of a set that is the same."""
    volume = Volume(shared)
    done = await volume.publish({"a": "1", "b": "1"})
    changed = await volume.put("a", "1", metadata=Metadata(content_type="text/css"))
    assert changed.changed
    assert not (await volume.put("a", "1", metadata=Metadata(content_type="text/css"))).changed
    snapshot = await volume.snapshot()
    assert snapshot.version == done.version
    found = snapshot.metadata_of("a")
    assert found is not None
    assert found.content_type == "text/css"
    signed = Metadata(signature="of the set")
    assert (await volume.publish({"a": "1", "b": "1"}, metadata=signed)).changed
    assert not (await volume.publish({"a": "1", "b": "1"}, metadata=signed)).changed


async def test_the_same_bytes_keep_what_is_not_given(shared: Path) -> None:
    """A new signature takes no type away, a new type no signature, and another mode neither."""

    async def described(name: str) -> tuple[str | None, str | None]:
        found = (await Volume(shared).read(name)).metadata
        return (None, None) if found is None else (found.content_type, found.signature)

    for name in ("config", "a"):
        volume = Volume(shared)
        await volume.put(name, "1", metadata=Metadata(content_type="text/css", signature="s"))
        await volume.put(name, "1", metadata=Metadata(signature="t"))
        assert await described(name) == ("text/css", "t")
        await volume.put(name, "1", metadata=Metadata(content_type="text/plain"))
        assert await described(name) == ("text/plain", "t")
        assert (await Volume(shared, mode=0o600).put(name, "1")).changed
        assert await described(name) == ("text/plain", "t")
        await volume.publish({"a": "0", "b": "1"})


async def test_a_set_that_is_rolled_back_has_the_types_of_then(tmp_path: Path) -> None:
    """Also that of a file whose bytes are the same now; hidden files know only its last type."""
    volume = Volume(tmp_path)
    await volume.publish({"a": "1", "b": "1"})
    await volume.put("a", "1", metadata=Metadata(content_type="text/css"))
    old = (await volume.snapshot()).version
    await volume.put("b", "2")
    await volume.put("a", "1", metadata=Metadata(content_type="text/plain"))
    await volume.rollback(old)
    found = (await volume.snapshot()).metadata_of("a")
    assert found is not None
    assert found.content_type == "text/css"


async def test_a_deleted_file_of_a_set_keeps_its_type_in_the_history(shared: Path) -> None:
    volume = Volume(shared, grace=0.0)
    await volume.publish({"a": "1"})
    await volume.put("b", "1", metadata=Metadata(content_type="text/css"))
    old = (await volume.snapshot()).version
    await volume.delete("b")
    later = Volume(shared)
    await later.prepare()
    await later.rollback(old)
    found = (await later.snapshot()).metadata_of("b")
    assert found is not None
    assert found.content_type == "text/css"


async def test_a_large_content_has_it_too(shared: Path) -> None:
    """Uploaded in pieces; and one that is copied from a volume keeps its type, and not who published it."""
    volume, large = Volume(shared), b"x" * (3 << 20)
    async with volume.stage("large") as upload:
        await upload.write(large)
        await volume.put("large", upload, metadata=ALICE)
    content = await volume.read("large")
    assert content.is_large
    assert content.metadata is not None
    assert content.metadata.published_by == "alice"
    await volume.put("copy", content)
    copy = (await volume.read("copy")).metadata
    assert copy is not None
    assert (copy.published_by, copy.content_type) == (None, "text/css")


async def test_a_file_that_is_used_again_has_no_old_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the history are reused with their inode: what was said of the old bytes must go."""
    volume = Volume(tmp_path, durability="none", keep=2)
    inodes: list[int] = []
    for number in range(400):
        await volume.put("config", str(number), metadata=ALICE if number % 2 else None)
        inodes.append((tmp_path / "config").stat().st_ino)
        if number % 2 == 0:
            assert not os.listxattr(tmp_path / "config")
    assert len(set(inodes)) < len(inodes), "no file was used again"


async def test_rewritten_in_place_it_is_that_of_nobody(shared: Path) -> None:
    """A naive program keeps the inode and its attributes, and other bytes are in it."""
    volume = Volume(shared)
    await volume.put("config", "1", metadata=ALICE)
    (shared / "config").write_text("2")
    assert (await volume.read("config")).metadata is None
    assert (await volume.snapshot()).metadata_of("config") is None
    (shared / "config").write_text("1")
    assert await who(volume) == "alice"


@pytest.mark.parametrize(
    "planted",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 4000,
        b"null",
        b'{"version": 1}',
        b"\xff\xfe",
        b"x" * 60000,
        b'"' + b"x" * 3000 + b'"',
        b'{"version": "VERSION", "published_by": {"a": 1}, "request_id": 7, "content_type": []}',
        b'{"version": "VERSION", "published_by": "a\\r\\nSet-Cookie: b", "request_id": "a b"}',
        b'{"version": "VERSION", "published_at": "9999-99-99", "signature": "\\u0000"}',
        b'{"version": "VERSION", "published_at": "2026-01-01T00:00:00", "traceparent": "00-x"}',
        b'{"version": "VERSION", "published_at": "9999-12-31T23:59:59-23:59"}',
        b'{"version": "VERSION", "published_at": "0001-01-01T00:00:00+23:59"}',
        b'{"version": "VERSION", "content_type": "text/html\\r\\nX: y"}',
    ],
)
async def test_what_a_neighbour_plants_says_nothing(tmp_path: Path, planted: bytes) -> None:
    """Neither in the attribute nor in the hidden file; the content is served as ever."""
    volume = Volume(tmp_path)
    done = await volume.put("config", "1")
    value = planted.replace(b"VERSION", done.version.encode())
    with contextlib.suppress(OSError):  # ext4 has one block for them
        os.setxattr(tmp_path / "config", xattrs.NAME, value)
    hidden = tmp_path / "..metadata"
    hidden.mkdir()
    (hidden / "config.json").write_bytes(value)
    assert (await volume.read("config")).metadata is None
    (hidden / "config.json").write_bytes(
        b'{"name": "config", "versions": {"%s": %s}}' % (done.version.encode(), value or b"1")
    )
    content = await volume.read("config")
    assert (content.data, content.metadata) == (b"1", None)
    assert [version.metadata for version in await volume.versions("config")] == [None]
    os.unlink(hidden / "config.json")
    os.mkfifo(hidden / "config.json")
    assert (await volume.read("config")).metadata is None


async def test_a_planted_hidden_file_stops_no_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be parsed need not be what can be written: JSON is read in more levels than it is written in."""
    refuse_attributes(monkeypatch)
    volume = Volume(tmp_path)
    await volume.put("config", "1", metadata=ALICE)
    deep = b"[" * 600 + b"]" * 600
    (tmp_path / "..metadata" / "config.json").write_bytes(
        b'{"name": "config", "versions": {"a": %s, "b": {"version": "b", "x": %s}}}' % (deep, deep)
    )
    await volume.put("config", "2", metadata=BOB)
    assert await who(volume) == "bob"


async def test_valid_values_count_beside_invalid_ones(tmp_path: Path) -> None:
    """A later version of this program may know more, and may allow more."""
    volume = Volume(tmp_path)
    done = await volume.put("config", "1")
    value = {"version": done.version, "published_by": "web-0", "content_type": "?", "new": [1]}
    os.setxattr(tmp_path / "config", xattrs.NAME, orjson.dumps(value))
    assert (await volume.read("config")).metadata == Metadata(published_by="web-0")


async def test_a_volume_without_attributes_does_not_fill_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of a file is kept for as many contents as the history has, and goes with the file."""
    refuse_attributes(monkeypatch)
    monkeypatch.setattr("sidecar.volume.publish.metadata_store._SWEEP_INTERVAL_FILES", 5)
    volume = Volume(tmp_path, keep=3, keep_deleted=2)
    for number in range(10):
        await volume.put("config", str(number), metadata=BOB)
    stored = orjson.loads((tmp_path / "..metadata" / "config.json").read_bytes())
    assert list(stored["versions"]) == [version_of(str(n).encode()) for n in (7, 8, 9)]
    for number in range(30):
        await volume.put(f"spool/{number}", "1", metadata=BOB)
        await volume.delete(f"spool/{number}")
    left = os.listdir(tmp_path / "..metadata")
    assert "config.json" in left
    assert len(left) <= 1 + 2 + 6
    await Volume(tmp_path).prepare()
    assert len(os.listdir(tmp_path / "..metadata")) <= 1 + 3
    await volume.delete("config", purge=True)
    assert not (tmp_path / "..metadata" / "config.json").exists()


async def test_long_names_are_not_mixed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their hidden files have hashed names, and say which file they belong to."""
    refuse_attributes(monkeypatch)
    name = "é" * 100
    await Volume(tmp_path).put(name, "1", metadata=ALICE)
    await Volume(tmp_path).prepare()
    assert await who(Volume(tmp_path), name) == "alice"


async def test_without_space_the_content_is_refused_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attribute that finds no space goes into a file; where that finds none, nothing is published."""
    refuse_attributes(monkeypatch, errno.ENOSPC)
    volume = Volume(tmp_path)
    await volume.put("config", "1", metadata=ALICE)
    assert await who(volume) == "alice"
    real = atomic.TempFile.rename_into

    def rename(self: atomic.TempFile, target: str, dir_fd: int) -> None:
        if target.endswith(".json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, target, dir_fd)

    monkeypatch.setattr(atomic.TempFile, "rename_into", rename)
    with pytest.raises(_errors.VolumeFull):
        await volume.put("config", "2", metadata=ALICE)
    assert (tmp_path / "config").read_text() == "1"
    assert not [name for name in os.listdir(tmp_path) if name.startswith("..tmp-")]


async def test_the_history_gives_way_to_the_metadata_of_a_file_of_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to its content."""
    refuse_attributes(monkeypatch)
    volume = Volume(tmp_path, grace=0.0)
    for number in range(3):
        await volume.publish({"a": str(number)})
    assert any(name.startswith("gen-") for name in os.listdir(tmp_path / "..versions"))
    real = atomic.TempFile.rename_into

    def rename(self: atomic.TempFile, target: str, dir_fd: int) -> None:
        if target == "a.json" and os.listdir(tmp_path / "..versions"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, target, dir_fd)

    monkeypatch.setattr(atomic.TempFile, "rename_into", rename)
    await volume.put("a", "3", metadata=ALICE)
    assert (await volume.read("a")).data == b"3"
    assert await who(volume, "a") == "alice"


async def test_hidden_metadata_is_synced_before_its_content_is_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, its directory, and where that directory is new: a power cut must leave no content without it."""
    refuse_attributes(monkeypatch)
    volume = Volume(tmp_path)
    await volume.prepare()
    done: list[str] = []
    sync, rename = atomic.sync_directory, atomic.TempFile.rename_into

    def note_sync(dir_fd: int) -> None:
        sync(dir_fd)
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{dir_fd}")))

    def note_rename(self: atomic.TempFile, target: str, dir_fd: int) -> None:
        rename(self, target, dir_fd)
        done.append(target)

    monkeypatch.setattr(atomic, "sync_directory", note_sync)
    monkeypatch.setattr(atomic.TempFile, "rename_into", note_rename)
    for text, first in (("1", [tmp_path.name]), ("2", [])):
        done.clear()
        await volume.put("config", text, metadata=ALICE)
        assert done == ["config.json", "..metadata", *first, "config", tmp_path.name]


async def test_a_signature_is_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What only informs is left out with a line in the log, where a volume takes neither attribute nor directory."""
    refuse_attributes(monkeypatch)
    (tmp_path / "..metadata").write_text("a file in its place")
    volume = Volume(tmp_path)
    await volume.put("config", "1", metadata=BOB)
    assert "cannot store the metadata" in caplog.text
    with pytest.raises(_errors.PublishError):
        await volume.put("config", "2", metadata=Metadata(signature="s"))
    assert (tmp_path / "config").read_text() == "1"


async def test_the_metadata_belongs_to_the_bytes_it_is_read_with(shared: Path) -> None:
    """Publishers side by side, each with its own name in content and metadata, and readers of all kinds."""
    names = [f"publisher-{number}" for number in range(3)]
    done = asyncio.Event()

    async def publish(name: str) -> None:
        volume = Volume(shared, durability="none")
        for number in range(40):
            content = f"{name} {number}"
            await volume.put("config", content, metadata=Metadata(published_by=name))

    seen: set[str] = set()

    def check(data: bytes, metadata: Metadata | None) -> None:
        by = data.decode().partition(" ")[0]
        assert metadata is not None
        assert metadata.published_by == by
        seen.add(by)

    async def read() -> None:
        volume = Volume(shared)
        while not done.is_set():
            content = await volume.read("config")
            check(content.data, content.metadata)
            snapshot = await volume.snapshot()
            check(snapshot["config"], snapshot.metadata_of("config"))

    await Volume(shared).put("config", "begin 0", metadata=Metadata(published_by="begin"))
    readers = [asyncio.create_task(read()) for _ in range(2)]
    try:
        await asyncio.gather(*map(publish, names))
    finally:
        done.set()
        await asyncio.gather(*readers)
    assert seen >= {"begin"} or seen & set(names)


async def test_of_grouped_writes_the_last_names_itself(tmp_path: Path) -> None:
    """One write stands for all that waited: content and metadata are those of the same one."""
    volume = Volume(tmp_path)
    await volume.put("config", "0")
    await asyncio.gather(
        *(
            volume.put("config", str(number), metadata=Metadata(published_by=f"client-{number}"))
            for number in range(30)
        )
    )
    assert await who(volume) == f"client-{(await volume.read('config')).data.decode()}"


async def test_a_watch_shows_metadata_that_came_with_the_same_bytes(tmp_path: Path) -> None:
    """No new version is told of: the content is the same."""
    volume = Volume(tmp_path)
    await volume.put("config", "1", metadata=ALICE)
    told: list[object] = []
    async with volume.watch() as watch:
        await watch.looked()
        changed = asyncio.Event()
        watch.subscribe(changed.set)
        watch.subscribe(lambda: told.append(watch.etag))
        before = watch.etag
        await volume.put("config", "1", metadata=Metadata(content_type="text/plain"))
        await asyncio.wait_for(changed.wait(), 30)
        assert watch.snapshot is not None
        found = watch.snapshot.metadata_of("config")
        assert found is not None
        assert found.content_type == "text/plain"
        assert set(told) == {before}


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"POD_NAME": "web-0", "HOSTNAME": "x"}, "web-0"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "web-1"}, "web-1"),
        ({"HOSTNAME": "laptop"}, None),
        ({"POD_NAME": "a\nb"}, None),
    ],
)
async def test_in_a_pod_the_pod_is_who_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], name: str | None
) -> None:
    """Where nobody else is named. Elsewhere nothing is written: the time is that of the file."""
    for variable in ("POD_NAME", "HOSTNAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    volume = Volume(tmp_path)
    await volume.put("config", "1")
    assert await who(volume) == name
    await volume.put("config", "2", metadata=ALICE)
    assert await who(volume) == "alice"
    if name is None:
        await volume.put("config", "3")
        assert not os.listxattr(tmp_path / "config")


@pytest.mark.parametrize(
    "wrong",
    [
        {"content_type": "text"},
        {"content_type": "text/html\r\nX: y"},
        {"content_type": "a/" + "b" * 300},
        {"published_by": ""},
        {"published_by": "a\tb"},
        {"published_by": "x" * 257},
        {"published_by": 7},
        {"published_at": float("nan")},
        {"published_at": 1e18},
        {"published_at": True},
        {"request_id": "a b"},
        {"request_id": "é"},
        {"request_id": "x" * 129},
        {"traceparent": f"00-{'0' * 32}-{'b' * 16}-01"},
        {"traceparent": f"00-{'A' * 32}-{'b' * 16}-01"},
        {"signature": "é"},
        {"signature": "x" * 1025},
    ],
)
def test_invalid_values_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(_errors.ConfigError, match=name):
        Metadata(**wrong)


async def test_a_set_has_no_type(tmp_path: Path) -> None:
    """Nothing is done; and what is no `Metadata` is refused by every method."""
    volume = Volume(tmp_path)
    with pytest.raises(_errors.ConfigError, match="content_type"):
        await volume.publish({"a": "1"}, metadata=ALICE)
    with pytest.raises(_errors.ConfigError, match="content_type"):
        await volume.update({"a": "1"}, metadata=ALICE)
    wrong: Any = {"published_by": "me"}
    for call in (
        volume.put("a", "1", metadata=wrong),
        volume.publish({"a": "1"}, metadata=wrong),
        volume.delete("a", metadata=wrong),
        volume.rollback("0", name="a", metadata=wrong),
    ):
        with pytest.raises(_errors.ConfigError, match="metadata"):
            await call
    assert not os.listdir(tmp_path)


def test_the_longest_metadata_fits() -> None:
    """Into the attribute, whatever the values are made of: ext4 has one block for all attributes of a file."""
    longest = Metadata(
        content_type="a/" + "b" * 254,
        published_at=0.0,
        published_by="\U00010000" * 256,
        request_id='"' * 128,
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
        signature='"' * 1024,
    )
    assert len(longest.to_json("0" * 32)) < xattrs.MAX_BYTES
