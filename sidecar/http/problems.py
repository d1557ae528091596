"""Errors over HTTP in one format: `application/problem+json` (RFC 9457).

Each kind of problem has a stable `type`, a URI reference by which programs can tell it from others
(`/problems/version-conflict`); `detail` is for people and may change.
The table below is the complete list; `from_error` maps our errors to problems, `from_aiohttp` those of aiohttp.

A problem is raised, not returned: aiohttp turns it into a response from any handler, ours or a user's.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

import orjson
from aiohttp import http_exceptions, web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from sidecar import _errors
from sidecar.http import handler_api
from sidecar.volume.content import snapshot

_log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER = "1"
"""Seconds. As often as the re-check of a watch, which finds a volume that is available again."""
_UNSUPPORTED_VERSION = re.compile(
    r"Invalid HTTP version.* HTTP/(?!1\.)\d\.\d'|on PRI/Upgrade", re.DOTALL
)
"""The message of aiohttp's parser for a major version other than 1, including the HTTP/2 preface."""
_TOO_MANY_HEADERS = "Too many headers received"
"""The message of aiohttp for more than 128 headers: it has no exception class for that."""


class ProblemType(NamedTuple):
    """A problem type: its status and title."""

    status: int
    title: str


PROBLEM_TYPES: Mapping[str, ProblemType] = {
    # The request
    "bad-request": ProblemType(400, "The request cannot be understood"),
    "bad-name": ProblemType(400, "Not a name that may lie on a volume"),
    "unauthorized": ProblemType(401, "A bearer token is needed"),
    "insufficient-scope": ProblemType(403, "The token may only read"),
    "cross-site": ProblemType(403, "Another web site must not change anything"),
    "not-found": ProblemType(404, "There is nothing at this path"),
    "no-such-file": ProblemType(404, "There is no such file"),
    "unfit-to-read": ProblemType(404, "What lies there is not served"),
    "unknown-version": ProblemType(404, "The history does not hold this version"),
    "method-not-allowed": ProblemType(405, "The method is not allowed here"),
    "not-text": ProblemType(406, "The content is not text"),
    "request-timeout": ProblemType(408, "The request did not arrive in time"),
    "length-required": ProblemType(411, "The request has no body"),
    "content-too-large": ProblemType(413, "The content is too large"),
    "misdirected": ProblemType(421, "Nothing is served by this name"),
    "uri-too-long": ProblemType(414, "The address is too long"),
    "unsupported-coding": ProblemType(415, "The content coding is not supported"),
    "range-not-satisfiable": ProblemType(416, "The range lies outside the content"),
    "expectation-failed": ProblemType(417, "The expectation cannot be met"),
    "too-many-failed-logins": ProblemType(429, "Too many requests with a wrong token"),
    "head-too-large": ProblemType(431, "The headers are too long, or too many"),
    "unsupported-transfer": ProblemType(501, "The transfer coding is not supported"),
    "unsupported-version": ProblemType(505, "The version of HTTP is not supported"),
    # Publishing
    "name-taken": ProblemType(409, "Something else is in the way of this name"),
    "version-conflict": ProblemType(412, "Somebody else has published first"),
    "content-refused": ProblemType(422, "The content is refused"),
    "not-published": ProblemType(500, "Nothing has been published"),
    "perhaps-not-durable": ProblemType(500, "Published, but perhaps not durable"),
    "volume-unavailable": ProblemType(503, "The volume cannot be written"),
    "volume-full": ProblemType(507, "The volume is full"),
    # Reading
    "nothing-published": ProblemType(503, "Nothing has been published yet"),
    "content-altered": ProblemType(503, "A large content is being rewritten"),
    "unreadable": ProblemType(503, "The volume cannot be read now"),
    # The service itself
    "too-many-connections": ProblemType(503, "Too many connections"),
    "internal-error": ProblemType(500, "The service has failed"),
    "not-live": ProblemType(503, "Not alive"),
    "not-ready": ProblemType(503, "Not ready"),
    "not-started": ProblemType(503, "Not started yet"),
}

#: Errors that mean that a file is not readable as content. Others of the operating system are not the file's fault.
_UNREADABLE_ERRNOS = frozenset(
    (
        *(
            errno.EACCES,
            errno.EBADMSG,
            errno.EPERM,
            errno.EFBIG,
            errno.EINVAL,
            errno.EISDIR,
            errno.ELOOP,
        ),
        *(errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.EXDEV),
    )
)

