"""Responses to requests for a content: conditions, ranges and preferences, as specified by the RFCs.

Nothing here knows where a content comes from.
A `Representation` is the data to send; `build_response` selects the part to send by the request's headers:

    RFC 9110 13.1, 13.2.2   If-Match, If-Unmodified-Since, If-None-Match, If-Modified-Since, in this order
    RFC 9110 14.2, 14.4     Range and If-Range
    RFC 7240 4.3            Prefer: wait=SECONDS
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate, parsedate
from typing import Final, Protocol

import orjson
from aiohttp import payload, web

from sidecar.http import problems

JSON = "application/json; charset=utf-8"
WAIT_LIMIT: Final = 300.0
"""Longest wait, in seconds, that a client may request. Proxies cut connections that are silent for longer."""

CHUNK_SIZE: Final = 256 << 10
"""Largest body, in bytes, that is sent at once. The fast path caches no longer one."""
_TAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"\s*(?:,|$)')
#: 19 digits are enough for any content; a longer number is not a valid range.
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE | re.ASCII)
#: A list item between unquoted commas.
_ITEM = re.compile(r'(?:[^,"]|"[^"]*"?)+')
_PREFERENCE = re.compile(r'\s*([^\s=;,"]+)\s*(?:=\s*(?:"([^"]*)"|([^\s;,"]*)))?')
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,3})?", re.ASCII)


class Body(Protocol):
    """A body that is not in memory."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    def check(self) -> None:
        """Raise `ContentAltered` if the data is no longer available."""

    def payload(self, part: slice) -> payload.Payload:
        """Return a payload of a part of it."""


@dataclass(frozen=True, slots=True)
class Representation:
    """The data to send, and its metadata in every response, including 304.

    `modified` is in Unix seconds; `dated` says whether it identifies a state, so that it can be a validator:
    a content of several files can change without a newer date when one of them is deleted.
    `ranges` says whether range requests are supported.
    """

    body: bytes | Body
    etag: str
    modified: float
    content_type: str
    dated: bool = True
    ranges: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.size

    def check(self) -> None:
        """Return if the data can be sent now.

        Raises:
            ContentAltered: a large file was rewritten in place, and the watch has not read the new content yet.
        """
        if not isinstance(self.body, bytes):
            self.body.check()


@dataclass(frozen=True, slots=True)
class EntityTags:
    """The value of `If-Match` or `If-None-Match`: `*`, or a list of entity tags.

    >>> tags = EntityTags.parse('"a", W/"b"')
    >>> tags.match('"b"'), tags.match_strongly('"b"'), tags.match_strongly('"a"')
    (True, False, True)
    """

    any: bool
    tags: tuple[str, ...]

    @classmethod
    def parse(cls, value: str) -> EntityTags:
        """Parse the value of the header.

        Raises:
            ValueError: it is neither `*` nor a list of entity tags in quotes.
        """
        if value.strip() == "*":
            return cls(any=True, tags=())
        tags: list[str] = []
        rest = value.strip(" \t,")
        while rest:
            found = _TAG.match(rest)
            if found is None:
                raise ValueError(f"not a list of entity tags in quotes: {value}")
            tags.append(f'{found[1] or ""}"{found[2]}"')
            rest = rest[found.end() :].lstrip(" \t,")
        if not tags:
            raise ValueError("the list of entity tags is empty")
        return cls(any=False, tags=tuple(tags))

    def match(self, etag: str | None) -> bool:
        """Compare weakly, as `If-None-Match` does. None means that there is no content."""
        if etag is None:
            return False
        return self.any or any(tag.removeprefix("W/") == etag for tag in self.tags)

    def match_strongly(self, etag: str | None) -> bool:
        """Compare strongly, as `If-Match` does: a weak tag matches nothing."""
        return etag is not None and (self.any or etag in self.tags)


def if_none_match(request: web.Request) -> EntityTags | None:
    """Return the tags of `If-None-Match`; None if it is absent or invalid."""
    try:
        return entity_tags(request, "If-None-Match")
    except ValueError:
        return None


def entity_tags(request: web.Request, header: str) -> EntityTags | None:
    """Return the tags of a header, which may come in several lines.

    Raises:
        ValueError: as `Tags.parse`.
    """
    lines = request.headers.getall(header, None)
    return None if lines is None else EntityTags.parse(",".join(lines))


