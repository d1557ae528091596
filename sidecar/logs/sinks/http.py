"""Deliver batches over HTTP: the base class of all HTTP sinks.

A subclass encodes records as a body and classifies responses (see `responses`); this module acts on the result.

It remembers which parts of a batch were accepted: `write` raises `SinkUnavailable`,
and the collector calls it again with the same batch after a backoff.
Backoff and its log messages are therefore the same for built-in and custom sinks.
(No retry library is used, since each attempt sends only the remaining parts,
and the best candidate costs 5 MB of memory.)
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import aiohttp

from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks import compression
from sidecar.logs.sinks.base import (
    BaseSink,
    Batching,
    Receipt,
    Rejected,
    SinkUnavailable,
)
from sidecar.logs.sinks.connector import Connector
from sidecar.logs.sinks.responses import (
    Accepted,
    PartialResult,
    PayloadTooLarge,
    PermanentlyRejected,
    ReceiverResponse,
    RecordRejected,
    RetryLater,
    Unclear,
    Verdict,
    classify_status,
)
from sidecar.process import arguments, http_endpoint, memory, retry
from sidecar.process.redaction import redact_url

_log = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 64 << 10
_YIELD_BYTES = 128 << 10
"""Bytes of a body after which other tasks can run."""
_QUERY = re.compile(r"\?[^\s'\"]*")
_LONE_RECORD_TRIES = 16
"""Records of a rejected batch that are sent alone, and again as many of the rest at even distances, before all is rejected."""
_UNCLEAR_TRIES = 6
"""Attempts with the same records after responses that reject unnamed ones: a full queue gets two seconds."""


@dataclass(slots=True, eq=False)
class _Part:
    """Records of a batch that are sent in one request, and the encoded body."""

    records: Sequence[Record] | None
    """None: a whole batch that is not split into records."""
    body: bytes | None = None
    unclear: int = 0
    """Number of responses that rejected unnamed records."""


@dataclass(slots=True, eq=False)
class _Delivery:
    """The progress of one batch."""

    batch: Batch
    parts: list[_Part]
    """Parts to send, the next one last."""
    rejected: list[Rejected]
    any_accepted: bool = False
    """Whether any record was accepted so far."""
    lone_rejections: int = 0
    """Records that were rejected when sent alone, with none accepted."""
    sampled: bool = False

    def on_lone_rejection(self, reason: str) -> None:
        """Count a record that was rejected when sent alone. If none of many was accepted, reject the rest as well.

        Splitting to the end would cost two requests per record and delay the lines after it
        (at a first start with Loki: all lines older than a week).
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
    """Delivers batches by POST. A subclass implements `encode` and, if needed, `classify_response`.

    Requests use the proxy of `HTTP_PROXY` or `HTTPS_PROXY`, unless `NO_PROXY` names the receiver.

    Args:
        url: may contain `user:password@`; the standard path is appended if it has no path.
        name: identifies the sink in the checkpoint; by default the URL without credentials and without the values of its query.
        gzip: compress bodies. After a response 415 they are sent uncompressed.
        timeout: seconds for a request, from connecting to the last byte of the response.
        headers: sent with each request.
        user, password_file: basic authentication. The file is read for each request, so it can be rotated.
        token_file: a file with a bearer token, read in the same way.
        api_key_file: a file with a key for `Authorization: ApiKey` (Elasticsearch), read in the same way.
        header_files: files with the values of other headers, by header name; read in the same way.
        ca_file: certificates to trust instead of those of the system.
        cert_file, key_file: the client certificate, for receivers that require one.
            Renewed files are used at once.
        max_body: bytes of a body before compression; a larger one is split before it is sent.

    Raises:
        ConfigError: the URL or an option cannot work.
    """

    content_type: ClassVar[str]
    standard_path: ClassVar[str] = ""
    answer_limit: ClassVar[int] = _MAX_ANSWER_BYTES

    # Batches of 1 MiB cost the same per line, and 6 MB more memory (`benchmarks/logs_json.py`).
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
        self.url, credentials = http_endpoint.address(url, self.standard_path)
        self.name = name or redact_url(self.url)
        arguments.check_seconds(f"{self.name}: timeout", timeout, zero=False)
        limit = arguments.check_size(f"{self.name}: max_body", max_body, least=1)
        http_endpoint.check_headers(self.name, headers)
        self._query = urlsplit(self.url).query.encode()
        self._gzip, self._timeout, self._max_body = gzip, timeout, limit
        self._credentials = http_endpoint.Credentials(
            self.name,
            credentials,
            user=user,
            password_file=password_file,
            token_file=token_file,
            api_key_file=api_key_file,
            header_files=header_files,
        )
        self._fixed_headers = {**headers, "Content-Type": self.content_type}
        self._tls = http_endpoint.Tls(
            self.name, self.url, ca_file=ca_file, cert_file=cert_file, key_file=key_file
        )
        self._proxy = http_endpoint.proxy(self.url)
        self._limits = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None
        self._deliveries: dict[int, _Delivery] = {}
        if batching is not None:
            self.batching = batching

    # -- implemented by subclasses

    def prepare(self, batch: Batch) -> None:
        """Prepare a batch. Called once per batch, however often parts of it are sent."""

    @abstractmethod
    def encode(self, records: Sequence[Record]) -> bytes:
        """Return the body for these records, before compression."""
        raise NotImplementedError

    def encode_batch(self, batch: Batch) -> Iterable[bytes]:
        """Return the body for a whole batch, in pieces. A sink that needs no records for this overrides it."""
        return (self.encode(batch.records()),)

    def classify_response(self, answer: ReceiverResponse, count: int) -> Verdict:  # noqa: ARG002 (for subclasses)
        """Classify the response to a request with `count` records."""
        return classify_status(answer)

    def narrow_rejection(self, verdict: RecordRejected, records: Sequence[Record]) -> Verdict:  # noqa: ARG002 (for subclasses)
        """Return a more precise result if the response names the rejected records."""
        return verdict

    def make_headers(self, body: bytes) -> Mapping[str, str]:  # noqa: ARG002 (for subclasses)
        """Return headers that depend on the body that is sent."""
        return {}

    # -- the `Sink` protocol

    async def open(self, resume: Any) -> None:  # noqa: ARG002 (for subclasses)
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
        """Deliver the parts of the batch that are not accepted yet.

        Raises:
            SinkUnavailable: the receiver does not answer, or asks to retry later.
        """
        delivery = self._deliveries.get(id(batch))
        if delivery is None:
            self.prepare(batch)
            delivery = self._deliveries[id(batch)] = _start_delivery(batch)
        while delivery.parts:
            part = delivery.parts[-1]
            verdict = await self._send(part, batch)
            if isinstance(verdict, RetryLater):
                raise SinkUnavailable(
                    f"{self.name}: {verdict.reason}", retry.requested_pause(verdict.after)
                )
            if isinstance(verdict, Unclear):
                part.unclear += 1
                if part.unclear < _UNCLEAR_TRIES:
                    raise SinkUnavailable(f"{self.name}: {verdict.reason}")
            delivery.parts.pop()
            if isinstance(verdict, Accepted):
                delivery.any_accepted = True
                continue  # without splitting the batch into records
            records = _records(part, batch)
            if isinstance(verdict, RecordRejected):
                verdict = self.narrow_rejection(verdict, records)
            delivery.parts += _remaining_parts(verdict, records)
            delivery.rejected += _rejected_records(verdict, records)
            if isinstance(verdict, PartialResult) and verdict.again and verdict.reason:
                raise SinkUnavailable(
                    f"{self.name}: {verdict.reason}", retry.requested_pause(verdict.after)
                )
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
        """Return the body, compressed if enabled; None if it exceeds the limit before compression."""
        compressor = compression.compressor() if self._gzip else None
        made, size, next_yield = list[bytes](), 0, 0
        for piece in pieces:
            size += len(piece)
            if limit is not None and size > limit:
                return None
            made.append(piece if compressor is None else compressor.compress(piece))
            # Yield to other tasks, such as probes, between pieces.
            if size >= next_yield:
                next_yield = size + _YIELD_BYTES
                await asyncio.sleep(0)
        if compressor is not None:
            made.append(compressor.flush())
        return b"".join(made)

    def _credential_headers(self) -> dict[str, str]:
        try:
            return self._credentials.headers()
        except ValueError as error:
            raise SinkUnavailable(str(error)) from error

    async def _post(self, body: bytes) -> ReceiverResponse:
        if self._session is None:
            raise RuntimeError(f"{self!r} is not open")
        headers = {
            **self._fixed_headers,
            **self._credential_headers(),
            **self.make_headers(body),
        }
        if self._gzip:
            headers["Content-Encoding"] = "gzip"
        # No redirects: 301 to 303 would turn the POST into a GET, and lose the lines with a 200.
        async with self._session.post(
            self.url,
            data=body,
            headers=headers,
            allow_redirects=False,
            ssl=self._tls.context(),
        ) as response:
            text = await _read(response, self.answer_limit)
            if self._query:  # many servers repeat the URL: "Cannot POST /in?api_key=…"
                text = text.replace(self._query, b"***")
            return ReceiverResponse(
                response.status, text, retry.parse_retry_after(response.headers.get("Retry-After"))
            )


