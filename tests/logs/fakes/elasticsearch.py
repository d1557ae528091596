"""A strict Elasticsearch, as far as `_bulk` goes: newlines, actions, a status for each item."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import web

from logs.fakes.receiver import Receiver, Request, WireError
from logs.fakes.types import Types

_ACTIONS = {"create", "index"}
_KNOWN = {"_index", "_id", "require_alias"}


class FakeElasticsearch(Receiver):
    """Keeps documents by index and id. `item_fault` may give any item a status of its own."""

    def __init__(self, *, data_streams: bool = True, typed: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.types: Types | None = Types() if typed else None
        self.data_streams = data_streams
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}
        self.conflicts = 0
        self.item_fault: Callable[[int, dict[str, Any]], int | None] = lambda _index, _source: None
        self.item_statuses: deque[int | None] = deque()
        self.error: tuple[int, str, str] | None = None
        """Status, type and reason that every item gets as long as this stands here."""
        self.shown: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
        """What is left of an answer, as `?filter_path` has it."""
        self._made_up = 0

    def _check(self, request: web.Request) -> None:
        if request.method not in ("POST", "PUT"):
            raise WireError(f"{request.method} instead of POST", 405)
        if not request.path.endswith("/_bulk"):
            raise WireError(f"no handler for {request.path}", 404)

    def take(self, request: Request) -> web.Response:
        kind = request.headers.get("Content-Type", "").partition(";")[0]
        if kind not in (
            "application/x-ndjson",
            "application/json",
            "application/vnd.elasticsearch+x-ndjson",
        ):
            return _refuse(406, f"Content-Type header [{kind}] is not supported")
        if not request.body.endswith(b"\n"):
            raise WireError("The bulk request must be terminated by a newline [\\n]")
        default = request.path.removesuffix("/_bulk").strip("/") or None
        lines = request.body[:-1].split(b"\n")
        if len(lines) % 2:
            raise WireError("an action without a source")
        pairs = [
            (_action(first, default), _source(second))
            for first, second in zip(lines[::2], lines[1::2], strict=True)
        ]
        items = [self._item(at, *action, source) for at, (action, source) in enumerate(pairs)]
        errors = any("error" in next(iter(item.values())) for item in items)
        return web.json_response(
            self.shown({"took": 1, "errors": errors, "items": items}),
            headers={"X-Elastic-Product": "Elasticsearch"},
        )

    def _item(
        self, at: int, action: str, index: str, name: str | None, source: dict[str, Any]
    ) -> dict[str, Any]:
        given = name
        if name is None:
            self._made_up += 1
            name = f"made-up-{self._made_up}"
        if self.error is not None and not (given is None and "ocument ID" in self.error[2]):
            code, kind, reason = self.error
            said = {"type": kind, "reason": reason}
            return {action: {"_index": index, "_id": name, "status": code, "error": said}}
        status, error = self._status(at, action, (index, name), source)
        item: dict[str, Any] = {"_index": index, "_id": name, "status": status}
        if error is not None:
            item["error"] = {"type": error, "reason": f"{error} for [{name}]"}
        elif status == 201:
            self.documents[index, name] = source
            self.texts.append(str(source.get("message", source)))
        return {action: item}

    def _status(
        self, at: int, action: str, key: tuple[str, str], source: dict[str, Any]
    ) -> tuple[int, str | None]:
        planted = self.item_statuses.popleft() if self.item_statuses else None
        planted = planted or self.item_fault(at, source)
        if planted is not None:
            return planted, "es_rejected_execution_exception" if planted == 429 else "planted"
        if self.poison(str(source.get("message", source))):
            return 400, "mapper_parsing_exception"
        if self.types is not None and (refused := self.types.refusal(source)):
            return 400, f"document_parsing_exception: {refused}"
        if self.data_streams and key[0].startswith("logs-"):
            if action != "create":
                return 400, "illegal_argument_exception"
            if "@timestamp" not in source:
                return 400, "document_parsing_exception"
        if action == "create" and key in self.documents:
            self.conflicts += 1
            return 409, "version_conflict_engine_exception"
        return 201, None


def _action(line: bytes, default: str | None) -> tuple[str, str, str | None]:
    found = _object(line)
    if len(found) != 1 or not set(found) <= _ACTIONS:
        raise WireError(f"Malformed action/metadata line: {line[:100]!r}")
    action, about = next(iter(found.items()))
    if not isinstance(about, dict) or not set(about) <= _KNOWN:
        raise WireError(f"unknown parameter in {about!r}")
    index = about.get("_index", default)
    if not isinstance(index, str) or not index or index != index.lower():
        raise WireError(f"index is missing or wrong: {index!r}")
    name = about.get("_id")
    if name is not None and (not isinstance(name, str) or not 0 < len(name.encode()) <= 512):
        raise WireError(f"id {name!r}")
    return action, index, name


def _source(line: bytes) -> dict[str, Any]:
    return _object(line)


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise WireError(f"no JSON: {line[:100]!r}") from error
    if not isinstance(found, dict):
        raise WireError(f"not an object: {line[:100]!r}")
    return found


def _refuse(status: int, reason: str) -> web.Response:
    return web.json_response({"error": {"reason": reason}, "status": status}, status=status)
