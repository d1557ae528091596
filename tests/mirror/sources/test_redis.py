"""A hash of a real Redis: told of changes on one connection, without any configuration of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.conftest import StartMirror
from sidecar import _errors
from sidecar.mirror.sources import factory
from sidecar.mirror.sources.redis import RedisSource
from sidecar.process import metrics
from sidecar.volume.volume import Volume
from support import Eventually
from support.engines import Redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.kill()


def source(redis: Redis, key: str = "app", **options: Any) -> RedisSource:
    return RedisSource(f"redis://127.0.0.1:{redis.port}/0/{key}", **options)


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


async def test_fields_of_a_hash_become_files(
    redis: Redis, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """And each change is told: set, removed, replaced as a whole by RENAME."""
    redis.command("HSET", "app", "a", "1", "dir/b", "2")
    running = start_mirror(source(redis))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "dir/b": "2"}
    redis.command("HSET", "app", "a", "changed")
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "changed")
    redis.command("HDEL", "app", "dir/b")
    await eventually(lambda: not (Path(volume.path) / "dir").exists())
    redis.command("HSET", "next", "a", "2", "c", "3")
    redis.command("RENAME", "next", "app")
    await eventually((Path(volume.path) / "c").exists)
    assert await files(volume) == {"a": "2", "c": "3"}


async def test_a_string_is_one_file(
    redis: Redis, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Named as the last part of its key; an empty one is an empty file."""
    redis.command("SET", "app/config", "")
    running = start_mirror(source(redis, "app/config"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"config": ""}


async def test_fields_of_one_command_are_never_seen_apart(
    redis: Redis, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    redis.command("HSET", "app", "x", "0", "y", "0")
    running = start_mirror(source(redis))
    await eventually(lambda: running.is_complete)
    seen: set[tuple[str, str]] = set()

    async def read() -> None:
        async for snapshot in volume.watch():
            seen.add((snapshot.text("x"), snapshot.text("y")))

    reading = asyncio.create_task(read())
    for number in range(1, 31):
        await asyncio.to_thread(redis.command, "HSET", "app", "x", str(number), "y", str(number))
    await eventually(lambda: ("30", "30") in seen)
    reading.cancel()
    assert all(x == y for x, y in seen)


@pytest.mark.parametrize("loss", ["FLUSHALL", "restart"])
async def test_a_server_that_lost_its_data_takes_nothing_away(
    redis: Redis, start_mirror: StartMirror, volume: Volume, eventually: Eventually, loss: str
) -> None:
    """A restart without persistence gives an empty hash."""
    redis.command("HSET", "app", "a", "1")
    running = start_mirror(source(redis))
    await eventually(lambda: running.is_complete)
    if loss == "restart":
        redis.kill()
        await eventually(lambda: running.problem is not None)
        redis.start()
    else:
        redis.command(loss)
    await eventually(lambda: "--allow-shrink" in (running.problem or ""))
    assert await files(volume) == {"a": "1"}
    redis.command("HSET", "app", "a", "2")
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")


async def test_a_server_that_hangs_is_noticed(
    redis: Redis, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """By a PING that is not answered in time."""
    redis.command("HSET", "app", "a", "1")
    running = start_mirror(source(redis, ping=0.05, timeout=0.2))
    await eventually(lambda: running.is_complete)
    redis.stop()
    try:
        await eventually(lambda: "no answer" in (running.problem or ""))
        assert await files(volume) == {"a": "1"}
    finally:
        redis.resume()
    redis.command("HSET", "app", "a", "2")
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")


async def test_other_keys_are_not_told(
    redis: Redis, start_mirror: StartMirror, eventually: Eventually
) -> None:
    """Nor are those that begin alike: a prefix of the server's tracking is not a key."""
    redis.command("HSET", "app", "a", "1")
    running = start_mirror(source(redis, ping=0.02))
    await eventually(lambda: running.is_complete)
    before = metrics.MIRROR_VERSIONS_TOTAL.labels("published")._value.get()
    redis.command("HSET", "application", "a", "1")
    contact = running.followed[0].contact
    await eventually(lambda: running.followed[0].contact > contact)
    assert metrics.MIRROR_VERSIONS_TOTAL.labels("published")._value.get() == before


async def test_a_password_is_sent_and_not_shown(
    tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Read for each connection."""
    secret = tmp_path / "password"
    secret.write_text("wrong")
    server = Redis(tmp_path)
    server.start()
    try:
        server.command("HSET", "app", "a", "1")
        server.command("CONFIG", "SET", "requirepass", "right")
        running = start_mirror(source(server, password_file=str(secret)))
        await eventually(lambda: "WRONGPASS" in (running.problem or ""))
        assert "wrong" not in (running.problem or "").replace("WRONGPASS", "")
        secret.write_text("right")
        await eventually(lambda: running.is_complete)
    finally:
        server.kill()


async def test_a_key_of_another_kind_is_named(
    redis: Redis, start_mirror: StartMirror, eventually: Eventually
) -> None:
    redis.command("RPUSH", "app", "a")
    running = start_mirror(source(redis))
    await eventually(lambda: "the key is a list" in (running.problem or ""))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host/app", "names no key"),
        ("redis://host/0/", "names no key"),
        ("redis://:secret@host/0/app", "password_file"),
        ("redis://host/0/app#ca_file=a", "rediss"),
        ("redis://host/0/app#user=ada", "go together"),
        ("redis://host/0/app?password_file=a", "options follow #"),
        ("redis://host/0/app#password_file=a&password_file=b", "given twice"),
    ],
)
def test_a_wrong_address_is_refused(url: str, said: str) -> None:
    with pytest.raises(_errors.ConfigError, match=said) as caught:
        factory.make_source(url)
    assert "secret" not in str(caught.value)
