"""Schemas: structures of a JSON record in which our names and those of the application do not collide.

`plain`, the structure of `json_encoding`, is short, and fields of the application take precedence. A typed store
(Elasticsearch, OpenSearch, ClickHouse) fixes the type of a field with the first line that has it:
there `level: 30` of pino and our `level: "error"` would cause permanent rejections.

* `ecs`: Elastic Common Schema (https://www.elastic.co/docs/reference/ecs), with `kubernetes.*` as Filebeat has it.
* `otel`: OpenTelemetry's data model and semantic conventions, as its exporter for Elasticsearch writes them.
* `flat`: one level, with a prefix for each of our names.

In `ecs` and `otel` fields of the application keep their names; those that collide with ours are moved below `json`.
Dots in names of labels become underscores: otherwise `app` and `app.kubernetes.io/name` would be a string and an object.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from sidecar._errors import ConfigError
from sidecar.logs import json_encoding
from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks import render

Schema = Callable[[Record], dict[str, Any]]
"""A function from a record to a new dictionary for the receiver."""

NAMES = ("plain", "ecs", "otel", "flat")
SEVERITY = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
# https://opentelemetry.io/docs/specs/semconv/resource/k8s/
_RESOURCE = {
    "namespace": "k8s.namespace.name",
    "pod": "k8s.pod.name",
    "pod_uid": "k8s.pod.uid",
    "pod_ip": "k8s.pod.ip",
    "container": "k8s.container.name",
    "node": "k8s.node.name",
    "service_account": "k8s.serviceaccount.name",
}
_SERVICE = ("app.kubernetes.io/name", "app", "container")
# https://www.elastic.co/docs/reference/beats/filebeat/exported-fields-kubernetes-processor
_KUBERNETES = {
    "namespace": ("namespace",),
    "pod": ("pod", "name"),
    "pod_uid": ("pod", "uid"),
    "pod_ip": ("pod", "ip"),
    "container": ("container", "name"),
    "node": ("node", "name"),
}
_ECS_VERSION = "8.11.0"
_OURS_IN_ECS = frozenset({"@timestamp", "message", "log", "ecs", "labels", "kubernetes", "json"})
_OURS_IN_LOG = frozenset({"level", "offset", "file"})
_OURS_IN_OTEL = frozenset({"log", "json"})


def named(name: str, prefix: str | None = None) -> Schema | None:
    """Return the schema of that name; None for `plain`, which `json_encoding` encodes faster.

    Raises:
        ConfigError: the schema is unknown, or a prefix is given for another one than `flat`.

    >>> named("flat", "_")(Record(b"hello", file="/log/a"))
    {'_time': '1970-01-01T00:00:00.000000000Z', '_message': 'hello', '_file': '/log/a', '_offset': 0}
    """
    if name not in NAMES:
        raise ConfigError(f"there is no schema {name!r} (there are {', '.join(NAMES)})")
    if prefix is not None and (name != "flat" or not prefix):
        raise ConfigError("a prefix is for the schema flat, and cannot be empty")
    match name:
        case "ecs":
            return Ecs()
        case "otel":
            return Otel()
        case "flat":
            return Flat("sidecar_" if prefix is None else prefix)
    return None


def json_lines(batch: Batch, schema: Schema | None) -> bytes:
    """Return the batch as JSON objects of a schema, each with its newline."""
    if schema is None:
        return json_encoding.json_lines(batch)
    return b"".join([json_encoding.dumps(schema(record)) + b"\n" for record in batch.records()])


def json_line(record: Record, schema: Schema | None) -> bytes:
    """Return the record as one JSON object of a schema, without a line ending."""
    return (
        json_encoding.json_line(record) if schema is None else json_encoding.dumps(schema(record))
    )


def resource_attributes(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels as attributes of an OpenTelemetry resource.

    >>> resource_attributes({"pod": "web-0", "app": "shop"})
    {'k8s.pod.name': 'web-0', 'k8s.pod.label.app': 'shop', 'service.name': 'shop'}
    """
    found = {_RESOURCE.get(name, f"k8s.pod.label.{name}"): one for name, one in labels.items()}
    service = os.environ.get("OTEL_SERVICE_NAME") or next(
        (labels[name] for name in _SERVICE if labels.get(name)), None
    )
    if service:
        found["service.name"] = service
    return found


class _OfLabels:
    """The converted labels, cached per mapping: the records of a batch share one."""

    def __init__(self, make: Callable[[Mapping[str, str]], dict[str, Any]]) -> None:
        self._make = make
        self._labels: Mapping[str, str] | None = None
        self._made: dict[str, Any] = {}

    def __call__(self, labels: Mapping[str, str]) -> dict[str, Any]:
        """Return a mapping with shared members that must not be changed."""
        if labels is not self._labels:
            self._labels, self._made = labels, self._make(labels)
        return self._made


class Ecs:
    """The Elastic Common Schema. Fields of an ECS logger (`log.logger`, `labels`) stay in place.

    >>> made = Ecs()(Record(b"hello", file="/log/a", level="warn", fields={"level": 30, "file": "a.py"}))
    >>> made["log"], made["level"], made["file"]
    ({'level': 'warn', 'offset': 0, 'file': {'path': '/log/a'}}, 30, 'a.py')
    """

    def __init__(self) -> None:
        self._of_labels = _OfLabels(_ecs_labels)

    def __call__(self, record: Record) -> dict[str, Any]:
        message, fields = render.message(record)
        made: dict[str, Any] = {"@timestamp": json_encoding.rfc3339(record.time)}
        if message is not None:
            made["message"] = message
        log: dict[str, Any] = {
            "offset": record.offset,
            "file": {"path": json_encoding.readable(record.file)},
        }
        if record.level is not None:
            log = {"level": record.level, **log}
        made["log"] = log
        made["ecs"] = {"version": _ECS_VERSION}
        made.update(self._of_labels(record.labels))
        aside: dict[str, Any] = {}
        for given, value in fields.items():
            name = _name(given)
            head, _, rest = name.partition(".")
            if head not in _OURS_IN_ECS:
                made[name] = value
            elif not _is_ecs(made, head, rest, value):
                aside[name] = value
        if aside:
            made["json"] = aside
        return made


