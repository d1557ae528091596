r"""Conditions of a route: which records a sink gets.

    when: {min_level: warn}
    when: {level: [error, fatal], file: "/var/log/nginx/*"}
    when: {fields: {status: "^5"}, not: {text: /healthz}}
    when: {any: [{labels: {app: web}}, {text: payment}]}

All members of a mapping must be true. A string is a pattern for the text of the line.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Any

from sidecar.logs import json_encoding, regex
from sidecar.logs.records import Record
from sidecar.logs.stages.severity import LEVELS
from sidecar.process import config_types

Condition = Callable[[Record], bool]


def make_condition(given: Any) -> Condition:
    """Create a condition from a configuration.

    Raises:
        TypeError, ValueError: the condition is invalid; the message is a short reason. For patterns: ConfigError.

    >>> holds = make_condition({"min_level": "warn", "not": {"text": "/healthz"}})
    >>> holds(Record(b"GET / 500", level="error")), holds(Record(b"GET / 200", level="info"))
    (True, False)
    """
    if isinstance(given, str):
        return _text(given)
    if not isinstance(given, dict) or not given:
        raise TypeError(f"{given!r} is no condition: write it like {{min_level: warn}}")
    made = []
    for name, value in given.items():
        if name not in _TESTS:
            raise ValueError(
                f"there is no condition {name!r} ({config_types.nearest(str(name), _TESTS)})"
            )
        made.append(_TESTS[name](value))
    return made[0] if len(made) == 1 else lambda record: all(one(record) for one in made)


def _text(given: Any) -> Condition:
    found = _pattern(given)
    return lambda record: found(record.text)


def _level(given: Any) -> Condition:
    wanted = frozenset(_known_level(one) for one in config_types.texts(given))
    return lambda record: record.level in wanted


def _min_level(given: Any) -> Condition:
    wanted = frozenset(LEVELS[LEVELS.index(_known_level(given)) :])
    return lambda record: record.level in wanted


def _file(given: Any) -> Condition:
    globs = [re.compile(fnmatch.translate(one)) for one in config_types.patterns(given)]
    return lambda record: any(one.match(record.file) for one in globs)


def _fields(given: Any) -> Condition:
    return _members(given, lambda record: record.fields)


def _labels(given: Any) -> Condition:
    return _members(given, lambda record: record.labels)


def _any(given: Any) -> Condition:
    if not isinstance(given, list) or not given:
        raise TypeError(f"{given!r} is no list of conditions")
    made = [make_condition(one) for one in given]
    return lambda record: any(one(record) for one in made)


def _negate(given: Any) -> Condition:
    unwanted = make_condition(given)
    return lambda record: not unwanted(record)


_TESTS: Mapping[str, Callable[[Any], Condition]] = {
    "text": _text,
    "level": _level,
    "min_level": _min_level,
    "file": _file,
    "fields": _fields,
    "labels": _labels,
    "any": _any,
    "not": _negate,
}


def _members(given: Any, of: Callable[[Record], Mapping[str, Any]]) -> Condition:
    if not isinstance(given, dict) or not given:
        raise TypeError(f"{given!r} is no mapping (name: pattern)")
    made = [(str(name), _pattern(pattern)) for name, pattern in given.items()]

    def holds(record: Record) -> bool:
        members = of(record)
        for name, found in made:
            value = _member(members, name)
            if value is None or not found(
                value if isinstance(value, str) else json_encoding.value(value)
            ):
                return False
        return True

    return holds


def _member(members: Mapping[str, Any], name: str) -> Any:
    """Return a member by its name or by a dotted path (`http.status`); None if it is missing."""
    if name in members:
        return members[name]
    found: Any = members
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _pattern(given: Any) -> Callable[[str], bool]:
    """Return a function that searches patterns in a text. Numbers and booleans are compared as text."""
    if isinstance(given, list):
        made = [_pattern(one) for one in given]
        return lambda text: any(one(text) for one in made)
    text = given if isinstance(given, str) else json_encoding.value(given)
    return regex.compile_pattern(text).found


def _known_level(given: Any) -> str:
    if given not in LEVELS:
        raise ValueError(f"{given!r} is no level: there are {', '.join(LEVELS)}")
    return str(given)
