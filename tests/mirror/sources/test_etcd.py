"""A prefix of a real etcd: sets that are never mixed, and a server that is killed, hangs, compacts, and goes back in time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.conftest import StartMirror
from sidecar import _errors, mirror
from sidecar.mirror.sources import factory
from sidecar.mirror.sources.etcd import EtcdSource
from sidecar.volume.volume import Volume
from support import Eventually
from support.engines import Etcd, free_port


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    server = Etcd(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def prefix(etcd: Etcd, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"/{request.node.name}/"
    yield name
    etcd.ctl("del", "--prefix", name)


def source(etcd: Etcd, prefix: str, **options: Any) -> EtcdSource:
    return EtcdSource(f"etcd+{etcd.url}{prefix}", **options)


def put(etcd: Etcd, prefix: str, **keys: str) -> None:
    """Write keys in one transaction, as another client would."""
    lines = "".join(f"put {prefix}{key} {value}\n" for key, value in keys.items())
    etcd.ctl("txn", stdin=f"\n{lines}\n\n")


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


async def test_a_prefix_is_a_set(
    etcd: Etcd, prefix: str, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Keys become files without the prefix; a slash makes a directory; an empty value an empty file."""
    etcd.ctl("put", f"{prefix}a", "1")
    etcd.ctl("put", f"{prefix}dir/b", "")
    etcd.ctl("put", f"{prefix[:-1]}0", "not below the prefix")
    running = start_mirror(source(etcd, prefix))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "dir/b": ""}
    etcd.ctl("put", f"{prefix}a", "2")
    etcd.ctl("del", f"{prefix}dir/b")
    await eventually(lambda: not (Path(volume.path) / "dir").exists())
    assert await files(volume) == {"a": "2"}
    etcd.ctl("del", f"{prefix[:-1]}0")


