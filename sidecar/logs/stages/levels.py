"""How grave a line is, in the six words that all receivers know."""

from __future__ import annotations

import re
from typing import Any

from sidecar.logs.records import Record

LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")

_FIELDS = ("level", "severity", "lvl", "log.level", "levelname", "loglevel", "severity_text")
_WORDS = {
    "trace": "trace", "trc": "trace", "finest": "trace", "finer": "trace", "verbose": "trace",
    "debug": "debug", "dbg": "debug", "debu": "debug", "fine": "debug", "config": "debug",
    "info": "info", "inf": "info", "information": "info", "notice": "info", "informational": "info",
    "warn": "warn", "warning": "warn", "wrn": "warn",
    "error": "error", "err": "error", "eror": "error", "severe": "error",
    "fatal": "fatal", "ftl": "fatal", "critical": "fatal", "crit": "fatal", "panic": "fatal",
    "alert": "fatal", "emergency": "fatal", "emerg": "fatal", "dpanic": "fatal",
}  # fmt: skip
# Anchored on words in capitals, on a name before them, or on brackets: prose in lower case names no level.
_IN_TEXT = re.compile(
    r"\b(TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|SEVERE|FATAL|CRITICAL|PANIC)\b"
    r"|\b(?:level|lvl|severity)=\"?([A-Za-z]+)"
    r"|\[(trace|debug|info|notice|warn|warning|error|crit|alert|emerg|fatal)\]"
)
_KLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d")
_KLOG_LETTERS = {"I": "info", "W": "warn", "E": "error", "F": "fatal"}
_HEAD = 200
"""Characters of a line in which its level is looked for: further back it is what the line talks about."""


def find_level(record: Record) -> Record:
    """Set the record's level from its fields, else from the beginning of its text.

    Words of the usual libraries are understood, and the numbers of pino and bunyan (10 to 60).
    A line that names none keeps the level it has.

    >>> find_level(Record(b"2026-11-23 12:00:00 WARNING disk is filling")).level
    'warn'
    """
    found = _from_fields(record.fields) if record.fields else None
    if found is None and not record.structured:
        found = _from_text(record.text[:_HEAD])
    if found is not None:
        record.level = found
    return record


def _from_fields(fields: dict[str, Any]) -> str | None:
    for name in _FIELDS:
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, str):
            found = _WORDS.get(value.strip().lower())
        elif isinstance(value, int) and 10 <= value <= 60:
            found = LEVELS[value // 10 - 1]
        else:
            found = None
        if found:
            return found
    return None


def _from_text(head: str) -> str | None:
    if klog := _KLOG.match(head):
        return _KLOG_LETTERS[klog[1]]
    match = _IN_TEXT.search(head)
    if match is None:
        return None
    return _WORDS.get((match[1] or match[2] or match[3]).lower())
