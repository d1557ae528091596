"""Words for people, made of what others may have chosen: names on a volume hold whatever their writer wants."""

from __future__ import annotations


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
