"""The files of another `sidecar read`: a tree of mirrors serves a fleet whose engine could not.

The list of files is long-polled (RFC 7240, `Prefer: wait`); files are fetched by their versions, and verified by them.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from urllib.parse import quote

from sidecar.mirror.client import Client
from sidecar.mirror.states import Alive, Blob, Reference, State, Unit, digest_of
from sidecar.process import arguments

_NOT_MODIFIED = 304


class ReaderSource:
    """Follow the files of a reader at `sidecar+https://host:8081/`.

    While that reader says that its own content is stale, it counts as silent: staleness travels down the tree.

    >>> ReaderSource("sidecar+https://mirror:8081/")
    <ReaderSource sidecar+https://mirror:8081/>
    """

    def __init__(
        self, url: str, *, wait: float = 30.0, timeout: float = 10.0, **options: Any
    ) -> None:
        self._client = Client(url, timeout=timeout, **options)
        self.name = f"sidecar+{self._client.name}"
        self._wait = arguments.check_seconds("wait", wait, zero=False)
        self._timeout = timeout
        self.interval: float | None = wait + timeout

    def __repr__(self) -> str:
        return f"<ReaderSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield the files that the reader has now, and after each change."""
        etag = since
        url = f"{self._client.url.rstrip('/')}/files"
        async with self._client.session():
            while True:
                # At random, so that the answers to a fleet do not come at the same moment.
                wait = max(int(self._wait * random.uniform(0.5, 1.0)), 1)  # noqa: S311
                headers = {"If-None-Match": etag, "Prefer": f"wait={wait}"} if etag else {}
                answer = await self._client.request(
                    "GET", url, headers=headers, timeout=wait + self._timeout,
                    accept=frozenset((200, _NOT_MODIFIED)),
                )  # fmt: skip
                is_stale = "Sidecar-Stale" in answer.headers
                if answer.status == _NOT_MODIFIED:
                    if not is_stale:
                        yield Alive(etag or "")
                    continue
                etag = answer.headers.get("ETag", "")
                files: dict[str, Blob] = {}
                for one in self._client.parse(url, answer.body):
                    version = str(one["etag"]).strip('"')
                    files[one["name"]] = Reference(
                        version, partial(self._fetch, one["name"], version)
                    )
                yield State({"": Unit(etag, files)}, etag)

    async def _fetch(self, name: str, version: str) -> bytes:
        url = f"{self._client.url.rstrip('/')}/files/{quote(name)}"
        async with self._client.session():
            answer = await self._client.request("GET", url)
        if digest_of(answer.body) != version:
            raise self._client.failed(url, "it has changed meanwhile")
        return answer.body
