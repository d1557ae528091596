"""OpenTelemetry logs over OTLP/HTTP in JSON (https://opentelemetry.io/docs/specs/otlp/#otlphttp).

The JSON encoding requires names in lowerCamelCase, 64-bit integers as strings,
severity as a number, and trace ids in hexadecimal instead of base64.
"""

from __future__ import annotations

import base64
import math
import re
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import orjson

from sidecar._errors import ConfigError
from sidecar._version import __version__
from sidecar.logs import json_encoding
from sidecar.logs.records import Record
from sidecar.logs.sinks import render, schemas
from sidecar.logs.sinks.http import HttpSink
from sidecar.logs.sinks.responses import (
    Accepted,
    PayloadTooLarge,
    PermanentlyRejected,
    ReceiverResponse,
    RecordRejected,
    RetryLater,
    Verdict,
    classify_status,
)
from sidecar.process import arguments

RETRYABLE = frozenset({429, 502, 503, 504})
"""The only statuses after which the specification allows a retry."""

_OURS = frozenset({"log.file.path", "log.file.name", "log.record.offset", "json"})
_TRACE = re.compile(r"[0-9a-fA-F]{32}")
_SPAN = re.compile(r"[0-9a-fA-F]{16}")
_TRACE_FIELDS = ("trace_id", "traceId", "traceid", "trace.id")
_SPAN_FIELDS = ("span_id", "spanId", "spanid", "span.id")
_MAX_DEPTH = 32


class OtlpSink(HttpSink):
    """Exports log records to an OpenTelemetry collector or any other OTLP/HTTP receiver.

    The body is the line, or the message that a parser has found; other fields become attributes.
    Labels of the Pod become attributes of the resource.

    Args:
        resource: attributes of the resource; they override those from labels.
            `service.name` comes from `OTEL_SERVICE_NAME`, else from the labels.
        retry_status: statuses to retry besides 429, 502, 503 and 504, contrary to the specification:
            some receivers answer 500 when they are overloaded.

    All other arguments are those of `HttpSink`.

    >>> OtlpSink("http://collector:4318", resource={"service.name": "shop"}).url
    'http://collector:4318/v1/logs'
    """

    content_type: ClassVar[str] = "application/json"
    standard_path: ClassVar[str] = "/v1/logs"
    answer_limit: ClassVar[int] = 4 << 20

    def __init__(
        self,
        url: str,
        *,
        resource: Mapping[str, str] | None = None,
        retry_status: Collection[int] = (),
        **options: Any,
    ) -> None:
        super().__init__(url, **options)
        self._resource = arguments.check_options("resource", resource)
        for status in retry_status:
            arguments.check_integer("retry_status", status, least=100)
        self._retryable = RETRYABLE | frozenset(retry_status)
        if not all(300 <= status <= 599 for status in self._retryable):
            raise ConfigError(f"{self.name}: retry_status takes statuses from 300 to 599")
        self._scope = {"name": "sidecar.logs", "version": __version__}

    def encode(self, records: Sequence[Record]) -> bytes:
        observed = str(time.time_ns())
        resources: dict[int, tuple[Mapping[str, str], list[orjson.Fragment]]] = {}
        for record in records:
            group = resources.setdefault(id(record.labels), (record.labels, []))
            # Encoded one by one: a batch of dictionaries would use 3 MB.
            group[1].append(orjson.Fragment(orjson.dumps(_log_record(record, observed))))
        made = [
            {
                "resource": {
                    "attributes": _attributes(
                        {**schemas.resource_attributes(labels), **self._resource}
                    )
                },
                "scopeLogs": [{"scope": self._scope, "logRecords": group}],
            }
            for labels, group in resources.values()
        ]
        return orjson.dumps({"resourceLogs": made})

    def classify_response(self, answer: ReceiverResponse, count: int) -> Verdict:
        status = answer.status
        if status in self._retryable:
            return RetryLater(str(answer), answer.retry_after)
        if 200 <= status < 300:
            return _partial(answer, count)
        if status >= 500:
            return PermanentlyRejected(str(answer))
        verdict = classify_status(answer)
        if isinstance(verdict, RecordRejected | PayloadTooLarge):
            return verdict
        if status in (408, 425):
            return PermanentlyRejected(str(answer))
        return verdict


