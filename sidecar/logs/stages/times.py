"""When a line was written, by what the line says."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any

from sidecar._errors import ConfigError
from sidecar.logs.records import Record, Stage

_FIELDS = ("time", "timestamp", "ts", "@timestamp", "datetime", "date", "asctime", "t")
_SECOND = 1_000_000_000
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9})\d*)?(Z|z| ?[+-]\d\d:?\d\d)?"
)
_YEARS = "YyGcxs"
_DAYS = "djUWVuaAwbBm" + _YEARS
"""Directives of strptime that say a year, and a date at all."""
_OTHER_LANGUAGES = re.compile(
    r"(?<![%A-Za-z])(?:yyyy|YYYY|MM|dd|DD|HH|hh|mm|ss|SSS|2006|15:04)(?![A-Za-z])"
)
"""Parts of a time as Java, .NET, moment.js and Go write them."""
_DAY = timedelta(days=1)
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
_LATEST = datetime(2200, 1, 1, tzinfo=UTC).timestamp()


def find_time(record: Record) -> Record:
    """Set the record's time from the usual fields, else from the beginning of its text.

    Understood: RFC 3339 and ISO 8601 to the nanosecond, Unix time in seconds, ms, µs or ns.
    A time without a zone is UTC. A line that names none keeps the time at which it was read.

    >>> find_time(Record(b"2026-11-23T13:21:51.000000007Z hello")).time
    1795440111000000007
    """
    if record.fields:
        for name in _FIELDS:
            if name in record.fields and (moment := _moment(record.fields[name])) is not None:
                record.time = moment
                return record
    if not record.structured:
        moment = nanoseconds(record.text[:40].lstrip("["))
        if moment is not None:
            record.time = moment
    return record


def parse_time(field: str, format: str | None = None, *, zone: str = "UTC") -> Stage:  # noqa: A002 (the word of strptime)
    """Make a stage that sets the record's time from one field.

    `format` is one of `datetime.strptime`; without it the forms of `find_time` are understood.
    A format without a year (syslog's `%b %d %H:%M:%S`), or without a date, means the last such moment
    before the line was read, give or take a day.
    `zone` (`Europe/Berlin`) is for times that name none themselves.

    Raises:
        ConfigError: there is no such zone, or the format can never fit.

    >>> stage = parse_time("at", "%d/%b/%Y:%H:%M:%S %z")
    >>> stage(Record(b"", fields={"at": "10/Oct/2000:13:55:36 -0700"})).time
    971211336000000000
    """
    local = _zone(zone)
    if format:
        _check(format)

    def stage(record: Record) -> Record:
        value = record.fields.get(field)
        if value is None:
            return record
        given = (
            _by_format(str(value), format, local, record.time) if format else _moment(value, local)
        )
        if given is not None:
            record.time = given
        return record

    return stage


def nanoseconds(text: str, zone: tzinfo = UTC) -> int | None:
    """Read the time at the beginning of a text; None if there is none.

    >>> nanoseconds("2026-11-23 13:21:51,250 +0100")
    1795436511250000000
    """
    match = _ISO.match(text)
    if match is None:
        return None
    date, clock, fraction, offset = match.groups()
    second = _second(f"{date}T{clock}", (offset or "").strip(), zone)
    if second is None:
        return None
    return second * _SECOND + (int(fraction.ljust(9, "0")) if fraction else 0)


# Lines come in order: the second is that of the line before, nearly always.
@lru_cache(maxsize=1024)
def _second(moment: str, offset: str, zone: tzinfo) -> int | None:
    try:
        parsed = datetime.fromisoformat(moment + ("+00:00" if offset in ("Z", "z") else offset))
    except ValueError:
        return None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=zone)
    second = parsed.timestamp()
    return int(second) if _EARLIEST <= second < _LATEST else None


def _moment(value: Any, zone: tzinfo = UTC) -> int | None:
    if isinstance(value, str):
        moment = nanoseconds(value, zone)
        if moment is not None:
            return moment
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _unix(value)


def _unix(value: float) -> int | None:
    """Seconds, ms, µs or ns: between 1990 and 2200 the four ranges do not meet."""
    for unit in (_SECOND, 1_000_000, 1_000, 1):
        if _EARLIEST * _SECOND <= value * unit < _LATEST * _SECOND:
            if isinstance(value, int):
                return value * unit
            whole = int(value)
            return whole * unit + round((value - whole) * unit)
    return None


def _by_format(text: str, form: str, zone: tzinfo, read_at: int) -> int | None:
    try:
        if not _names(form, _DAYS):
            read = datetime.fromtimestamp(read_at // _SECOND, zone)
            parsed = _parsed(f"{read:%Y-%m-%d} {text}", f"%Y-%m-%d {form}", zone)
            if parsed - read > _DAY / 2:
                parsed -= _DAY
        elif not _names(form, _YEARS):
            read = datetime.fromtimestamp(read_at // _SECOND, zone)
            # With the year in the text, since 29 February is no day of the year that strptime would take.
            parsed = _parsed(f"{read.year} {text}", f"%Y {form}", zone)
            if parsed - read > _DAY:
                parsed = _parsed(f"{read.year - 1} {text}", f"%Y {form}", zone)
        else:
            parsed = _parsed(text, form, zone)
        second = int(parsed.replace(microsecond=0).timestamp())
    except (ValueError, OverflowError):
        return None
    if not _EARLIEST <= second < _LATEST:
        return None
    return second * _SECOND + parsed.microsecond * 1000


def _parsed(text: str, form: str, zone: tzinfo) -> datetime:
    parsed = datetime.strptime(text, form)  # noqa: DTZ007 (the zone follows)
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=zone)


def _names(form: str, directives: str) -> bool:
    return any(sign in directives for sign in re.findall("%(.)", form))


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    import zoneinfo  # half a megabyte, with what it asks Python's build: only for those who name another zone

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError(f"no time zone {name!r}: write it like Europe/Berlin") from error


def _check(form: str) -> None:
    """Write a moment in this format, and read it: a directive that strptime does not know fits no line."""
    if not re.search("%[A-Za-z]", form):
        raise ConfigError(
            f"the format {form!r} names no part of a time: write it as strptime does, like %Y-%m-%d %H:%M:%S"
        )
    if found := _OTHER_LANGUAGES.search(form):
        raise ConfigError(
            f"the format {form!r} can fit no time: {found[0]!r} is no directive of strptime (write %Y, %m, %d, %H, %M, %S)"
        )
    sample = datetime(2026, 11, 23, 13, 21, 51, 250_000, tzinfo=UTC)
    # With a year, as `_by_format` reads it: strptime warns of a day without one.
    whole = form if _names(form, _YEARS) else f"%Y {form}"
    try:
        datetime.strptime(sample.strftime(whole), whole)  # noqa: DTZ007
    except ValueError as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"the format {form!r} cannot be used: {said}") from error
