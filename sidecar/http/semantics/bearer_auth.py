"""Bearer tokens from files (RFC 6750), for access over HTTP: by name, for reading and writing or for reading only.

A file has one token per line, `TOKEN` or `NAME: TOKEN`, so a new one can be added before the old one is removed.
A directory, as a mounted Secret, has one file per name. A token without a name is known by the name of its file.
They are read again when they change. Without a token all requests are refused; access is never open by accident.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar import _errors
from sidecar.http import handler_api, problems
from sidecar.http.semantics.failed_logins import FailedLogins
from sidecar.process import arguments, executor, metrics

_log = logging.getLogger(__name__)

RECHECK = 1.0
"""Seconds for which the tokens are valid without checking the file."""
REVOKED_WITHIN = 0.5
"""Seconds between checks of the file while authenticated requests wait or receive events: they end with their token."""

MAY_READ: web.RequestKey[bool] = web.RequestKey("sidecar.may_read", bool)
"""In a request to a public handler: whether it has a valid token. Absent if no tokens are required."""

MAX_NAME_LENGTH: Final = 64

_MAX_TOKEN_FILE_BYTES = 64 << 10
_MAX_TOKEN_FILES = 1000
"""Most files of a directory that are read."""
_PUBLIC_ATTRIBUTE = "sidecar_public"
_CHANGES_STATE: Final = "sidecar_changes_state"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_NAMED_LINE: Final = re.compile(rb"([^\s:]*):(?:\s+(.*))?")
"""`NAME: TOKEN`. A token of RFC 6750 has no colon; a template that had no value for it leaves `NAME:`."""
_H = TypeVar("_H")
_NAME: Final = re.compile(rf"[A-Za-z0-9._@-]{{1,{MAX_NAME_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and what it permits."""

    name: str
    secret: bytes = field(repr=False)
    may_write: bool

    def matches(self, digest: bytes) -> bool:
        """Compare with the SHA-256 of a given token, in a time that tells neither content nor length."""
        return hmac.compare_digest(digest, hashlib.sha256(self.secret).digest())


