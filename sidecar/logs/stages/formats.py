"""Parse the formats of Docker's json-file driver, syslog, klog, and columns (CSV)."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from datetime import tzinfo
from functools import lru_cache
from typing import Any

import orjson

from sidecar._errors import ConfigError
from sidecar.logs.records import Record, Stage
from sidecar.logs.stages import parse as parsing
from sidecar.logs.stages import time_zones, timestamp
from sidecar.logs.stages.severity import SEVERITIES

_FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "security", "console", "solaris-cron", *(f"local{number}" for number in range(8)),
)  # fmt: skip
_SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_PRIORITY = r"(?:<(\d{1,3})>)"
_RFC5424 = re.compile(
    _PRIORITY + r"([1-9]\d{0,2}) (\S+) (\S+) (\S+) (\S+) (\S+) (-|(?:\[(?:[^\]\\\"]|\\.|\"(?:[^\"\\]|\\.)*+\")*+\])+)(?: (.*))?",
    re.DOTALL,
)  # fmt: skip
_RFC3164 = re.compile(
    _PRIORITY + r"?([A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S+) (\S+) (?:([^\s:\[]{1,128})(?:\[([^\]\s]*)\])?: ?)?(.*)",
    re.DOTALL,
)  # fmt: skip
_ELEMENT = re.compile(r"\[([^ \]]+)((?:[^\]\\\"]|\\.|\"(?:[^\"\\]|\\.)*+\")*+)\]")
_PARAMETER = re.compile(r' ([^ =]+)="((?:[^"\\]|\\.)*+)"')
_KLOG = re.compile(
    r"([IWEF])(\d{4} \d\d:\d\d:\d\d\.\d{1,6}) +(\d+) ([^\s:\]]+:\d+)\] (.*)", re.DOTALL
)
_KLOG_MESSAGE = re.compile(r'"((?:[^"\\]|\\.)*+)"(?= |$)(.*)', re.DOTALL)
_KLOG_LEVELS = {"I": "info", "W": "warn", "E": "error", "F": "fatal"}
_NIL = "-"
_NS_PER_MINUTE = 60 * 1_000_000_000
"""Which year is meant does not depend on less."""


def parse_docker(record: Record) -> Record:
    r"""Parse the format of Docker's json-file driver: `log`, `stream`, `time`, `attrs`.

    Lines longer than 16 KiB are split by Docker; with `DOCKER_LINES` they arrive as one record, and are joined here.
    (https://docs.docker.com/engine/logging/drivers/json-file/)

    >>> record = parse_docker(Record(rb'{"log":"it failed\n","stream":"stderr","time":"2026-11-23T13:21:51.5Z"}'))
    >>> record.text, record.fields, record.time
    ('it failed', {'stream': 'stderr'}, 1795440111500000000)
    """
    pieces = [_docker(line) for line in record.raw.split(b"\n")]
    if not all(pieces):
        return record
    first = pieces[0]
    assert first is not None  # noqa: S101 (`all` has looked)
    record.text = "".join(piece["log"] for piece in pieces if piece).removesuffix("\n")
    more: dict[str, Any] = {name: first[name] for name in ("stream", "attrs") if name in first}
    record.fields = {**record.fields, **more}
    moment = timestamp.nanoseconds(str(first.get("time", "")))
    if moment is not None:
        timestamp.set_time(record, moment)
    return record


def parse_syslog(record: Record) -> Record:
    """Parse syslog (RFC 5424 or 3164), also without the priority as in files; set fields, level and time.

    The names are `hostname`, `appname`, `procid`, `msgid`, `facility`, `severity`, `timestamp`, `structured_data`, `message`.
    (https://www.rfc-editor.org/rfc/rfc5424#section-6, https://www.rfc-editor.org/rfc/rfc3164#section-4)

    >>> record = parse_syslog(Record(b"<34>1 2026-11-23T13:21:51Z web su 7 ID47 - it failed"))
    >>> record.level, record.fields["facility"], record.fields["appname"], record.fields["message"]
    ('fatal', 'auth', 'su', 'it failed')
    """
    return _syslog(record, None)


def parse_syslog_in(zone: str) -> Stage:
    """Create a stage as `parse_syslog`, with a zone for times without one (all of RFC 3164).

    Raises:
        ConfigError: the zone is unknown.

    >>> parse_syslog_in("UTC")(Record(b"Nov 23 13:21:51 web su: x", time=1795440112 * 10**9)).time
    1795440111000000000
    """
    local = time_zones.named(zone)
    return lambda record: _syslog(record, local)


def parse_klog(record: Record) -> Record:
    """Parse klog and glog: `level`, `thread`, `source`, `message`, and the pairs of a structured line.

    (https://github.com/kubernetes/klog, https://github.com/kubernetes/community/blob/master/contributors/devel/sig-instrumentation/logging.md)

    >>> parse_klog(Record(b'I1123 13:21:51.000001   1 pod.go:7] "Updated" pod="web-0"')).fields["pod"]
    'web-0'
    """
    record = parsing.parse_with(record, _klog)
    if record.structured and (match := _KLOG.match(record.text)):
        record.level = _KLOG_LEVELS[match[1]]
        _take_time(record, match[2], "%m%d %H:%M:%S", None)
    return record


def parse_csv(columns: Sequence[str], delimiter: str = ",", quote: str = '"') -> Stage:
    r"""Create a stage that parses columns into fields of these names; an empty name skips its column.

    A line with another number of columns, or a header with the names, is passed on unchanged.

    Raises:
        ConfigError: no columns, or a delimiter of more than one character.

    >>> parse_csv(["verb", "", "status"])(Record(b'GET,"/a,b",200')).fields
    {'verb': 'GET', 'status': '200'}
    """
    names = list(columns)
    if not any(names) or len(delimiter) != 1 or len(quote) != 1 or delimiter == quote:
        raise ConfigError(
            f"csv needs the names of its columns, and one character each as delimiter and quote, not {names!r}, {delimiter!r}, {quote!r}"
        )

    def parse(raw: bytes) -> dict[str, Any]:
        try:
            rows = list(
                csv.reader(
                    [raw.decode("utf-8", "replace")],
                    delimiter=delimiter,
                    quotechar=quote,
                    strict=True,
                )
            )
        except csv.Error:
            return {}
        if len(rows) != 1 or len(rows[0]) != len(names) or rows[0] == names:
            return {}
        return {name: value for name, value in zip(names, rows[0], strict=True) if name}

    return lambda record: parsing.parse_with(record, parse)


def _docker(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b'{"log":"'):
        return None
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found.get("log"), str) else None


def _syslog(record: Record, zone: tzinfo | None) -> Record:
    record = parsing.parse_with(record, _syslog_fields)
    if not record.structured:
        return record
    fields = record.fields
    if (severity := fields.get("severity")) in _SEVERITIES:
        record.level = SEVERITIES[_SEVERITIES.index(severity)]
    stamp = fields.get("timestamp")
    if isinstance(stamp, str):
        if stamp[:1].isdigit():
            if (moment := timestamp.nanoseconds(stamp, zone)) is not None:
                timestamp.set_time(record, moment)
        else:
            _take_time(record, stamp, "%b %d %H:%M:%S", zone)
    return record


def _take_time(record: Record, stamp: str, form: str, zone: tzinfo | None) -> None:
    second, _, fraction = stamp.partition(".")
    read_at = record.time // _NS_PER_MINUTE * _NS_PER_MINUTE
    moment = _by_format(second, form, zone or time_zones.default(), read_at)
    if moment is not None:
        timestamp.set_time(record, moment + int(fraction.ljust(9, "0") or 0))


# Cached, since lines are in order and strptime takes as long as everything else together.
_by_format = lru_cache(maxsize=1024)(timestamp.parse_format)


def _syslog_fields(raw: bytes) -> dict[str, Any]:
    text = raw.decode("utf-8", "replace")
    made: dict[str, Any] = {}
    if match := _RFC5424.fullmatch(text):
        priority, version, *named, data, message = match.groups()
        made = {"version": int(version)}
        names = ("timestamp", "hostname", "appname", "procid", "msgid")
        made |= {name: one for name, one in zip(names, named, strict=True) if one != _NIL}
        if data != _NIL:
            made["structured_data"] = _structured(data)
        made["message"] = (message or "").removeprefix("\ufeff")
    elif match := _RFC3164.fullmatch(text):
        priority, stamp, host, app, process, message = match.groups()
        names = ("timestamp", "hostname", "appname", "procid", "message")
        found = zip(names, (stamp, host, app, process, message), strict=True)
        made = {name: one for name, one in found if one is not None}
    else:
        return {}
    if priority is not None:
        if (number := int(priority)) > 191:
            return {}
        made |= {"facility": _FACILITIES[number // 8], "severity": _SEVERITIES[number % 8]}
    return made


def _structured(data: str) -> dict[str, dict[str, str]]:
    return {
        element[1]: {
            name: re.sub(r'\\(["\\\]])', r"\1", value)
            for name, value in _PARAMETER.findall(element[2])
        }
        for element in _ELEMENT.finditer(data)
    }


def _klog(raw: bytes) -> dict[str, Any]:
    match = _KLOG.fullmatch(raw.decode("utf-8", "replace"))
    if match is None:
        return {}
    letter, _stamp, thread, source, text = match.groups()
    made: dict[str, Any] = {"level": _KLOG_LEVELS[letter], "thread": int(thread), "source": source}
    structured = _KLOG_MESSAGE.fullmatch(text)
    if structured is None:
        return {**made, "message": text}
    pairs = parsing.logfmt(structured[2].encode())
    message = parsing.logfmt(b'm="' + structured[1].encode() + b'"').get("m", "")
    return {**pairs, **made, "message": message}
