"""HTTP to a source: one session, credentials read for each request, answers bounded in size and time."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver

from sidecar.mirror.states import SourceUnavailable
from sidecar.process import arguments, http_endpoint, metrics, retry
from sidecar.process.redaction import redact_url

Path = str | os.PathLike[str]

_CHUNK_BYTES = 64 << 10
_KEEPALIVE_SECONDS = 75.0
"""As nginx: longer than the usual interval of a source, so that each poll finds the connection of the one before."""
_MESSAGE_BYTES = 4096
_MESSAGE_CHARACTERS = 300
_BUSY = frozenset((429, 500, 502, 503, 504))


class Response(NamedTuple):
    """The answer to a request, with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Request(NamedTuple):
    method: str
    url: str
    data: bytes | None
    headers: Mapping[str, str]


def _make_request(
    method: str, url: str, json: object, headers: Mapping[str, str] | None
) -> _Request:
    if json is None:
        return _Request(method, url, None, headers or {})
    return _Request(
        method, url, orjson.dumps(json), {**(headers or {}), "Content-Type": "application/json"}
    )


def _message(body: bytes) -> str:
    """Return what an error answer says: the `message` of a JSON object, else the first line of text."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(orjson.loads(body)["message"])
    lines = body.decode(errors="replace").split("\n")
    return next((line.strip() for line in lines if line.strip()), "")[:_MESSAGE_CHARACTERS]


class Client:
    """Requests to one server.

    Args:
        url: the address; a user and a password in it are sent as Basic credentials, and shown nowhere.
        token_file, user, password_file: credentials (RFC 6750, RFC 7617), read anew for each request.
        ca_file, cert_file, key_file: PEM files; renewed ones are used from the next connection on.
        timeout: seconds until the whole answer must be there; for a stream until its head must be.
        max_bytes: limit of one answer, or of one line of a stream.
        tls: settings that clients share, in place of files.
        resolver: where names are looked up; None is the system.

    Raises:
        ConfigError: no address, or files that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token_file: Path | None = None,
        user: str | None = None,
        password_file: Path | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        timeout: float = 10.0,
        max_bytes: int = 64 << 20,
        tls: http_endpoint.Tls | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.url, credentials = http_endpoint.address(url, "")
        self.name = redact_url(self.url)
        self._credentials = http_endpoint.Credentials(
            self.name, credentials, user=user, password_file=password_file, token_file=token_file
        )
        self._tls = tls or http_endpoint.Tls(
            self.name, self.url, ca_file=ca_file, cert_file=cert_file, key_file=key_file
        )
        self._resolver = resolver
        self._proxy = http_endpoint.proxy(self.url)
        self._timeout = arguments.check_seconds("timeout", timeout, zero=False)
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """Keep connections while this is entered; a second time inside, they are shared."""
        if self._session is not None:
            yield
            return
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                keepalive_timeout=_KEEPALIVE_SECONDS, resolver=self._resolver
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=_CHUNK_BYTES,
        ) as session:
            self._session = session
            try:
                yield
            finally:
                self._session = None

    async def request(
        self,
        method: str,
        url: str,
        *,
        json: object = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        accept: frozenset[int] = frozenset((200,)),
        timeout: float | None = None,
    ) -> Response:
        """Send a request, and return the answer with its body.

        Raises:
            SourceUnavailable: no answer in time, one with another status than in `accept`, or one that is too large.
        """
        made = _make_request(method, url, json, headers)
        if data is not None:
            made = made._replace(data=data)
        async with self._answer(made, accept, timeout) as (answer, limit):
            async with asyncio.timeout_at(limit):
                body = await self._read(answer)
        return Response(answer.status, answer.headers, body)

    async def get_json(self, url: str, **options: Any) -> Any:
        """Send a GET, and return the JSON of the answer; errors as `request`."""
        return self.parse(url, (await self.request("GET", url, **options)).body)

    async def post_json(self, url: str, json: object, **options: Any) -> Any:
        """Send a POST with JSON, and return the JSON of the answer; errors as `request`."""
        return self.parse(url, (await self.request("POST", url, json=json, **options)).body)

    async def lines(
        self,
        method: str,
        url: str,
        *,
        json: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Send a request, and yield the lines of its answer as they come, until it ends.

        Raises:
            SourceUnavailable: as `request`; or the connection was cut, or a line is longer than the limit.
        """
        made = _make_request(method, url, json, headers)
        async with self._answer(made, frozenset((200,)), None) as (answer, _):
            rest = bytearray()
            async for chunk in answer.content.iter_any():
                metrics.MIRROR_RECEIVED_BYTES_TOTAL.inc(len(chunk))
                rest += chunk
                if b"\n" in chunk:
                    *lines, last = bytes(rest).split(b"\n")
                    rest = bytearray(last)
                    for line in lines:
                        yield line
                if len(rest) > self._max_bytes:
                    raise self.failed(url, f"a line is longer than {self._max_bytes} bytes")

    def parse(self, url: str, data: bytes) -> Any:
        """Return the JSON in an answer. Raises `SourceUnavailable`."""
        try:
            return orjson.loads(data)
        except ValueError:
            start = data[:60].decode(errors="replace")
            raise self.failed(url, f"the answer is no JSON: it begins with {start!r}") from None

    def check_size(self, url: str, size: int) -> None:
        """Raise `SourceUnavailable` if the answers that make one state are together larger than one may be."""
        if size > self._max_bytes:
            raise self.failed(url, f"the answers are larger than {self._max_bytes} bytes")

    def failed(self, url: str, problem: str) -> SourceUnavailable:
        """Return the error for a request that was not answered as it should be."""
        return SourceUnavailable(f"cannot read {redact_url(url)}: {problem}")

    @asynccontextmanager
    async def _answer(
        self, request: _Request, accept: frozenset[int], timeout: float | None
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, float]]:
        """Enter an answer, and the time until which it must be there."""
        if self._session is None:
            raise RuntimeError("the client has no session")
        seconds = self._timeout if timeout is None else timeout
        limit, url = asyncio.get_running_loop().time() + seconds, request.url
        try:
            answer = await self._send(self._session, request, limit)
            if answer.status == 401:
                # Credentials are rotated in files: those read a moment ago may be the old ones.
                answer.release()
                answer = await self._send(self._session, request, limit)
            async with answer:
                metrics.MIRROR_REQUESTS_TOTAL.labels(answer.status).inc()
                if answer.status not in accept:
                    raise await self._refused(url, answer)
                yield answer, limit
        except TimeoutError:
            raise self.failed(url, f"no answer within {seconds:g} s (is it stuck?)") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            said = str(error) or type(error).__name__
            raise self.failed(url, said.replace(url, redact_url(url))) from error

    async def _send(
        self, session: aiohttp.ClientSession, request: _Request, limit: float
    ) -> aiohttp.ClientResponse:
        async with asyncio.timeout_at(limit):
            return await session.request(
                request.method,
                request.url,
                data=request.data,
                headers={**request.headers, **self._credentials.headers()},
                allow_redirects=False,
                ssl=self._tls.context(),
                proxy=self._proxy,
            )

    async def _refused(self, url: str, answer: aiohttp.ClientResponse) -> SourceUnavailable:
        body = b""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                body = await answer.content.read(_MESSAGE_BYTES)
        said = _message(body)
        error = self.failed(url, f"it answered {answer.status}{': ' if said else ''}{said}")
        error.busy = answer.status in _BUSY
        error.retry_after = retry.parse_retry_after(answer.headers.get("Retry-After"))
        return error

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        chunks, size = [], 0
        async for chunk in answer.content.iter_any():
            metrics.MIRROR_RECEIVED_BYTES_TOTAL.inc(len(chunk))
            size += len(chunk)
            if size > self._max_bytes:
                raise ValueError(f"the answer is larger than {self._max_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)
