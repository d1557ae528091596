"""Regular expressions whose time grows with the line, never with its square or worse.

A line comes from an application, and sometimes from whoever attacks it.
Python's `re` backtracks: one line of 40 characters can keep `(a+)+$` busy for hours,
and nothing can interrupt it, so the collector would stand still with all files and probes.
A time limit (as the `regex` package has) only turns that into a line nobody has looked at.
RE2 cannot be made to stall: it knows no construct that needs backtracking, and says so when it meets one
(look-around, references to groups: https://github.com/google/re2/wiki/Syntax).

A pattern without special characters is searched for as plain text, which is faster still.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from sidecar._errors import ConfigError

_SPECIAL = frozenset("\\.^$*+?{}[]|()")
_MEMORY = 8 << 20
"""Bytes a compiled pattern may use. RE2's own default; it also bounds the work for each byte of a line."""


class Pattern(Protocol):
    """What stages need of a compiled expression."""

    names: Sequence[str]
    """The named groups, in order."""

    def found(self, text: str) -> bool:
        """Tell whether it matches anywhere in the text."""

    def groups(self, text: str) -> dict[str, str] | None:
        """Return the named groups that took part in the first match; None without a match."""

    def replaced(self, text: str, replacement: str) -> tuple[str, int]:
        r"""Replace each match, and return how many there were; `\1` and `\g<name>` stand for groups."""


def compiled(pattern: str, *, ignore_case: bool = False) -> Pattern:
    r"""Compile a pattern.

    Raises:
        ConfigError: no valid pattern, or one that RE2 leaves out; the message says what and where.

    >>> compiled(r"(?P<verb>GET|POST) (?P<path>\S+)").groups("GET /healthz 200")
    {'verb': 'GET', 'path': '/healthz'}
    >>> compiled("(?=x)")
    Traceback (most recent call last):
    sidecar._errors.ConfigError: the pattern '(?=x)' cannot be used: invalid perl operator: (?= (syntax: RE2, without look-around and back-references)
    """
    if pattern and not ignore_case and _SPECIAL.isdisjoint(pattern):
        return _Plain(pattern)
    return _Re2(pattern, ignore_case=ignore_case)


class _Plain:
    names: Sequence[str] = ()

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return f"<Pattern {self._text!r}>"

    def found(self, text: str) -> bool:
        return self._text in text

    def groups(self, text: str) -> dict[str, str] | None:
        return {} if self._text in text else None

    def replaced(self, text: str, replacement: str) -> tuple[str, int]:
        count = text.count(self._text)
        return (text.replace(self._text, replacement), count) if count else (text, 0)


class _Re2:
    def __init__(self, pattern: str, *, ignore_case: bool) -> None:
        try:
            import re2  # type: ignore[import-untyped]
        except ImportError as error:
            raise ConfigError(
                f"the pattern {pattern!r} needs RE2: pip install google-re2"
            ) from error
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _MEMORY
        options.case_sensitive = not ignore_case
        try:
            self._regexp: Any = re2.compile(pattern, options)
        except re2.error as error:
            raise ConfigError(
                f"the pattern {pattern!r} cannot be used: {_said(error)}"
                " (syntax: RE2, without look-around and back-references)"
            ) from error
        groups = cast("dict[str, int]", self._regexp.groupindex)
        self.names: Sequence[str] = tuple(sorted(groups, key=groups.__getitem__))

    def __repr__(self) -> str:
        return f"<Pattern {self._regexp.pattern!r}>"

    def found(self, text: str) -> bool:
        return self._regexp.search(_clean(text)) is not None

    def groups(self, text: str) -> dict[str, str] | None:
        match = self._regexp.search(_clean(text))
        if match is None:
            return None
        found = match.groupdict()
        return {name: found[name] for name in self.names if found[name] is not None}

    def replaced(self, text: str, replacement: str) -> tuple[str, int]:
        changed, count = self._regexp.subn(replacement, _clean(text))
        return (changed, count) if count else (text, 0)


def _clean(text: str) -> str:
    """RE2 works on UTF-8, which has no word for lone surrogates (a stage may have made one)."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


def _said(error: Exception) -> str:
    said = error.args[0] if error.args else error
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
