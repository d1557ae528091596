"""Sizes and times in text form, on a command line, in a variable, or in a file."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+) ?([kmg]i?|)b?", re.ASCII | re.IGNORECASE)
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+) ?(ms|s|m|h|)", re.ASCII)
_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def size(value: str) -> int:
    """Return a number of bytes; it may have a suffix of Kubernetes. Raises `ValueError`.

    >>> size("64Mi"), size("10M"), size("1k"), size("512")
    (67108864, 10000000, 1000, 512)
    """
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is no size: bytes, or a number with k, M, G, Ki, Mi or Gi")
    return int(found[1]) * _SIZES[found[2].lower()]


def seconds(value: str) -> float:
    """Return a time in seconds; it may have a unit. Raises `ValueError`.

    >>> seconds("0.5"), seconds("500ms"), seconds("10s"), seconds("2m")
    (0.5, 0.5, 10.0, 120.0)
    """
    found = _TIME.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is no time: seconds, or a number with ms, s, m or h")
    return float(found[1]) * _TIMES[found[2]]


def format_size(count: int) -> str:
    """Return a number of bytes as people read it, in the form that `size` takes.

    >>> format_size(192 << 20), format_size(1000)
    ('192Mi', '1000')
    """
    for factor, suffix in ((1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if count and not count % factor:
            return f"{count // factor}{suffix}"
    return str(count)
