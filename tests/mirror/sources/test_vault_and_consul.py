"""A secret of Vault and a prefix of Consul: fakes that answer as the documentation of both says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.conftest import StartMirror
from mirror.fakes.consul import Consul
from mirror.fakes.vault import Vault
from sidecar import _errors
from sidecar.mirror.sources import factory
from sidecar.mirror.sources.consul import ConsulSource
from sidecar.mirror.sources.vault import VaultSource
from sidecar.volume.volume import Volume
from support import Eventually


@pytest.fixture
async def vault() -> AsyncIterator[Vault]:
    made = Vault()
    await made.server.start_server()
    yield made
    await made.server.close()


@pytest.fixture
async def consul() -> AsyncIterator[Consul]:
    made = Consul()
    await made.server.start_server()
    yield made
    await made.server.close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("t")
    return path


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


async def test_keys_of_a_secret_become_files(
    vault: Vault, token: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Text as it is, anything else as JSON; each newer version replaces the one before."""
    vault.versions.append({"user": "ada", "ports": [1, 2]})
    url = f"vault+{vault.server.make_url('/secret/team/app')}"
    running = start_mirror(VaultSource(url, token_file=token, interval=0.02))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"user": "ada", "ports": "[1,2]"}
    vault.versions.append({"user": "eve"})
    await eventually(lambda: (Path(volume.path) / "user").read_text() == "eve")
    assert await files(volume) == {"user": "eve"}


@pytest.mark.parametrize("loss", ["deleted", "gone", "rolled back"])
async def test_a_secret_that_is_lost_stays_on_the_volume(
    vault: Vault, token: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually, loss: str
) -> None:  # fmt: skip
    vault.versions += [{"user": "old"}, {"user": "ada"}]
    url = f"vault+{vault.server.make_url('/secret/team/app')}"
    running = start_mirror(VaultSource(url, token_file=token, interval=0.02))
    await eventually(lambda: running.is_complete)
    if loss == "deleted":
        vault.versions.append(None)
    elif loss == "gone":
        vault.versions.clear()
    else:
        vault.versions.pop()
    await eventually(lambda: "--allow-" in (running.problem or ""))
    assert await files(volume) == {"user": "ada"}


async def test_a_token_that_was_revoked_is_read_anew(
    vault: Vault, token: Path, start_mirror: StartMirror, eventually: Eventually
) -> None:
    """A token of two seconds is renewed in its file by an agent."""
    vault.versions.append({"user": "ada"})
    vault.token = "renewed"
    url = f"vault+{vault.server.make_url('/secret/team/app')}"
    running = start_mirror(VaultSource(url, token_file=token, interval=0.02))
    await eventually(lambda: "it answered 403" in (running.problem or ""))
    token.write_text("renewed")
    await eventually(lambda: running.is_complete)


async def test_keys_below_a_prefix_become_files(
    consul: Consul, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """One blocking query tells of each change; what one transaction wrote is one version."""
    consul.put(app__a="1", app__dir__b="", app__dir__="", other="x")
    running = start_mirror(ConsulSource(f"consul+{consul.server.make_url('/app/')}", wait=5.0))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "dir/b": ""}
    consul.put(app__a="2", app__c="3")
    await eventually((Path(volume.path) / "c").exists)
    assert await files(volume) == {"a": "2", "c": "3", "dir/b": ""}
    consul.put(app__dir__b=None)
    await eventually(lambda: not (Path(volume.path) / "dir").exists())


async def test_an_index_that_goes_back_is_asked_anew(
    consul: Consul, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """After a restored snapshot; a query with the old index would block for ever."""
    consul.put(app__a="1")
    running = start_mirror(ConsulSource(f"consul+{consul.server.make_url('/app/')}", wait=1.0))
    await eventually(lambda: running.is_complete)
    consul.index = 2
    consul.put(app__a="2")
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")
    assert any("index" not in one for one in consul.queries[1:]), "begun anew, without an index"


async def test_a_prefix_that_was_emptied_is_held(
    consul: Consul, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """consul-template #727."""
    consul.put(app__a="1")
    running = start_mirror(ConsulSource(f"consul+{consul.server.make_url('/app/')}", wait=1.0))
    await eventually(lambda: running.is_complete)
    consul.put(app__a=None)
    await eventually(lambda: "--allow-shrink" in (running.problem or ""))
    assert await files(volume) == {"a": "1"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("vault+https://ada:secret-1@host/app", "names no secret"),
        ("consul+https://ada:secret-1@host/", "needs a prefix"),
        ("consul+https://host/app/#interval=1", "there is no 'interval'"),
    ],
)
def test_a_wrong_address_is_refused(url: str, said: str) -> None:
    with pytest.raises(_errors.ConfigError, match=said) as caught:
        factory.make_source(url)
    assert "secret-1" not in str(caught.value)
