"""Parse lines: JSON, CRI, logfmt, or the named groups of a pattern.

Parsing does not change a line: without another stage it is still delivered unchanged.
Lines in another format are passed on unparsed, such as stack traces between JSON lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import orjson

from sidecar._errors import ConfigError
from sidecar.logs import regex
from sidecar.logs.records import Record, Stage
from sidecar.logs.stages import escapes, timestamp

_CRI = re.compile(rb"(\S+) (stdout|stderr) ([A-Z](?::[A-Za-z]+)*) ?(.*)", re.DOTALL)
# Possessive, and a word without `=` is a match as well: what was read once is never read again,
# or a line of 200,000 digits would take hours.
_PAIR = re.compile(r'([^\s="]++)(=(?:"((?:[^"\\]++|\\.)*+)"|([^\s"]*+)))?', re.DOTALL)
_DIGITS = bytes.maketrans(b"123456789-", b"0000000000")
_SIMPLE = frozenset({str, int, bool, type(None)})
"""Types of values that are exactly those of the line. A float may have been an integer; containers hold other values."""
_MANY_DIGITS = b"0" * 20
"""Minimum number of digits (with sign) of an integer beyond 64 bits; nanoseconds since 1970 have 19."""
_MAX_DEPTH = 128
"""Limit of nesting. Elasticsearch accepts 20 levels by default, and the recursion limit of Python is below 1,000."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_MAX_INTEGER_DIGITS = 4300
"""Digits that Python converts to an integer; longer ones stay text."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(record: Record) -> Record:
    """Parse a JSON object into fields. Integers keep all digits.

    Common deviations from the standard are accepted: an invalid byte or a lone surrogate becomes U+FFFD,
    NaN and Infinity become null, raw control characters are kept, and the last of duplicate members counts.
    An object that is nested deeper than 128 levels stays text.

    >>> parse_json(Record(b'{"status": 200}')).fields
    {'status': 200}
    >>> parse_json(Record(b"no JSON")).fields
    {}
    """
    if record.fields or not record.text_is_raw:
        return parse_with(record, _json)
    if found := _json(record.raw):
        record.parsed(found, _json)
    return record


def parse_logfmt(record: Record) -> Record:
    r"""Parse `name=value` and `name="value with \" in it"` (logfmt) into fields; values are text.

    Escapes are those of JSON (go-logfmt) and of Go (`%q`, logrus): `\n`, `\u00e9`, `\x1b`.

    >>> parse_logfmt(Record(b'level=info msg="it works" took=3ms')).fields
    {'level': 'info', 'msg': 'it works', 'took': '3ms'}
    """
    return parse_with(record, logfmt)


def parse_regex(pattern: str) -> Stage:
    r"""Create a stage that sets the named groups of the first match as fields.

    Patterns use RE2, whose time is linear in the length of the line.

    Raises:
        ConfigError: the pattern is invalid, or has no named group.

    >>> parse_regex(r"(?P<verb>[A-Z]+) (?P<path>\S+)")(Record(b"GET /users/7 200")).fields
    {'verb': 'GET', 'path': '/users/7'}
    """
    compiled = regex.compile_pattern(pattern)
    if not compiled.names:
        raise ConfigError(
            f"the pattern {pattern!r} names nothing to take: write (?P<name>…) around what is wanted"
        )

    def parse(raw: bytes) -> dict[str, Any]:
        return dict(compiled.groups(raw.decode("utf-8", "replace")) or {})

    def stage(record: Record) -> Record:
        return parse_with(record, parse)

    return stage


def parse_cri(record: Record) -> Record:
    """Remove the prefix of the container runtime (CRI): time, stream, flag.

    Lines longer than 16 KiB are split into partial lines with the flag P. With `CRI_LINES` they arrive as one record,
    and are joined here.
    (https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md)

    >>> record = parse_cri(Record(b"2026-11-23T13:21:51.5Z stderr F it failed"))
    >>> record.text, record.fields, record.time
    ('it failed', {'stream': 'stderr'}, 1795440111500000000)
    """
    match = _CRI.fullmatch(record.raw) if b"\n" not in record.raw else None
    if match is None:
        return _join(record)
    stamp, stream, _flags, content = match.groups()
    _take(record, stamp, stream, content)
    return record


def _join(record: Record) -> Record:
    lines = record.raw.split(b"\n")
    pieces = [_CRI.fullmatch(line.removesuffix(b"\r")) for line in lines]
    if not any(pieces):
        return record
    # The streams of a container are written one line at a time: pieces of the other one may lie between.
    text = bytearray()
    for line, piece in zip(lines, pieces, strict=True):
        if piece is None:
            text += line
            continue
        text += piece[4]
        if not piece[3].startswith(b"P"):
            text += b"\n"
    first = next(piece for piece in pieces if piece)
    _take(record, first[1], first[2], bytes(text).removesuffix(b"\n"))
    return record


def _take(record: Record, stamp: bytes, stream: bytes, content: bytes) -> None:
    record.text = content.decode("utf-8", "replace")
    record.fields = {**record.fields, "stream": stream.decode()}
    moment = timestamp.nanoseconds(stamp.decode("ascii", "replace"))
    if moment is not None:
        record.time = moment


def parse_with(record: Record, parse: Callable[[bytes], dict[str, Any]]) -> Record:
    """Parse the text as left by earlier stages, and keep the fields that they have added."""
    fields = record.fields
    if fields or not record.text_is_raw:
        found = parse(record.text.encode("utf-8", "replace"))
        if found:
            record.parsed({**fields, **found}, parse)
    elif found := parse(record.raw):
        record.parsed(found, parse)
    return record


def _json(raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{" and raw.lstrip()[:1] != b"{":
        return {}
    found: Any = None
    try:
        found = orjson.loads(raw)
        if _SIMPLE.issuperset(map(type, found.values())):
            return found  # type: ignore[no-any-return]
        # It makes floats of integers beyond 64 bits.
        exact = _MANY_DIGITS not in raw.translate(_DIGITS)
    except orjson.JSONDecodeError:
        # A stack trace, or a line that is cut off, is no work for the slow one.
        if raw.rstrip()[-1:] != b"}":
            return {}
        exact = False
    if len(raw) > 2 * _MAX_DEPTH and _is_too_deep(raw):
        return {}
    if not exact:
        found = _tolerant(raw)
    return found if isinstance(found, dict) else {}


def _tolerant(raw: bytes) -> Any:
    """Parse JSON tolerantly; None if it is not JSON."""
    try:
        found = json.loads(
            raw.decode("utf-8", "replace"),
            strict=False,
            parse_int=_integer,
            parse_constant=lambda _: None,
        )
    except (ValueError, RecursionError):
        return None
    return _without_surrogates(found) if _SURROGATE_ESCAPE.search(raw) else found


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_INTEGER_DIGITS else digits


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(one) for one in value]
    return value


def _is_too_deep(raw: bytes) -> bool:
    """Whether a line is nested too deeply to compare or encode it without a RecursionError."""
    if raw.count(b"[") + raw.count(b"{") <= _MAX_DEPTH:
        return False
    depth = deepest = 0
    for sign in _BRACKET.findall(_STRING.sub(b"", raw)):
        depth += 1 if sign in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest > _MAX_DEPTH


def logfmt(raw: bytes) -> dict[str, Any]:
    """Return the pairs of a logfmt line."""
    text = raw.decode("utf-8", "replace")
    return {
        name: escapes.decoded(quoted) if quoted else plain
        for name, pair, quoted, plain in _PAIR.findall(text)
        if pair
    }
