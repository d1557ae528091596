"""A secret of a real OpenBao: its versions, its deletion, and tokens that end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.conftest import StartMirror
from sidecar.mirror.sources.vault import VaultSource
from sidecar.volume.volume import Volume
from support import Eventually
from support.engines import OpenBao


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    server = OpenBao(tmp_path_factory.mktemp("bao"))
    server.start()
    server.request("POST", "sys/policies/acl/app", {"policy": 'path "secret/data/*" { capabilities = ["read"] }'})  # fmt: skip
    yield server
    server.kill()


@pytest.fixture
def token(bao: OpenBao, tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(make_token(bao))
    return path


def make_token(bao: OpenBao) -> str:
    """A token that may read secrets, and nothing else."""
    made = bao.request("POST", "auth/token/create", {"policies": ["app"], "no_parent": True})
    return str(made["auth"]["client_token"])


def write(bao: OpenBao, **values: object) -> None:
    bao.request("POST", "secret/data/team/app", {"data": values})


def source(bao: OpenBao, token: Path, **options: Any) -> VaultSource:
    url = f"vault+{bao.url}/secret/team/app"
    return VaultSource(url, token_file=token, interval=0.05, **options)


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


async def test_versions_of_a_secret_are_followed_and_a_deleted_one_is_held(
    bao: OpenBao, token: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    write(bao, user="ada", ports=[1, 2])
    running = start_mirror(source(bao, token))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"user": "ada", "ports": "[1,2]"}
    write(bao, user="eve")
    await eventually(lambda: (Path(volume.path) / "user").read_text() == "eve")
    assert await files(volume) == {"user": "eve"}
    bao.request("DELETE", "secret/data/team/app")
    await eventually(lambda: "--allow-shrink" in (running.problem or ""))
    bao.request("POST", "secret/undelete/team/app", {"versions": [2]})
    await eventually(lambda: running.problem is None)
    bao.request("DELETE", "secret/metadata/team/app")
    await eventually(lambda: "--allow-shrink" in (running.problem or ""))
    write(bao, user="again")  # with version 1
    await eventually(lambda: "--allow-rewind" in (running.problem or ""))
    assert await files(volume) == {"user": "eve"}


async def test_a_revoked_token_is_replaced_by_that_in_the_file(
    bao: OpenBao, token: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    write(bao, user="ada")
    running = start_mirror(source(bao, token))
    await eventually(lambda: running.is_complete)
    old = token.read_text()
    bao.request("POST", "auth/token/revoke", {"token": old})
    await eventually(lambda: "it answered 403" in (running.problem or ""))
    assert old not in (running.problem or "")
    token.write_text(make_token(bao))
    write(bao, user="eve")
    await eventually(lambda: (Path(volume.path) / "user").read_text() == "eve")
    await eventually(lambda: running.problem is None)


async def test_a_server_that_hangs_is_noticed(
    bao: OpenBao, token: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    write(bao, user="ada")
    running = start_mirror(source(bao, token, timeout=0.3))
    await eventually(lambda: running.is_complete)
    bao.stop()
    try:
        await eventually(lambda: "no answer within 0.3 s" in (running.problem or ""))
        assert await files(volume) == {"user": "ada"}
    finally:
        bao.resume()
    await eventually(lambda: running.problem is None)
