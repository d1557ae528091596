"""Parsing of requests to the writer: content, conditions and flags.

Each function parses one aspect of a request, and raises a problem if it is invalid:
nothing has been changed by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import web
from aiohttp.http import HttpVersion11

from sidecar import _errors
from sidecar.http import problems
from sidecar.http.apps import files
from sidecar.http.semantics import bearer_auth, representation
from sidecar.http.server.recv import BufferPool, bypass_parser
from sidecar.process import request_context
from sidecar.process.request_context import RequestContext
from sidecar.volume.content.metadata import Metadata, make
from sidecar.volume.publish import models
from sidecar.volume.publish.upload import Upload
from sidecar.volume.validation import signatures
from sidecar.volume.volume import Volume

BODY_TIMEOUT: Final = 30.0
"""Seconds without data after which the receipt of a body fails."""

_MAX_JSON_BODY_BYTES: Final = 64 << 10
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTEXT: Final[web.RequestKey[RequestContext]] = web.RequestKey(
    "sidecar.request_context", RequestContext
)
_PRECONDITION_HEADERS: Final = ("If-Match", "If-None-Match", "If-Unmodified-Since", "Prefer")


def query_content(request: web.Request) -> bytes | None:
    """Return the bytes of `content` in the query, None without it; of several the first counts.

    Decoding is that of the article's program: `+` is a space, `%XX` a byte.
    Unlike there, invalid escapes are rejected instead of dropped,
    and so is a text that is not UTF-8: the reader could not return it as JSON.
    """
    # The raw path: aiohttp's `query` replaces bytes that are not UTF-8.
    raw = request.raw_path.partition("?")[2].encode("utf-8", "surrogateescape")
    for pair in raw.split(b"&"):
        key, _, value = pair.partition(b"=")
        if _decoded(key) == b"content":
            return decoded(value)
    return None


def file_name(request: web.Request) -> str:
    """Return the file name in the URL.

    Invalid `%XX`, or bytes that are not UTF-8, are rejected: aiohttp would take the characters for the name.

    Raises:
        NameRefused: no file may have that name.
    """
    path = request.raw_path.partition("?")[0].encode("utf-8", "surrogateescape")
    with contextlib.suppress(UnicodeDecodeError):
        if not _BAD_ESCAPE.search(path):
            urllib.parse.unquote_to_bytes(path).decode()
            return models.check_name(request.match_info["name"])
    raise _errors.NameRefused(
        f"cannot use {request.match_info['name']!r} as the name of a file:"
        " in the address it is UTF-8, with `%XX` for each byte that is no letter (`%25` for `%`)"
    )


def decoded(value: bytes) -> bytes:
    """Return the content of a query value."""
    return _text(_decoded(value))


def context(request: web.Request) -> RequestContext:
    """Return the request as logs and metadata name it, always with the same ID."""
    known = request.get(_CONTEXT)
    if known is None:
        admission = request.get(bearer_auth.ADMISSION)
        known = request[_CONTEXT] = request_context.of_headers(
            request.remote or request_context.UNIX_SOCKET,
            None if admission is None else admission.name,
            request.headers.get("X-Request-ID"),
            request.headers.get("traceparent"),
        )
    return known


def signature(request: web.Request, where: str) -> str | None:
    """Return the signature of the body, None if it has none.

    Raises:
        ContentRefused: it cannot be one; `where` is the path of the file.
    """
    given = request.headers.getall(files.SIGNATURE_HEADER, ())
    text = ", ".join(" ".join(one.split()) for one in given) if given else None
    if text is not None and (reason := signatures.why_unusable(text)) is not None:
        raise signatures.refused(where, reason)
    return text


def metadata(content_type: str | None = None, signature: str | None = None) -> Metadata | None:
    """Return the metadata of what the current request publishes. A `content_type` that says nothing is left out."""
    current = request_context.CURRENT.get()
    if current is None:
        return None if signature is None else Metadata(signature=signature)
    content_type = None if content_type is None else content_type.strip()
    return make(
        {
            "content_type": content_type
            if content_type and files.is_served_type(content_type)
            else None,
            "published_at": None,
            "published_by": current.user,
            "request_id": current.request_id,
            "traceparent": current.traceparent,
            "signature": signature,
        }
    )


def has_no_preconditions(request: web.Request) -> bool:
    """Return whether a request has no conditions, and does not wait for the reader."""
    return not any(name in request.headers for name in _PRECONDITION_HEADERS)


def dry_run(request: web.Request) -> bool:
    """Return whether the request is a dry run."""
    return flag(request, "dry_run")


def flag(request: web.Request, name: str) -> bool:
    """Return whether a flag of the query is set, as `?dry_run=1`."""
    value = request.query.get(name)
    if value is None or value.lower() in {"0", "false", "no"}:
        return False
    if value.lower() in {"", "1", "true", "yes"}:
        return True
    raise problems.Problem("bad-request", f"{name} is 1 or 0, not {value!r}; nothing was changed")


def check_body_headers(request: web.Request) -> None:
    """Reject a body that is not the plain content, and a missing one."""
    if request.headers.keys().isdisjoint({"Content-Length", "Transfer-Encoding"}):
        # `curl -X PUT URL`: in HTTP that is an empty body, and would erase the content.
        raise problems.Problem(
            "length-required",
            "there is no body, so nothing was changed (an empty content has `Content-Length: 0`)",
        )
    if "Content-Range" in request.headers:
        raise problems.Problem(
            "bad-request", "a content is published whole: Content-Range cannot be used with PUT"
        )
    # aiohttp decodes gzip, but does not detect truncation: half a file would be published as complete.
    codings = request.headers.getall("Content-Encoding", ())
    if any(coding.strip().lower() not in {"", "identity"} for coding in codings):
        raise problems.Problem(
            "unsupported-coding",
            f"the content coding {', '.join(codings)!r} is not undone; send the plain bytes",
            headers={"Accept-Encoding": "identity"},
        )
    # aiohttp decodes only the last transfer coding: the content would still have the others.
    transfer = request.headers.get("Transfer-Encoding", "chunked")
    if transfer.strip().lower() != "chunked":
        raise problems.Problem(
            "unsupported-transfer",
            f"the transfer coding {transfer!r} is not undone, only `chunked`; send the plain bytes",
        )


@dataclass(frozen=True)
class RequestPreconditions:
    """Entity tags in the form that `Volume` accepts; None without that condition."""

    if_match: Sequence[str] | None
    if_none_match: Sequence[str] | None


async def conditions(
    request: web.Request, volume: Volume, name: str | None
) -> RequestPreconditions:
    """Return the preconditions of a write; a date is converted to the current tag."""
    try:
        match = representation.entity_tags(request, "If-Match")
        none_match = representation.entity_tags(request, "If-None-Match")
    except ValueError as error:
        raise problems.Problem(
            "bad-request", f"cannot understand the condition: {error}"
        ) from error
    since = representation.parse_date(request, "If-Unmodified-Since")
    if match is None and since is not None:
        return RequestPreconditions(await _unmodified(volume, name, since), _plain_tags(none_match))
    # A weak tag is not changed: in a strong comparison it matches nothing (RFC 9110 section 13.1.1).
    expected = None if match is None else ("*",) if match.any else match.tags
    return RequestPreconditions(expected, _plain_tags(none_match))


async def if_match_only(
    request: web.Request, volume: Volume, name: str | None
) -> Sequence[str] | None:
    """Return the tags of `If-Match`; `If-None-Match` is rejected."""
    found = await conditions(request, volume, name)
    if found.if_none_match is not None:
        raise problems.Problem(
            "bad-request", "If-None-Match has no meaning here; nothing was changed (use If-Match)"
        )
    return found.if_match


async def rollback_body(request: web.Request) -> tuple[str, str | None]:
    """Return `to` and `name` from the body of a rollback."""
    expected = 'the body is a JSON object {"to": ETAG} or {"to": ETAG, "name": NAME}'
    body = bytearray()
    while chunk := await _next_chunk(request):
        body += chunk
        if len(body) > _MAX_JSON_BODY_BYTES:
            raise problems.Problem("content-too-large", expected)
    try:
        body_object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise problems.Problem("bad-request", f"{expected}; it is no JSON: {error}") from error
    if not isinstance(body_object, dict) or not {"to"} <= body_object.keys() <= {"to", "name"}:
        raise problems.Problem("bad-request", expected)
    to, name = body_object["to"], body_object.get("name")
    if not isinstance(to, str) or not isinstance(name, str | None):
        raise problems.Problem("bad-request", expected)
    return to.strip().removeprefix("W/"), name


async def defer_continue(request: web.Request) -> None:
    """Defer the response to `Expect: 100-continue` until name and conditions are checked."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise problems.Problem(
            "expectation-failed", "only `Expect: 100-continue` can be met; leave the header out"
        )