_BY_STATUS = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    408: "request-timeout",
    413: "content-too-large",
    417: "expectation-failed",
}


class Problem(web.HTTPException):
    """A problem as an exception that aiohttp answers.

    `members` are further members of the JSON object (RFC 9457 section 3.2).
    A `kind` that the table does not hold is an error in this program.

    >>> Problem("no-such-file", "cannot read /shared/a: there is no such file").status
    404
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        status, title = PROBLEM_TYPES[kind]
        self.status_code = status
        self.kind = kind
        self.detail = detail
        self.counted = False
        """Whether the attempt that it ends was counted, and recorded in the audit log."""
        super().__init__(headers=_no_store(headers))
        _fill(self, f"/problems/{kind}", title, detail, members)


class UntypedProblem(web.HTTPException):
    """A problem that the status alone explains: its type is `about:blank` (RFC 9457 section 4.2.1)."""

    def __init__(self, status: int, detail: str) -> None:
        self.status_code = status
        super().__init__(headers=_no_store(None))
        _fill(self, "about:blank", self.reason, detail, None)


def from_error(error: _errors.SidecarError) -> Problem:
    """Return the problem for one of our errors.

    >>> from_error(_errors.VolumeFull(28, "cannot publish /shared/a: no space left")).status
    507
    """
    detail = str(error)
    match error:
        case _errors.VersionConflict():
            return _conflict(detail, error.current)
        case _errors.ContentTooLarge():
            return Problem("content-too-large", detail, members={"reasons": list(error.reasons)})
        case _errors.ContentRefused():
            return Problem("content-refused", detail, members={"reasons": list(error.reasons)})
        case _errors.PublishUncertain():
            return _uncertain(detail, error.version)
        case _:
            kind = _find_kind(error)
            retry = {"Retry-After": RETRY_AFTER} if PROBLEM_TYPES[kind].status == 503 else None
            return Problem(kind, detail, headers=retry)


def from_http_exception(error: web.HTTPException, path: str) -> web.HTTPException:
    """Return an HTTP error of aiohttp as a problem; a response that is no error, or already a problem, is returned unchanged."""
    if error.status < HTTPStatus.BAD_REQUEST or isinstance(error, Problem):
        return error
    kept = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    kind = _BY_STATUS.get(error.status)
    if kind is not None:
        return Problem(kind, _explain(error, path), headers=kept)
    return UntypedProblem(error.status, _explain(error, path))


def from_aiohttp(
    status: int, exc: BaseException | None, message: str | None, *, longest_line: int
) -> web.HTTPException:
    """Return the problem for an error that aiohttp reports itself: by its parser, or from a handler.

    `longest_line` is the limit of the request line in bytes, which the parser's error lacks.
    """
    match exc:
        case http_exceptions.LineTooLong(args=(_, limit, *_)):
            kind, remedy = (
                ("uri-too-long", "send large contents with PUT /files/NAME")
                if limit == longest_line
                else ("head-too-large", "send shorter headers")
            )
            return Problem(kind, f"it has more than {limit} bytes; {remedy}")
        case http_exceptions.InvalidURLError():
            return Problem(
                "bad-request",
                "the address is no path that begins with `/`, or holds a character that must be written"
                " as %XX (curl does it with -G --data-urlencode content=TEXT)",
            )
        case http_exceptions.ContentEncodingError():
            return Problem(
                "unsupported-coding",
                "the content coding of the body cannot be undone; send the plain bytes",
            )
        case http_exceptions.BadHttpMessage() if _TOO_MANY_HEADERS in (message, exc.message):
            return Problem("head-too-large", "it has too many headers")
        case http_exceptions.HttpProcessingError():
            # Scanners send thousands of these: not worth a log line each.
            _log.debug("cannot understand a request: %s", exc)
            reason = " ".join((message or exc.message).split())[:200]
            kind = "unsupported-version" if _UNSUPPORTED_VERSION.search(reason) else "bad-request"
            return Problem(kind, f"this is not HTTP/1.1 as RFC 9112 has it: {reason}")
        case web.HTTPException() | web.RequestPayloadError():
            return (
                _unreadable(exc)
                if isinstance(exc, web.RequestPayloadError)
                else from_http_exception(exc, "")
            )
        case None if status != 500:
            return UntypedProblem(status, "the request has taken too long")
        case _:
            return internal_error(exc or RuntimeError(message))


def to_response(problem: web.HTTPException) -> web.Response:
    """Return a problem as a response that can be returned instead of raised."""
    return web.Response(status=problem.status, headers=problem.headers, body=problem.body)


def internal_error(error: BaseException) -> Problem:
    """Log an unexpected error with a new id, and return a problem that contains only the id."""
    number = uuid.uuid4().urn
    _log.error(
        "unexpected error %s", number, exc_info=error, extra={"event": "http.internal_error"}
    )
    return Problem(
        "internal-error",
        f"an unexpected error has happened; the log of the service has it under {number}",
        members={"instance": number},
    )


def client_has_gone(request: web.BaseRequest) -> bool:
    """Return whether the client has disconnected."""
    return request.transport is None or request.transport.is_closing()


@handler_api.cache_safe
@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error of the handlers into a problem."""
    try:
        return await handler(request)
    except _errors.SidecarError as error:
        raise from_error(error) from error
    except web.HTTPNotFound as error:
        if request.method == "OPTIONS" and request.path == "*":
            return _options(request.app)
        raise from_http_exception(error, request.path) from error
    except web.HTTPException as error:
        raise from_http_exception(error, request.path) from error
    except web.RequestPayloadError as error:
        raise _unreadable(error, "; nothing was changed") from error
    except Exception as error:
        # The client has disconnected, or part of the response was sent: the connection must end.
        if client_has_gone(request) or request.writer.output_size > 0:
            raise
        raise internal_error(error) from error


