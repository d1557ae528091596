"""A strict receiver of NDJSON."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from logs.fakes.receiver import Receiver, Request, WireError


class FakeNdjson(Receiver):
    """Takes `application/x-ndjson`, all or nothing; knows requests again by their `Idempotency-Key`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.objects: list[dict[str, Any]] = []
        self.repeated = 0
        self._keys: set[str] = set()

    def take(self, request: Request) -> web.Response:
        kind = request.headers.get("Content-Type", "").partition(";")[0]
        if kind != "application/x-ndjson":
            raise WireError(f"content type {kind}", 415)
        if not request.body or not request.body.endswith(b"\n"):
            raise WireError("the last line has no newline")
        objects = [_object(line) for line in request.body[:-1].split(b"\n")]
        texts = [str(one.get("message", one)) for one in objects]
        if bad := [text for text in texts if self.poison(text)]:
            return web.Response(status=400, text=f"cannot take {bad[0][:50]}")
        key = request.headers.get("Idempotency-Key")
        if key is None:
            raise WireError("no Idempotency-Key")
        if key in self._keys:
            self.repeated += 1
        else:
            self._keys.add(key)
            self.objects += objects
            self.texts += texts
        return web.Response(status=200, text="ok")


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise WireError(f"no JSON: {error}: {line[:100]!r}") from error
    if not isinstance(found, dict):
        raise WireError("not an object")
    return found


def _refuse(constant: str) -> object:
    raise WireError(f"{constant} is no JSON")
