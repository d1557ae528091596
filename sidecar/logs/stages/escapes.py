"""Decode what encodings hide from a pattern: escapes of JSON and Go, percent-encoding (RFC 3986), base64 (RFC 4648)."""

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
"""Matches four groups of base64 (both alphabets of RFC 4648) that decode to 12 characters of ASCII.
Other text rarely matches: random letters and digits at one position in 10,000, hexadecimal digits at one in 200,000."""
_GROUPS = re.compile(BASE64)
_IN_RUN = re.compile(r"[A-Za-z0-9+/_-]*")
_UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]+")
"""Decoded bytes that are not text; they separate the readable parts."""
_MIN_BASE64_CHARS = 12
"""Shorter readable parts of decoded base64 are ignored."""
_LETTERS_OF_BASE64 = frozenset(string.ascii_letters + string.digits + "+/-_")
_FROM_URLS = str.maketrans("-_", "+/")
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v"}


def decoded(text: str) -> str:
    r"""Return a quoted text with the escapes of JSON and Go replaced by what they stand for.

    >>> decoded(r"caf\u00e9 \"\x41\"")
    'café "A"'
    """
    return _ESCAPE.sub(_character, text) if "\\" in text else text


def layers(text: str, most: int = 3) -> list[tuple[str, list[int]]]:
    r"""Unescape a text up to `most` times; return each result, with the offset in `text` of each of its characters and of its end.

    Empty if nothing is escaped. Each level of JSON within JSON is one layer; percent-encoding is decoded in each.

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
    """Return the texts of `layers` without the offsets, which is much faster."""
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


def find_base64(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield start and end of each run of base64, and the readable texts in what it decodes to.

    A run may include preceding letters that are not base64, such as directories of a path.

    >>> list(find_base64("Basic YWRhOmxvdmVsYWNlMTg="))
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
    """Unescape once; return the result, and the offset of each of its characters."""
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
