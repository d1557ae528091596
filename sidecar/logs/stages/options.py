"""Create stages from a configuration: `parse: json`, `rate_limit: {per_second: 10, by: user}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sidecar.logs import stages
from sidecar.logs.records import Stage
from sidecar.logs.stages import conditions
from sidecar.process import config_types

Maker = Callable[[Any, str | None], list[Stage]]
"""A function of the configured value, and the zone of times without one."""


def _parse(given: Any, zone: str | None) -> list[Stage]:
    """Add stages that find level and time after a parser; they do not change the line."""
    when = stages.find_time if zone is None else stages.find_time_in(zone)
    found: list[Stage] = [stages.find_level, when]
    syslog = stages.parse_syslog if zone is None else stages.parse_syslog_in(zone)
    forms: dict[str, list[Stage]] = {
        "json": [stages.parse_json, *found],
        "logfmt": [stages.parse_logfmt, *found],
        "cri": [stages.parse_cri, stages.find_level],  # the time is that of the container runtime
        "docker": [stages.parse_docker, stages.find_level],
        "syslog": [syslog, stages.find_level],
        "klog": [stages.parse_klog],
        "none": found,
        "text": found,
    }
    match given:
        case str() if given in forms:
            return forms[given]
        case {"regex": str(pattern)}:
            return [stages.parse_regex(pattern), *found]
        case {"csv": columns}:
            return [_csv(columns), *found]
    raise ValueError(
        f"{given!r} is no form: json, logfmt, cri, docker, syslog, klog, text, csv:COLUMNS or regex:PATTERN"
    )


def _csv(given: Any) -> Stage:
    if isinstance(given, str):
        return stages.parse_csv([one.strip() for one in given.split(",")])
    if not isinstance(given, dict):
        return stages.parse_csv([str(one) for one in given] if isinstance(given, list) else [])
    readers: config_types.Readers = {
        "columns": list,
        "delimiter": config_types.text,
        "quote": config_types.text,
    }
    return stages.parse_csv(**{"columns": [], **config_types.read(given, readers, "csv")})


def _redact(given: Any, _zone: str | None) -> list[Stage]:
    if isinstance(given, dict):
        read = config_types.read(
            given, {"pattern": config_types.text, "with": config_types.text}, "redact"
        )
        if "pattern" not in read:
            raise ValueError("`pattern:` is missing")
        return [stages.redact(read["pattern"], read.get("with", "***"))]
    return [stages.redact(pattern) for pattern in config_types.patterns(given)]


def _time(given: Any, zone: str | None) -> list[Stage]:
    if given is None:
        return [stages.find_time if zone is None else stages.find_time_in(zone)]
    readers: config_types.Readers = {
        "field": config_types.text,
        "format": config_types.text,
        "zone": config_types.text,
    }
    read = config_types.read({"field": given} if isinstance(given, str) else given, readers, "time")
    if "field" not in read:
        raise ValueError("`field:` is missing")
    return [stages.parse_time(**{"zone": zone, **read})]


def _add(given: Any, _zone: str | None) -> list[Stage]:
    if not isinstance(given, dict) or not given:
        raise TypeError(f"{given!r} is no mapping (name: value)")
    return [stages.add_fields(**{str(name): value for name, value in given.items()})]


def _rename(given: Any, _zone: str | None) -> list[Stage]:
    names = config_types.mapping(given)
    return [stages.rename_fields(**names)]


def _remove(given: Any, _zone: str | None) -> list[Stage]:
    return [stages.remove_fields(*config_types.texts(given))]


def _keep(given: Any, _zone: str | None) -> list[Stage]:
    if isinstance(given, dict):
        return [stages.keep(conditions.make_condition(given))]
    return [stages.keep(pattern) for pattern in config_types.patterns(given)]


def _drop(given: Any, _zone: str | None) -> list[Stage]:
    if isinstance(given, dict):
        return [stages.drop(conditions.make_condition(given))]
    return [stages.drop(pattern) for pattern in config_types.patterns(given)]


def _level(_given: Any, _zone: str | None) -> list[Stage]:
    return [stages.find_level]


def _strip_ansi(_given: Any, _zone: str | None) -> list[Stage]:
    return [stages.strip_ansi]


def _min_level(given: Any, _zone: str | None) -> list[Stage]:
    return [stages.keep_level(config_types.text(given))]


def _make_single_value_maker(
    name: str, main: str, readers: config_types.Readers, make: Callable[..., Stage]
) -> Maker:
    """Parse a stage that takes a single value, or a mapping with all options."""

    def maker(given: Any, _zone: str | None) -> list[Stage]:
        read = config_types.read(given if isinstance(given, dict) else {main: given}, readers, name)
        if main not in read:
            raise ValueError(f"`{main}:` is missing")
        return [make(**read)]

    return maker


def _deduplicate(given: Any, _zone: str | None) -> list[Stage]:
    readers: config_types.Readers = {"window": config_types.seconds, "by": config_types.texts}
    mapping = given if isinstance(given, dict) else {} if given is None else {"window": given}
    return [stages.deduplicate(**config_types.read(mapping, readers, "deduplicate"))]


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list of numbers")
    return [float(one) for one in value]


MAKERS: Mapping[str, Maker] = {
    "parse": _parse,
    "level": _level,
    "time": _time,
    "keep": _keep,
    "drop": _drop,
    "min_level": _min_level,
    "redact": _redact,
    "add": _add,
    "rename": _rename,
    "remove": _remove,
    "strip_ansi": _strip_ansi,
    "sample": _make_single_value_maker(
        "sample", "share", {"share": _number, "by": config_types.text}, stages.sample
    ),
    "rate_limit": _make_single_value_maker(
        "rate_limit",
        "per_second",
        {"per_second": _number, "by": config_types.text, "burst": config_types.some},
        stages.rate_limit,
    ),
    "deduplicate": _deduplicate,
    "count": _make_single_value_maker(
        "count",
        "name",
        {"name": config_types.text, "labels": config_types.mapping},
        stages.count_lines,
    ),
    "histogram": _make_single_value_maker(
        "histogram",
        "name",
        {
            "name": config_types.text,
            "field": config_types.text,
            "buckets": _numbers,
            "labels": config_types.mapping,
        },
        stages.observe_field,
    ),
}