def _start_delivery(batch: Batch) -> _Delivery:
    records = None if batch.raw else batch.records()
    return _Delivery(batch, [_Part(records)] if batch.blocks and records != [] else [], [])


def _records(part: _Part, batch: Batch) -> Sequence[Record]:
    return batch.records() if part.records is None else part.records


def _count(part: _Part, batch: Batch) -> int:
    if part.records is None and batch.raw:
        return sum(block.lines for block in batch.blocks)
    return len(_records(part, batch))


def _remaining_parts(verdict: Verdict, records: Sequence[Record]) -> list[_Part]:
    """Return the parts that remain to be sent, the next one last."""
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
    """Read a response up to the limit; a longer one closes its connection."""
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
        # The text of the exception contains the password of the proxy.
        return f"the proxy {redact_url(proxy)} answered {error.status} {error.message}"
    if proxy is not None and isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"cannot connect to the proxy {redact_url(proxy)}: {_describe_connect_error(error)}"
    if (
        type(error) is aiohttp.ClientConnectorError
    ):  # subclasses have a better text: DNS, certificate
        return f"cannot connect to {error.host}:{error.port}: {_describe_connect_error(error)}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"its answer is no HTTP: {' '.join(error.message.split())}"
    # Some texts contain the URL, with API keys in its query.
    return _QUERY.sub("?***", str(error)) or type(error).__name__


def _describe_connect_error(error: aiohttp.ClientConnectorError) -> str:
    number = error.os_error.errno or 0
    return os.strerror(number).lower() if number > 0 else str(error.os_error)
