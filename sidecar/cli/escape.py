"""Words for people, made of what others may have chosen: names on a volume hold whatever their writer wants."""

from __future__ import annotations

import sys
from collections.abc import Iterable

_ASCII_MARKS = str.maketrans({"✓": "+", "✗": "x", "→": "->", "…": "...", "–": "-"})
_LETTERS_ALIKE = 3
"""Letters that two words must begin with alike, for one to be taken for the other's beginning."""


def one_line(text: str) -> str:
    r"""Return a text in which nothing can begin a line of its own, or tell a terminal what to do.

    >>> one_line("a\nb\x1b[31m ü")
    'a\\nb\\x1b[31m ü'
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def fit_marks(text: str) -> str:
    """Return a text for standard output, its marks in ASCII where the encoding does not have them."""
    try:
        "".join(map(chr, _ASCII_MARKS)).encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII_MARKS)
    return text


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was most likely meant: one slip away, or begun alike; None if none is.

    A slip is a letter too many, too few, or wrong, or two that have changed places.

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
