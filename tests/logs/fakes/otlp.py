"""A strict OTLP/HTTP receiver for logs in JSON: the published protobuf schema is the judge."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from aiohttp import web
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from logs.fakes.receiver import Receiver, Request, WireError

_SNAKE = re.compile(r"[a-z]_[a-z]")
_LONGS = {"timeUnixNano", "observedTimeUnixNano", "intValue"}
_HEX = {"traceId": 32, "spanId": 16}


class FakeOtlp(Receiver):
    """Keeps log records as protobuf messages. `partial`: refuse poison by a partial success instead of a 400."""

    path = "/v1/logs"

    def __init__(self, *, partial: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.partial = partial
        self.records: list[Any] = []
        self.resources: list[dict[str, str]] = []

    def take(self, request: Request) -> web.Response:
        if request.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            raise WireError("unsupported content type", 415)
        message = _parsed(request.body)
        found = [
            (resource.resource, record)
            for resource in message.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        bad = [one for one in found if self.poison(text_of(one[1]))]
        if bad and not self.partial:
            return web.json_response({"code": 3, "message": "poison"}, status=400)
        for resource, record in found:
            if (resource, record) in bad:
                continue
            self.records.append(record)
            self.resources.append({a.key: a.value.string_value for a in resource.attributes})
            self.texts.append(text_of(record))
        if bad:
            said = {"rejectedLogRecords": str(len(bad)), "errorMessage": "poison"}
            return web.json_response({"partialSuccess": said})
        return web.json_response({})


def text_of(record: Any) -> str:
    return str(record.body.string_value)


def _parsed(body: bytes) -> Any:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise WireError(f"no JSON: {error}") from error
    try:
        _strict(found)
        return json_format.ParseDict(found, ExportLogsServiceRequest())
    except json_format.ParseError as error:
        raise WireError(f"not an ExportLogsServiceRequest: {error}") from error


def _strict(value: Any) -> None:
    """What protobuf's parser lets pass and OTLP does not; ids are turned into what it expects."""
    if isinstance(value, list):
        for one in value:
            _strict(one)
        return
    if not isinstance(value, dict):
        return
    for name, one in value.items():
        if _SNAKE.search(name):
            raise WireError(f"{name} is not in lowerCamelCase")
        if name in _LONGS and not (isinstance(one, str) and one.lstrip("-").isdigit()):
            raise WireError(f"{name} must be a decimal string, not {one!r}")
        if name == "severityNumber" and not (isinstance(one, int) and 1 <= one <= 24):
            raise WireError(f"severityNumber {one!r}")
        if name in _HEX:
            if not (isinstance(one, str) and re.fullmatch(f"[0-9a-f]{{{_HEX[name]}}}", one)):
                raise WireError(f"{name} {one!r} is not in hexadecimal")
            value[name] = base64.b64encode(bytes.fromhex(one)).decode()
        _strict(one)
