"""Objects of a real server that speaks as S3 does: with a manifest they are a set, without one each is for itself."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from mirror.conftest import StartMirror
from sidecar import _errors
from sidecar.mirror.sources import factory
from sidecar.mirror.sources.objects import ObjectsSource
from sidecar.volume.volume import Volume
from support import Eventually
from support.engines import S3


class Bucket:
    """A bucket, as another client writes to it."""

    def __init__(self, server: S3, name: str) -> None:
        self.server, self.name = server, name
        keys = {"aws_access_key_id": "id", "aws_secret_access_key": "key"}
        options = {"endpoint_url": server.url, "region_name": "us-east-1", **keys}
        self._client: Any = boto3.client("s3", **options)
        self._client.create_bucket(Bucket=name)

    def put(self, key: str, data: str) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=data.encode())

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def close(self) -> None:
        self._client.close()

    def publish(self, files: Mapping[str, str], order: int | None = None) -> None:
        """Write objects that are named by their digests, and the manifest after them."""
        named: dict[str, object] = {}
        for name, data in files.items():
            digest = hashlib.sha256(data.encode()).hexdigest()
            self.put(f"app/blobs/{digest}", data)
            named[name] = {"object": f"blobs/{digest}", "sha256": digest}
        made = {"files": named} | ({} if order is None else {"order": order})
        self.put("app/manifest.json", json.dumps(made))

    def source(self, path: str = "app/", **options: Any) -> ObjectsSource:
        options = {"credentials_file": str(self.server.credentials), **options}
        options = {"interval": 0.05, "endpoint": self.server.url, **options}
        return ObjectsSource(f"s3://{self.name}/{path}", **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    made = S3(tmp_path_factory.mktemp("s3"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def bucket(server: S3, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    made = Bucket(server, f"bucket-{abs(hash(request.node.name))}")
    yield made
    made.close()


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


async def test_a_manifest_makes_a_set(
    bucket: Bucket, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """What it does not name is no file; unchanged files stay the same files, and are not read again."""
    bucket.publish({"a.json": "1", "dir/b": "", "gone": "1"})
    bucket.put("app/other", "x")
    running = start_mirror(bucket.source(manifest="manifest.json"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a.json": "1", "dir/b": "", "gone": "1"}
    inode = (Path(volume.path) / "a.json").stat().st_ino
    bucket.delete(f"app/blobs/{hashlib.sha256(b'1').hexdigest()}")
    digest = hashlib.sha256(b"1").hexdigest()
    empty = hashlib.sha256(b"").hexdigest()
    bucket.put("app/dir/b", "")
    manifest = {"a.json": {"object": f"blobs/{digest}", "sha256": digest}, "dir/b": empty}
    bucket.put("app/manifest.json", json.dumps({"files": manifest}))
    await eventually(lambda: not (Path(volume.path) / "gone").exists())
    assert await files(volume) == {"a.json": "1", "dir/b": ""}
    assert (Path(volume.path) / "a.json").stat().st_ino == inode


async def test_a_manifest_that_runs_ahead_of_its_objects_is_waited_for(
    bucket: Bucket, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """An object with another content than it says is not taken, and none of the others either."""
    bucket.publish({"a": "1", "b": "1"})
    running = start_mirror(bucket.source(manifest="manifest.json"))
    await eventually(lambda: running.is_complete)
    digests = {name: hashlib.sha256(b"2").hexdigest() for name in ("a", "b")}
    bucket.put("app/a", "2")
    bucket.put("app/b", "half")
    bucket.put("app/manifest.json", json.dumps({"files": digests}))
    await eventually(lambda: "has not the digest" in (running.problem or ""))
    assert await files(volume) == {"a": "1", "b": "1"}
    bucket.put("app/b", "2")
    await eventually(lambda: (Path(volume.path) / "b").read_text() == "2")
    assert await files(volume) == {"a": "2", "b": "2"}


async def test_without_a_manifest_each_object_is_a_file(
    bucket: Bucket, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A mark of a directory is none."""
    bucket.put("app/a", "1")
    bucket.put("app/dir/", "")
    bucket.put("app/empty/", "")
    bucket.put("app/dir/b", "2")
    bucket.put("application", "x")
    running = start_mirror(bucket.source())
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "dir/b": "2"}
    bucket.put("app/a", "3")
    bucket.delete("app/dir/b")
    await eventually(lambda: not (Path(volume.path) / "dir").exists())
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "3")


