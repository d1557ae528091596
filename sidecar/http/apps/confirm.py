"""Ask the reader whether it serves a content yet: what `--confirm` and `Prefer: wait=SECONDS` are made of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus
from urllib.parse import quote

import aiohttp
import yarl
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from sidecar import _errors
from sidecar.http.semantics import bearer_auth
from sidecar.http.subscribe.pending import PENDING
from sidecar.process import arguments, executor, tls_trust

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.25
_GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


class _Loopback(AbstractResolver):
    """Resolves `localhost` to this machine, whatever the system says (RFC 6761 section 6.3)."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
            for kind, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        """There is nothing to close."""


class ReaderConfirmation:
    """A reader that can be asked.

    It is asked with `HEAD` and its own long-poll, so that it answers in the moment it has the content;
    a server that knows no long-poll is asked again and again instead.
    Where the writer has a token file, its first token is shown to the reader too.
    Its certificate is verified against `ca`, or without one as `sidecar check` does.
    """

    def __init__(
        self,
        url: str,
        tokens: bearer_auth.TokenFile | None,
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
        return f"<Confirm {self._url}>"

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Hold the connections to the reader open: for `cleanup_ctx`."""
        connector = await self._connector()
        cookies = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, cookie_jar=cookies) as self._session:
            yield

    async def _connector(self) -> aiohttp.TCPConnector:
        """Return what connects to the reader, and verifies it as `process.tls_trust` says.

        Raises:
            ConfigError: the authority cannot be read.
        """
        host = (yarl.URL(self._url).host or "").lower().rstrip(".")
        here = self._ca is None and (host == "localhost" or tls_trust.is_this_machine(host))
        try:
            # A context of its own: the one that aiohttp makes at its import may have no certificates.
            tls = await executor.run_in_thread(tls_trust.client_context, self._ca, verify=not here)
        except OSError as error:
            raise _errors.ConfigError(
                f"cannot read the authority of the reader from {self._ca}: {error.strerror or error}"
                " (see --confirm-ca)"
            ) from error
        # What is not verified must not lead elsewhere.
        return aiohttp.TCPConnector(ssl=tls, resolver=_Loopback() if here else None)

    async def wait(
        self, request: web.Request, etag: str | None, *, name: str | None, seconds: float
    ) -> float | None:
        """Wait until the reader serves `etag`; return the seconds that it took, None if it did not in time.

        `etag` None: until it serves nothing there any more, or says that what it still has is gone from the volume.
        `name` is the file to ask for, None for the content at the address itself.
        It ends early, as if the time were over, when this process drains or the client has gone.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        asking = asyncio.create_task(self._ask(name, etag, started + seconds), name="confirm")
        try:
            with request.app[PENDING].waiter(request, None) as waiter:
                over = asyncio.create_task(waiter.wait(seconds), name="confirm: the end")
                await asyncio.wait(
                    {asking, over}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                )
                over.cancel()
            served = asking.done() and asking.result()
        finally:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
        return loop.time() - started if served else None

    async def _ask(self, name: str | None, etag: str | None, limit: float) -> bool:
        """Ask until the answer is the wanted tag, or the time is over."""
        loop = asyncio.get_running_loop()
        known: str | None = None
        pause = _FIRST_PAUSE
        while (left := limit - loop.time()) > 0:
            found, gone = await self._head(name, known, left)
            if gone if etag is None else found == etag:
                return True
            if found is None or found == known:  # no long-poll there, or nothing to wait for
                await asyncio.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
            known = found
        return False

    async def _head(
        self, name: str | None, known: str | None, left: float
    ) -> tuple[str | None, bool]:
        """Return the tag that is served, as soon as it is not `known` any more, and whether there is no such content."""
        if self._session is None:
            raise RuntimeError(f"{self!r} is not running")
        headers = {"Prefer": f"wait={math.ceil(left)}"}
        if known is not None:
            headers["If-None-Match"] = known
        if self._tokens is not None and (tokens := await self._tokens.tokens()):
            headers["Authorization"] = f"Bearer {tokens[0].decode('latin-1')}"
        try:
            async with self._session.head(
                self._address(name),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=left + 1),
                allow_redirects=False,
            ) as answer:
                # The content itself is never taken away from readers: there the header says that it is gone.
                kept = name is None and "Sidecar-Stale" in answer.headers
                gone = answer.status in _GONE or kept
                failed = answer.status >= 400 and answer.status not in _GONE
                self._tell(f"it answers {answer.status}" if failed else None)
                return answer.headers.get("ETag", "").removeprefix("W/") or None, gone
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._tell(str(error) or type(error).__name__)
            return None, False

    def _address(self, name: str | None) -> str:
        return self._url if name is None else f"{self._url.rstrip('/')}/files/{quote(name)}"

    def _tell(self, problem: str | None) -> None:
        """Log what is wrong with the reader, once for each new problem."""
        if problem is not None and problem != self._logged_problem:
            _log.warning("cannot confirm with %s: %s", self._url, problem)
        self._logged_problem = problem
