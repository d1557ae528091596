"""Parse values of a configuration file or a flag: sizes, durations, lists.

Each reader converts a value from YAML, or a string.
An invalid value raises `TypeError` or `ValueError` with a short reason; `read` adds the location.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sidecar._errors import ConfigError
from sidecar.process import quantities

Readers = Mapping[str, Callable[[Any], Any]]

_TRUTHS = {"true": True, "yes": True, "on": True, "1": True}
_TRUTHS |= {"false": False, "no": False, "off": False, "0": False}


def read(given: Mapping[str, Any], readers: Readers, where: str) -> dict[str, Any]:
    """Parse each value with the reader of its name.

    Raises:
        ConfigError: an unknown name (a similar one is suggested), or an invalid value.

    >>> read({"timeout": "10s"}, {"timeout": seconds}, "here")
    {'timeout': 10.0}
    >>> read({"timout": 1}, {"timeout": seconds}, "the sink")
    Traceback (most recent call last):
    sidecar._errors.ConfigError: the sink: there is no 'timout' (did you mean timeout?)
    """
    made = {}
    for name, value in given.items():
        if name not in readers:
            raise ConfigError(f"{where}: there is no {name!r} ({nearest(str(name), readers)})")
        try:
            made[name] = readers[name](value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {name}: {error}") from error
    return made


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint with the similar known names, or with all of them."""
    from difflib import get_close_matches  # uses 0.2 MB: imported only for a misspelt name

    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"


def text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{value!r} is no text (put it in quotes)")
    return str(value)


def texts(value: Any) -> list[str]:
    """Parse a list, or a string with commas."""
    if isinstance(value, str):
        return [one.strip() for one in value.split(",") if one.strip()]
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return [text(one) for one in value]


def patterns(value: Any) -> list[str]:
    """Parse a list, or one string: patterns may contain commas."""
    return [value] if isinstance(value, str) else texts(value)


def counts(value: Any) -> list[int]:
    return [count(one) for one in (value if isinstance(value, list) else texts(str(value)))]


def mapping(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no mapping (name: value)")
    made = {}
    for name, one in value.items():
        try:
            made[str(name)] = text(one)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from error
    return made


def truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    found = _TRUTHS.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"{value!r} is neither true nor false")
    return found


def count(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isascii() or not str(value).isdigit():
        raise ValueError(f"{value!r} is no whole number")
    return int(value)


def some(value: Any) -> int:
    """Parse an integer above zero."""
    if not (number := count(value)):
        raise ValueError("0 is too few: it must be at least 1")
    return number


def some_size(value: Any) -> int:
    """Parse a size above zero."""
    if not (number := size(value)):
        raise ValueError("0 is too small: it must be at least 1 byte")
    return number


def octal(value: Any) -> int:
    """Parse permissions as in chmod(1). YAML 1.1 parses an unquoted 0644 as octal already."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (
            value
            if value > 0o777 or not re.fullmatch("[0-7]{3}", str(value))
            else int(str(value), 8)
        )
    if not re.fullmatch("0?[0-7]{3}", str(value)):
        raise ValueError(f"{value!r} is no file mode: write it like '0644'")
    return int(str(value), 8)


def size(value: Any) -> int:
    """Parse bytes, with the suffixes of Kubernetes."""
    return quantities.size(str(value))


def seconds(value: Any) -> float:
    """Parse seconds, or a number with a unit."""
    return quantities.seconds(str(value))
