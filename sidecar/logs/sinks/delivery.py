"""Delivering a batch over HTTP: what all HTTP sinks share.

A sink says how records become a body, and what an answer means; this says what follows from it:

    Delivered    it has arrived
    Later        nothing was taken: the same again, after a pause
    TooLarge     in halves
    Bad          something in it is refused: in halves, until what is refused stands alone and is given back
    Hopeless     all of it is refused, and asking again is forbidden
    Itemised     an answer for each record

What of a batch has arrived is remembered while the rest waits:
`write` raises `SinkUnavailable`, the collector pauses and calls it again with the same batch.
So pauses, their growth and what is logged about them are the same for every sink, ours and the user's.
(That is also why no retry library is used: what is sent shrinks from try to try,
and the one that would fit best costs 5 MB of memory.)
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import random
import ssl
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp

from sidecar._errors import ConfigError
from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks import compression
from sidecar.logs.sinks.base import BaseSink, Batching, Receipt, Rejected, SinkUnavailable
from sidecar.runtime import memory

_log = logging.getLogger(__name__)

_LONGEST_PAUSE = 300.0
"""Seconds; a receiver that asks for more is asked again after these."""
_SHORT_ANSWER = 64 << 10
_REASON = 300
_LATER = frozenset({408, 425, 429})
_MISDIRECTED = frozenset({401, 403, 404, 405, 407, 415})
"""No record is at fault: credentials, address or form are. Waiting loudly loses nothing; refusing would bury every line."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    retry_after: float | None = None

    def __str__(self) -> str:
        text = " ".join(self.body[: 2 * _REASON].decode("utf-8", "replace").split())[:_REASON]
        return f"HTTP {self.status}" + (f": {text}" if text else "")


@dataclass(frozen=True, slots=True)
class Delivered:
    pass


@dataclass(frozen=True, slots=True)
class Later:
    reason: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class TooLarge:
    reason: str


@dataclass(frozen=True, slots=True)
class Bad:
    reason: str


@dataclass(frozen=True, slots=True)
class Hopeless:
    reason: str


@dataclass(frozen=True, slots=True)
class Itemised:
    """Positions of the records that are refused (and why), and of those to send again."""

    refused: Sequence[tuple[int, str]]
    again: Sequence[int]
    reason: str = ""
    after: float | None = None


Verdict = Delivered | Later | TooLarge | Bad | Hopeless | Itemised


@dataclass(slots=True, eq=False)
class _Part:
    """Some records of a batch that travel together, and their body once it has been made."""

    records: Sequence[Record] | None
    """None: the whole of a batch that nobody has split into records."""
    body: bytes | None = None


@dataclass(slots=True, eq=False)
class _Work:
    """How far a batch has been delivered."""

    batch: Batch
    parts: list[_Part]
    """The next one last."""
    rejected: list[Rejected]


