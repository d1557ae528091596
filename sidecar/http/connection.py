"""What a connection of ours does beyond aiohttp's: problems instead of tracebacks, a count, an orderly end.

It works beneath every application that `serve` runs, also one that knows nothing of `sidecar`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import http_exceptions, web

from sidecar.http import problems
from sidecar.runtime import metrics, running

if TYPE_CHECKING:
    import asyncio

    from aiohttp.web_request import BaseRequest

_log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """The protocol of one connection; `all_` holds those that are open."""

    __slots__ = ("_all", "_lost")

    def __init__(
        self,
        server: web.Server,
        all_: set[Connection],
        *,
        loop: asyncio.AbstractEventLoop,
        keepalive_timeout: float,
        max_line_size: int,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=keepalive_timeout,
            max_line_size=max_line_size,
            access_log=None,  # type: ignore[arg-type]  # None is what AppRunner documents for "off"
        )
        self._all = all_
        self._lost: dict[object, Callable[[], None]] = {}

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, or an answer has not left this process yet."""
        unsent = self.transport is not None and self.transport.get_write_buffer_size() > 0
        return self._request_in_progress or bool(self._messages) or unsent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._all.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._all.discard(self)
        for callback in list(self._lost.values()):
            callback()

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when the client has gone; returns what ends that."""
        key = object()
        self._lost[key] = callback

        def remove() -> None:
            self._lost.pop(key, None)

        return remove

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPExpectationFailed):
            resp = problems.from_http(
                resp, request.path
            )  # aiohttp raises it outside of all middlewares
        answer: object = resp  # a handler of a user may have returned anything
        if isinstance(answer, web.StreamResponse) and not answer.prepared:
            answer.headers.setdefault("Server", "sidecar")
            # Who waits for "100 Continue" and is refused may send the body or not:
            # what comes next on this connection could be either (RFC 9110 section 10.1.1).
            undecided = "Expect" in request.headers and not request.content.is_eof()
            if running.draining() or undecided:
                answer.force_close()
        sent, reset = await super().finish_response(request, resp, start_time)
        metrics.HTTP_REQUESTS_TOTAL.labels(str(sent.status)).inc()
        return sent, reset

    def log_exception(self, *args: object, exc_info: object = None, **options: object) -> None:
        if isinstance(exc_info, web.RequestPayloadError):
            # The rest of a body that nobody wants any more: it was refused with an answer.
            _log.debug("cannot read the rest of a body: %s", exc_info)
        else:
            super().log_exception(*args, exc_info=exc_info, **options)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the parser refuses, and what a handler without our middleware let through."""
        if problems.client_has_gone(request):
            _log.debug("a client went away in the middle of a request: %r", exc)
            raise ConnectionResetError("the client has gone")
        if request.writer.output_size > 0:
            _log.error("an answer to %s broke off in the middle", request.path, exc_info=exc)
            raise ConnectionError("a part of the answer has been sent already")
        if isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers:
            # aiohttp stumbles over its own message about an expectation that is not ASCII.
            exc, status = web.HTTPExpectationFailed(), 417
        answer = problems.plain(_problem(status, exc, message, self.max_line_size))
        answer.force_close()
        return answer


def _problem(
    status: int, exc: BaseException | None, message: str | None, longest_line: int
) -> web.HTTPException:
    match exc:
        case http_exceptions.LineTooLong(args=(_, limit, *_)):
            kind = "uri-too-long" if limit == longest_line else "head-too-large"
            return problems.Problem(
                kind, f"it has more than {limit} bytes; send large contents with PUT /files/NAME"
            )
        case http_exceptions.InvalidURLError():
            return problems.Problem(
                "bad-request",
                "the address holds a character that must be written as %XX"
                " (curl does it with -G --data-urlencode content=TEXT)",
            )
        case http_exceptions.HttpProcessingError():
            # A scanner sends thousands of these: not worth a line in the log each.
            _log.debug("cannot understand a request: %s", exc)
            reason = " ".join((message or exc.message).split())[:200]
            return problems.Problem("bad-request", f"this is not HTTP as RFC 9112 has it: {reason}")
        case web.HTTPException():
            return problems.from_http(exc, "")
        case None if status != 500:
            return problems.UntypedProblem(status, "the request has taken too long")
        case _:
            return problems.internal_error(exc or RuntimeError(message))
