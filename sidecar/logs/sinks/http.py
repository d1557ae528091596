"""Delivering a batch over HTTP: what all HTTP sinks share.

A sink says how records become a body, and what an answer means (see `verdicts`); this does what follows from it.

What of a batch has arrived is remembered while the rest waits:
`write` raises `SinkUnavailable`, the collector pauses and calls it again with the same batch.
So pauses, their growth and what is logged about them are the same for every sink, ours and the user's.
(That is also why no retry library is used: what is sent shrinks from try to try,
and the one that would fit best costs 5 MB of memory.)
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import aiohttp

from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks import compression, endpoint
from sidecar.logs.sinks.base import (
    BaseSink,
    Batching,
    Receipt,
    Rejected,
    SinkUnavailable,
    redact_url,
)
from sidecar.logs.sinks.connector import Connector
from sidecar.logs.sinks.responses import (
    Accepted,
    Answer,
    PartialResult,
    PayloadTooLarge,
    PermanentlyRejected,
    RecordRejected,
    RetryLater,
    Unclear,
    Verdict,
    classify_status,
    parse_retry_after,
)
from sidecar.process import arguments, memory

_log = logging.getLogger(__name__)

_MAX_RETRY_AFTER_SECONDS = 300.0
"""Seconds; a receiver that asks for more is asked again after these."""
_MAX_ANSWER_BYTES = 64 << 10
_YIELD_BYTES = 128 << 10
"""Bytes of a body that are made without a pause."""
_QUERY = re.compile(r"\?[^\s'\"]*")
_LONE_RECORD_TRIES = 16
"""So many lines of a refused batch are sent alone, and then as many of the rest, evenly spread, before it is given up."""

_UNCLEAR_TRIES = 6
"""Requests with the same records, some of which are refused without saying which: a full queue gets two seconds."""


@dataclass(slots=True, eq=False)
class _Part:
    """Some records of a batch that travel together, and their body once it has been made."""

    records: Sequence[Record] | None
    """None: the whole of a batch that nobody has split into records."""
    body: bytes | None = None
    unclear: int = 0
    """How many answers did not say which of them were refused."""


@dataclass(slots=True, eq=False)
class _Delivery:
    """How far a batch has been delivered."""

    batch: Batch
    parts: list[_Part]
    """The next one last."""
    rejected: list[Rejected]
    any_accepted: bool = False
    """Whether anything of it has been taken since the last refusal was looked into."""
    lone_rejections: int = 0
    """Lines that were refused standing alone, with none taken."""
    sampled: bool = False

    def on_lone_rejection(self, reason: str) -> None:
        """One more line was refused, standing alone. Where none of many is taken, nothing is gained by asking for each.

        Halving to the end would cost two requests a line, while the lines behind wait
        (a first start with Loki: all that is older than a week).
        """
        self.lone_rejections += 1
        if self.any_accepted or self.lone_rejections < _LONE_RECORD_TRIES:
            return
        rest = [one for part in reversed(self.parts) for one in _records(part, self.batch)]
        if self.sampled:
            said = f"{reason} (given up with its batch: of {2 * _LONE_RECORD_TRIES} lines sent alone none was taken)"
            self.rejected += [Rejected(one, said) for one in rest]
            self.parts.clear()
            return
        step = max(len(rest) // _LONE_RECORD_TRIES, 1)
        others = [one for at, one in enumerate(rest) if at % step]
        self.parts[:] = [_Part(others)] if others else []
        self.parts += [_Part([one]) for one in reversed(rest[::step])]
        self.lone_rejections, self.sampled = 0, True


class HttpSink(BaseSink):
    """Delivers batches by POST. A sink of one's own says `encode` and `classify_response`.

    The receiver is reached by the proxy that `HTTP_PROXY` or `HTTPS_PROXY` names, unless `NO_PROXY` names the receiver.

    Args:
        url: may hold `user:password@`; the standard path is appended where it is missing.
        name: identifies the sink in the checkpoint; by default the URL without credentials and without the values of a query.
        gzip: compress bodies. A receiver that answers 415 gets them plain from then on.
        timeout: seconds for a request, from connecting to the last byte of the answer.
        headers: sent with each request.
        user, password_file: basic authentication; the file is read at each request, so it may be rotated.
        token_file: a bearer token, read in the same way.
        api_key_file: a key for `Authorization: ApiKey`, as Elasticsearch makes them; read in the same way.
        header_files: by name, the files with the values of other headers; read in the same way.
        ca_file: certificates to trust instead of the system's.
        cert_file, key_file: our own certificate, where the receiver asks for one.
            Certificates are used as soon as their files have been renewed.
        max_body: bytes of a body before compression; larger ones are halved before they are sent.

    Raises:
        ConfigError: the URL or an option cannot work.
    """

    content_type: ClassVar[str]
    standard_path: ClassVar[str] = ""
    answer_limit: ClassVar[int] = _MAX_ANSWER_BYTES

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
        api_key_file: str | os.PathLike[str] | None = None,
        header_files: Mapping[str, str | os.PathLike[str]] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        max_body: int | str = 8 << 20,
        batching: Batching | None = None,
    ) -> None:
        arguments.check_instance("url", url, str, "an address, as http://host:port/path")
        if name is not None:
            arguments.check_instance("name", name, str, "a name, or None")
        if batching is not None:
            arguments.check_instance("batching", batching, Batching, "a logs.Batching, or None")
        headers = arguments.check_options("headers", headers)
        for file in (password_file, token_file, api_key_file, ca_file, cert_file, key_file):
            if file is not None:
                arguments.check_path("a file of the sink", file)
        self.url, credentials = endpoint.address(url, self.standard_path)
        self.name = name or redact_url(self.url)
        arguments.check_seconds(f"{self.name}: timeout", timeout, zero=False)
        limit = arguments.check_size(f"{self.name}: max_body", max_body, least=1)
        endpoint.check_headers(self.name, headers)
        self._query = urlsplit(self.url).query.encode()
        self._gzip, self._timeout, self._max_body = gzip, timeout, limit
        self._credentials = endpoint.Credentials(
            self.name,
            credentials,
            user=user,
            password_file=password_file,
            token_file=token_file,
            api_key_file=api_key_file,
            header_files=header_files,
        )
        self._fixed_headers = {**headers, "Content-Type": self.content_type}
        self._tls = endpoint.Tls(
            self.name, self.url, ca_file=ca_file, cert_file=cert_file, key_file=key_file
        )
        self._proxy = endpoint.proxy(self.url)
        self._limits = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None
        self._deliveries: dict[int, _Delivery] = {}
        if batching is not None:
            self.batching = batching

    # -- what a sink says

    def prepare(self, batch: Batch) -> None:
        """Do what has to be done once for each batch, however often parts of it are sent."""

    @abstractmethod
    def encode(self, records: Sequence[Record]) -> bytes:
        """Return the body for some records, before compression."""
        raise NotImplementedError

    def encode_batch(self, batch: Batch) -> Iterable[bytes]:
        """Return the body for a whole batch, in pieces; a sink that can do so without records does."""
        return (self.encode(batch.records()),)

    def classify_response(self, answer: Answer, count: int) -> Verdict:  # noqa: ARG002 (others look at it)
        """Say what an answer to a request with so many records means."""
        return classify_status(answer)

    def narrow_rejection(self, verdict: RecordRejected, records: Sequence[Record]) -> Verdict:  # noqa: ARG002 (others look at it)
        """Say more about a refusal, where the receiver's words tell which of the records it means."""
        return verdict

    def headers_for(self, body: bytes) -> Mapping[str, str]:  # noqa: ARG002 (others look at it)
        """Return headers that depend on the body as it is sent."""
        return {}

    # -- the promises of `Sink`

    async def open(self, resume: Any) -> None:  # noqa: ARG002 (others remember something)
        memory.lower_mmap_threshold()
        if self._proxy is not None:
            _log.info("%s is reached by the proxy %s", self.name, redact_url(self._proxy))
        self._session = aiohttp.ClientSession(
            connector=Connector(limit=max(self.batching.concurrency, 1), ttl_dns_cache=30),
            timeout=self._limits,
            proxy=self._proxy,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "sidecar"},
        )

    async def close(self) -> None:
        session, self._session = self._session, None
        self._deliveries.clear()
        if session is not None:
            await session.close()

    async def write(self, batch: Batch) -> Receipt:
        """Deliver what of the batch has not arrived yet.

        Raises:
            SinkUnavailable: the receiver does not answer, or asks us to come later.
        """
        delivery = self._deliveries.get(id(batch))
        if delivery is None:
            self.prepare(batch)
            delivery = self._deliveries[id(batch)] = _start_delivery(batch)
        while delivery.parts:
            part = delivery.parts[-1]
            verdict = await self._send(part, batch)
            if isinstance(verdict, RetryLater):
                raise SinkUnavailable(f"{self.name}: {verdict.reason}", _add_jitter(verdict.after))
            if isinstance(verdict, Unclear):
                part.unclear += 1
                if part.unclear < _UNCLEAR_TRIES:
                    raise SinkUnavailable(f"{self.name}: {verdict.reason}")
            delivery.parts.pop()
            if isinstance(verdict, Accepted):
                delivery.any_accepted = True
                continue  # without making records of a block that nobody has split
            records = _records(part, batch)
            if isinstance(verdict, RecordRejected):
                verdict = self.narrow_rejection(verdict, records)
            delivery.parts += _remaining_parts(verdict, records)
            delivery.rejected += _rejected_records(verdict, records)
            if isinstance(verdict, PartialResult) and verdict.again and verdict.reason:
                raise SinkUnavailable(f"{self.name}: {verdict.reason}", _add_jitter(verdict.after))
            if isinstance(verdict, PayloadTooLarge | RecordRejected) and len(records) == 1:
                delivery.on_lone_rejection(verdict.reason)
        del self._deliveries[id(batch)]
        return self.receipt(delivery.rejected)

    def receipt(self, rejected: Sequence[Rejected]) -> Receipt:
        """Return the acknowledgement of a batch."""
        return Receipt(rejected)

    # -- one request

    async def _send(self, part: _Part, batch: Batch) -> Verdict:
        if part.body is None:
            whole = part.records is None
            pieces = self.encode_batch(batch) if whole else (self.encode(part.records or ()),)
            part.body = await self._make_body(
                pieces, None if _count(part, batch) == 1 else self._max_body
            )
            if part.body is None:
                return PayloadTooLarge("larger than max_body")
        try:
            answer = await self._post(part.body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return RetryLater(_describe_error(error, self._timeout, self._proxy))
        if answer.status == 415 and self._gzip:
            _log.warning("%s does not take gzip: bodies are sent plain from now on", self.name)
            self._gzip, part.body = False, None
            return RetryLater(str(answer), 0.05)
        return self.classify_response(answer, _count(part, batch))

    async def _make_body(self, pieces: Iterable[bytes], limit: int | None) -> bytes | None:
        """Put a body together, compressed where it is to be; None if it is larger than permitted before that."""
        compressor = compression.compressor() if self._gzip else None
        made, size, next_yield = list[bytes](), 0, 0
        for piece in pieces:
            size += len(piece)
            if limit is not None and size > limit:
                return None
            made.append(piece if compressor is None else compressor.compress(piece))
            # Other tasks (probes!) get their turn between pieces.
            if size >= next_yield:
                next_yield = size + _YIELD_BYTES
                await asyncio.sleep(0)
        if compressor is not None:
            made.append(compressor.flush())
        return b"".join(made)

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
            self.url,
            data=body,
            headers=headers,
            allow_redirects=False,
            ssl=self._tls.context(),
        ) as response:
            text = await _read(response, self.answer_limit)
            if self._query:  # "Cannot POST /in?api_key=…", says many a server
                text = text.replace(self._query, b"***")
            return Answer(
                response.status, text, parse_retry_after(response.headers.get("Retry-After"))
            )