class Otel:
    """OpenTelemetry's log record, as one document.

    >>> made = Otel()(Record(b"hello", file="/log/a", level="warn", fields={"log": 1, "user": "ada"}))
    >>> made["body"], made["severity_number"], made["attributes"]["user"], made["attributes"]["json"]
    ({'text': 'hello'}, 13, 'ada', {'log': 1})
    """

    def __init__(self) -> None:
        self._of_labels = _OfLabels(
            lambda labels: {"attributes": resource_attributes(_without_dots(labels))}
        )

    def __call__(self, record: Record) -> dict[str, Any]:
        message, fields = render.message(record)
        made: dict[str, Any] = {"@timestamp": json_encoding.rfc3339(record.time)}
        if record.level in SEVERITY:
            made["severity_text"] = record.level.upper()
            made["severity_number"] = SEVERITY[record.level]
        if message is not None:
            made["body"] = {"text": message}
        made["attributes"] = {**make_origin_attributes(record), **apart(fields, _OURS_IN_OTEL)}
        if record.labels:
            made["resource"] = self._of_labels(record.labels)
        return made


class Flat:
    """One level, with a prefix for each of our names; colliding fields of the application get the prefix twice.

    >>> Flat("x_")(Record(b"hi", file="/a", labels={"app.io/name": "web"}, fields={"x_file": 1}))["x_x_file"]
    1
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._of_labels = _OfLabels(
            lambda labels: {
                f"{prefix}label_{name}": one for name, one in _without_dots(labels).items()
            }
        )

    def __call__(self, record: Record) -> dict[str, Any]:
        prefix = self._prefix
        made: dict[str, Any] = {f"{prefix}time": json_encoding.rfc3339(record.time)}
        if record.level is not None:
            made[f"{prefix}level"] = record.level
        if not record.structured:
            made[f"{prefix}message"] = record.text
        made[f"{prefix}file"] = json_encoding.readable(record.file)
        made[f"{prefix}offset"] = record.offset
        made.update(self._of_labels(record.labels))
        for name, value in record.fields.items():
            made[f"{prefix}{name}" if str(name).startswith(prefix) else name] = value
        return made


def make_origin_attributes(record: Record) -> dict[str, Any]:
    """Return the origin of a record as attributes of OpenTelemetry."""
    path = json_encoding.readable(record.file)
    return {
        "log.file.path": path,
        "log.file.name": os.path.basename(path),
        "log.record.offset": record.offset,
    }


def apart(fields: Mapping[str, Any], ours: frozenset[str]) -> dict[str, Any]:
    """Return the fields; those whose name, or its first part, collides with ours are moved below `json`."""
    made: dict[str, Any] = {}
    aside: dict[str, Any] = {}
    for given, value in fields.items():
        name = _name(given)
        (aside if name in ours or name.partition(".")[0] in ours else made)[name] = value
    return {**made, "json": aside} if aside else made


def _is_ecs(made: dict[str, Any], head: str, rest: str, value: Any) -> bool:
    """Merge the fields of an ECS logger into the document; return False if the record has none."""
    if head == "ecs" and rest == "version":
        return True  # ours says as much
    if head == "log" and rest and rest.partition(".")[0] not in _OURS_IN_LOG:
        made["log"][rest] = value
        return True
    if not isinstance(value, dict) or rest:
        return False
    if head == "log" and not _OURS_IN_LOG & set(value):
        made["log"].update(value)
        return True
    if head == "labels" and not any(isinstance(one, dict | list) for one in value.values()):
        own = {name: _word(one) for name, one in value.items() if one is not None}
        made["labels"] = {**_without_dots(own), **made.get("labels", {})}
        return True
    return False


def _ecs_labels(labels: Mapping[str, str]) -> dict[str, Any]:
    kubernetes: dict[str, Any] = {}
    others: dict[str, str] = {}
    for name, value in labels.items():
        if (path := _KUBERNETES.get(name)) is None:
            others[name] = value
        elif len(path) == 1:
            kubernetes[path[0]] = value
        else:
            kubernetes.setdefault(path[0], {})[path[1]] = value
    made: dict[str, Any] = {}
    if kubernetes:
        made["kubernetes"] = kubernetes
    if others:
        made["labels"] = _without_dots(others)
    return made


def _without_dots(labels: Mapping[str, str]) -> dict[str, str]:
    """Replace dots in names. On a collision the replaced name gets another `_`."""
    made = {name: one for name, one in labels.items() if "." not in name}
    for name, one in labels.items():
        if "." in name:
            clean = name.replace(".", "_")
            while clean in made:
                clean += "_"
            made[clean] = one
    return made


def _name(given: Any) -> str:
    """Return a valid field name of Elasticsearch: not empty, and without a dot at its ends."""
    name = given if isinstance(given, str) else str(given)
    if name and name[0] != "." and name[-1] != ".":
        return name
    return name.strip(".") or "_"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json_encoding.value(value)
