"""A prefix of Consul with blocking queries, as its documentation says."""

from __future__ import annotations

import asyncio
import base64

from aiohttp import web
from aiohttp.test_utils import TestServer


class Consul:
    """https://developer.hashicorp.com/consul/api-docs/kv, and its blocking queries."""

    def __init__(self) -> None:
        self.index = 10
        self.keys: dict[str, tuple[int, str | None]] = {}
        self.queries: list[str] = []
        self._changed = asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/kv/{prefix:.*}", self._read)
        self.server = TestServer(app)

    def put(self, **keys: str | None) -> None:
        """Write keys in one transaction; __ in a name is a /, None removes one."""
        self.index += 1
        for key, value in keys.items():
            name = key.replace("__", "/")
            if value is None:
                del self.keys[name]
            else:
                self.keys[name] = (self.index, value)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _read(self, request: web.Request) -> web.Response:
        self.queries.append(request.query_string)
        if int(request.query.get("index", 0)) >= self.index:
            try:
                async with asyncio.timeout(float(request.query["wait"].rstrip("s"))):
                    await self._changed.wait()
            except TimeoutError:
                pass
        prefix = request.match_info["prefix"]
        found = [
            {
                "Key": key,
                "ModifyIndex": index,
                "Value": base64.b64encode(value.encode()).decode() or None,
            }
            for key, (index, value) in sorted(self.keys.items())
            if key.startswith(prefix) and value is not None
        ]
        headers = {"X-Consul-Index": str(self.index)}
        if not found:
            return web.Response(status=404, headers=headers)
        return web.json_response(found, headers=headers)
