"""Bearer tokens from a file (RFC 6750), for access over HTTP.

The file is read again when it changes, as a mounted Secret of Kubernetes does:
each line is a token, so a new one can be added before the old one is removed.
With a missing or empty file all requests are refused; access is never open by accident.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar.http import handler_api, problems
from sidecar.process import arguments, executor

_log = logging.getLogger(__name__)

RECHECK = 1.0
"""Seconds for which the tokens are valid without checking the file."""
REVOKED_WITHIN = 0.5
"""Seconds between checks of the file while authenticated requests wait or receive events: they end with their token."""

MAY_READ: web.RequestKey[bool] = web.RequestKey("sidecar.may_read", bool)
"""In a request to a public handler: whether it has a valid token. Absent if no tokens are required."""

_MAX_TOKEN_FILE_BYTES = 64 << 10
_PUBLIC_ATTRIBUTE = "sidecar_public"


class Admission:
    """An authenticated request, valid as long as its token."""

    __slots__ = ("_file", "_token")

    def __init__(self, file: TokenFile, token: bytes) -> None:
        self._file = file
        self._token = token

    @property
    def revoked(self) -> bool:
        """Whether the token was missing from the file when that was last read."""
        return not self._file.holds(self._token)

    def on_revoked(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` within a second after the token is removed from the file; return a function that ends that."""
        return self._file.on_revoked(self._token, callback)

    def check(self) -> None:
        """Return if the token is valid.

        Raises:
            Problem: 401, it is not.
        """
        if self.revoked:
            raise _unauthorized(shown=True)


ADMISSION: web.RequestKey[Admission] = web.RequestKey("sidecar.admission", Admission)
"""In an authenticated request, its admission."""


class TokenFile:
    """The tokens that a file holds, at most `RECHECK` seconds old."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(arguments.check_path("token_file", path))
        self._tokens: tuple[bytes, ...] = ()
        self._problem: str | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._waiting: dict[object, tuple[bytes, Callable[[], None]]] = {}
        """Callbacks for revoked tokens."""
        self._recheck_task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<TokenFile {self._path} tokens={len(self._tokens)}>"

    async def admitted(self, authorization: str) -> Admission | None:
        """Return the admission for an `Authorization` header; None without a valid token."""
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        secret = given.strip().encode("utf-8", "surrogateescape")
        # Compare with every token, so that the time reveals nothing.
        matches = [token for token in await self.tokens() if hmac.compare_digest(secret, token)]
        return Admission(self, matches[0]) if matches else None

    async def tokens(self) -> tuple[bytes, ...]:
        """Return the valid tokens; none while the file cannot be read."""
        await self._refresh(RECHECK)
        return self._tokens

    def holds(self, token: bytes) -> bool:
        """Return whether a token was in the file when that was last read."""
        return token in self._tokens

    def on_revoked(self, token: bytes, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` once a token is no longer in the file; return a function that ends that. See `Admission.on_revoked`."""
        key = object()
        self._waiting[key] = (token, callback)
        if self._recheck_task is None:
            self._recheck_task = asyncio.create_task(
                self._recheck_loop(), name=f"tokens in {self._path}"
            )

        def end() -> None:
            self._waiting.pop(key, None)
            if not self._waiting and self._recheck_task is not None:
                self._recheck_task.cancel()
                self._recheck_task = None

        return end

    async def _recheck_loop(self) -> None:
        """Check the file while there are callbacks."""
        while True:
            await self._refresh(REVOKED_WITHIN)
            for key, (token, callback) in list(self._waiting.items()):
                if not self.holds(token) and self._waiting.pop(key, None) is not None:
                    callback()
            await asyncio.sleep(REVOKED_WITHIN)

    async def _refresh(self, max_age: float) -> None:
        """Read the file, unless it was read within the last `max_age` seconds."""
        if time.monotonic() - self._read_at > max_age:
            async with self._reading:
                if time.monotonic() - self._read_at > max_age:
                    self._store(*await executor.run_in_thread(_read, self._path))

    def middleware(self) -> Middleware:
        """Return a middleware that responds with 401 without a valid token, except for handlers marked by `public`."""

        @handler_api.cache_safe
        @web.middleware
        async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
            if is_public(request.match_info.handler):
                request[MAY_READ] = await self._admission(request) is not None
            else:
                await self._check(request)
            return await handler(request)

        return authenticate

    async def follow(self, _: web.Application) -> AsyncIterator[None]:
        """Read the file at the start, so that a missing one is logged: for `cleanup_ctx`."""
        await self.tokens()
        yield

    async def _admission(self, request: web.Request) -> Admission | None:
        given = request.headers.get("Authorization")
        return None if given is None else await self.admitted(given)

    async def _check(self, request: web.Request) -> None:
        admission = await self._admission(request)
        if admission is None:
            raise _unauthorized(shown="Authorization" in request.headers)
        request[ADMISSION] = admission

    def _store(self, tokens: tuple[bytes, ...], problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            _log.warning("%s: every request is refused until there is a token", problem)
        elif self._tokens and tokens != self._tokens:
            _log.info("the token file %s has changed", self._path)
        self._tokens, self._problem = tokens, problem
        self._read_at = time.monotonic()


def public(handler: Handler) -> Handler:
    """Mark a handler that needs no token, as probes must: kubelet has none."""
    setattr(handler, _PUBLIC_ATTRIBUTE, True)
    return handler


def is_public(handler: object) -> bool:
    """Return whether a handler is marked by `public`."""
    return getattr(handler, _PUBLIC_ATTRIBUTE, False) is True


def _unauthorized(*, shown: bool) -> problems.Problem:
    challenge = 'Bearer realm="sidecar"' + (', error="invalid_token"' if shown else "")
    return problems.Problem(
        "unauthorized",
        "this needs the header `Authorization: Bearer TOKEN` with a token that is in force",
        headers={"WWW-Authenticate": challenge},
    )


def _read(path: Path) -> tuple[tuple[bytes, ...], str | None]:
    """Return the tokens, and the problem if there are none."""
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_TOKEN_FILE_BYTES).splitlines()
    except OSError as error:
        return (), f"cannot read the token file {path}: {error.strerror}"
    tokens = tuple(line.strip() for line in lines if line.strip())
    return tokens, None if tokens else f"the token file {path} is empty"
