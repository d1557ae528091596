"""The request that a change belongs to: who sent it, from where, its ID and trace context. Logs and metadata name it."""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

_REQUEST_ID = re.compile(r"[!-~]{1,128}", re.ASCII)
#: W3C Trace Context section 3.2.
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)


UNIX_SOCKET = "a client of the unix socket"
"""What stands for the address of a client that has none."""


class RequestContext(NamedTuple):
    """A request as logs and metadata name it. All texts are checked: they hold no control characters.

    >>> str(RequestContext("10.0.0.7", "deploy-bot", "b8f7c2"))
    'deploy-bot at 10.0.0.7, request b8f7c2'
    """

    client: str
    """The address of the client."""
    user: str | None
    """The name of its token."""
    request_id: str
    traceparent: str | None = None

    def __str__(self) -> str:
        who = self.client if self.user is None else f"{self.user} at {self.client}"
        return f"{who}, request {self.request_id}"


CURRENT: ContextVar[RequestContext | None] = ContextVar("sidecar_request", default=None)
"""The request that is being handled; None for a change that no request has asked for."""


def is_request_id(text: str) -> bool:
    """Whether a text can be a request ID: at most 128 visible ASCII characters."""
    return _REQUEST_ID.fullmatch(text) is not None


def make_request_id() -> str:
    """Return a request ID that no other process makes: 12 random hex digits of this process, and a number."""
    return f"{_ids.prefix}-{next(_ids.numbers):x}"


def of_headers(
    client: str, user: str | None, request_id: str | None, traceparent: str | None
) -> RequestContext:
    """Return the context of a request from its headers; an invalid or missing ID is replaced by a new one."""
    return RequestContext(
        client,
        user,
        request_id if request_id is not None and is_request_id(request_id) else make_request_id(),
        None if traceparent is None else parse_traceparent(traceparent),
    )


def parse_traceparent(text: str) -> str | None:
    """Return a `traceparent` header as version 00; None if it is invalid (W3C Trace Context sections 3.2 and 4.3).

    >>> parse_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    >>> parse_traceparent("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more")
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    >>> parse_traceparent("00-00000000000000000000000000000000-00f067aa0ba902b7-01")
    """
    version = text[:2]
    if version == "00":
        return text if is_traceparent(text) else None
    if re.fullmatch(r"[0-9a-f]{2}", version) is None or version == "ff":
        return None
    # Of a later version, the part that this one defines is taken: of the flags, only "sampled".
    known, rest = "00" + text[2:55], text[55:]
    if not is_traceparent(known) or not (rest == "" or rest.startswith("-")):
        return None
    return f"{known[:53]}{int(known[53:], 16) & 1:02x}"


def is_traceparent(text: str) -> bool:
    """Whether a text is a `traceparent` of version 00."""
    found = _TRACEPARENT.fullmatch(text)
    return found is not None and found[1].strip("0") != "" and found[2].strip("0") != ""


class _Ids:
    """The request IDs of this process."""

    prefix: str
    numbers: Iterator[int]

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.prefix, self.numbers = secrets.token_hex(6), itertools.count(1)


_ids = _Ids()
os.register_at_fork(after_in_child=_ids.begin)