def parse_date(request: web.Request, header: str) -> float | None:
    """Return a date in Unix seconds; None if it is absent or invalid: then it is ignored."""
    text = request.headers.get(header)
    if text is not None and (found := parsedate(text)) is not None:
        with contextlib.suppress(ValueError, OverflowError):
            return datetime(*found[:6], tzinfo=UTC).timestamp()
    return None


def prefer_wait(request: web.Request) -> float | None:
    """Return the seconds of `Prefer: wait=SECONDS`, at most `WAIT_LIMIT`.

    None without that preference, or if its value is not a number: a preference is never an error (RFC 7240).
    As an extension of the RFC, a fraction such as `0.5` is accepted.
    """
    value = _preferences(",".join(request.headers.getall("Prefer", ()))).get("wait", "")
    return min(float(value), WAIT_LIMIT) if _SECONDS.fullmatch(value) else None


def preference_applied(seconds: float) -> dict[str, str]:
    """Return the `Preference-Applied` header for a wait."""
    return {"Preference-Applied": f"wait={seconds:g}"}


#: 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z.
_MIN_UNIX_SECONDS = -62_135_596_800.0
_MAX_UNIX_SECONDS = 253_402_300_799.0


def http_date(unix: float) -> str:
    """Return an HTTP date, in whole seconds and never in the future.

    >>> http_date(784111777.9)
    'Sun, 06 Nov 1994 08:49:37 GMT'
    """
    return formatdate(_clamp_to_calendar(min(unix, time.time())) // 1, usegmt=True)


def rfc3339(unix: float) -> str:
    """Return an RFC 3339 time in UTC. A year outside of four digits is clamped.

    >>> rfc3339(784111777.5)
    '1994-11-06T08:49:37.500000Z'
    """
    moment = datetime.fromtimestamp(_clamp_to_calendar(unix), UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _clamp_to_calendar(unix: float) -> float:
    """Clamp a time to the years 1 to 9999: tmpfs accepts any, and every writer of the volume can set it."""
    return min(max(unix, _MIN_UNIX_SECONDS), _MAX_UNIX_SECONDS)


def header_text(text: str) -> str:
    r"""Return a text that may stand in a header: visible ASCII and spaces, not too long.

    >>> header_text("no such file: a\r\nb")
    'no such file: a??b'
    """
    return "".join(sign if " " <= sign <= "~" else "?" for sign in text[:400])


def json_answer(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a JSON response that is not cached. An object ends with a newline, for terminals; a string is what clients compare."""
    common = {
        "Content-Type": JSON,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    end = None if isinstance(value, str) else orjson.OPT_APPEND_NEWLINE
    return web.Response(
        body=orjson.dumps(value, option=end), status=status, headers={**common, **(headers or {})}
    )


def build_response(request: web.Request, representation: Representation) -> web.Response:
    """Respond to a GET or HEAD according to its conditions and range: 200, 206 or 304.

    A request for several ranges gets the whole content (RFC 9110 section 14.2 permits that):
    our clients do not send them, and they are a known denial-of-service vector.

    Raises:
        Problem: 412 if a condition fails, 416 if the range is not satisfiable.
        ContentAltered: as `Representation.check`; a client with the current content gets 304 nevertheless.
    """
    headers = _validators(representation)
    if _is_known(request, representation):
        return web.Response(status=304, headers=headers)
    representation.check()
    headers["Content-Type"] = representation.content_type
    headers["X-Content-Type-Options"] = "nosniff"
    body, whole = representation.body, slice(0, representation.size)
    if not representation.ranges:
        return _answer(200, body, whole, headers)
    headers["Accept-Ranges"] = "bytes"
    part = _range(request, representation)
    if part is None:
        return _answer(200, body, whole, headers)
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{whole.stop}"
    return _answer(206, body, part, headers)


def _answer(status: int, body: bytes | Body, part: slice, headers: dict[str, str]) -> web.Response:
    """Respond with bytes; large ones in chunks, so that a slow client costs a chunk and not a second copy."""
    # Set here, because aiohttp omits it for HEAD of an empty content.
    headers["Content-Length"] = str(part.stop - part.start)
    if not isinstance(body, bytes):
        return web.Response(status=status, body=body.payload(part), headers=headers)
    view = memoryview(body)[part]
    if len(view) <= CHUNK_SIZE:
        return web.Response(status=status, body=bytes(view), headers=headers)
    return web.Response(status=status, body=_pieces(view), headers=headers)


async def _pieces(body: memoryview) -> AsyncIterator[memoryview]:
    for start in range(0, len(body), CHUNK_SIZE):
        yield body[start : start + CHUNK_SIZE]


def _validators(representation: Representation) -> dict[str, str]:
    return {
        "ETag": representation.etag,
        "Last-Modified": http_date(representation.modified),
        "Cache-Control": "no-cache",
        **representation.headers,
    }


def _is_known(request: web.Request, representation: Representation) -> bool:
    """Evaluate the conditions in the order of RFC 9110 section 13.2.2; True means 304.

    Conditions with a date are ignored without a reliable date, as sections 13.1.3 and 13.1.4 specify.
    """
    etag = representation.etag
    # The date as sent: never in the future.
    modified = min(representation.modified, time.time()) // 1 if representation.dated else None
    try:
        wanted = entity_tags(request, "If-Match")
    except ValueError as error:
        raise problems.Problem("bad-request", f"cannot understand If-Match: {error}") from error
    if wanted is not None:
        if not wanted.match_strongly(etag):
            raise _make_conflict_problem("If-Match", etag)
    elif (
        modified is not None
        and (limit := parse_date(request, "If-Unmodified-Since")) is not None
        and modified > limit
    ):
        raise _make_conflict_problem("If-Unmodified-Since", etag)
    if "If-None-Match" in request.headers:
        known = if_none_match(request)
        return known is not None and known.match(etag)
    # Equality, as in nginx: the time of a file may also decrease (`mv`, `cp -p`, a rollback).
    since = parse_date(request, "If-Modified-Since")
    return since is not None and modified is not None and modified == since


def _make_conflict_problem(header: str, etag: str) -> problems.Problem:
    return problems.Problem(
        "version-conflict",
        f"{header} does not hold: the content is {etag} by now",
        headers={"ETag": etag},
        members={"current": etag},
    )


def _range(request: web.Request, representation: Representation) -> slice | None:
    """Return the requested range, None for the whole."""
    value = request.headers.get("Range")
    if value is None or request.method != "GET" or not _range_is_valid(request, representation):
        return None
    found = _RANGE.fullmatch(value)
    if found is None or found[1] == found[2] == "":
        return None
    size = representation.size
    part = _part(found[1], found[2], size)
    if part is None:
        return None
    if part.start >= part.stop:
        raise problems.Problem(
            "range-not-satisfiable",
            f"the content has {size} bytes, {value} lies outside of it",
            headers={"Content-Range": f"bytes */{size}", "ETag": representation.etag},
        )
    return part


def _part(first: str, last: str, size: int) -> slice | None:
    """Return the slice of `first-last` (empty: omitted); None for an invalid range.

    >>> _part("0", "4", 10), _part("7", "", 10), _part("", "3", 10), _part("5", "2", 10)
    (slice(0, 5, None), slice(7, 10, None), slice(7, 10, None), None)
    """
    if not first:
        return slice(max(0, size - int(last)), size)
    if not last:
        return slice(int(first), size)
    if int(last) < int(first):
        return None
    return slice(int(first), min(int(last) + 1, size))


def _range_is_valid(request: web.Request, representation: Representation) -> bool:
    """Evaluate `If-Range`: a strong tag, or an exact date that is a strong validator (RFC 9110 13.1.5)."""
    value = request.headers.get("If-Range")
    if value is None or value.strip() == representation.etag:
        return True
    a_second_old = representation.modified < time.time() - 1
    return a_second_old and value.strip() == http_date(representation.modified)


def _preferences(value: str) -> dict[str, str]:
    """Parse `Prefer` (RFC 7240 section 2): the first of a name counts, its parameters do not.

    >>> _preferences('respond-async, wait="5"; x=1, wait=9')
    {'respond-async': '', 'wait': '5'}
    """
    found: dict[str, str] = {}
    for one in _ITEM.findall(value):
        match = _PREFERENCE.match(one)
        if match is not None:
            found.setdefault(match[1].lower(), match[2] or match[3] or "")
    return found
