"""Grafana Loki's push API, in JSON (https://grafana.com/docs/loki/latest/reference/loki-http-api/).

Loki drops a line with the same time and text as another one in the same stream.
That makes retries harmless, but would drop lines that an application repeats within one read.
Equal times are therefore made distinct by nanoseconds, in order, and stay the same in every retry of a batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import orjson

from sidecar._errors import ConfigError
from sidecar.logs import json_encoding
from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks import render
from sidecar.logs.sinks.http import HttpSink
from sidecar.logs.sinks.responses import (
    PartialResult,
    PermanentlyRejected,
    ReceiverResponse,
    RecordRejected,
    RetryLater,
    Verdict,
    classify_status,
)
from sidecar.logs.stages import timestamp
from sidecar.process import arguments

_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9_]")
_MAX_LABELS = 15
"""Loki's default limit for a stream."""
_MAX_LABEL_VALUE_BYTES, _MAX_LABEL_NAME_BYTES = 2048, 1024
"""Bytes, by default (`max_label_value_length`, `max_label_name_length`)."""
_PREFERRED_LABELS = ("namespace", "pod", "container", "filename", "level", "app")
_HIGH_CARDINALITY_LABELS = frozenset(
    {"pod_uid", "pod_ip", "pod-template-hash", "controller-revision-hash"}
)
"""Labels that would make a stream of its own for each Pod and tell nothing that `pod` does not."""
_INGESTION_BLOCKED_STATUS = 260
_OLDEST_REASON = re.compile(
    r"timestamp too old: .*?oldest acceptable timestamp is: ([0-9T:.Z+-]+)", re.DOTALL
)
_IGNORED = re.compile(r"total ignored: (\d+) out of (\d+)")
_TENANT_LIMIT_REASON = re.compile(
    r"this feature is disallowed|allow_structured_metadata|no org id", re.IGNORECASE
)
"""What a 400 says that no line is the reason of: limits_config does not let this tenant do so."""
_MAX_FILES = 10_000
_MAX_TIMES = 2_000
"""So many other times may lie between two equal ones, at least."""


class LokiSink(HttpSink):
    """Pushes lines to Loki.

    A line is sent unchanged, or as JSON if a stage has changed its fields.
    Labels of a stream are the labels of the record, `filename`, and `level` if known.

    Args:
        tenant: sent as `X-Scope-OrgID`.
        labels: added to every stream.
        label_fields: fields that become labels. Only for fields with few values: each value is a stream.
        metadata_fields: fields that become structured metadata of the line.

    All other arguments are those of `HttpSink`.

    >>> LokiSink("http://loki:3100", labels={"app": "shop"}, label_fields=["level"]).url
    'http://loki:3100/loki/api/v1/push'
    """

    content_type: ClassVar[str] = "application/json"
    standard_path: ClassVar[str] = "/loki/api/v1/push"

    def __init__(
        self,
        url: str,
        *,
        tenant: str | None = None,
        labels: Mapping[str, str] | None = None,
        label_fields: Sequence[str] = (),
        metadata_fields: Sequence[str] = (),
        **options: Any,
    ) -> None:
        headers = arguments.check_options("headers", options.pop("headers", None))
        if tenant is not None:
            arguments.check_instance("tenant", tenant, str, "the name of a tenant, or None")
            if not tenant:
                raise ConfigError("the tenant of Loki cannot be empty")
            headers["X-Scope-OrgID"] = tenant
        super().__init__(url, headers=headers, **options)
        self._labels = arguments.check_options("labels", labels)
        self._label_fields = arguments.words("label_fields", label_fields)
        self._metadata_fields = arguments.words("metadata_fields", metadata_fields)
        self._times = _DistinctTimes()

    def prepare(self, batch: Batch) -> None:
        """Make the times of the records distinct."""
        distinct = self._times.distinct
        for record in batch.records():
            record.time = distinct(record.file, record.time)

    def encode(self, records: Sequence[Record]) -> bytes:
        streams: dict[object, tuple[dict[str, str], list[list[Any]]]] = {}
        for record in records:
            own = [_text(record.fields.get(name)) for name in self._label_fields]
            key = (id(record.labels), record.file, record.level, *own)
            stream = streams.get(key)
            if stream is None:
                stream = streams[key] = (self._stream_labels(record), [])
            value: list[Any] = [str(record.time), render.line(record)]
            if self._metadata_fields and (metadata := self._metadata(record)):
                value.append(metadata)
            stream[1].append(value)
        made = [{"stream": labels, "values": values} for labels, values in streams.values()]
        return _dumps({"streams": made})

    def classify_response(self, answer: ReceiverResponse, count: int) -> Verdict:  # noqa: ARG002 (for subclasses)
        """204 is success; 260 means that ingestion is blocked, and nothing was accepted."""
        if answer.status == _INGESTION_BLOCKED_STATUS:
            return RetryLater(str(answer), answer.retry_after)
        verdict = classify_status(answer)
        if isinstance(verdict, RecordRejected) and _TENANT_LIMIT_REASON.search(verdict.reason):
            return RetryLater(f"{answer} (check the tenant's limits_config)", answer.retry_after)
        return verdict

    def narrow_rejection(self, verdict: RecordRejected, records: Sequence[Record]) -> Verdict:
        """Reject lines older than the time that the response names. Loki accepts the valid lines of a push.

        The others are sent again at once: Loki drops those it has, by stream, time and text.
        """
        if (oldest := _parse_oldest(verdict.reason)) is not None:
            old = [index for index, one in enumerate(records) if one.time < oldest]
            if old:
                refused = [(index, verdict.reason) for index in old]
                known = set(old)
                return PartialResult(refused, [at for at in range(len(records)) if at not in known])
        counts = _IGNORED.search(verdict.reason)
        if counts is not None and counts[1] == counts[2] == str(len(records)):
            return PermanentlyRejected(verdict.reason)
        return verdict

    def _stream_labels(self, record: Record) -> dict[str, str]:
        found: dict[str, str] = {"filename": record.file, **record.labels}
        if record.level is not None:
            found["level"] = record.level
        for name in self._label_fields:
            if (value := _text(record.fields.get(name))) is not None:
                found[name] = value
        wanted = [*self._labels, *self._label_fields, *_PREFERRED_LABELS]
        found |= self._labels
        names = sorted(found, key=lambda one: (_rank(one, wanted), one))
        labels: dict[str, str] = {}
        for name in names:
            value = found[name]
            if value and name not in _HIGH_CARDINALITY_LABELS and len(labels) < _MAX_LABELS:
                labels.setdefault(_label_name(name), _truncate(value, _MAX_LABEL_VALUE_BYTES))
        return labels or {"job": "sidecar"}  # Loki rejects streams without labels

    def _metadata(self, record: Record) -> dict[str, str]:
        return {
            _label_name(name): value if isinstance(value, str) else json_encoding.value(value)
            for name in self._metadata_fields
            if (value := record.fields.get(name)) is not None
        }