async def send_continue(request: web.Request) -> None:
    """Send `100 Continue` if the client expects it (RFC 9110 section 10.1.1)."""
    if "Expect" in request.headers and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # An interim response is not part of the final one, but aiohttp counts its bytes as such.
        request.writer.output_size = 0


async def stream_body(
    request: web.Request, upload: Upload, on_progress: Callable[[], None], buffers: BufferPool
) -> None:
    """Stream the body to the disk, and call `on_progress` after each chunk."""

    async def write(chunk: bytes | memoryview) -> None:
        await upload.write(chunk)
        on_progress()

    with buffers.session():
        while chunk := await _next_chunk(request):
            taken = upload.size + len(chunk)
            with bypass_parser(request, taken, buffers) as rest:
                await write(chunk)
                del chunk  # freed while many uploads wait for a buffer
                if rest is not None:
                    with _timeout_as_problem():
                        await rest.copy_to(write, pause=BODY_TIMEOUT)


def _decoded(part: bytes) -> bytes:
    if b"%" not in part:
        return part.replace(b"+", b" ")
    if _BAD_ESCAPE.search(part):
        raise problems.Problem(
            "bad-request",
            "the query holds a `%` that two hexadecimal digits do not follow (write `%25` for `%`)",
        )
    return urllib.parse.unquote_to_bytes(part.replace(b"+", b" "))