def _start_delivery(batch: Batch) -> _Delivery:
    records = None if batch.raw else batch.records()
    return _Delivery(batch, [_Part(records)] if batch.blocks and records != [] else [], [])


def _add_jitter(after: float | None) -> float | None:
    """Return the pause asked for, a little more rather than less, so that a fleet does not come back in step."""
    if after is None:
        return None
    return min(max(after, 0.05), _MAX_RETRY_AFTER_SECONDS) * random.uniform(1.0, 1.1)  # noqa: S311


def _records(part: _Part, batch: Batch) -> Sequence[Record]:
    return batch.records() if part.records is None else part.records


def _count(part: _Part, batch: Batch) -> int:
    if part.records is None and batch.raw:
        return sum(block.lines for block in batch.blocks)
    return len(_records(part, batch))


def _remaining_parts(verdict: Verdict, records: Sequence[Record]) -> list[_Part]:
    """Return what still has to be sent, the next part last."""
    match verdict:
        case PayloadTooLarge() | RecordRejected() if len(records) > 1:
            middle = len(records) // 2
            return [_Part(records[middle:]), _Part(records[:middle])]
        case PartialResult(again=again) if again:
            return [_Part([records[index] for index in again])]
    return []


def _rejected_records(verdict: Verdict, records: Sequence[Record]) -> list[Rejected]:
    match verdict:
        case PayloadTooLarge(reason) | RecordRejected(reason) if len(records) == 1:
            return [Rejected(records[0], reason)]
        case PermanentlyRejected(reason) | Unclear(reason):
            return [Rejected(record, reason) for record in records]
        case PartialResult(refused=refused):
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


def _describe_error(error: BaseException, timeout: float, proxy: str | None) -> str:
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return f"no answer within {timeout:g} s"
    if proxy is not None and isinstance(error, aiohttp.ClientHttpProxyError):
        # Its own words hold the proxy's password.
        return f"the proxy {redact_url(proxy)} answered {error.status} {error.message}"
    if proxy is not None and isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"cannot connect to the proxy {redact_url(proxy)}: {_describe_connect_error(error)}"
    if type(error) is aiohttp.ClientConnectorError:  # its kin say more: a name, a certificate
        return f"cannot connect to {error.host}:{error.port}: {_describe_connect_error(error)}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"its answer is no HTTP: {' '.join(error.message.split())}"
    # Some of them name the address, with the keys in it.
    return _QUERY.sub("?***", str(error)) or type(error).__name__


def _describe_connect_error(error: aiohttp.ClientConnectorError) -> str:
    number = error.os_error.errno or 0
    return os.strerror(number).lower() if number > 0 else str(error.os_error)
