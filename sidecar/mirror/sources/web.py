"""A file, or a set of files in a tar archive, from a web server: asked at an interval, and sent only when it has changed."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import tarfile
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from sidecar._errors import ConfigError
from sidecar.mirror.client import Client, Response
from sidecar.mirror.states import Alive, SourceUnavailable, State, Unit
from sidecar.process import arguments

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
_NOT_MODIFIED = 304


class WebSource:
    """Follow one address by conditional requests (RFC 9110, 13.1.2).

    The name of the file is the last part of the path. The files of a tar archive (by its suffix) are a set.
    A body of another length than announced is not taken. A digest in `Repr-Digest` (RFC 9530) is verified.
    The interval is spread by a tenth, so that a fleet does not ask at the same moment.

    >>> WebSource("https://config.example.com/set.tar.gz", interval=30.0)
    <WebSource https://config.example.com/set.tar.gz>
    """

    def __init__(
        self, url: str, *, interval: float = 10.0, timeout: float = 10.0, **options: Any
    ) -> None:
        self._client = Client(url, timeout=timeout, **options)
        self.name = self._client.name
        self._pause = arguments.check_seconds("interval", interval, zero=False)
        self.interval: float | None = interval + timeout
        self._file = unquote(urlsplit(self._client.url).path.rpartition("/")[2])
        if not self._file:
            raise ConfigError(f"{self.name} names no file: its path ends with /")

    def __repr__(self) -> str:
        return f"<WebSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield the present content, and each newer one."""
        etag: str | None = since
        async with self._client.session():
            while True:
                answer = await self._get(etag)
                if answer.status == _NOT_MODIFIED:
                    yield Alive(etag or "")
                else:
                    digest = hashlib.sha256(answer.body).hexdigest()
                    etag = answer.headers.get("ETag", "")
                    files = self._files(answer.body)
                    yield State({"": Unit(digest, files)}, token=etag or digest)
                await asyncio.sleep(self._pause * random.uniform(0.9, 1.0))  # noqa: S311

    async def _get(self, etag: str | None) -> Response:
        headers = {"If-None-Match": etag} if etag and etag.endswith('"') else {}
        answer = await self._client.request(
            "GET", self._client.url, headers=headers, accept=frozenset((200, _NOT_MODIFIED))
        )
        if answer.status == _NOT_MODIFIED and not headers:
            raise self._client.failed(self._client.url, "it answered 304 to no condition")
        return answer

    def _files(self, body: bytes) -> Mapping[str, bytes]:
        if not self._file.endswith(_ARCHIVES):
            return {self._file: body}
        try:
            with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                return {
                    member.name.removeprefix("./"): file.read()
                    for member in archive
                    if member.isfile() and (file := archive.extractfile(member)) is not None
                }
        except (tarfile.TarError, EOFError, OSError) as error:
            raise SourceUnavailable(
                f"cannot read {self.name}: it is no tar archive: {error}"
            ) from error
