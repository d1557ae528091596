"""Keep or drop lines by a pattern or a function."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.logs import regex
from sidecar.logs.records import Record, Stage


def keep(what: str | Callable[[Record], bool]) -> Stage:
    """Create a stage that keeps only lines that match a pattern, or for which a function returns true.

    Raises:
        ConfigError: the pattern is invalid (see `sidecar.logs.regex`).

    >>> errors = keep("ERROR")
    >>> errors(Record(b"INFO started")) is None
    True
    """
    wanted = _test(what)

    def stage(record: Record) -> Record | None:
        return record if wanted(record) else None

    return stage


def drop(what: str | Callable[[Record], bool]) -> Stage:
    """Create a stage that drops lines that match a pattern, or for which a function returns true.

    Raises:
        ConfigError: the pattern is invalid (see `sidecar.logs.regex`).

    >>> drop("/healthz")(Record(b"GET /healthz 200")) is None
    True
    """
    unwanted = _test(what)

    def stage(record: Record) -> Record | None:
        return None if unwanted(record) else record

    return stage


def _test(what: str | Callable[[Record], bool]) -> Callable[[Record], bool]:
    if callable(what):
        return what
    pattern = regex.compile_pattern(what)
    return lambda record: pattern.found(record.text)
