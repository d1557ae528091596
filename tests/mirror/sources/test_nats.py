"""The keys of a bucket of a real NATS: each change is told, and a server that is killed, hangs, forgets or goes back is noticed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import nkeys
import pytest
from nats.aio.client import Client
from nats.js.kv import KeyValue

from mirror.conftest import StartMirror
from sidecar import _errors
from sidecar.mirror.sources import factory
from sidecar.mirror.sources.nats import NatsSource
from sidecar.process import metrics
from sidecar.volume.volume import Volume
from support import Eventually
from support.engines import Nats

SEED = b"SUAAAAICAMCAKBQHBAEQUCYMBUHA6EARCIJRIFIWC4MBSGQ3DQOR4H776Y"
"""Of a key for tests: the bytes 0 to 31."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    made = Nats(tmp_path_factory.mktemp("nats"))
    made.start()
    yield made
    made.kill()


@asynccontextmanager
async def bucket(server: Nats, name: str = "app", **options: Any) -> AsyncIterator[KeyValue]:
    """A bucket as another client uses it."""
    client = await nats.connect(server.url, allow_reconnect=False)
    try:
        yield await client.jetstream().create_key_value(bucket=name, **options)
    finally:
        await client.close()


@pytest.fixture
async def keys(server: Nats) -> AsyncIterator[KeyValue]:
    async with bucket(server) as made:
        yield made
        await made._js.delete_key_value("app")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Nats]:
    """A server of this test alone."""
    made = Nats(tmp_path)
    made.start()
    yield made
    made.kill()


def source(server: Nats, path: str = "app", **options: Any) -> NatsSource:
    return NatsSource(f"{server.url}/{path}", **options)


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


