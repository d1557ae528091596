"""Grafana Loki's push API, in JSON (https://grafana.com/docs/loki/latest/reference/loki-http-api/).

Loki drops a line that repeats time and text of another one in the same stream.
That makes sending again harmless, and would eat lines that an application repeats within one reading:
so equal times become distinct here, by nanoseconds, in order, and stay the same however often a batch is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import orjson

from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks import texts
from sidecar.logs.sinks.delivery import HttpSink
from sidecar.logs.sinks.verdicts import Answer, Later, Verdict, judged_by_status

_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9_]")
_MOST_LABELS = 15
"""Loki's default limit for a stream."""
_LONGEST_VALUE = 2048
_FIRST = ("namespace", "pod", "container", "filename", "level", "app")
_TOO_MANY_VALUES = frozenset({"pod_uid", "pod_ip", "pod-template-hash", "controller-revision-hash"})
"""Labels that would make a stream of its own for each Pod and tell nothing that `pod` does not."""
_BLOCKED = 260
_FILES = 10_000


class LokiSink(HttpSink):
    """Pushes lines to Loki.

    A line goes as it came, or as JSON where a stage has changed its fields.
    Labels of a stream are the record's labels, `filename`, and `level` where it is known.

    Args:
        tenant: sent as `X-Scope-OrgID`.
        labels: put on every stream.
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
        headers = dict(options.pop("headers", None) or {})
        if tenant is not None:
            headers["X-Scope-OrgID"] = tenant
        super().__init__(url, headers=headers, **options)
        self._labels = dict(labels or {})
        self._label_fields, self._metadata_fields = tuple(label_fields), tuple(metadata_fields)
        self._last: dict[str, tuple[int, int]] = {}

    def prepare(self, batch: Batch) -> None:
        """Give each record a time of its own."""
        last = self._last
        for record in batch.records():
            moment = _distinct(record.time, last.get(record.file))
            last[record.file] = moment
            record.time = moment[1]
        for file in list(last)[: max(len(last) - _FILES, 0)]:
            del last[file]

    def encode(self, records: Sequence[Record]) -> bytes:
        streams: dict[object, tuple[dict[str, str], list[list[Any]]]] = {}
        for record in records:
            own = [str(record.fields.get(name)) for name in self._label_fields]
            key = (id(record.labels), record.file, record.level, *own)
            stream = streams.get(key)
            if stream is None:
                stream = streams[key] = (self._stream_labels(record), [])
            value: list[Any] = [str(record.time), texts.line(record)]
            if self._metadata_fields and (metadata := self._metadata(record)):
                value.append(metadata)
            stream[1].append(value)
        made = [{"stream": labels, "values": values} for labels, values in streams.values()]
        return _dumps({"streams": made})

    def judge(self, answer: Answer, count: int) -> Verdict:  # noqa: ARG002 (others look at it)
        """204 is success; 260 says that ingestion is blocked, and that nothing was taken."""
        if answer.status == _BLOCKED:
            return Later(str(answer), answer.retry_after)
        return judged_by_status(answer)

    def _stream_labels(self, record: Record) -> dict[str, str]:
        found: dict[str, str] = {"filename": record.file, **record.labels}
        if record.level is not None:
            found["level"] = record.level
        for name in self._label_fields:
            if (value := record.fields.get(name)) is not None:
                found[name] = str(value)
        wanted = [*self._labels, *self._label_fields, *_FIRST]
        found |= self._labels
        names = sorted(found, key=lambda one: (_rank(one, wanted), one))
        labels: dict[str, str] = {}
        for name in names:
            value = found[name]
            if value and name not in _TOO_MANY_VALUES and len(labels) < _MOST_LABELS:
                labels[_label_name(name)] = value[:_LONGEST_VALUE]
        return labels or {"job": "sidecar"}  # Loki takes no stream without labels

    def _metadata(self, record: Record) -> dict[str, str]:
        return {
            _label_name(name): value if isinstance(value, str) else orjson.dumps(value).decode()
            for name in self._metadata_fields
            if (value := record.fields.get(name)) is not None
        }


def _distinct(moment: int, before: tuple[int, int] | None) -> tuple[int, int]:
    """Return the time as it is and as it is sent: a little later where the one before would be met."""
    if before is None:
        return moment, moment
    original, sent = before
    if original <= moment <= sent:
        return moment, sent + 1
    return moment, moment


def _rank(name: str, wanted: Sequence[str]) -> int:
    return wanted.index(name) if name in wanted else len(wanted)


def _label_name(name: str) -> str:
    """Turn `app.kubernetes.io/name` into `app_kubernetes_io_name`."""
    clean = _NOT_IN_NAME.sub("_", name)
    return f"_{clean}" if clean[:1].isdigit() else clean


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # lone surrogates: a stage has made them
        return orjson.dumps(_clean(value))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(name): _clean(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return value
