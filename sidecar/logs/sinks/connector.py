"""Connections that tolerate receivers that send a body with 204.

RFC 9110 (15.3.5) forbids one, but some receivers and proxies send it (`{"errors":null}`).
aiohttp parses that body as the next response, fails, and loses the 204 as well:
the same lines would be sent again without end.
"""

from __future__ import annotations

import functools
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

_END = b"\r\n\r\n"


class Connector(aiohttp.TCPConnector):
    """An `aiohttp.TCPConnector` that reads responses with `_Handler`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp has no argument for this.
        self._factory = functools.partial(_Handler, loop=self._loop)  # type: ignore[assignment]


class _Handler(ResponseHandler):
    """Drops the body of a 204, and closes the connection after it."""

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.") and data[9:12] == b"204":
            head, end, rest = data.partition(_END)
            if rest:
                super().data_received(head + end)
                self.force_close()
                return
        super().data_received(data)
