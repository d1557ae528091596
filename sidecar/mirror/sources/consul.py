"""The keys below a prefix of Consul, by blocking queries (https://developer.hashicorp.com/consul/api-docs/features/blocking)."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from sidecar._errors import ConfigError
from sidecar.mirror.client import Client
from sidecar.mirror.states import Alive, State, Unit
from sidecar.process import arguments

_FOUND_OR_NOT = frozenset((200, 404))


class ConsulSource:
    """Follow `consul+https://host:8501/PREFIX/`: keys become files without the prefix, all of one answer are a set.

    A query blocks until something changes, and is answered after `wait` seconds in any case.
    An index that goes back is one to begin anew with, as the documentation asks for; it is no older state.

    >>> ConsulSource("consul+http://127.0.0.1:8500/app/")
    <ConsulSource consul+http://127.0.0.1:8500/app/>
    """

    def __init__(
        self, url: str, *, wait: float = 60.0, timeout: float = 10.0, **options: Any
    ) -> None:
        parts = urlsplit(url)
        self._prefix = unquote(parts.path).lstrip("/")
        if not self._prefix:
            raise ConfigError(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} needs a prefix: consul+https://host:8501/PREFIX/")  # fmt: skip
        self._client = Client(parts._replace(path="/").geturl(), timeout=timeout, **options)
        self.name = f"consul+{self._client.name.rstrip('/')}{parts.path}"
        self._wait = arguments.check_seconds("wait", wait, zero=False)
        # The server adds up to a sixteenth at random.
        self._limit = wait * 17 / 16 + timeout
        self.interval: float | None = self._limit

    def __repr__(self) -> str:
        return f"<ConsulSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield the keys as they are now, and after each change."""
        token, index = since, 0
        base = f"{self._client.url}v1/kv/{quote(self._prefix)}?recurse=1"
        async with self._client.session():
            while True:
                url = f"{base}&index={index}&wait={int(self._wait)}s" if index else base
                answer = await self._client.request(
                    "GET", url, accept=_FOUND_OR_NOT, timeout=self._limit
                )
                newest = self._index(url, answer.headers)
                index = newest if newest >= index else 0
                state = self._state(url, answer.body if answer.status == 200 else b"[]")
                yield Alive(state.token) if state.token == token else state
                token = state.token

    def _index(self, url: str, headers: Any) -> int:
        text = headers.get("X-Consul-Index", "")
        if not text.isdecimal() or int(text) < 1:
            raise self._client.failed(url, "the answer has no X-Consul-Index")
        return int(text)

    def _state(self, url: str, body: bytes) -> State:
        try:
            found = {
                one["Key"].removeprefix(self._prefix): (one["ModifyIndex"], one["Value"])
                for one in self._client.parse(url, body)
                if not one["Key"].endswith("/")
            }
            files = {name: base64.b64decode(value or "") for name, (_, value) in found.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._client.failed(url, "the answer is no list of keys") from None
        token = ";".join(f"{name}={index}" for name, (index, _) in sorted(found.items()))
        return State({"": Unit(token, files)} if files else {}, token)