class HttpSink(BaseSink):
    """Delivers batches by POST. A sink of one's own says `encode` and `judge`.

    Args:
        url: may hold `user:password@`; the standard path is appended where it is missing.
        name: identifies the sink in the checkpoint; by default the URL without credentials.
        gzip: compress bodies. A receiver that answers 415 gets them plain from then on.
        timeout: seconds for a request, from connecting to the last byte of the answer.
        headers: sent with each request.
        user, password_file: basic authentication; the file is read at each request, so it may be rotated.
        token_file: a bearer token, read in the same way.
        ca_file: certificates to trust instead of the system's.
        cert_file, key_file: our own certificate, where the receiver asks for one.
        max_body: bytes of a body before compression; larger ones are halved before they are sent.

    Raises:
        ConfigError: the URL or an option cannot work.
    """

    content_type: ClassVar[str]
    standard_path: ClassVar[str] = ""
    answer_limit: ClassVar[int] = _SHORT_ANSWER

    # Batches of 1 MiB cost as much a line, and 6 MB more of memory (`benchmarks/logs_json.py`).
    batching = Batching(max_bytes=256 << 10, max_lines=1250, linger=0.02)

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        gzip: bool = True,
        timeout: float = 30.0,
        headers: Mapping[str, str] | None = None,
        user: str | None = None,
        password_file: str | os.PathLike[str] | None = None,
        token_file: str | os.PathLike[str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        max_body: int = 8 << 20,
        batching: Batching | None = None,
    ) -> None:
        self.url, credentials = _address(url, self.standard_path)
        self.name = name or self.url
        if timeout <= 0 or max_body <= 0:
            raise ConfigError(f"{self.name}: timeout and max_body must be more than 0")
        self._gzip, self._timeout, self._max_body = gzip, timeout, max_body
        self._credentials = _Credentials(self.name, credentials, user, password_file, token_file)
        self._fixed_headers = {**(headers or {}), "Content-Type": self.content_type}
        self._tls = _tls(self.name, ca_file, cert_file, key_file)
        self._session: aiohttp.ClientSession | None = None
        self._works: dict[int, _Work] = {}
        if batching is not None:
            self.batching = batching

    # -- what a sink says

    def prepare(self, batch: Batch) -> None:
        """Do what has to be done once for each batch, however often parts of it are sent."""

    @abstractmethod
    def encode(self, records: Sequence[Record]) -> bytes:
        """Return the body for some records, before compression."""
        raise NotImplementedError

    def encode_batch(self, batch: Batch) -> bytes:
        """Return the body for a whole batch; a sink that can do so without records does."""
        return self.encode(batch.records())

    def judge(self, answer: Answer, count: int) -> Verdict:  # noqa: ARG002 (others look at it)
        """Say what an answer to a request with so many records means."""
        return judged_by_status(answer)

    def headers_for(self, body: bytes) -> Mapping[str, str]:  # noqa: ARG002 (others look at it)
        """Return headers that depend on the body as it is sent."""
        return {}

    # -- the promises of `Sink`

    async def open(self, resume: Any) -> None:  # noqa: ARG002 (others remember something)
        memory.keep_no_large()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=max(self.batching.concurrency, 1), ssl=self._tls, ttl_dns_cache=30
            ),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "sidecar"},
        )

    async def close(self) -> None:
        session, self._session = self._session, None
        self._works.clear()
        if session is not None:
            await session.close()

    async def write(self, batch: Batch) -> Receipt:
        """Deliver what of the batch has not arrived yet.

        Raises:
            SinkUnavailable: the receiver does not answer, or asks us to come later.
        """
        work = self._works.get(id(batch))
        if work is None:
            self.prepare(batch)
            work = self._works[id(batch)] = _begun(batch)
        while work.parts:
            part = work.parts[-1]
            verdict = await self._send(part, batch)
            if isinstance(verdict, Later):
                raise SinkUnavailable(f"{self.name}: {verdict.reason}", _pause(verdict.after))
            work.parts.pop()
            if isinstance(verdict, Delivered):
                continue  # without making records of a block that nobody has split
            records = _records(part, batch)
            work.parts += _what_is_left(verdict, records)
            work.rejected += _what_is_refused(verdict, records)
            if isinstance(verdict, Itemised) and verdict.again:
                raise SinkUnavailable(f"{self.name}: {verdict.reason}", _pause(verdict.after))
        del self._works[id(batch)]
        return self.receipt(work.rejected)

    def receipt(self, rejected: Sequence[Rejected]) -> Receipt:
        """Return the acknowledgement of a batch."""
        return Receipt(rejected)

    # -- one request

    async def _send(self, part: _Part, batch: Batch) -> Verdict:
        if part.body is None:
            body = self.encode_batch(batch) if part.records is None else self.encode(part.records)
            if len(body) > self._max_body and _count(part, batch) > 1:
                return TooLarge("larger than max_body")
            part.body = compression.gzipped(body) if self._gzip else body
        try:
            answer = await self._post(part.body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Later(_said(error, self._timeout))
        if answer.status == 415 and self._gzip:
            _log.warning("%s does not take gzip: bodies are sent plain from now on", self.name)
            self._gzip, part.body = False, None
            return Later(str(answer), 0.05)
        return self.judge(answer, _count(part, batch))

    async def _post(self, body: bytes) -> Answer:
        if self._session is None:
            raise RuntimeError(f"{self!r} is not open")
        headers = {
            **self._fixed_headers,
            **self._credentials.headers(),
            **self.headers_for(body),
        }
        if self._gzip:
            headers["Content-Encoding"] = "gzip"
        # No redirects: 301 to 303 would turn the POST into a GET, and drop the lines with a 200.
        async with self._session.post(
            self.url, data=body, headers=headers, allow_redirects=False
        ) as response:
            text = await _read(response, self.answer_limit)
            return Answer(
                response.status, text, parse_retry_after(response.headers.get("Retry-After"))
            )


def judged_by_status(answer: Answer) -> Verdict:
    """Judge by the status alone, as most receivers mean it."""
    status = answer.status
    if 200 <= status < 300:
        return Delivered()
    if status in _LATER or status >= 500:
        return Later(str(answer), answer.retry_after)
    if status in _MISDIRECTED or 300 <= status < 400:
        return Later(f"{answer} (check address and credentials)", answer.retry_after)
    if status == 413:
        return TooLarge(str(answer))
    return Bad(str(answer))


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the pause that a `Retry-After` asks for, in seconds (RFC 9110, 10.2.3); None for none or nonsense.

    >>> parse_retry_after("120")
    120.0
    >>> parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT")
    0.0
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def _begun(batch: Batch) -> _Work:
    records = None if batch.raw else batch.records()
    return _Work(batch, [_Part(records)] if batch.blocks and records != [] else [], [])


def _pause(after: float | None) -> float | None:
    """Return the pause asked for, a little more rather than less, so that a fleet does not come back in step."""
    if after is None:
        return None
    return min(max(after, 0.05), _LONGEST_PAUSE) * random.uniform(1.0, 1.1)  # noqa: S311


def _records(part: _Part, batch: Batch) -> Sequence[Record]:
    return batch.records() if part.records is None else part.records


def _count(part: _Part, batch: Batch) -> int:
    if part.records is None and batch.raw:
        return sum(block.lines for block in batch.blocks)
    return len(_records(part, batch))


def _what_is_left(verdict: Verdict, records: Sequence[Record]) -> list[_Part]:
    """Return what still has to be sent, the next part last."""
    match verdict:
        case TooLarge() | Bad() if len(records) > 1:
            middle = len(records) // 2
            return [_Part(records[middle:]), _Part(records[:middle])]
        case Itemised(again=again) if again:
            return [_Part([records[index] for index in again])]
    return []


def _what_is_refused(verdict: Verdict, records: Sequence[Record]) -> list[Rejected]:
    match verdict:
        case TooLarge(reason) | Bad(reason) if len(records) == 1:
            return [Rejected(records[0], reason)]
        case Hopeless(reason):
            return [Rejected(record, reason) for record in records]
        case Itemised(refused=refused):
            return [Rejected(records[index], reason) for index, reason in refused]
    return []


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read an answer, whole or up to the limit; a longer one costs its connection."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            response.close()
            break
    return bytes(body[:limit])


def _said(error: BaseException, timeout: float) -> str:
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return f"no answer within {timeout:g} s"
    if type(error) is aiohttp.ClientConnectorError:  # its kin say more: a name, a certificate
        number = error.os_error.errno or 0
        why = os.strerror(number).lower() if number > 0 else str(error.os_error)
        return f"cannot connect to {error.host}:{error.port}: {why}"
    return str(error) or type(error).__name__


def _address(url: str, standard_path: str) -> tuple[str, str | None]:
    """Return the URL to post to, and the credentials that stood in it as `user:password`."""
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.rpartition("+")[2]
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is no URL: {error}") from error
    if scheme not in ("http", "https") or not host:
        raise ConfigError(f"{url!r} is no URL for a sink: write it like http://host:port/path")
    credentials = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    path = parts.path
    if standard_path and not path.rstrip("/").endswith(standard_path):
        path = path.rstrip("/") + standard_path
    host = f"[{host}]" if ":" in host else host
    place = host if port is None else f"{host}:{port}"
    return urlunsplit((scheme, place, path or "/", parts.query, "")), credentials


class _Credentials:
    """What goes into `Authorization`, looked up for each request: files may be rotated."""

    def __init__(
        self,
        sink: str,
        in_url: str | None,
        user: str | None,
        password_file: str | os.PathLike[str] | None,
        token_file: str | os.PathLike[str] | None,
    ) -> None:
        ways = [in_url is not None, user is not None, token_file is not None]
        if sum(ways) > 1:
            raise ConfigError(f"{sink}: give either user and password, or token_file")
        if (user is None) != (password_file is None):
            raise ConfigError(f"{sink}: user and password_file go together")
        self._sink, self._in_url, self._user = sink, in_url, user
        self._password_file, self._token_file = password_file, token_file

    def headers(self) -> dict[str, str]:
        if self._token_file is not None:
            return {"Authorization": f"Bearer {_secret(self._sink, self._token_file)}"}
        pair = self._in_url
        if self._password_file is not None:
            pair = f"{self._user}:{_secret(self._sink, self._password_file)}"
        if pair is None:
            return {}
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _secret(sink: str, path: str | os.PathLike[str]) -> str:
    """Read a small file on a volume in memory: not worth a thread."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(64 << 10).strip()
    except OSError as error:
        raise SinkUnavailable(
            f"{sink}: cannot read the secret in {os.fspath(path)}: {error.strerror}"
        ) from error


def _tls(
    sink: str,
    ca_file: str | os.PathLike[str] | None,
    cert_file: str | os.PathLike[str] | None,
    key_file: str | os.PathLike[str] | None,
) -> ssl.SSLContext | bool:
    if ca_file is None and cert_file is None:
        return True
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{sink}: cannot use the certificates: {error}") from error
    return context