class _DistinctTimes:
    """Makes equal times of one file distinct, even if a line with an older time is between them.

    >>> times = _DistinctTimes()
    >>> [times.distinct("/log/a", moment) for moment in (50, 50, 7, 50, 51)]
    [50, 51, 7, 52, 53]
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}
        """By file: the original time of the last line, and the one that was sent."""
        self._young: dict[tuple[str, int], int] = {}
        self._old: dict[tuple[str, int], int] = {}
        """Times that were left for others, with the last one sent for each. Two generations: forgetting costs nothing."""

    def distinct(self, file: str, moment: int) -> int:
        """Return the time, or a slightly later one if that time was sent before."""
        original, sent = self._last.get(file, (0, -1))
        if not original <= moment <= sent:
            self._remember(file, original, sent)
            key = (file, moment)
            sent = self._young.get(key) or self._old.get(key) or moment - 1
            original = moment
        self._last[file] = original, sent + 1
        return sent + 1

    def _remember(self, file: str, original: int, sent: int) -> None:
        self._young[file, original] = sent
        if len(self._young) >= _MAX_TIMES:
            self._young, self._old = {}, self._young
            for name in list(self._last)[: max(len(self._last) - _MAX_FILES, 0)]:
                del self._last[name]


def _rank(name: str, wanted: Sequence[str]) -> int:
    return wanted.index(name) if name in wanted else len(wanted)


def _text(value: object) -> str | None:
    """Return a value as text: `true`, and JSON for nested values."""
    return value if value is None or isinstance(value, str) else json_encoding.value(value)


def _truncate(text: str, limit: int) -> str:
    """Return the beginning of a text, up to `limit` bytes."""
    if len(text) * 4 <= limit:
        return text
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def _parse_oldest(said: str) -> int | None:
    """Return the oldest time that Loki accepts, from its response, in Unix nanoseconds."""
    found = _OLDEST_REASON.search(said)
    return None if found is None else timestamp.nanoseconds(found[1])


def _label_name(name: str) -> str:
    """Turn `app.kubernetes.io/name` into `app_kubernetes_io_name`."""
    clean = _NOT_IN_NAME.sub("_", name)[: _MAX_LABEL_NAME_BYTES - 1]
    return clean if clean and not clean[0].isdigit() else f"_{clean}"


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # lone surrogates, created by a stage
        return orjson.dumps(_clean(value))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(name): _clean(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return value
