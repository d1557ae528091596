"""Wait until the reader serves a content: for `--confirm` and `Prefer: wait=SECONDS`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus
from operator import attrgetter
from urllib.parse import quote

import aiohttp
import yarl
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from sidecar import _errors
from sidecar.http import handler_api
from sidecar.http.semantics import bearer_auth
from sidecar.http.subscribe.pending import PENDING
from sidecar.process import arguments, executor, tls_trust

_log = logging.getLogger(__name__)

_MIN_RETRY_DELAY = 0.005
_MAX_RETRY_DELAY = 0.25
_GONE_STATUSES = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


class _Loopback(AbstractResolver):
    """Resolves `localhost` to the loopback addresses, whatever the system's resolver returns (RFC 6761 section 6.3)."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
            for kind, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        """Nothing to close."""


class ReaderConfirmation:
    """A client of the reader.

    It sends `HEAD` with the reader's own long poll, so the response arrives as soon as the reader has the content;
    a server without long polls is polled instead.
    If the writer requires tokens, the first that may only read is sent to the reader, or else the first of all.
    The reader's certificate is verified against `ca`, or without one as `sidecar check` does.
    """

    def __init__(
        self,
        url: str,
        tokens: bearer_auth.BearerTokens | None,
        ca: str | os.PathLike[str] | None = None,
    ) -> None:
        if not str(url).startswith(("http://", "https://")):
            raise arguments.argument_error("confirm", url, "an address with http:// or https://")
        self._url = url
        self._ca = None if ca is None else os.fspath(ca)
        self._tokens = tokens
        self._session: aiohttp.ClientSession | None = None
        self._logged_problem: str | None = None

    def __repr__(self) -> str:
        return f"<ReaderConfirmation {self._url}>"

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Keep the connections to the reader open: for `cleanup_ctx`."""
        connector = await self._connector()
        cookies = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, cookie_jar=cookies) as self._session:
            yield

    async def _connector(self) -> aiohttp.TCPConnector:
        """Return the connector to the reader, with the TLS context of `process.tls_trust`.

        Raises:
            ConfigError: the CA file cannot be read.
        """
        host = (yarl.URL(self._url).host or "").lower().rstrip(".")
        here = self._ca is None and (host == "localhost" or tls_trust.is_this_machine(host))
        try:
            # A separate context: the default one of aiohttp may have no certificates.
            tls = await executor.run_in_thread(tls_trust.client_context, self._ca, verify=not here)
        except OSError as error:
            raise _errors.ConfigError(
                f"cannot read the authority of the reader from {self._ca}: {error.strerror or error}"
                " (see --confirm-ca)"
            ) from error
        # Without verification, the name must not resolve to another machine.
        return aiohttp.TCPConnector(ssl=tls, resolver=_Loopback() if here else None)

    async def wait(
        self, request: web.Request, etag: str | None, *, name: str | None, seconds: float
    ) -> float | None:
        """Wait until the reader serves `etag`; return the seconds elapsed, None on timeout.

        `etag` None: until the reader serves no content there, or reports that its content is gone from the volume.
        `name` is the file to request, None for the content at the URL itself.
        It ends early, like a timeout, if this process drains or the client disconnects.
        """
        request[handler_api.WAITED] = True
        loop = asyncio.get_running_loop()
        started = loop.time()
        request_task = asyncio.create_task(self._ask(name, etag, started + seconds), name="confirm")
        try:
            with request.app[PENDING].waiter(request, None) as waiter:
                timeout_task = asyncio.create_task(waiter.wait(seconds), name="confirm: the end")
                await asyncio.wait(
                    {request_task, timeout_task},
                    timeout=seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                timeout_task.cancel()
            served = request_task.done() and request_task.result()
        finally:
            request_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await request_task
        return loop.time() - started if served else None

    async def _ask(self, name: str | None, etag: str | None, deadline: float) -> bool:
        """Poll until the reader serves the tag, or the deadline is reached."""
        loop = asyncio.get_running_loop()
        known: str | None = None
        delay = _MIN_RETRY_DELAY
        while (left := deadline - loop.time()) > 0:
            found, gone = await self._head(name, known, left)
            if gone if etag is None else found == etag:
                return True
            if found is None or found == known:  # no long poll there, or nothing to wait for
                await asyncio.sleep(min(delay, left))
                delay = min(2 * delay, _MAX_RETRY_DELAY)
            known = found
        return False

    async def _head(
        self, name: str | None, known: str | None, left: float
    ) -> tuple[str | None, bool]:
        """Return the served tag as soon as it differs from `known`, and whether the content is gone."""
        if self._session is None:
            raise RuntimeError(f"{self!r} is not running")
        headers = {"Prefer": f"wait={math.ceil(left)}"}
        if known is not None:
            headers["If-None-Match"] = known
        if self._tokens is not None and (tokens := await self._tokens.tokens()):
            secret = min(tokens, key=attrgetter("may_write")).secret
            headers["Authorization"] = f"Bearer {secret.decode('latin-1')}"
        try:
            async with self._session.head(
                self._address(name),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=left + 1),
                allow_redirects=False,
            ) as answer:
                # Readers keep the last content for ever: the header tells that it is gone from the volume.
                kept = name is None and "Sidecar-Stale" in answer.headers
                gone = answer.status in _GONE_STATUSES or kept
                failed = answer.status >= 400 and answer.status not in _GONE_STATUSES
                self._log_problem(f"it answers {answer.status}" if failed else None)
                return answer.headers.get("ETag", "").removeprefix("W/") or None, gone
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._log_problem(str(error) or type(error).__name__)
            return None, False

    def _address(self, name: str | None) -> str:
        return self._url if name is None else f"{self._url.rstrip('/')}/files/{quote(name)}"

    def _log_problem(self, problem: str | None) -> None:
        """Log a problem with the reader, once per new problem."""
        if problem is not None and problem != self._logged_problem:
            _log.warning(
                "cannot confirm with %s: %s", self._url, problem, extra={"event": "confirm.failed"}
            )
        self._logged_problem = problem
