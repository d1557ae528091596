"""A receiver of logs that can be told to misbehave: what all fakes share.

    async with FakeLoki() as loki:
        loki.next(Reset(), Busy(retry_after=1))     # the next two requests
        loki.always = Hang()                        # and every one after these

Faults come before the rules of the wire format, except `DropAnswer`, which takes what it is sent and then hangs up.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web


@dataclass(frozen=True)
class Hang:
    """Read the request and never answer."""


@dataclass(frozen=True)
class SlowRead:
    """Read so many bytes a second, then answer as usual."""

    rate: int = 100_000


@dataclass(frozen=True)
class Reset:
    """Close the connection hard, in the middle of the body."""

    after: int = 100


@dataclass(frozen=True)
class Busy:
    """429, with or without the pause to make."""

    retry_after: str | None = None


@dataclass(frozen=True)
class Broken:
    """Any status, without having taken anything."""

    status: int = 500
    body: str = "broken"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DropAnswer:
    """Take everything, then close the connection instead of answering: the true maker of duplicates."""


Fault = Hang | SlowRead | Reset | Busy | Broken | DropAnswer


@dataclass
class Request:
    """What came in, decoded."""

    path: str
    headers: dict[str, str]
    body: bytes
    size: int
    """Bytes on the wire."""


class WireError(Exception):
    """The request breaks the rules of the format: the fake answers 400 and remembers."""

    def __init__(self, said: str, status: int = 400) -> None:
        super().__init__(said)
        self.status = status


class Receiver:
    """A server on a port of its own, from `async with` to its end."""

    path = "/"

    def __init__(
        self,
        *,
        poison: Callable[[str], bool] = lambda _text: False,
        max_body: int | None = None,
        take_gzip: bool = True,
    ) -> None:
        self.poison = poison
        self.max_body = max_body
        self.take_gzip = take_gzip
        self.always: Fault | None = None
        self.requests: list[Request] = []
        self.seen = 0
        """Requests of which at least the head has come, faulty ones included."""
        self.wrong: list[str] = []
        """Every breach of the format: a test of a sink asserts that there is none."""
        self.texts: list[str] = []
        """The lines that were accepted, in order."""
        self._next: deque[Fault] = deque()
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._ending = asyncio.Event()

    def next(self, *faults: Fault) -> None:
        self._next.extend(faults)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def listen(self) -> None:
        """Answer again, on the port it had before."""
        self._ending.clear()
        # No chunk of the body is read before we ask: aiohttp would do so by itself.
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, auto_decompress=False
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def refuse(self) -> None:
        """Close the port: whoever connects is refused."""
        self._ending.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # -- what a format says

    def take(self, request: Request) -> web.Response:
        """Check the request strictly, keep what is in it, answer.

        Raises:
            WireError: it breaks a rule.
        """
        raise NotImplementedError

    # -- inside

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.seen += 1
        fault = self._next.popleft() if self._next else self.always
        match fault:
            case Reset(after):
                await request.content.read(after)
                return await self._abort(request)
            case Hang():
                await request.read()
                await self._ending.wait()
                return await self._abort(request)
            case SlowRead(rate):
                raw = bytearray()
                while chunk := await request.content.read(max(rate // 50, 1)):
                    raw += chunk
                    await asyncio.sleep(len(chunk) / rate)
                return self._answer(request, bytes(raw))
            case Busy(retry_after):
                await request.read()
                headers = {} if retry_after is None else {"Retry-After": retry_after}
                return web.Response(status=429, text="busy", headers=headers)
            case Broken(status, text, headers):
                await request.read()
                return web.Response(status=status, text=text, headers=headers)
            case DropAnswer():
                self._answer(request, await request.read())
                return await self._abort(request)
        return self._answer(request, await request.read())

    def _answer(self, request: web.Request, raw: bytes) -> web.Response:
        try:
            body = self._decoded(request, raw)
            if self.max_body is not None and len(body) > self.max_body:
                return web.Response(status=413, text="too large")
            got = Request(request.path, dict(request.headers), body, len(raw))
            self._check(request)
            answer = self.take(got)
        except WireError as error:
            self.wrong.append(str(error))
            return web.Response(status=error.status, text=str(error))
        self.requests.append(got)
        return answer

    def _check(self, request: web.Request) -> None:
        if request.method != "POST":
            raise WireError(f"{request.method} instead of POST", 405)
        if request.path != self.path:
            raise WireError(f"{request.path} instead of {self.path}", 404)

    def _decoded(self, request: web.Request, raw: bytes) -> bytes:
        match request.headers.get("Content-Encoding"):
            case None | "identity":
                return raw
            case "gzip" if self.take_gzip:
                try:
                    return gzip.decompress(raw)
                except (OSError, EOFError, zlib.error) as error:
                    raise WireError(f"no gzip: {error}") from error
            case other:
                raise _Unsupported(f"content encoding {other}")

    async def _abort(self, request: web.Request) -> web.StreamResponse:
        transport: Any = request.transport
        if transport is not None:
            transport.abort()
        return web.Response(status=500)


class _Unsupported(WireError):
    def __init__(self, said: str) -> None:
        super().__init__(said, 415)