def _options(app: web.Application) -> web.Response:
    """Respond to `OPTIONS *`, which addresses the server as a whole (RFC 9110 section 9.3.7)."""
    methods = {route.method for route in app.router.routes()} - {"*"}
    return web.Response(status=204, headers={"Allow": ",".join(sorted(methods | {"OPTIONS"}))})


def _find_kind(error: _errors.SidecarError) -> str:
    if type(error) is _errors.ReadError and error.errno not in _UNREADABLE_ERRNOS:
        return "unreadable"
    table: tuple[tuple[type[_errors.SidecarError], str], ...] = (
        (_errors.VolumeFull, "volume-full"),
        (_errors.VolumeUnavailable, "volume-unavailable"),
        (_errors.NameTaken, "name-taken"),
        (_errors.NameRefused, "bad-name"),
        (_errors.FileMissing, "no-such-file"),
        (_errors.UnknownVersion, "unknown-version"),
        (_errors.NothingPublished, "nothing-published"),
        (_errors.ContentAltered, "content-altered"),
        (_errors.ReadError, "unfit-to-read"),
        (_errors.PublishError, "not-published"),
    )
    return next((kind for one, kind in table if isinstance(error, one)), "internal-error")


def _conflict(detail: str, current: str | None) -> Problem:
    headers = {} if current is None else {"ETag": current}
    return Problem("version-conflict", detail, headers=headers, members={"current": current})


def _uncertain(detail: str, version: str) -> Problem:
    if not version:  # a deleted file has no tag
        return Problem("perhaps-not-durable", detail)
    tag = snapshot.etag(version)
    return Problem("perhaps-not-durable", detail, headers={"ETag": tag}, members={"etag": tag})


def _unreadable(error: web.RequestPayloadError, consequence: str = "") -> Problem:
    # aiohttp prefixes the parser's message with "400, message:".
    found = " ".join(str(error).rpartition("message:")[2].split())[:200]
    return Problem("bad-request", f"the body of the request cannot be read: {found}{consequence}")


def _explain(error: web.HTTPException, path: str) -> str:
    if isinstance(error, web.HTTPNotFound):
        return f"there is nothing at {path}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return f"{error.method} is not allowed here, only {allowed}"
    text = error.text or ""
    return error.reason if text == f"{error.status}: {error.reason}" else text or error.reason


def _no_store(headers: Mapping[str, str] | None) -> CIMultiDict[str]:
    merged: CIMultiDict[str] = CIMultiDict(headers or {})
    merged.setdefault("Cache-Control", "no-store")
    return merged


def _fill(
    answer: web.HTTPException,
    type_: str,
    title: str,
    detail: str,
    members: Mapping[str, object] | None,
) -> None:
    body = {"type": type_, "title": title, "status": answer.status, "detail": detail}
    answer.body = _dumps({**body, **(members or {})})
    answer.content_type = CONTENT_TYPE
    answer.charset = None


def _dumps(value: dict[str, object]) -> bytes:
    """Return JSON that ends with a newline; bytes of a header that are not UTF-8 become `?`."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
