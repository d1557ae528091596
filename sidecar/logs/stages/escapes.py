"""What an encoding hides: escapes in quoted texts, those of addresses, and base64 (RFC 4648)."""

from __future__ import annotations

import binascii
import re
import string
from collections.abc import Iterator

_ESCAPE = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})"
    r"|x([0-9a-fA-F]{2})|([0-3][0-7]{2})|(.))",
    re.DOTALL,
)
_PERCENT = re.compile(r"%([0-9a-fA-F]{2})")
BASE64 = "(?:[CDI-Za-f][AC-HQS-Xgi-nwyz0-3][ABEFIJMNQRUVYZcdghklopstwx014589][A-Za-z0-9+/_-]){4}"
"""Four groups of base64 (RFC 4648, both alphabets) that say 12 characters of ASCII. Other text is hardly ever like that:
of random letters and digits one place in 10,000, of hexadecimal digits one in 200,000."""
_GROUPS = re.compile(BASE64)
_IN_RUN = re.compile(r"[A-Za-z0-9+/_-]*")
_UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]+")
_MIN_BASE64_CHARS = 12
"""Characters between bytes that are no text."""
_LETTERS_OF_BASE64 = frozenset(string.ascii_letters + string.digits + "+/-_")
_FROM_URLS = str.maketrans("-_", "+/")
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v"}


def decoded(text: str) -> str:
    r"""Return a quoted text without its escapes, those of JSON and of Go.

    >>> decoded(r"caf\u00e9 \"\x41\"")
    'café "A"'
    """
    return _ESCAPE.sub(_character, text) if "\\" in text else text


def layers(text: str, most: int = 3) -> list[tuple[str, list[int]]]:
    r"""Return what a text says beneath its escapes, and where each character of that (and the end) stands in the text.

    Nothing is escaped: nothing is returned. JSON within JSON has a layer more; percent signs are those of addresses.

    >>> layers(r"a\u0062"), layers("plain")
    ([('ab', [0, 1, 7])], [])
    """
    found: list[tuple[str, list[int]]] = []
    places = None
    for _ in range(most):
        if "\\" not in text and not _PERCENT.search(text):
            break
        text, mapped = _layer(text)
        places = mapped if places is None else [places[place] for place in mapped]
        found.append((text, places))
    return found


def shallow(text: str, most: int = 3) -> list[str]:
    """Return the same texts as `layers`, without the places, which is much faster."""
    found = []
    for _ in range(most):
        percent = "%" in text and _PERCENT.search(text) is not None
        if "\\" not in text and not percent:
            break
        text = decoded(text)
        if percent:
            text = _PERCENT.sub(lambda match: chr(int(match[1], 16)), text)
        found.append(text)
    return found


def in_base64(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield where each run of base64 lies in a text, and what can be read in it.

    A run may begin with letters that belong to something else, such as the directories of a path.

    >>> list(in_base64("Basic YWRhOmxvdmVsYWNlMTg="))
    [(6, 26, ['ada:lovelace18'])]
    """
    end = 0
    while (found := _GROUPS.search(text, end)) is not None:
        start = found.start()
        while start > end and text[start - 1] in _LETTERS_OF_BASE64:
            start -= 1
        match = _IN_RUN.match(text, found.start())
        end = match.end() if match is not None else found.end()
        run = text[start + (found.start() - start) % 4 : end].translate(_FROM_URLS)
        if len(run) % 4 == 1:
            run = run[:-1]
        said = binascii.a2b_base64(run + "=" * (-len(run) % 4)).decode("utf-8", "replace")
        end += len(text[end : end + 2]) - len(text[end : end + 2].lstrip("="))
        yield start, end, [one for one in _UNREADABLE.split(said) if len(one) >= _MIN_BASE64_CHARS]


def _layer(text: str) -> tuple[str, list[int]]:
    made, places = _mapped(text, _ESCAPE, _character)
    if not _PERCENT.search(made):
        return made, places
    again, inner = _mapped(made, _PERCENT, lambda match: chr(int(match[1], 16)))
    return again, [places[place] for place in inner]


def _mapped(text: str, pattern: re.Pattern[str], character: object) -> tuple[str, list[int]]:
    pieces: list[str] = []
    places: list[int] = []
    at = 0
    for match in pattern.finditer(text):
        pieces.append(text[at : match.start()])
        places.extend(range(at, match.start()))
        one = character(match)  # type: ignore[operator]
        pieces.append(one)
        places.extend([match.start()] * len(one))
        at = match.end()
    pieces.append(text[at:])
    places.extend(range(at, len(text) + 1))
    return "".join(pieces), places


def _character(match: re.Match[str]) -> str:
    high, low, short, long, byte, octal, letter = match.groups()
    if high:
        return (bytes.fromhex(high) + bytes.fromhex(low)).decode("utf-16-be")
    if number := short or long or byte:
        point = int(number, 16)
        return "\ufffd" if 0xD800 <= point < 0xE000 or point > 0x10FFFF else chr(point)
    if octal:
        return chr(int(octal, 8))
    return _LETTERS.get(letter, letter)
