"""Text for terminals: file names on a volume may contain anything."""

from __future__ import annotations

import sys
from collections.abc import Iterable

_ASCII_MARKS = str.maketrans({"✓": "+", "✗": "x", "→": "->", "…": "...", "–": "-"})
_LETTERS_ALIKE = 3
"""Length of the common prefix from which a word counts as an abbreviation of another."""


def one_line(text: str) -> str:
    r"""Escape control characters and line breaks.

    >>> one_line("a\nb\x1b[31m ü")
    'a\\nb\\x1b[31m ü'
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def fit_marks(text: str) -> str:
    """Replace marks by ASCII if the encoding of standard output lacks them."""
    try:
        "".join(map(chr, _ASCII_MARKS)).encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII_MARKS)
    return text


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word with one typo or a common prefix; None if there is none.

    A typo is an extra, missing or wrong letter, or two swapped ones.

    >>> nearest("wirte", ["write", "read"]), nearest("reader", ["write", "read"])
    ('write', 'read')
    >>> nearest("reload", ["write", "read"]) is None
    True
    """
    for one in known:
        shorter, longer = sorted((word, one), key=len)
        if len(shorter) >= _LETTERS_ALIKE and longer.startswith(shorter):
            return one
        if _is_one_slip(shorter, longer):
            return one
    return None


def _is_one_slip(shorter: str, longer: str) -> bool:
    if len(longer) - len(shorter) == 1:
        return any(longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer)))
    wrong = [at for at, pair in enumerate(zip(shorter, longer, strict=False)) if pair[0] != pair[1]]
    if len(longer) != len(shorter) or len(wrong) > 2 or not wrong:
        return False
    first, last = wrong[0], wrong[-1]
    return first == last or (
        last - first == 1 and shorter[first] == longer[last] and shorter[last] == longer[first]
    )
