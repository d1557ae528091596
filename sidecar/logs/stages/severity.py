"""Find the level of a line, as one of six common levels."""

from __future__ import annotations

import re
from typing import Any

from sidecar.logs.records import Record
from sidecar.logs.stages import ansi

LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")

_FIELDS = (
    "level", "severity", "lvl", "log.level", "levelname", "loglevel", "severity_text",
    "Level", "LogLevel", "@l", "Severity", "SeverityText", "severityText", "LEVEL", "logLevel", "log_level",
    "level_name", "levelName",
)  # fmt: skip
_WORDS = {
    "trace": "trace", "trc": "trace", "trce": "trace", "finest": "trace", "finer": "trace",
    "verbose": "trace", "vrb": "trace", "silly": "trace",
    "debug": "debug", "dbg": "debug", "dbug": "debug", "debu": "debug", "fine": "debug", "config": "debug",
    "info": "info", "inf": "info", "information": "info", "notice": "info", "informational": "info",
    "note": "info", "system": "info", "log": "info", "success": "info", "http": "info",
    "WARN": "warn", "INFO": "info", "ERROR": "error", "DEBUG": "debug",
    "warn": "warn", "warning": "warn", "wrn": "warn",
    "error": "error", "err": "error", "eror": "error", "severe": "error", "fail": "error",
    "fatal": "fatal", "ftl": "fatal", "critical": "fatal", "crit": "fatal", "panic": "fatal", "pnc": "fatal",
    "alert": "fatal", "emergency": "fatal", "emerg": "fatal", "dpanic": "fatal",
}  # fmt: skip
SEVERITIES = ("fatal", "fatal", "fatal", "error", "warn", "info", "info", "debug")
"""The levels of syslog's severities 0 to 7 (https://www.rfc-editor.org/rfc/rfc5424#section-6.2.1)."""
# Anchored on words in capitals, on a name before them, or on brackets: prose in lower case names no level.
_IN_TEXT = re.compile(
    r"\b(TRACE|TRC|DEBUG|DBG|INFO|INF|NOTICE|WARN|WARNING|WRN|ERROR|ERR|SEVERE|FATAL|FTL|CRITICAL|CRIT|PANIC)\b"
    r"|\b(?:level|lvl|severity)=\"?([A-Za-z]+)"
    r"|\[(?:\w+:)?(trace|debug|info|notice|warn|warning|error|crit|alert|emerg|fatal"
    r"|Trace|Debug|Info|Information|Note|System|Warn|Warning|Error|Critical|Fatal)\]"
)
_CONSOLE = re.compile(r"(trce|dbug|info|warn|fail|crit): \S")
"""The console of .NET (https://learn.microsoft.com/dotnet/core/extensions/console-log-formatter)."""
_LETTER = re.compile(r"(?:([IWEF])\d{4}(?:\d\d)? \d\d:\d\d:\d\d|([DIWEFA]), \[\d{4}-)")
"""klog and glog; the Logger of Ruby."""
_LETTERS = {"D": "debug", "I": "info", "W": "warn", "E": "error", "F": "fatal", "A": "info"}
_PRIORITY = re.compile(r"<(\d{1,3})>")
_OFFSET = re.compile(r"([a-z]+)[+-]\d+")
"""Custom levels in slog: https://pkg.go.dev/log/slog#Level.String"""
_SEARCH_CHARS = 200
"""Characters at the beginning of a line in which its level is searched; later words belong to the message."""


def find_level(record: Record) -> Record:
    """Set the record's level from its fields, else from the beginning of its text.

    Words and field names of common libraries are recognised, also with colours (ANSI escapes),
    as well as numbers: those of pino and bunyan (10 to 60), of GELF, journald and syslog (`<34>`), of OpenTelemetry.
    A line without one keeps its level.

    >>> find_level(Record(b"2026-11-23 12:00:00 WARNING disk is filling")).level
    'warn'
    >>> find_level(Record(b"<11>Nov 23 12:00:00 host app: it failed")).level
    'error'
    """
    found = _find_in_fields(record.fields) if record.fields else None
    if found is None and not record.structured:
        text = record.text
        found = _find_in_text(
            ansi.without(text[:_SEARCH_CHARS]) if ansi.ESCAPE in text else text[:_SEARCH_CHARS]
        )
    if found is not None:
        record.level = found
    return record


def _find_in_fields(fields: dict[str, Any]) -> str | None:
    for name in _FIELDS:
        value = fields.get(name)
        if value is None:
            continue
        found = _WORDS.get(value) if type(value) is str else None
        if found or (found := _parse_value(value, fields)):
            return found
    return _elsewhere(fields)


def _parse_value(value: Any, fields: dict[str, Any]) -> str | None:
    if isinstance(value, str):
        return _parse_word(value, fields)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if 10 <= value <= 69:
        return LEVELS[value // 10 - 1]
    if 0 <= value < len(SEVERITIES) and "short_message" in fields:
        return SEVERITIES[value]
    return None


def _parse_word(value: str, fields: dict[str, Any]) -> str | None:
    word = ansi.without(value).strip().lower()
    if word.isascii() and word.isdigit() and len(word) <= 2:
        return _parse_value(int(word), fields)
    if offset := _OFFSET.fullmatch(word):
        word = offset[1]
    return _WORDS.get(word)


def _elsewhere(fields: dict[str, Any]) -> str | None:
    for name in ("severity_number", "severityNumber", "SeverityNumber"):
        number = fields.get(name)
        if isinstance(number, int) and 1 <= number <= 24:
            return LEVELS[(number - 1) // 4]
    priority = str(fields.get("PRIORITY", ""))
    if len(priority) == 1 and priority in "01234567":
        return SEVERITIES[int(priority)]
    if isinstance(log := fields.get("log"), dict) and (value := log.get("level")) is not None:
        return _parse_value(value, log)
    # Serilog's compact form leaves out its commonest level.
    return "info" if "@t" in fields and "@l" not in fields else None


def _find_in_text(head: str) -> str | None:
    if (letter := _LETTER.match(head)) is not None:
        return _LETTERS[letter[1] or letter[2]]
    if (console := _CONSOLE.match(head)) is not None:
        return _WORDS[console[1]]
    match = _IN_TEXT.search(head)
    if match is not None:
        return _WORDS.get((match[1] or match[2] or match[3]).lower())
    if (priority := _PRIORITY.match(head)) is not None and int(priority[1]) <= 191:
        return SEVERITIES[int(priority[1]) % 8]
    return None
