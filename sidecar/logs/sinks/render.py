"""Render a record for receivers that store the line and its fields separately."""

from __future__ import annotations

from typing import Any

from sidecar.logs import json_encoding
from sidecar.logs.records import Record

_MESSAGES = ("message", "msg", "log", "event")


def line(record: Record) -> str:
    """Return the record as one line: the original line, or JSON if its fields have changed.

    >>> line(Record(b"hello"))
    'hello'
    >>> line(Record(b"hello", fields={"site": "berlin"}))
    '{"message":"hello","site":"berlin"}'
    """
    if not record.structured and not record.fields:
        return record.text
    if not record.changed:
        return record.text
    fields = record.fields if record.structured else {"message": record.text, **record.fields}
    return json_encoding.dumps(fields).decode()


def message(record: Record) -> tuple[str | None, dict[str, Any]]:
    """Return the message and the other fields of a record. The message is None if no field contains it."""
    if not record.structured:
        return record.text, record.fields
    for name in _MESSAGES:
        value = record.fields.get(name)
        if isinstance(value, str):
            return value, {key: one for key, one in record.fields.items() if key != name}
    return None, record.fields
