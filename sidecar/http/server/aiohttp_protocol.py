"""Everything that the server uses of aiohttp's `RequestHandler` although it is not public, under names that are.

aiohttp reads requests and runs handlers. A server with header timeouts, a drain and a fast path must know
what a connection is doing, and take it over. Any release of aiohttp may change how; then only this module changes.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http import HttpRequestParser

PRIVATE_NAMES = frozenset(
    {
        "_close",
        "_force_close",
        "_handler_waiter",
        "_loop",
        "_max_msg_queue_size",
        "_messages",
        "_next_keepalive_close_time",
        "_parser",
        "_process_keepalive",
        "_request_in_progress",
        "_upgraded",
    }
)
"""The private attributes of aiohttp's `RequestHandler` in this module. A test compares them with the code."""
if _gone := sorted(name for name in PRIVATE_NAMES if not hasattr(web.RequestHandler, name)):
    raise ImportError(
        f"this aiohttp ({aiohttp.__version__}) has no RequestHandler.{', RequestHandler.'.join(_gone)}:"
        " install one of the versions that sidecar names in its metadata (pip install --upgrade podsidecar)"
    )

READ_BUFFER_BYTES = 1 << 14
"""Half of the body bytes that are buffered before reading pauses.
With aiohttp's 64 KiB, a thousand uploads use twice the memory, and a single one is no faster.
"""


class AiohttpProtocol(web.RequestHandler):
    """aiohttp's protocol of one connection, with its state."""

    __slots__ = ()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the connection."""
        return self._loop

    @property
    def queued(self) -> deque[Any]:
        """The requests that are parsed and not handled yet, each with its body."""
        return self._messages

    @property
    def handling(self) -> bool:
        """Whether a request is being handled, or queued."""
        return self._request_in_progress or bool(self._messages)

    @property
    def drops_input(self) -> bool:
        """Whether further input is dropped, because the connection closes."""
        return self._force_close or self._close

    @drops_input.setter
    def drops_input(self, value: bool) -> None:
        self._force_close = value

    @property
    def upgraded(self) -> bool:
        """Whether the input is no longer HTTP."""
        return self._upgraded

    @property
    def keepalive_deadline(self) -> float:
        """When the connection is closed if it stays idle (event loop clock). Each request changes it."""
        return self._next_keepalive_close_time

    @property
    def used_at(self) -> float:
        """When the connection was last used without aiohttp's knowledge (event loop clock)."""
        return 0.0

    def keep_alive_from(self, moment: float) -> None:
        """Let the keep-alive timeout begin at `moment` (event loop clock)."""
        self._next_keepalive_close_time = moment + self.keepalive_timeout

    def _process_keepalive(self) -> None:
        if self.used_at + self.keepalive_timeout > self._next_keepalive_close_time:
            self.keep_alive_from(self.used_at)
        super()._process_keepalive()

    def close_when_answered(self) -> None:
        """Drop further input; the connection closes after the response."""
        self._close = True

    def begin_request(self) -> None:
        """Begin a request without a handler: until `end_request`, the state is as while one runs."""
        self._request_in_progress = True

    def end_request(self) -> None:
        """End a request without a handler."""
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)

    def release_transport(self) -> asyncio.Transport | None:
        """Take the transport from aiohttp, which finds nothing to close; None if the client has disconnected."""
        transport, self.transport = self.transport, None
        if transport is not None:
            self._close = True
            self._messages.clear()
            self._parser = None
        return transport

    def renew_parser(self) -> None:
        """Parse what follows with a new parser: the old one waits for bytes that it will never see."""
        self._parser = HttpRequestParser(
            self,
            self._loop,
            READ_BUFFER_BYTES,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            max_msg_queue_size=self._max_msg_queue_size,
        )

    if sys.version_info < (3, 12):

        def start(self) -> Coroutine[Any, Any, None]:
            """Run until the first request is awaited, as aiohttp does if asyncio has eager tasks.

            Otherwise a request that arrives with the connection finds no task that waits for it.
            """
            serving = super().start()
            return resume_coroutine(serving, serving.send(None))


async def resume_coroutine(coroutine: Coroutine[Any, Any, None], awaited: object) -> None:
    """Continue, in a task, a coroutine that has run until its first `await`."""
    await _resume(coroutine, awaited)  # a task of Python 3.12 takes no generator


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, None], awaited: object) -> Generator[Any, Any, None]:
    try:
        yield awaited
    except BaseException as error:  # noqa: BLE001 (passed on to the coroutine)
        try:
            awaited = coroutine.throw(error)
        except StopIteration:
            return
        yield from _resume(coroutine, awaited)
    else:
        yield from coroutine