def _partial(answer: ReceiverResponse, count: int) -> Verdict:
    """Handle a partial success: it must not be retried, and does not name the rejected records."""
    try:
        partial = orjson.loads(answer.body or b"{}").get("partialSuccess") or {}
        rejected = int(partial.get("rejectedLogRecords") or 0)
    except (ValueError, TypeError, AttributeError):
        return Accepted()  # a 2xx acknowledges, whatever its body
    if rejected <= 0:
        return Accepted()
    said = f"partial success: {rejected} of {count} refused, without saying which"
    return PermanentlyRejected(
        f"{said}: {str(partial.get('errorMessage') or 'no reason given')[:300]}"
    )


def _log_record(record: Record, observed: str) -> dict[str, Any]:
    message, fields = render.message(record)
    attributes = schemas.make_origin_attributes(record)
    made: dict[str, Any] = {"timeUnixNano": str(record.time), "observedTimeUnixNano": observed}
    if record.level is not None and record.level in schemas.SEVERITY:
        made["severityNumber"] = schemas.SEVERITY[record.level]
        made["severityText"] = record.level.upper()
    if message is None:
        made["body"] = any_value(fields)
    else:
        made["body"] = {"stringValue": _clean(message)}
        # Keys are unique (opentelemetry.proto): application fields with one of our names are moved below `json`.
        attributes |= schemas.apart(fields, _OURS) if _OURS & fields.keys() else fields
    if fields:
        _add_id(made, "traceId", _TRACE, fields, _TRACE_FIELDS)
        _add_id(made, "spanId", _SPAN, fields, _SPAN_FIELDS)
    made["attributes"] = _attributes(attributes)
    return made


def _add_id(
    made: dict[str, Any],
    name: str,
    form: re.Pattern[str],
    fields: Mapping[str, Any],
    candidates: Sequence[str],
) -> None:
    for candidate in candidates:
        value = fields.get(candidate)
        if isinstance(value, str) and form.fullmatch(value) and value.strip("0"):
            made[name] = value.lower()
            return


def _attributes(values: Mapping[str, Any], depth: int = 0) -> list[dict[str, Any]]:
    # Names that differ only in lone surrogates become one key.
    unique = {_clean(str(key)): one for key, one in values.items() if one is not None}
    return [{"key": key, "value": any_value(one, depth)} for key, one in unique.items()]


def any_value(value: Any, depth: int = 0) -> dict[str, Any]:  # noqa: PLR0911 (a table)
    """Convert a value to an OTLP AnyValue. Members that are null are left out.

    >>> any_value({"n": 1})
    {'kvlistValue': {'values': [{'key': 'n', 'value': {'intValue': '1'}}]}}
    """
    match value:
        case str():
            return {"stringValue": _clean(value)}
        case bool():
            return {"boolValue": value}
        case int() if -(2**63) <= value < 2**63:
            return {"intValue": str(value)}
        case float() if math.isfinite(value):
            return {"doubleValue": value}
        case bytes():
            return {"bytesValue": base64.b64encode(value).decode()}
        case None:
            # The schema would be `{}`, but some receivers reject the whole request for it.
            return {"stringValue": "null"}
        case dict() if depth < _MAX_DEPTH:
            return {"kvlistValue": {"values": _attributes(value, depth + 1)}}
        case list() | tuple() if depth < _MAX_DEPTH:
            return {"arrayValue": {"values": [any_value(one, depth + 1) for one in value]}}
    return {"stringValue": _clean(json_encoding.shortened(value))}


def _clean(text: str) -> str:
    """Replace lone surrogates (in file names, or from stages): JSON and protobuf cannot represent them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
