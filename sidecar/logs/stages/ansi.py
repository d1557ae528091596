"""Remove colours and other control sequences of terminals."""

from __future__ import annotations

import re
from typing import Any

from sidecar.logs.records import Record

ESCAPE = "\x1b"

_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-Z\\^-~])"
)
"""CSI, OSC (links, titles), and the short ones: https://ecma-international.org/publications-and-standards/standards/ecma-48/"""
_MAX_DEPTH = 64


def without(text: str) -> str:
    r"""Return the text without control sequences.

    >>> without("\x1b[31mERROR\x1b[0m it failed")
    'ERROR it failed'
    """
    return _SEQUENCE.sub("", text) if ESCAPE in text else text


def strip_ansi(record: Record) -> Record:
    r"""Remove colours and other control sequences of terminals from the text and the fields.

    >>> strip_ansi(Record(b"\x1b[32mINFO\x1b[39m started")).text
    'INFO started'
    """
    if b"\x1b" in record.raw or ESCAPE in record.text:
        record.text = without(record.text)
    if record.fields and (cleaned := _clean(record.fields, 0)) is not record.fields:
        record.fields = cleaned
    return record


def _clean(value: Any, depth: int) -> Any:
    """Return the value without control sequences; the same object if it has none."""
    if isinstance(value, str):
        return without(value)
    if depth >= _MAX_DEPTH:
        return value
    if isinstance(value, dict):
        made = {without(str(name)): _clean(one, depth + 1) for name, one in value.items()}
        same = all(
            old == new and value[old] is one
            for old, (new, one) in zip(value, made.items(), strict=False)
        )
        return value if same and len(made) == len(value) else made
    if isinstance(value, list | tuple):
        cleaned = [_clean(one, depth + 1) for one in value]
        return value if all(a is b for a, b in zip(value, cleaned, strict=True)) else cleaned
    return value
