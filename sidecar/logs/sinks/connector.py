"""Connections that bear receivers who send a body with 204.

RFC 9110 (15.3.5) lets a 204 have none, and some receivers and proxies send one all the same (`{"errors":null}`).
aiohttp takes what follows the head for the next answer, which is none, and forgets the 204 with it:
the same lines would be sent again for ever.
"""

from __future__ import annotations

import functools
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

_END = b"\r\n\r\n"


class Connector(aiohttp.TCPConnector):
    """As `aiohttp.TCPConnector`, with answers read by `_Handler`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The only way in: aiohttp has no argument for it.
        self._factory = functools.partial(_Handler, loop=self._loop)  # type: ignore[assignment]


class _Handler(ResponseHandler):
    """Leaves out what comes behind the head of a 204, and the connection after it."""

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.") and data[9:12] == b"204":
            head, end, rest = data.partition(_END)
            if rest:
                super().data_received(head + end)
                self.force_close()
                return
        super().data_received(data)
