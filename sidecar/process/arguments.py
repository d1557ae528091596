"""Validation of the arguments of public functions, before anything happens.

Each function returns the normalised value, or raises `ConfigError` that names the argument,
shows the value, and says what is allowed. The wording is that of the command line.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from sidecar import _errors
from sidecar.process import quantities

_MAX_GID = 2**32 - 2
"""fchown(2) interprets the last 32-bit number as "unchanged"."""
_MAX_PORT = 65535


def check_path(name: str, value: object) -> str:
    """Take a path: a `str` or `os.PathLike` of text, not empty, without a null byte."""
    try:
        found = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        found = None
    if not isinstance(found, str) or not found or "\0" in found:
        raise _errors.ConfigError(
            f"{name}: {value!r} is no path (a str or os.PathLike that is not empty)"
        )
    return found


def check_integer(name: str, value: object, *, least: int = 0, unit: str = "") -> int:
    """Take a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise argument_error(name, value, f"a whole number{unit and f' of {unit}'} from {least} on")
    return value


def check_size(name: str, value: object, *, least: int = 0) -> int:
    """Take a number of bytes, or a text with a suffix of Kubernetes, as the command does.

    >>> check_size("max_size", "64Mi"), check_size("max_size", 512)
    (67108864, 512)
    """
    if isinstance(value, str):
        try:
            value = quantities.size(value)
        except ValueError:
            raise argument_error(
                name, value, "a size: bytes, or a number with k, M, G, Ki, Mi or Gi"
            ) from None
    return check_integer(name, value, least=least, unit="bytes")


def check_seconds(name: str, value: object, *, zero: bool = True) -> float:
    """Take a finite number of seconds that is not negative, and not 0 unless `zero`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (value > 0 or (zero and value == 0))
        or not math.isfinite(value)
    ):
        raise argument_error(
            name, value, "a number of seconds from 0 on" if zero else "a number of seconds above 0"
        )
    return value


def check_choice(name: str, value: object, allowed: Collection[str]) -> str:
    """Take one of some words."""
    if not isinstance(value, str) or value not in allowed:
        raise argument_error(name, value, f"one of {', '.join(allowed)}")
    return value


def check_mode(name: str, value: object) -> int:
    """Take the permissions of a file."""
    if isinstance(value, bool) or not isinstance(value, int) or value & ~0o777:
        shown = oct(value) if isinstance(value, int) else value
        raise argument_error(name, value, "permissions in octal, as in 0o644", shown=shown)
    return value


def check_group(name: str, value: object) -> int | None:
    """Take the number of a group, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_GID:
        raise _errors.ConfigError(
            f"{name}: there is no group {value!r}: it is a number from 0 to {_MAX_GID}, or None"
        )
    return value


def check_port(name: str, value: object) -> int:
    """Take a TCP port, 0 for any free one."""
    if check_integer(name, value) > _MAX_PORT:
        raise argument_error(name, value, f"a port from 1 to {_MAX_PORT}, or 0 for any free one")
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_flag(name: str, value: object) -> bool:
    """Take True or False: a text such as "no" would count as True."""
    if not isinstance(value, bool):
        raise argument_error(name, value, "True or False")
    return value


def check_instance(name: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Take an object of a class; `what` says which one that is."""
    if not isinstance(value, kind):
        raise argument_error(name, value, what)


def check_plain_function(name: str, value: object, what: str) -> None:
    """Accept a function that returns a value: not a coroutine function, which would not be awaited."""
    if not callable(value):
        raise argument_error(name, value, f"{what}, which is called")
    if is_async(value):
        raise argument_error(
            name, value, f"{what}; a coroutine function is not awaited: take a plain one"
        )


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether calling it returns a coroutine: an `async def`, also behind `partial` or `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 (its kind is asked for, not whether it is there)
    )


def check_strings(name: str, value: object) -> tuple[str, ...]:
    """Accept a collection of `str`; a single `str` is rejected, because it is a collection of its letters."""
    given = value if isinstance(value, Collection) and not isinstance(value, str) else None
    if given is None or not all(isinstance(one, str) and one for one in given):
        raise argument_error(name, value, 'a collection of texts, such as ("*.conf", "*.json")')
    return tuple(given)


def check_mapping(name: str, value: object) -> None:
    """Take a mapping. Raises `TypeError`."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} takes a mapping of names to contents, not {type(value).__name__}")


def check_options(name: str, value: object) -> dict[str, Any]:
    """Take a mapping of names to values, or None for none; a copy is returned."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise argument_error(name, value, "a mapping of names to values")
    return dict(value)


def words(name: str, value: object) -> tuple[str, ...]:
    """Accept several strings; a single string would be split into its letters."""
    found = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (None,)
    if not all(isinstance(one, str) for one in found):
        raise argument_error(name, value, "several texts, as in a list")
    return found


def check_etags(name: str, value: object) -> tuple[str, ...] | None:
    """Take entity tags, one or several; a version without quotes is the tag of that version, and `*` is any.

    >>> check_etags("if_match", "a665a459"), check_etags("if_match", ['"a665a459"', "*"])
    (('"a665a459"',), ('"a665a459"', '*'))
    """
    if value is None:
        return None
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, Collection) or not all(isinstance(one, str) for one in given):
        raise argument_error(
            name, value, "an entity tag, a version, or several of them, each a str"
        )
    return tuple(_tag(one) for one in given)


def argument_error(
    name: str, value: object, allowed: str, *, shown: object = None
) -> _errors.ConfigError:
    """Return the error for an invalid value."""
    text = str(shown) if shown is not None and shown is not value else repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return _errors.ConfigError(f"{name} must be {allowed}, not {text}")


def _tag(value: str) -> str:
    value = value.strip()
    return value if value == "*" or value.startswith(('"', "W/")) else f'"{value}"'
