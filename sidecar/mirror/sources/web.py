"""A file, or a set of files in a tar archive, from a web server: asked at an interval, and sent only when it has changed."""

from __future__ import annotations

import asyncio
import base64
import bz2
import gzip
import hashlib
import io
import lzma
import random
import re
import tarfile
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from sidecar._errors import ConfigError
from sidecar.mirror.client import Client, Response
from sidecar.mirror.states import Alive, SourceUnavailable, State, Unit
from sidecar.process import arguments, executor

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
#: How compressed files begin, whatever their name.
_OPENERS: Mapping[bytes, Any] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}
_SHA_256 = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")
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
        self,
        url: str,
        *,
        interval: float = 10.0,
        timeout: float = 10.0,
        max_bytes: int = 64 << 20,
        **options: Any,
    ) -> None:
        self._client = Client(url, timeout=timeout, max_bytes=max_bytes, **options)
        self._max_bytes = max_bytes
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
                    digest = self._digest(answer)
                    etag = answer.headers.get("ETag", "")
                    files = await self._files(answer.body)
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

    def _digest(self, answer: Response) -> str:
        """Return the SHA-256 of a body, which must be that of the header `Repr-Digest` where there is one."""
        digest = hashlib.sha256(answer.body)
        told = _SHA_256.search(answer.headers.get("Repr-Digest", ""))
        if told is not None and told[1] != base64.b64encode(digest.digest()).decode():
            raise self._client.failed(
                self._client.url, "its body has not the digest of Repr-Digest"
            )
        return digest.hexdigest()

    async def _files(self, body: bytes) -> Mapping[str, bytes]:
        if not self._file.endswith(_ARCHIVES):
            return {self._file: body}
        try:
            return await executor.run_in_thread(_unpack, body, self._max_bytes)
        except (
            tarfile.TarError,
            EOFError,
            OSError,
            ValueError,
            zlib.error,
            lzma.LZMAError,
        ) as error:
            raise SourceUnavailable(
                f"cannot read {self.name}: it is no tar archive: {error}"
            ) from error


def _unpack(body: bytes, limit: int) -> dict[str, bytes]:
    """Return the files of an archive; links and devices are left out. Raises `ValueError` if it is larger than `limit` bytes."""
    opener = next((one for begin, one in _OPENERS.items() if body.startswith(begin)), None)
    if opener is not None:
        with opener(io.BytesIO(body)) as file:
            body = file.read(limit + 1)
        if len(body) > limit:
            raise ValueError(f"it is larger than {limit} bytes when unpacked (raise max_bytes)")
    if not body.endswith(bytes(2 * tarfile.BLOCKSIZE)):
        raise ValueError("its end is missing")
    with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as archive:
        members = [member for member in archive if member.isfile()]
        # A sparse file may say that it is larger than the archive.
        if sum(member.size for member in members) > limit:
            raise ValueError(f"its files are larger than {limit} bytes (raise max_bytes)")
        return {
            member.name.removeprefix("./"): file.read()
            for member in members
            if (file := archive.extractfile(member)) is not None
        }
