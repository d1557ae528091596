"""One secret of the KV engine, version 2, of Vault or OpenBao (https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import orjson

from sidecar._errors import ConfigError
from sidecar.mirror.client import Client
from sidecar.mirror.states import Alive, State, Unit
from sidecar.process import arguments

_GONE = frozenset((200, 404))


class VaultSource:
    """Follow the secret at `vault+https://host:8200/MOUNT/PATH`: its keys become files.

    Neither server tells of changes, so it is asked at an interval, spread by a tenth. A value that is no text is JSON.
    `token_file` is read for each request: an agent beside this container may renew it.
    A secret without a current version (deleted) has no files, and is held as any state that was emptied.

    >>> VaultSource("vault+https://vault:8200/secret/app", token_file="/dev/null")
    <VaultSource vault+https://vault:8200/secret/app>
    """

    def __init__(
        self,
        url: str,
        *,
        interval: float = 30.0,
        namespace: str | None = None,
        timeout: float = 10.0,
        **options: Any,
    ) -> None:
        parts = urlsplit(url)
        mount, _, path = unquote(parts.path).strip("/").partition("/")
        if not mount or not path:
            raise ConfigError(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} names no secret: vault+https://host:8200/MOUNT/PATH")  # fmt: skip
        self._client = Client(parts._replace(path="/").geturl(), timeout=timeout, **options)
        self.name = f"vault+{self._client.name.rstrip('/')}{parts.path}"
        self._url = f"{self._client.url}v1/{quote(mount)}/data/{quote(path)}"
        self._headers = {} if namespace is None else {"X-Vault-Namespace": namespace}
        self._pause = arguments.check_seconds("interval", interval, zero=False)
        self.interval: float | None = interval + timeout

    def __repr__(self) -> str:
        return f"<VaultSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield the newest version of the secret, and each newer one."""
        token = since
        async with self._client.session():
            while True:
                state = await self._read()
                yield Alive(state.token) if state.token == token else state
                token = state.token
                await asyncio.sleep(self._pause * random.uniform(0.9, 1.0))  # noqa: S311

    async def _read(self) -> State:
        answer = await self._client.request("GET", self._url, headers=self._headers, accept=_GONE)
        found = self._client.parse(self._url, answer.body)
        try:
            secret = found["data"]
            meta, data = secret["metadata"], secret["data"]
            version = int(meta["version"])
            created = datetime.fromisoformat(meta["created_time"]).timestamp()
        except (KeyError, TypeError, ValueError):
            if answer.status == 404 and isinstance(found, dict) and found.get("errors") == []:
                return State({}, "none")
            raise self._client.failed(self._url, f"it is no secret of KV version 2: {answer.status}") from None  # fmt: skip
        if not data:  # a deleted version
            return State({}, token=f"{version}/deleted", order=version)
        files = {
            name: value.encode() if isinstance(value, str) else orjson.dumps(value)
            for name, value in data.items()
        }
        unit = Unit(str(version), files, created)
        return State({"": unit}, str(version), order=version, changed_at=created)
