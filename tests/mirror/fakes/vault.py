"""A secret of Vault, as its documentation says."""

from __future__ import annotations

from aiohttp import web
from aiohttp.test_utils import TestServer


class Vault:
    """KV version 2: https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#read-secret-version."""

    def __init__(self) -> None:
        self.versions: list[dict[str, object] | None] = []
        self.token = "t"
        app = web.Application()
        app.router.add_get("/v1/secret/data/team/app", self._read)
        self.server = TestServer(app)

    async def _read(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"errors": ["permission denied"]}, status=403)
        if not self.versions:
            return web.json_response({"errors": []}, status=404)
        meta = {
            "created_time": "2026-11-30T04:00:00.123456789Z",
            "version": len(self.versions),
            "destroyed": False,
        }
        data = self.versions[-1]
        body = {"data": {"data": data, "metadata": meta}}
        return web.json_response(body, status=404 if data is None else 200)
