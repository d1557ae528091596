"""Regular expressions in linear time (RE2).

Lines come from applications, and may be controlled by an attacker.
Python's `re` backtracks: a line of 40 characters can block `(a+)+$` for hours,
and it cannot be interrupted, so the collector and its probes would stop.
With a time limit (as in the `regex` package) such a line would be passed on unchecked.
RE2 never backtracks, and rejects patterns that need it
(look-around, backreferences: https://github.com/google/re2/wiki/Syntax).

A pattern without special characters is searched for as plain text, which is faster still.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from sidecar._errors import ConfigError
from sidecar.process import arguments

_SPECIAL = frozenset("\\.^$*+?{}[]|()")
_REFERENCE = re.compile(r"\\(?:(\\)|(\d{1,2})|g<(\w+)>)", re.ASCII)
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
_ANCHOR = re.compile(r"\\[AzZ]")
_MAX_MEMORY_BYTES = 8 << 20
"""Bytes a compiled pattern may use. RE2's own default; it also bounds the work for each byte of a line."""


Replace = Callable[[str], tuple[str, int]]
"""A text to what it becomes, and how many matches there were."""


class Pattern(Protocol):
    """What stages need of a compiled expression."""

    names: Sequence[str]
    """The named groups, in order."""
    anchored: bool
    """Whether it asks where a text begins or ends: then it may match a part of a text, and not the whole."""

    def found(self, text: str) -> bool:
        """Tell whether it matches anywhere in the text."""

    def found_in(self, raw: bytes) -> bool:
        """The same for bytes of UTF-8, or of what should be."""

    def spans(self, text: str, replacement: str) -> list[tuple[int, int, str]]:
        """Return where the matches are, and what each becomes; the replacement has been checked by `replacing`."""

    def groups(self, text: str) -> dict[str, str] | None:
        """Return the named groups that took part in the first match; None without a match."""

    def replacing(self, replacement: str) -> Replace:
        r"""Return what replaces each match in a text; `\1` and `\g<name>` stand for groups.

        Raises:
            ConfigError: the replacement names a group that the pattern does not have.
        """


def compile_pattern(pattern: str, *, ignore_case: bool = False) -> Pattern:
    r"""Compile a pattern.

    Raises:
        ConfigError: no valid pattern, or one that RE2 leaves out; the message says what and where.

    >>> compile_pattern(r"(?P<verb>GET|POST) (?P<path>\S+)").groups("GET /healthz 200")
    {'verb': 'GET', 'path': '/healthz'}
    >>> compile_pattern("(?=x)")
    Traceback (most recent call last):
    sidecar._errors.ConfigError: the pattern '(?=x)' cannot be used: invalid perl operator: (?= (syntax: RE2, without look-around and back-references)
    """
    arguments.check_instance("pattern", pattern, str, "a regular expression, a str")
    if pattern and not ignore_case and _SPECIAL.isdisjoint(pattern):
        return _Plain(pattern)
    return _Re2(pattern, ignore_case=ignore_case)


class _Plain:
    names: Sequence[str] = ()
    anchored = False

    def __init__(self, text: str) -> None:
        self._text, self._raw = text, text.encode()

    def __repr__(self) -> str:
        return f"<Pattern {self._text!r}>"

    def found(self, text: str) -> bool:
        return self._text in text

    def found_in(self, raw: bytes) -> bool:
        return self._raw in raw

    def spans(self, text: str, replacement: str) -> list[tuple[int, int, str]]:
        made = "".join(str(piece) for piece in _pieces(replacement, (), 0))
        return [(one.start(), one.end(), made) for one in re.finditer(re.escape(self._text), text)]

    def groups(self, text: str) -> dict[str, str] | None:
        return {} if self._text in text else None

    def replacing(self, replacement: str) -> Replace:
        plain = self._text
        made = "".join(str(piece) for piece in _pieces(replacement, (), 0))

        def replace(text: str) -> tuple[str, int]:
            count = text.count(plain)
            return (text.replace(plain, made), count) if count else (text, 0)

        return replace


class _Re2:
    def __init__(self, pattern: str, *, ignore_case: bool) -> None:
        try:
            import re2  # type: ignore[import-untyped]
        except ImportError as error:
            raise ConfigError(
                f"the pattern {pattern!r} needs RE2: pip install 'podsidecar[logs]'"
            ) from error
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _MAX_MEMORY_BYTES
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
        bare = _CLASS.sub("", _ESCAPED.sub("", pattern))
        self.anchored = _ANCHOR.search(pattern) is not None or not {"^", "$"}.isdisjoint(bare)

    def __repr__(self) -> str:
        return f"<Pattern {self._regexp.pattern!r}>"

    def found(self, text: str) -> bool:
        return self._regexp.search(_clean(text)) is not None

    def found_in(self, raw: bytes) -> bool:
        return self._regexp.search(raw) is not None

    def spans(self, text: str, replacement: str) -> list[tuple[int, int, str]]:
        pieces = _pieces(replacement, self.names, int(self._regexp.groups))
        return [
            (one.start(), one.end(), _expanded(one, pieces))
            for one in self._regexp.finditer(_clean(text))
        ]

    def groups(self, text: str) -> dict[str, str] | None:
        match = self._regexp.search(_clean(text))
        if match is None:
            return None
        found = match.groupdict()
        return {name: found[name] for name in self.names if found[name] is not None}

    def replacing(self, replacement: str) -> Replace:
        # RE2's own templates are for ASCII: they take an ellipsis to pieces.
        pieces = _pieces(replacement, self.names, int(self._regexp.groups))
        regexp = self._regexp

        def replace(text: str) -> tuple[str, int]:
            changed, count = regexp.subn(lambda match: _expanded(match, pieces), _clean(text))
            return (changed, count) if count else (text, 0)

        return replace


def _pieces(replacement: str, names: Sequence[str], groups: int) -> list[str | tuple[str | int]]:
    """Take a replacement apart: texts, and groups as tuples of their number or name."""
    pieces: list[str | tuple[str | int]] = []
    end = 0
    for match in _REFERENCE.finditer(replacement):
        pieces.append(replacement[end : match.start()])
        end = match.end()
        if match[1] == "\\":
            pieces.append("\\")
            continue
        group = match[2] or match[3]
        if not (int(group) <= groups if group.isdigit() else group in names):
            raise ConfigError(
                f"the replacement {replacement!r} names the group {group}, which the pattern does not have"
            )
        pieces.append((int(group) if group.isdigit() else group,))
    pieces.append(replacement[end:])
    return pieces


def _expanded(match: Any, pieces: list[str | tuple[str | int]]) -> str:
    return "".join(one if isinstance(one, str) else match[one[0]] or "" for one in pieces)


def _clean(text: str) -> str:
    """RE2 works on UTF-8, which has no word for lone surrogates (a stage may have made one)."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


def _said(error: Exception) -> str:
    said = error.args[0] if error.args else error
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
