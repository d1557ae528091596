"""Find the time of a line in the line itself."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any

from sidecar._errors import ConfigError
from sidecar.logs.records import Record, Stage
from sidecar.logs.stages import ansi, time_zones
from sidecar.process import metrics

_FIELDS = (
    "time", "timestamp", "ts", "@timestamp", "datetime", "date", "asctime", "t",
    "Timestamp", "@t", "Time", "TimeStamp", "timeStamp", "eventTime", "time_iso8601", "_time",
)  # fmt: skip
AHEAD = 3600 * 1_000_000_000
"""Nanoseconds that the time of a line may be ahead of the clock."""
_NS_PER_SECOND = 1_000_000_000
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9})\d*)?"
    r"([Zz](?![A-Za-z0-9])|(?: ?(?:UTC|GMT))?[+\-\u2212]\d[\d:]*| [+\-\u2212]\d\d[\d:]*| ?[A-Z]{3,5}(?![A-Za-z0-9])| ?[A-Z][a-z]+(?:/[A-Za-z_]+)+)?",
    re.ASCII,
)
_SEARCH_CHARS = 80
_MAX_UTC_CHARS = len("2026-11-23T13:21:51.123456789Z")
_TENS = [10 ** (9 - digits) for digits in range(10)]
_YEARS = "YyGcxs"
_DAYS = "djUWVuaAwbBm" + _YEARS
"""Directives of strptime that contain a year, and a date."""
_OTHER_LANGUAGES = re.compile(
    r"(?<![%A-Za-z])(?:yyyy|YYYY|MM|dd|DD|HH|hh|mm|ss|SSS|2006|15:04)(?![A-Za-z])"
)
"""Parts of time formats of Java, .NET, moment.js and Go."""
_DAY = timedelta(days=1)
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
_LATEST = datetime(2200, 1, 1, tzinfo=UTC).timestamp()


def find_time(record: Record) -> Record:
    """Set the record's time from the usual fields, else from the beginning of its text.

    Understood: RFC 3339 and ISO 8601 to the nanosecond, Unix time in seconds, ms, µs or ns.
    A time without a zone is in that of the node, where the volume says so (`TZ`, or /etc/localtime mounted), else UTC.
    A time whose zone is not understood (`IST` is used in three countries), or that lies more than an hour ahead,
    is not taken (`sidecar_logs_implausible_times_total` counts the latter).
    A line that names none keeps the time at which it was read.

    >>> find_time(Record(b"2026-11-23T13:21:51.000000007Z hello")).time
    1795440111000000007
    """
    return _find(record, None)


def find_time_in(zone: str) -> Stage:
    """Make a stage as `find_time`, with the zone (`Europe/Berlin`) of times that name none.

    Raises:
        ConfigError: there is no such zone.

    >>> find_time_in("Europe/Berlin")(Record(b"2026-11-23 14:21:51 hello")).time
    1795440111000000000
    """
    local = time_zones.named(zone)
    return lambda record: _find(record, local)


def parse_time(field: str, format: str | None = None, *, zone: str | None = None) -> Stage:  # noqa: A002 (the word of strptime)
    """Make a stage that sets the record's time from one field.

    `format` is one of `datetime.strptime`; without it the forms of `find_time` are understood.
    A format without a year (syslog's `%b %d %H:%M:%S`), or without a date, means the last such moment
    before the line was read, give or take a day.
    `zone` (`Europe/Berlin`) is for times that name none themselves; by default as for `find_time`.

    Raises:
        ConfigError: there is no such zone, or the format can never fit.

    >>> stage = parse_time("at", "%d/%b/%Y:%H:%M:%S %z")
    >>> stage(Record(b"", fields={"at": "10/Oct/2000:13:55:36 -0700"})).time
    971211336000000000
    """
    local = None if zone is None else time_zones.named(zone)
    if format:
        _check(format)

    def stage(record: Record) -> Record:
        value = record.fields.get(field)
        if value is None:
            return record
        if format:
            given = parse_format(str(value), format, local or time_zones.default(), record.time)
        else:
            given = _moment(value, local)
        if given is not None:
            set_time(record, given)
        return record

    return stage


def set_time(record: Record, moment: int) -> None:
    """Take the time that a line names, unless it lies hours ahead: a clock or a zone is wrong then.

    A receiver refuses such a line (Loki), or shows it as the newest for hours.
    """
    if (
        moment > record.time + AHEAD
        and record.time > _EARLIEST * _NS_PER_SECOND
        and _is_ahead(moment)
    ):
        return
    record.time = moment


def nanoseconds(text: str, zone: tzinfo | None = None) -> int | None:
    """Read the time at the beginning of a text; None if there is none, or one whose zone is not understood.

    >>> nanoseconds("2026-11-23 13:21:51,250 +0100")
    1795436511250000000
    >>> nanoseconds("2026-11-23 13:21:51 IST") is None
    True
    """
    # The form of nearly all that write JSON, in a fifth of the time.
    length = len(text)
    if 20 <= length <= _MAX_UTC_CHARS and text[-1] == "Z":
        fraction = text[20:-1]
        if length == 20 or (text[19] == "." and fraction.isdigit() and fraction.isascii()):
            moment = _utc(text[:19])
            if moment:
                return moment + int(fraction) * _TENS[length - 21] if fraction else moment
            if moment is not None:
                return None
    match = _ISO.match(text)
    if match is None:
        return None
    date, clock, fraction, offset = match.groups()
    second = _second(f"{date}T{clock}", offset or "", zone)
    if second is None:
        return None
    return second * _NS_PER_SECOND + (int(fraction.ljust(9, "0")) if fraction else 0)


def _find(record: Record, zone: tzinfo | None) -> Record:
    if fields := record.fields:
        for name in _FIELDS:
            if name in fields and (moment := _moment(fields[name], zone)) is not None:
                if moment <= record.time:
                    record.time = moment
                else:
                    set_time(record, moment)
                return record
    if not record.structured:
        head = record.text[:_SEARCH_CHARS]
        moment = nanoseconds(
            (ansi.without(head) if ansi.ESCAPE in head else head).lstrip("["), zone
        )
        if moment is not None:
            set_time(record, moment)
    return record


def _is_ahead(moment: int) -> bool:
    ahead = moment > time.time_ns() + AHEAD
    if ahead:
        metrics.LOGS_IMPLAUSIBLE_TIMES.inc()
    return ahead


@lru_cache(maxsize=1024)
def _utc(moment: str) -> int | None:
    """Return the nanoseconds of a second in UTC; 0 for one that does not exist, None if it has another form."""
    if moment[10] != "T" or moment[4] != "-":
        return None
    return (_second(moment, "Z", None) or 0) * _NS_PER_SECOND


# Lines come in order: the second is that of the line before, nearly always.
@lru_cache(maxsize=1024)
def _second(moment: str, written: str, zone: tzinfo | None) -> int | None:
    try:
        naive = datetime.fromisoformat(moment)
        parsed = naive.replace(tzinfo=time_zones.understood(written.strip(), naive, zone))
        second = parsed.timestamp()
    except (ValueError, OverflowError):
        return None
    return int(second) if _EARLIEST <= second < _LATEST else None


def _moment(value: Any, zone: tzinfo | None = None) -> int | None:
    if isinstance(value, str):
        moment = nanoseconds(value, zone)
        if moment is not None:
            return moment
        if ansi.ESCAPE in value and (bare := ansi.without(value)) != value:
            return _moment(bare, zone)
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _unix(value)


def _unix(value: float) -> int | None:
    """Seconds, ms, µs or ns: between 1990 and 2200 the four ranges do not meet."""
    for unit in (_NS_PER_SECOND, 1_000_000, 1_000, 1):
        if _EARLIEST * _NS_PER_SECOND <= value * unit < _LATEST * _NS_PER_SECOND:
            if isinstance(value, int):
                return value * unit
            whole = int(value)
            return whole * unit + round((value - whole) * unit)
    return None


def parse_format(text: str, form: str, zone: tzinfo, read_at: int) -> int | None:
    try:
        if not _names(form, _DAYS):
            read = datetime.fromtimestamp(read_at // _NS_PER_SECOND, zone)
            parsed = _parsed(f"{read:%Y-%m-%d} {text}", f"%Y-%m-%d {form}", zone)
            if parsed - read > _DAY / 2:
                parsed -= _DAY
        elif not _names(form, _YEARS):
            read = datetime.fromtimestamp(read_at // _NS_PER_SECOND, zone)
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
    return second * _NS_PER_SECOND + parsed.microsecond * 1000


def _parsed(text: str, form: str, zone: tzinfo) -> datetime:
    parsed = datetime.strptime(text, form)  # noqa: DTZ007 (the zone follows)
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=zone)


def _names(form: str, directives: str) -> bool:
    return any(sign in directives for sign in re.findall("%(.)", form))


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
    # With a year, as `parse_format` reads it: strptime warns of a day without one.
    whole = form if _names(form, _YEARS) else f"%Y {form}"
    try:
        datetime.strptime(sample.strftime(whole), whole)  # noqa: DTZ007
    except ValueError as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"the format {form!r} cannot be used: {said}") from error