def _text(content: bytes) -> bytes:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise problems.Problem(
            "bad-request",
            f"`content` is not UTF-8 (byte {error.start}): publish bytes with PUT /files/NAME",
        ) from error
    return content


async def _unmodified(volume: Volume, name: str | None, since: float) -> Sequence[str] | None:
    """Return the tag of the current content if it is not newer than a date."""
    try:
        found = await (volume.snapshot() if name is None else volume.read(name))
    except _errors.ReadError:
        return (
            None  # without a date to compare, RFC 9110 section 13.1.4 says to ignore the condition
        )
    if int(found.modified) > since:
        raise _errors.VersionConflict(
            f"cannot change {os.path.join(volume.path, name or '')}: it was changed at"
            f" {representation.http_date(found.modified)}, after If-Unmodified-Since"
            " (read it again, and retry with its present tag)",
            found.etag,
        )
    return (found.etag,)


def _plain_tags(tags: representation.EntityTags | None) -> Sequence[str] | None:
    if tags is None:
        return None
    return ("*",) if tags.any else tuple(tag.removeprefix("W/") for tag in tags.tags)


async def _next_chunk(request: web.Request) -> bytes:
    with _timeout_as_problem():
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.content.readany()


@contextmanager
def _timeout_as_problem() -> Iterator[None]:
    """Turn a timeout of the body into a problem; the connection closes, because its next bytes are ambiguous."""
    try:
        yield
    except TimeoutError as error:
        problem = problems.Problem(
            "request-timeout", f"nothing of the body has come for {BODY_TIMEOUT:g} s"
        )
        problem.force_close()
        raise problem from error
