"""The access log: one line per request, if enabled.

    10.0.0.7 PUT /files/a 201 0 bytes 3.1 ms

It contains neither the query nor any header: those may hold contents and tokens.
"""

from __future__ import annotations

import logging

from aiohttp.abc import AbstractAccessLogger
from aiohttp.web import BaseRequest, StreamResponse

LOGGER = logging.getLogger(__name__)


class AccessLog(AbstractAccessLogger):
    """Logs each response at INFO: client, method, path, status, body bytes, time."""

    def log(self, request: BaseRequest, response: StreamResponse, time: float) -> None:
        """Log a response; `time` is in seconds, from the request to the end of the response."""
        path = "".join(c if c.isprintable() else "?" for c in request.path)
        self.logger.info(
            "%s %s %s %d %d bytes %.1f ms",
            request.remote or "unix",
            request.method,
            path,
            response.status,
            response.body_length,
            time * 1000,
            extra={"event": "http.request"},
        )