async def test_keys_of_one_transaction_are_never_seen_apart(
    etcd: Etcd, prefix: str, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """k8s-sidecar mixed two keys 156 to 4,287 times in such a run."""
    put(etcd, prefix, one="0", two="0")
    running = start_mirror(source(etcd, prefix))
    await eventually(lambda: running.is_complete)
    seen: set[tuple[str, str]] = set()

    async def read() -> None:
        async for snapshot in volume.watch():
            seen.add((snapshot.text("one"), snapshot.text("two")))

    reading = asyncio.create_task(read())
    for number in range(1, 21):
        await asyncio.to_thread(put, etcd, prefix, one=str(number), two=str(number))
    await eventually(lambda: ("20", "20") in seen)
    reading.cancel()
    assert all(one == two for one, two in seen)


async def test_a_server_that_is_killed_keeps_its_files_and_what_it_missed_comes_after(
    etcd: Etcd, prefix: str, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """The watch goes on from the revision that was seen last: nothing is read anew, nothing is missed."""
    put(etcd, prefix, a="1", gone="1")
    running = start_mirror(source(etcd, prefix))
    await eventually(lambda: running.is_complete)
    etcd.kill()
    await eventually(lambda: running.problem is not None)
    assert await files(volume) == {"a": "1", "gone": "1"}
    etcd.start()
    put(etcd, prefix, a="2")
    etcd.ctl("del", f"{prefix}gone")
    await eventually(lambda: not (Path(volume.path) / "gone").exists())
    assert await files(volume) == {"a": "2"}
    assert running.problem is None


async def test_a_server_that_hangs_is_noticed(
    etcd: Etcd, prefix: str, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A watch on it stays open in silence: the re-check has a time limit."""
    put(etcd, prefix, a="1")
    running = start_mirror(source(etcd, prefix, recheck=0.1, timeout=0.2))
    await eventually(lambda: running.is_complete)
    etcd.stop()
    try:
        await eventually(lambda: running.problem is not None)
        assert "no answer within 0.2 s" in (running.problem or "")
        assert await files(volume) == {"a": "1"}
    finally:
        etcd.resume()
    put(etcd, prefix, a="2")
    await eventually(
        lambda: running.problem is None and (Path(volume.path) / "a").read_text() == "2"
    )


async def test_a_lost_quorum_is_an_outage_and_no_empty_state(
    tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Of three members two are gone: the third answers, but says nothing; with one more of them it goes on."""
    peers = {name: free_port() for name in ("one", "two", "three")}
    members = [Etcd(tmp_path, name, peers) for name in peers]
    try:
        for member in members:
            member.launch()
        for member in members:
            member.wait()
        put(members[0], "/app/", a="1", b="1")
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in members)
        running = start_mirror(EtcdSource(f"etcd+http://{hosts}/app/", recheck=0.2, timeout=0.5))
        await eventually(lambda: running.is_complete)
        for member in members[1:]:
            member.kill()
        await eventually(lambda: running.problem is not None)
        contact = running.followed[0].contact
        await eventually(lambda: "no answer within" in (running.problem or ""))
        assert running.followed[0].contact == contact
        assert await files(volume) == {"a": "1", "b": "1"}
        members[1].start()
        put(members[1], "/app/", a="2")
        await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")
        await eventually(lambda: running.problem is None)
    finally:
        for member in members:
            member.kill()


async def test_a_compacted_history_is_read_anew_with_deletions(
    etcd: Etcd, prefix: str, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Revisions between the last one seen and the compaction are gone: only a comparison of states finds the deletion."""
    put(etcd, prefix, a="1", b="1", gone="1")
    running = start_mirror(source(etcd, prefix, recheck=0.5, timeout=2.0))
    await eventually(lambda: running.is_complete)
    etcd.kill()
    await eventually(lambda: running.problem is not None)
    etcd.start()
    etcd.ctl("del", f"{prefix}gone")
    revision = int(etcd.ctl("get", "x", "--write-out=json").split('"revision":')[1].split(",")[0])
    etcd.ctl("compact", revision)
    await eventually(lambda: not (Path(volume.path) / "gone").exists())
    assert await files(volume) == {"a": "1", "b": "1"}


async def test_a_restored_backup_is_held(
    tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """The revision goes back: the present content stays until somebody allows the old one."""
    server = Etcd(tmp_path)
    server.start()
    try:
        put(server, "/app/", a="old")
        server.kill()
        shutil.copytree(server.data, tmp_path / "backup")
        server.start()
        put(server, "/app/", a="new")
        running = start_mirror(source(server, "/app/"))
        await eventually(lambda: running.is_complete)
        server.kill()
        shutil.rmtree(server.data)
        shutil.copytree(tmp_path / "backup", server.data)
        server.start()
        await eventually(lambda: "--allow-rewind" in (running.problem or ""))
        assert await files(volume) == {"a": "new"}
    finally:
        server.kill()


async def test_another_cluster_at_the_same_address_is_held(
    tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Its revisions say nothing about those of the one before, even if they are higher."""
    one = Etcd(tmp_path / "one")
    other = Etcd(tmp_path / "other", port=one.port)
    for server in (one, other):
        server.data.parent.mkdir()
    other.start()
    put(other, "/app/", a="other")
    for number in range(3):
        other.ctl("put", "/elsewhere", number)
    other.kill()
    one.start()
    try:
        put(one, "/app/", a="1")
        running = start_mirror(source(one, "/app/"))
        await eventually(lambda: running.is_complete)
        one.kill()
        other.start()
        await eventually(lambda: "--allow-rewind" in (running.problem or ""))
        assert await files(volume) == {"a": "1"}
    finally:
        one.kill()
        other.kill()


async def test_an_emptied_prefix_is_held(
    etcd: Etcd, prefix: str, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """consul-template #727: an engine that lost its state must not empty the files of an application."""
    put(etcd, prefix, a="1", b="2")
    running = start_mirror(source(etcd, prefix))
    await eventually(lambda: running.is_complete)
    etcd.ctl("del", "--prefix", prefix)
    await eventually(lambda: "--allow-shrink" in (running.problem or ""))
    assert await files(volume) == {"a": "1", "b": "2"}


async def test_unchanged_values_are_not_sent_again(
    etcd: Etcd, prefix: str, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Nor kept: after an event only its key is known, and the others stay as they are on the volume."""
    put(etcd, prefix, a="1", b="2")
    running = start_mirror(source(etcd, prefix))
    await eventually(lambda: running.is_complete)
    inode = (Path(volume.path) / "b").stat().st_ino
    etcd.ctl("put", f"{prefix}a", "changed")
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "changed")
    assert (Path(volume.path) / "b").stat().st_ino == inode


async def test_pages_are_bounded_together(
    etcd: Etcd, prefix: str, start_mirror: StartMirror, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Each is small, and there is always one more."""
    monkeypatch.setattr("sidecar.mirror.sources.etcd._PAGE_KEYS", 1)
    for number in range(3):
        etcd.ctl("put", f"{prefix}{number}", "x" * 600)
    running = start_mirror(source(etcd, prefix, max_bytes=1600))
    await eventually(lambda: "answers are larger than 1600 bytes" in (running.problem or ""))


async def test_the_next_member_is_asked_when_one_is_away(
    etcd: Etcd, prefix: str, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    put(etcd, prefix, a="1")
    running = start_mirror(EtcdSource(f"etcd+http://127.0.0.1:9,127.0.0.1:{etcd.port}{prefix}"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}


def test_an_address_without_a_prefix_is_refused() -> None:
    """All of etcd is never meant: a Kubernetes cluster may keep its state in it."""
    with pytest.raises(_errors.ConfigError, match="prefix"):
        factory.make_source("etcd+http://127.0.0.1:2379/")


def test_mirror_is_public() -> None:
    assert isinstance(factory.make_source("etcd+http://h:1/p/").source, EtcdSource)
    assert "make_source" in mirror.__all__
