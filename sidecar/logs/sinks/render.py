"""What a record says, for receivers that keep a line and its fields apart."""

from __future__ import annotations

from typing import Any

from sidecar.logs import json_encoding
from sidecar.logs.records import Record

_MESSAGES = ("message", "msg", "log", "event")


def line(record: Record) -> str:
    """Return the record as one line: as it came, or as JSON once its fields say something else.

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
    """Split the record into its message and the other fields. The message is None if no field is one."""
    if not record.structured:
        return record.text, record.fields
    for name in _MESSAGES:
        value = record.fields.get(name)
        if isinstance(value, str):
            return value, {key: one for key, one in record.fields.items() if key != name}
    return None, record.fields
