"""A bearer token from a file (RFC 6750), for whoever may read or write over HTTP.

The file is read again when it changes, as the mounted Secret of Kubernetes does:
each line of it is a token, so a new one can be added before the old one goes.
A file that is missing or empty lets nobody in; it never opens the door.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar.http import lane, problems
from sidecar.runtime import arguments, threads

_log = logging.getLogger(__name__)

RECHECK = 1.0
"""Seconds for which a token that has been read is trusted without a look at the file."""

MAY_READ: web.RequestKey[bool] = web.RequestKey("sidecar.may_read", bool)
"""In a request to a handler that is open to all: whether it shows a token all the same. Absent where none is needed."""

_LARGEST = 64 << 10
_OPEN = "sidecar_open_to_all"


class TokenFile:
    """The tokens that a file holds, at most `RECHECK` seconds old."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(arguments.path("token_file", path))
        self._tokens: tuple[bytes, ...] = ()
        self._problem: str | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<TokenFile {self._path} tokens={len(self._tokens)}>"

    async def accepts(self, authorization: str) -> bool:
        """Tell whether the value of an `Authorization` header holds one of the tokens."""
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        secret = given.strip().encode("utf-8", "surrogateescape")
        # Every token is compared, so the time taken says nothing about which one was close.
        matches = [hmac.compare_digest(secret, token) for token in await self.tokens()]
        return any(matches)

    async def tokens(self) -> tuple[bytes, ...]:
        """Return the tokens in force; none while the file cannot be read."""
        if time.monotonic() - self._read_at > RECHECK:
            async with self._reading:
                if time.monotonic() - self._read_at > RECHECK:
                    self._take(*await threads.in_thread(_read, self._path))
        return self._tokens

    def middleware(self) -> Middleware:
        """Return a middleware that answers 401 without a valid token, except where `open_to_all` says so."""

        @lane.transparent
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            if is_open_to_all(request.match_info.handler):
                request[MAY_READ] = await self._admits(request)
            else:
                await self._check(request)
            return await handler(request)

        return guard

    async def follow(self, _: web.Application) -> AsyncIterator[None]:
        """Read the file at the start already, so that a missing one is told of in the log: for `cleanup_ctx`."""
        await self.tokens()
        yield

    async def _admits(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization")
        return given is not None and await self.accepts(given)

    async def _check(self, request: web.Request) -> None:
        if await self._admits(request):
            return
        given = "Authorization" in request.headers
        challenge = 'Bearer realm="sidecar"' + (', error="invalid_token"' if given else "")
        raise problems.Problem(
            "unauthorized",
            "this needs the header `Authorization: Bearer TOKEN` with a token that is in force",
            headers={"WWW-Authenticate": challenge},
        )

    def _take(self, tokens: tuple[bytes, ...], problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            _log.warning("%s: every request is refused until there is a token", problem)
        elif self._tokens and tokens != self._tokens:
            _log.info("the token file %s has changed", self._path)
        self._tokens, self._problem = tokens, problem
        self._read_at = time.monotonic()


def open_to_all(handler: Handler) -> Handler:
    """Mark a handler that answers without a token, as probes must: kubelet has none."""
    setattr(handler, _OPEN, True)
    return handler


def is_open_to_all(handler: object) -> bool:
    """Tell whether a handler is one that `open_to_all` has marked."""
    return getattr(handler, _OPEN, False) is True


def _read(path: Path) -> tuple[tuple[bytes, ...], str | None]:
    """Return the tokens, and what is wrong if there are none."""
    try:
        with path.open("rb") as file:
            lines = file.read(_LARGEST).splitlines()
    except OSError as error:
        return (), f"cannot read the token file {path}: {error.strerror}"
    tokens = tuple(line.strip() for line in lines if line.strip())
    return tokens, None if tokens else f"the token file {path} is empty"