@pytest.mark.parametrize("loss", ["emptied", "flushed", "manifest", "restored"])
async def test_a_bucket_that_lost_its_objects_takes_nothing_away(
    server: S3, bucket: Bucket, start_mirror: StartMirror, volume: Volume, eventually: Eventually, loss: str
) -> None:  # fmt: skip
    manifest = None if loss == "emptied" else "manifest.json"
    bucket.publish({"a": "1", "b": "1"}, order=7)
    running = start_mirror(bucket.source("app" if manifest else "app/blobs", manifest=manifest))
    await eventually(lambda: running.is_complete)
    before = await files(volume)
    if loss == "emptied":
        bucket.delete(f"app/blobs/{hashlib.sha256(b'1').hexdigest()}")
    elif loss == "flushed":
        urllib.request.urlopen(f"{server.url}/moto-api/reset", b"", timeout=10).close()
    elif loss == "manifest":
        bucket.delete("app/manifest.json")
    else:
        bucket.publish({"a": "0", "b": "0"}, order=6)
    said = {"emptied": "--allow-shrink", "restored": "--allow-rewind"}.get(loss, "404")
    await eventually(lambda: said in (running.problem or ""))
    assert await files(volume) == before


async def test_a_server_that_hangs_or_is_away_is_noticed(
    server: S3, bucket: Bucket, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    bucket.publish({"a": "1"})
    running = start_mirror(bucket.source(manifest="manifest.json", timeout=0.5))
    await eventually(lambda: running.is_complete)
    server.stop()
    try:
        await eventually(lambda: running.problem is not None)
        assert await files(volume) == {"a": "1"}
    finally:
        server.resume()
    bucket.publish({"a": "2"})
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")
    assert running.problem is None


async def test_a_manifest_that_is_none_is_not_believed(
    bucket: Bucket, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A page of a proxy, half a manifest, an object beyond the limit."""
    bucket.publish({"a": "1"})
    running = start_mirror(bucket.source(manifest="manifest.json", max_bytes=1000))
    await eventually(lambda: running.is_complete)
    for data in ("<html>", '{"files": {"a": "x"}}', '{"files": []}', '{"files": {}, "order": "1"}'):
        bucket.put("app/manifest.json", data)
        await eventually(lambda: "it is no manifest" in (running.problem or ""))
        bucket.publish({"a": "1"})
        await eventually(lambda: running.problem is None)
    bucket.publish({"a": "1", "b": "x" * 999, "c": "y" * 999})
    await eventually(lambda: "larger than 1000 bytes" in (running.problem or ""))
    assert await files(volume) == {"a": "1"}


async def test_credentials_are_read_again_after_a_failure(
    bucket: Bucket, tmp_path: Path, start_mirror: StartMirror, eventually: Eventually
) -> None:
    """As an agent beside this container renews them; they are in no message."""
    bucket.publish({"a": "1"})
    secret = tmp_path / "credentials"
    secret.write_text("aws_secret_access_key = hidden\n")
    running = start_mirror(bucket.source(manifest="manifest.json", credentials_file=str(secret)))
    await eventually(lambda: "no AWS credentials file" in (running.problem or ""))
    assert "hidden" not in (running.problem or "")
    secret.write_text("[default]\naws_access_key_id = id\naws_secret_access_key = hidden\n")
    await eventually(lambda: running.is_complete)
    secret.write_text("")
    bucket.delete("app/manifest.json")
    await eventually(lambda: "no AWS credentials file" in (running.problem or ""))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3:///app", "names no bucket"),
        ("s3://id:secret@bucket/app", "credentials_file"),
        ("az://box/app?sig=secret", "credentials_file"),
        ("s3://bucket/app#endpoint=host:9000", "endpoint"),
        ("gs://bucket/app#anonymous=yes&credentials_file=a", "give one of"),
    ],
)
def test_a_wrong_address_is_refused(url: str, said: str) -> None:
    with pytest.raises(_errors.ConfigError, match=said) as caught:
        factory.make_source(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "content"),
    [
        ("az://box/app", "?sv=2026&sig=hidden"),
        ("az://box/app", "aGlkZGVu"),
        ("gs://box/app", '{"client_email": "a@b", "private_key": "hidden", "private_key_id": "1"}'),
    ],
)
async def test_other_clouds_are_asked_with_their_credentials(
    tmp_path: Path, start_mirror: StartMirror, eventually: Eventually, url: str, content: str
) -> None:
    """A server that refuses connections is named; the credentials are not."""
    secret = tmp_path / "secret"
    secret.write_text(content)
    running = start_mirror(
        ObjectsSource(url, endpoint="http://127.0.0.1:9", account="acme", credentials_file=str(secret))
    )  # fmt: skip
    await eventually(lambda: f"of {url}" in (running.problem or ""))
    assert "hidden" not in (running.problem or "")
    assert re.search(r" in [0-9.]+", running.problem or "") is None, "with a time, each message is another"  # fmt: skip
    assert "\n" not in (running.problem or "")
