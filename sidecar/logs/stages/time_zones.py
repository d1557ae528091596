"""Time zones: parse the zone of a time, and find the default for times without one."""

from __future__ import annotations

import logging
import os
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache

from sidecar._errors import ConfigError

_log = logging.getLogger(__name__)

_LOCALTIME = "/etc/localtime"
_NUMERIC = re.compile(r"(?:UTC|GMT)?([+\-\u2212])(\d\d?)(?::?(\d\d))?")
_MAX_OFFSET_HOURS = 14
"""Largest offset of a zone from UTC."""
_ABBREVIATIONS = {
    "UTC": 0, "GMT": 0, "WET": 0, "WEST": 1, "CET": 1, "CEST": 2, "MEZ": 1, "MESZ": 2, "EET": 2, "EEST": 3, "MSK": 3,
    "EST": -5, "EDT": -4, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7, "AKST": -9, "AKDT": -8, "HST": -10,
    "BRT": -3, "ART": -3, "WAT": 1, "CAT": 2, "SAST": 2, "EAT": 3, "PKT": 5, "WIB": 7, "SGT": 8, "HKT": 8, "AWST": 8,
    "JST": 9, "KST": 9, "AEST": 10, "AEDT": 11, "NZST": 12, "NZDT": 13,
}  # fmt: skip
_AMBIGUOUS = frozenset(
    {"IST", "CST", "BST", "AST", "ADT", "ACST", "ACDT", "NST", "NDT", "PHT", "ICT", "SST", "GST"}
)
"""Names that several countries use, or whose offset is no whole hour: understood only if the zone itself is called so."""


def named(name: str) -> tzinfo:
    """Return the zone of this name.

    Raises:
        ConfigError: the zone is unknown.

    >>> named("UTC")
    datetime.timezone.utc
    """
    if name == "UTC":
        return UTC
    import zoneinfo  # half a megabyte, with what it asks Python's build: only for those who name another zone

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"no time zone {name!r}: write it like Europe/Berlin") from error


@lru_cache(maxsize=1)
def default() -> tzinfo:
    """Return the zone of times without one: that of `TZ`, else of /etc/localtime, else UTC. Logs once which one.

    A container sees the node's zone where the Pod mounts the node's /etc/localtime.
    """
    zone, why = (
        _load_from_variable()
        or _load_from_file()
        or (UTC, "neither TZ nor /etc/localtime names one")
    )
    _log.info("times without a zone are read as %s (%s); time_zone changes that", zone, why)
    return zone


def understood(written: str, moment: datetime, zone: tzinfo | None) -> tzinfo:
    """Return the zone that stands behind a time; `zone`, or the default, where none does.

    Raises:
        ValueError: something is written there that says a zone, and not which.

    >>> understood("CET", datetime(2026, 11, 23), None)
    datetime.timezone(datetime.timedelta(seconds=3600))
    """
    if written in ("Z", "z"):
        return UTC
    if written and (hours := _ABBREVIATIONS.get(written)) is not None:
        return timezone(timedelta(hours=hours))
    if numeric := _NUMERIC.fullmatch(written):
        sign = 1 if numeric[1] == "+" else -1
        minutes = int(numeric[3] or 0)
        if minutes >= 60 or int(numeric[2]) > _MAX_OFFSET_HOURS:
            raise ValueError(written)
        return timezone(sign * timedelta(hours=int(numeric[2]), minutes=minutes))
    if written and (written[0] in "+-\u2212" or written[:4] in ("UTC+", "UTC-", "GMT+", "GMT-")):
        raise ValueError(written)
    if "/" in written:
        return _load_named(written)
    local = default() if zone is None else zone
    if written in _AMBIGUOUS and moment.replace(tzinfo=local).tzname() != written:
        raise ValueError(written)
    return local  # what else stands there in capitals is the level


def _load_named(name: str) -> tzinfo:
    try:
        return named(name)
    except ConfigError as error:
        raise ValueError(name) from error


def _load_from_variable() -> tuple[tzinfo, str] | None:
    name = os.environ.get("TZ", "").removeprefix(":")
    if not name:
        return None
    try:
        return named(name), "TZ"
    except ConfigError:
        _log.warning("TZ=%s names no time zone that is known here", name)
        return None


def _load_from_file() -> tuple[tzinfo, str] | None:
    try:
        with open(_LOCALTIME, "rb") as file:
            import zoneinfo

            target = os.path.realpath(_LOCALTIME).partition("zoneinfo/")[2]
            zone = zoneinfo.ZoneInfo.from_file(file, key=target or "the node's")
    except (OSError, ValueError):
        return None
    return zone, _LOCALTIME
