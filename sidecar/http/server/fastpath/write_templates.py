"""Writes that differ in their content alone.

A writer is sent another content each time. So all but the value of `content` is remembered,
as a form whose answer differs in nothing but `ETag` and `Date`, and the value is taken only
if it is made of signs that mean nothing but themselves, wherever they stand in it:

    handler            says `offer_writes`: what would publish another value in the place of this one
    FastPathProtocol   lets it be published, and holds back what else comes until it has ended
    Forms              fill in the answer

Where that ends in any other way than well, aiohttp gets the request after all, and its handler the outcome
(`outcome_of`), in the place of publishing a second time: what it then answers needs no code of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.http.server.fastpath import request_key, serialized_response
from sidecar.http.server.fastpath.counters import Counter

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

    from sidecar.http.handler_api import WriteFunction
    from sidecar.http.server.fastpath.date_header import DateHeader
    from sidecar.http.server.fastpath.request_key import SeenOnce

_MOST_FORMS = 128
#: The value of `content` may be made of these: what the query of an address may hold (RFC 3986 section 3.4),
#: without `&` and `;`, at which some divide it. Whether the escapes are right, the handler's own code says.
_VALUE: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$'()*+,/:=?@%"
_BEFORE_VALUE: Final = b"?content="
_AFTER_VALUE: Final = b" HTTP/1.1\r\n"


class WriteTemplate(NamedTuple):
    """The answer to a write, around the values of `ETag` and `Date`, and what publishes another content."""

    write: WriteFunction
    before: bytes
    between: bytes
    after: bytes
    counter: Counter


class WriteTemplates:
    """Forms by what stands before and behind the value of `content` in a request.

    Nothing that changes is in them, so they need not be forgotten; what they publish with lives as long as the server.
    """

    def __init__(self, seen: SeenOnce, second: DateHeader) -> None:
        self._forms: dict[tuple[bytes, bytes], WriteTemplate] = {}
        self._seen = seen
        self._second = second

    def __len__(self) -> int:
        return len(self._forms)

    def find(self, request: bytes) -> tuple[WriteTemplate, bytes] | None:
        """Return the form that these bytes fill, and the value of `content` in them; None: ask aiohttp."""
        if not self._forms or (parts := _divide(request)) is None:
            return None
        before, value, after = parts
        form = self._forms.get((before, after)) or self._forms.get(
            (before, request_key.cache_key(after))
        )
        return None if form is None else (form, value)

    def fill(self, form: WriteTemplate, etag: str) -> bytes:
        """Return the complete answer to a write that has ended well, dated now, and count it."""
        date = self._second.date or self._second.begin()
        form.counter.number += 1
        return b"".join((form.before, etag.encode(), form.between, date, form.after))

    def keep(
        self, data: bytes, request: BaseRequest, response: web.Response, write: WriteFunction
    ) -> None:
        """Remember what aiohttp has answered to a write, and all of it but the content, at the second time."""
        parts = _divide(data)
        if parts is None or request.method != "GET" or response.status != 200:
            return
        before, _, after = parts
        key = (before, request_key.cache_key(after))
        if (
            key in self._forms
            or len(before) + len(after) > request_key.LONGEST
            or (form := _form(request, response, write)) is None
            or not self._seen.before(b"".join(key))
        ):
            return
        if len(self._forms) >= _MOST_FORMS:
            self._forms.clear()
        self._forms[key] = form


def _form(
    request: BaseRequest, response: web.Response, write: WriteFunction
) -> WriteTemplate | None:
    """Return the answer to a write with two places left open; None if it has not got them."""
    sent, tag = serialized_response.serialize(request, response), response.headers.get("ETag")
    if sent is None or tag is None:
        return None
    before, found, between = sent.before.partition(f"\r\nETag: {tag}\r\n".encode())
    if not found:
        return None
    return WriteTemplate(write, before + b"\r\nETag: ", b"\r\n" + between, sent.after, sent.counter)


def _divide(request: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return what stands before the value of `content`, the value, and what follows it; None if it is not alone."""
    query, end = request.find(b"?"), request.find(_AFTER_VALUE)
    if not request.startswith(_BEFORE_VALUE, query):
        return None
    start = query + len(_BEFORE_VALUE)
    value = request[start:end]
    if end < start or value.translate(None, _VALUE):
        return None
    return request[:start], value, request[end:]