class Admission:
    """An authenticated request, valid as long as its token."""

    __slots__ = ("_token", "_tokens")

    def __init__(self, tokens: BearerTokens, token: Token) -> None:
        self._tokens = tokens
        self._token = token

    @property
    def name(self) -> str:
        """The name of the token: letters, digits and `._@-`, at most 64."""
        return self._token.name

    @property
    def revoked(self) -> bool:
        """Whether the token was missing from the files when they were last read."""
        return not self._tokens.holds(self._token.secret)

    def on_revoked(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` within a second after the token is removed from its file; return a function that ends that."""
        return self._tokens.on_revoked(self._token.secret, callback)

    def check(self) -> None:
        """Return if the token is valid.

        Raises:
            Problem: 401, it is not.
        """
        if self.revoked:
            raise _unauthorized(shown=True)

    def check_write(self) -> None:
        """Return if the token permits changes.

        Raises:
            Problem: 403, it may only read.
        """
        if not self._token.may_write:
            raise problems.Problem(
                "insufficient-scope",
                f"the token of {self.name} may only read; nothing was changed",
                headers={
                    "WWW-Authenticate": 'Bearer realm="sidecar", error="insufficient_scope", scope="write"'
                },
            )


ADMISSION: web.RequestKey[Admission] = web.RequestKey("sidecar.admission", Admission)
"""In an authenticated request, its admission: `request[ADMISSION].name` tells who sent it. Absent if no tokens are required."""


class _TokenPath(NamedTuple):
    """A file or directory of tokens."""

    path: Path
    may_write: bool


class BearerTokens:
    """The tokens that files hold, at most `RECHECK` seconds old.

    Args:
        token_file: file or directory of the tokens that permit everything.
        read_token_file: file or directory of those that permit reading only.
    """

    def __init__(
        self,
        token_file: str | os.PathLike[str] | None,
        read_token_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self._sources = [
            _TokenPath(Path(arguments.check_path(name, path)), may_write)
            for name, path, may_write in (
                ("token_file", token_file, True),
                ("read_token_file", read_token_file, False),
            )
            if path is not None
        ]
        self._tokens: tuple[Token, ...] = ()
        self._secrets: frozenset[bytes] = frozenset()
        self._problems: frozenset[str] = frozenset()
        self._read_at = float("-inf")
        self._failed = FailedLogins()
        self._reading = asyncio.Lock()
        self._waiting: dict[object, tuple[bytes, Callable[[], None]]] = {}
        """Callbacks for revoked tokens."""
        self._recheck_task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        where = ", ".join(str(one.path) for one in self._sources)
        return f"<BearerTokens {where} tokens={len(self._tokens)}>"

    async def admitted(self, authorization: str) -> Admission | None:
        """Return the admission for an `Authorization` header; None without a valid token."""
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        # Compare with every token, so that the time reveals nothing.
        matches = [token for token in await self.tokens() if token.matches(digest)]
        return Admission(self, matches[0]) if matches else None

    async def tokens(self) -> tuple[Token, ...]:
        """Return the valid tokens, those that may write first; none while no file can be read."""
        await self._refresh(RECHECK)
        return self._tokens

    def holds(self, secret: bytes) -> bool:
        """Return whether a token was in the files when they were last read."""
        return secret in self._secrets

    def on_revoked(self, secret: bytes, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` once a token is no longer in the files; return a function that ends that. See `Admission.on_revoked`."""
        key = object()
        self._waiting[key] = (secret, callback)
        if self._recheck_task is None:
            self._recheck_task = asyncio.create_task(self._recheck_loop(), name="revoked tokens")

        def end() -> None:
            self._waiting.pop(key, None)
            if not self._waiting and self._recheck_task is not None:
                self._recheck_task.cancel()
                self._recheck_task = None

        return end

    async def _recheck_loop(self) -> None:
        """Check the files while there are callbacks."""
        while True:
            await self._refresh(REVOKED_WITHIN)
            for key, (secret, callback) in list(self._waiting.items()):
                if not self.holds(secret) and self._waiting.pop(key, None) is not None:
                    callback()
            await asyncio.sleep(REVOKED_WITHIN)

    async def _refresh(self, max_age: float) -> None:
        """Read the files, unless they were read within the last `max_age` seconds."""
        if time.monotonic() - self._read_at > max_age:
            async with self._reading:
                if time.monotonic() - self._read_at > max_age:
                    self._store(*await executor.run_in_thread(_read_all, self._sources))

    def middleware(self) -> Middleware:
        """Return a middleware that responds with 401 without a valid token, and with 403 to a change with a token that may only read.

        Handlers marked by `public` need none.
        """

        @handler_api.cache_safe
        @web.middleware
        async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
            found = request.match_info.handler
            if is_public(found):
                request[MAY_READ] = await self._admission(request) is not None
                if not request[MAY_READ] and self._note_failure(request):
                    return await _close_after(request, handler)
            else:
                admission = await self._check(request)
                if is_change(request.method, found):
                    admission.check_write()
            return await handler(request)

        return authenticate

    async def follow(self, _: web.Application) -> AsyncIterator[None]:
        """Read the files at the start, so that a missing one is logged: for `cleanup_ctx`."""
        await self.tokens()
        yield

    async def _admission(self, request: web.Request) -> Admission | None:
        given = request.headers.get("Authorization")
        return None if given is None else await self.admitted(given)

    async def _check(self, request: web.Request) -> Admission:
        admission = await self._admission(request)
        if admission is None:
            if wait := self._note_failure(request):
                raise _too_many(wait)
            raise _unauthorized(shown=_shows_token(request))
        request[ADMISSION] = admission
        return admission

    def _note_failure(self, request: web.Request) -> int:
        """Count a wrong token; return 0 within the limit, and without a token, else the seconds to wait."""
        if not _shows_token(request):
            return 0
        metrics.HTTP_FAILED_LOGINS_TOTAL.inc()
        return self._failed.note(request.remote)

    def _store(self, tokens: tuple[Token, ...], found: frozenset[str]) -> None:
        for problem in sorted(found - self._problems):
            _log.warning("%s", problem, extra={"event": "tokens.file_problem"})
        secrets = frozenset(token.secret for token in tokens)
        if not tokens and (self._tokens or self._read_at < 0):
            _log.warning(
                "there is no token: every request is refused until there is one",
                extra={"event": "tokens.none"},
            )
        elif self._tokens and tokens != self._tokens:
            _log.info(
                "the tokens have changed: %s",
                ", ".join({one.name: 0 for one in tokens}),
                extra={"event": "tokens.changed"},
            )
        self._tokens, self._secrets, self._problems = tokens, secrets, found
        self._read_at = time.monotonic()


def from_arguments(
    token_file: str | os.PathLike[str] | None,
    read_token_file: str | os.PathLike[str] | None,
    *,
    writes: bool,
) -> BearerTokens | None:
    """Return the tokens of an application from its arguments; None if it requires none.

    Raises:
        ConfigError: it `writes`, and there are only tokens for reading.
    """
    if token_file is None and read_token_file is None:
        return None
    if writes and token_file is None:
        raise _errors.ConfigError(
            "there is a read_token_file and no token_file, so no request could write: give both"
        )
    return BearerTokens(token_file, read_token_file)


def public(handler: Handler) -> Handler:
    """Mark a handler that needs no token, as probes must: kubelet has none."""
    setattr(handler, _PUBLIC_ATTRIBUTE, True)
    return handler


def is_public(handler: object) -> bool:
    """Return whether a handler is marked by `public`."""
    return getattr(handler, _PUBLIC_ATTRIBUTE, False) is True


def changes_state(handler: _H) -> _H:
    """Mark a handler of a safe method (GET) that changes state."""
    setattr(handler, _CHANGES_STATE, True)
    return handler


def is_change(method: str, handler: object) -> bool:
    """Return whether a request changes state: by its method, or as `changes_state` marks its handler."""
    return method not in _SAFE_METHODS or getattr(handler, _CHANGES_STATE, False) is True


def _shows_token(request: web.Request) -> bool:
    scheme, _, _ = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer"


async def _close_after(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Close the connection after the response of a public handler: whether it shows details tells if a guess is right."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.force_close()
        raise
    response.force_close()
    return response


def _too_many(seconds: int) -> problems.Problem:
    problem = problems.Problem(
        "too-many-failed-logins",
        f"there were too many requests with a wrong token; try again in {seconds} s, with one that is in force",
        headers={"Retry-After": str(seconds)},
    )
    problem.force_close()
    return problem


def _unauthorized(*, shown: bool) -> problems.Problem:
    # Without a bearer token, an error code would be misleading (RFC 6750 section 3.1).
    challenge = 'Bearer realm="sidecar"' + (', error="invalid_token"' if shown else "")
    return problems.Problem(
        "unauthorized",
        "this needs the header `Authorization: Bearer TOKEN` with a token that is in force",
        headers={"WWW-Authenticate": challenge},
    )


def _read_all(sources: list[_TokenPath]) -> tuple[tuple[Token, ...], frozenset[str]]:
    """Return the tokens, each once, and the problems of the files. Blocking."""
    tokens: dict[bytes, Token] = {}
    found: set[str] = set()
    for path, may_write in sources:
        for name, secret in _read_source(path, found):
            known = tokens.setdefault(secret, Token(name, secret, may_write))
            if (known.name, known.may_write) != (name, may_write):
                found.add(
                    f"{known.name} and {name} have the same token, which counts as that of {known.name}"
                )
    return tuple(tokens.values()), frozenset(found)


def _read_source(path: Path, found: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and secret of each token in a file or directory; a problem is added to `found`."""
    problems_before, empty = len(found), True
    for file in _files(path, found):
        for pair in _read(file, found):
            empty = False
            yield pair
    if empty and len(found) == problems_before:
        found.add(f"the token file {path} is empty")


def _files(path: Path, found: set[str]) -> list[Path]:
    """Return the file, or the files of a directory by name, without hidden ones (those of a mounted Secret lead to `..data`)."""
    try:
        with os.scandir(path) as entries:
            names = sorted(
                one.name for one in entries if not one.name.startswith(".") and one.is_file()
            )
    except NotADirectoryError:
        return [path]
    except OSError as error:
        found.add(f"cannot read the token file {path}: {error.strerror}")
        return []
    if len(names) > _MAX_TOKEN_FILES:
        found.add(
            f"there are more than {_MAX_TOKEN_FILES} files in {path}: the others do not count"
        )
    return [path / name for name in names[:_MAX_TOKEN_FILES]]


def _read(path: Path, found: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and secret of each token in a file."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_TOKEN_FILE_BYTES + 1)
    except OSError as error:
        found.add(f"cannot read the token file {path}: {error.strerror}")
        return
    if len(content) > _MAX_TOKEN_FILE_BYTES:  # the last token would be cut short
        found.add(
            f"the token file {path} has more than {_MAX_TOKEN_FILE_BYTES} bytes, and is not read"
        )
        return
    own_name = re.sub(r"[^A-Za-z0-9._@-]", "_", path.name)[:MAX_NAME_LENGTH]
    for number, line in enumerate(content.splitlines(), 1):
        named = _NAMED_LINE.fullmatch(line.strip())
        name, secret = (
            (own_name, line.strip())
            if named is None
            else (named[1].decode("ascii", "replace"), named[2] or b"")
        )
        if named is not None and not (_NAME.fullmatch(name) and secret):
            # Never the line itself: it may be a secret.
            found.add(
                f"line {number} of the token file {path} is no `NAME: TOKEN`: the name has letters, digits and ._@-"
            )
        elif secret:
            yield name, secret