async def test_keys_of_a_bucket_become_files(
    server: Nats, keys: KeyValue, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A slash makes a directory, an empty value an empty file; deleted and purged keys are no files; unchanged ones stay."""
    await keys.put("app.json", b"1")
    await keys.put("dir/b", b"")
    await keys.put("gone", b"1")
    await keys.delete("gone")
    running = start_mirror(source(server))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"app.json": "1", "dir/b": ""}
    inode = (Path(volume.path) / "app.json").stat().st_ino
    await keys.put("c", b"3")
    await eventually((Path(volume.path) / "c").exists)
    await keys.delete("dir/b")
    await eventually(lambda: not (Path(volume.path) / "dir").exists())
    await keys.purge("c")
    await eventually(lambda: not (Path(volume.path) / "c").exists())
    assert await files(volume) == {"app.json": "1"}
    assert (Path(volume.path) / "app.json").stat().st_ino == inode


@pytest.mark.parametrize("prefix", ["team.", "team/", "team.a"])
async def test_a_prefix_is_taken_off(
    server: Nats, keys: KeyValue, start_mirror: StartMirror, volume: Volume, eventually: Eventually, prefix: str
) -> None:  # fmt: skip
    """By its letters; the parts between dots are what the server itself can filter by."""
    await keys.put(f"{prefix}x", b"1")
    await keys.put("other", b"1")
    await keys.put("tea", b"1")
    running = start_mirror(source(server, f"app/{prefix}"))
    await eventually(lambda: running.is_complete)
    await keys.put("other", b"2")
    await keys.put(f"{prefix}x", b"2")
    await eventually(lambda: (Path(volume.path) / "x").read_text() == "2")
    assert await files(volume) == {"x": "2"}


async def test_a_server_that_is_killed_keeps_its_files_and_what_it_missed_comes_after(
    own: Nats, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A deletion, too, whose mark was removed meanwhile: only a comparison of states finds it."""
    async with bucket(own) as keys:
        for name in ("a", "b", "gone"):
            await keys.put(name, b"1")
    running = start_mirror(source(own))
    await eventually(lambda: running.is_complete)
    own.kill()
    await eventually(lambda: running.problem is not None)
    assert await files(volume) == {"a": "1", "b": "1", "gone": "1"}
    other = Nats(own.data.parent)  # the same data, where the mirror does not look
    other.start()
    try:
        async with bucket(other) as keys:
            await keys.put("a", b"2")
            await keys.delete("gone")
            await keys._js.purge_stream("KV_app", subject="$KV.app.gone")
    finally:
        other.terminate()
    own.start()
    await eventually(lambda: not (Path(volume.path) / "gone").exists())
    assert await files(volume) == {"a": "2", "b": "1"}
    assert running.problem is None


async def test_a_server_that_hangs_is_noticed(
    own: Nats, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """By its heartbeats, which stop."""
    async with bucket(own) as keys:
        await keys.put("a", b"1")
    running = start_mirror(source(own, ping=0.1, timeout=20.0))
    await eventually(lambda: running.is_complete)
    own.stop()
    try:
        await eventually(lambda: "no answer" in (running.problem or ""))
        assert await files(volume) == {"a": "1"}
    finally:
        own.resume()
    async with bucket(own) as keys:
        await keys.put("a", b"2")
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")


@pytest.mark.parametrize("loss", ["purged", "deleted", "made anew", "flushed"])
async def test_a_bucket_that_lost_its_keys_takes_nothing_away(
    own: Nats, start_mirror: StartMirror, volume: Volume, eventually: Eventually, loss: str
) -> None:
    """Neither a purge of the stream nor the end of the consumer is told of; and a server may begin without its data."""
    async with bucket(own) as keys:
        await keys.put("a", b"1")
        await keys.put("b", b"1")
        running = start_mirror(source(own, ping=0.1, recheck=0.1))
        await eventually(lambda: running.is_complete)
        if loss == "purged":
            await keys._js.purge_stream("KV_app")
        elif loss != "flushed":
            await keys._js.delete_key_value("app")
        if loss == "made anew":
            again = await keys._js.create_key_value(bucket="app")
            for number in range(9):
                await again.put("a", str(number).encode())
    if loss == "flushed":
        own.kill()
        shutil.rmtree(own.data)
        own.start()
    said = {"purged": "--allow-shrink", "made anew": "--allow-rewind"}.get(loss, "no such bucket")
    await eventually(lambda: said in (running.problem or ""))
    assert await files(volume) == {"a": "1", "b": "1"}


@pytest.mark.parametrize("caught_up", [False, True])
async def test_a_restored_backup_is_held(
    own: Nats, tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually, caught_up: bool
) -> None:  # fmt: skip
    """The number of the last message goes back; if it has caught up meanwhile, values are told apart by their time."""
    async with bucket(own) as keys:
        await keys.put("a", b"old")
    own.terminate()
    shutil.copytree(own.data, tmp_path / "backup")
    own.start()
    async with bucket(own) as keys:
        await keys.put("a", b"new")
    running = start_mirror(source(own))
    await eventually(lambda: running.is_complete)
    own.kill()
    await eventually(lambda: running.problem is not None)
    shutil.rmtree(own.data)
    shutil.copytree(tmp_path / "backup", own.data)
    if caught_up:
        other = Nats(tmp_path)  # the same data, where the mirror does not look
        other.start()
        async with bucket(other) as keys:
            await keys.put("a", b"another")  # with the number that "new" had
        other.terminate()
        own.start()
        await eventually(lambda: (Path(volume.path) / "a").read_text() == "another")
    else:
        own.start()
        await eventually(lambda: "--allow-rewind" in (running.problem or ""))
        assert await files(volume) == {"a": "new"}


async def test_a_key_that_goes_untold_is_found(
    server: Nats, keys: KeyValue, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A key that expires, or is purged from the stream, is told to nobody: the comparison finds it, and counts it."""
    before = metrics.MIRROR_RESCUES_TOTAL._value.get()
    await keys.put("a", b"1")
    await keys.put("b", b"1")
    running = start_mirror(source(server, ping=0.1, recheck=0.1))
    await eventually(lambda: running.is_complete)
    await keys._js.purge_stream("KV_app", subject="$KV.app.a")
    await eventually(lambda: not (Path(volume.path) / "a").exists())
    assert await files(volume) == {"b": "1"}
    assert metrics.MIRROR_RESCUES_TOTAL._value.get() > before


async def test_a_message_that_is_missing_is_noticed(
    server: Nats, keys: KeyValue, start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The client drops what it has no room for; the next heartbeat, or the next message, has a number too many."""
    await keys.put("a", b"1")
    running = start_mirror(source(server, ping=0.1))
    await eventually(lambda: running.is_complete)
    processed = Client._process_msg
    dropped: list[bytes] = []

    async def process(self: Client, sid: int, subject: bytes, *rest: Any) -> None:
        if subject == b"$KV.app.a" and not dropped and sid == 1:
            dropped.append(subject)
        else:
            await processed(self, sid, subject, *rest)

    monkeypatch.setattr(Client, "_process_msg", process)
    await keys.put("a", b"2")
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")
    assert dropped


async def test_values_beyond_the_limit_are_not_taken(
    server: Nats, keys: KeyValue, start_mirror: StartMirror, eventually: Eventually
) -> None:
    await keys.put("a", b"x" * 600)
    await keys.put("b", b"x" * 600)
    running = start_mirror(source(server, max_bytes=1000))
    await eventually(lambda: "larger than 1000 bytes" in (running.problem or ""))


async def test_a_password_is_sent_and_not_shown(
    tmp_path: Path, start_mirror: StartMirror, eventually: Eventually
) -> None:
    """Read for each connection."""
    secret = tmp_path / "password"
    secret.write_text("wrong-one")
    server = Nats(tmp_path, "--user", "ada", "--pass", "right")
    server.start()
    try:
        client = await nats.connect(server.url, user="ada", password="right")
        await (await client.jetstream().create_key_value(bucket="app")).put("a", b"1")
        await client.close()
        running = start_mirror(source(server, user="ada", password_file=str(secret)))
        await eventually(lambda: "Authorization Violation" in (running.problem or ""))
        assert "wrong-one" not in (running.problem or "")
        secret.write_text("right")
        await eventually(lambda: running.is_complete)
    finally:
        server.kill()


async def test_nkeys_and_tls(
    tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A server is known by its authority, and a client by its key; one without TLS gets no password."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", tmp_path / "key.pem",
         "-out", tmp_path / "cert.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    pair = nkeys.from_seed(bytearray(SEED))
    (tmp_path / "seed").write_bytes(SEED)
    config = tmp_path / "nats.conf"
    config.write_text(
        f'authorization {{ users = [{{ nkey: "{pair.public_key.decode()}" }}] }}\n'
        f'tls {{ cert_file: "{tmp_path}/cert.pem", key_file: "{tmp_path}/key.pem" }}\n'
    )
    server = Nats(tmp_path, "-c", config)
    server.start()
    options: dict[str, Any] = {
        "nkey_file": str(tmp_path / "seed"),
        "ca_file": str(tmp_path / "cert.pem"),
    }
    secure = server.url.replace("nats:", "nats+tls:")
    try:
        running = start_mirror(NatsSource(f"{secure}/app", **options))
        await eventually(lambda: "no such bucket" in (running.problem or ""))
    finally:
        server.kill()


async def test_without_tls_nothing_secret_is_sent(
    server: Nats, tmp_path: Path, start_mirror: StartMirror, eventually: Eventually
) -> None:
    (tmp_path / "token").write_text("secret")
    secure = server.url.replace("nats:", "nats+tls:")
    running = start_mirror(NatsSource(f"{secure}/app", token_file=str(tmp_path / "token")))
    await eventually(lambda: "offers no TLS" in (running.problem or ""))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nats://host", "names no bucket"),
        ("nats://host/a.b", "names no bucket"),
        ("nats://ada:secret@host/app", "password_file"),
        ("nats://host/app#user=ada", "go together"),
        ("nats://host/app#token_file=a&nkey_file=b", "give one of"),
        ("nats://host/app#ca_file=a", "nats\\+tls"),
    ],
)
def test_a_wrong_address_is_refused(url: str, said: str) -> None:
    with pytest.raises(_errors.ConfigError, match=said) as caught:
        factory.make_source(url)
    assert "secret" not in str(caught.value)


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sidecar.mirror.sources.nats")
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(_errors.ConfigError, match=r"pip install 'podsidecar\[nats\]'"):
        factory.make_source("nats://host/app")
