"""Encode a record as one JSON object, with the same structure in every JSON sink and in dead letters.

    {"time": "2026-11-23T13:21:51.123456789Z", "level": "info", "message": "the line",
     "file": "/var/log/app/app.log", "offset": 4711, "labels": {"pod": "web-0"}}

A parsed line is represented by its fields instead of `message`.
Fields of the application take precedence: if it has its own `time`, `level` or `file`, ours are left out.
`file` and `offset` identify the line, so that a receiver can detect duplicates.

Blocks are not split into records here if no stage ran: that makes JSON cheap.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

import orjson

from sidecar.logs.records import Batch, Block, Record

_OPTIONS = orjson.OPT_NON_STR_KEYS
_NS_PER_SECOND = 1_000_000_000
_CHUNK_BYTES = 24 << 10
"""Bytes of lines that are encoded at once: the JSON stays below the 64 KiB of `memory.lower_mmap_threshold`."""
_CHUNK_RECORDS = 64
"""Records that are encoded at once."""


def to_document(record: Record) -> dict[str, Any]:
    """Return the record as a new dictionary.

    >>> to_document(Record(b"hello", file="/log/app", offset=6, level="info"))
    {'time': '1970-01-01T00:00:00.000000000Z', 'level': 'info', 'message': 'hello', 'file': '/log/app', 'offset': 6}
    """
    made: dict[str, Any] = {"time": rfc3339(record.time)}
    if record.level is not None:
        made["level"] = record.level
    if not record.structured:
        made["message"] = record.text
    made.update(record.fields)
    made.setdefault("file", readable(record.file))
    made.setdefault("offset", record.offset)
    if record.labels:
        made.setdefault("labels", dict(record.labels))
    return made


def json_line(record: Record) -> bytes:
    """Return the record as one JSON object, without a line ending."""
    try:
        if not record.structured:
            return dumps(to_document(record)) if record.fields else _unparsed(record)
        return _parsed(record)
    except (TypeError, ValueError, RecursionError):  # a lone surrogate, created by a stage
        return dumps(to_document(record))


def json_lines(batch: Batch) -> bytes:
    """Return the batch as JSON objects, each with its newline."""
    if not batch.raw:
        return b"".join([json_line(record) + b"\n" for record in batch.records()])
    return b"".join([_block(block, batch.labels) for block in batch.blocks])


def json_pieces(batch: Batch) -> Iterator[bytes]:
    """Yield the same in chunks: small buffers are reused, large ones are allocated from the kernel page by page."""
    if not batch.raw:
        records = batch.records()
        for at in range(0, len(records), _CHUNK_RECORDS):
            yield b"".join(
                [json_line(record) + b"\n" for record in records[at : at + _CHUNK_RECORDS]]
            )
        return
    for block in batch.blocks:
        for piece in block.pieces(_CHUNK_BYTES):
            yield _block(piece, batch.labels)


def dumps(value: Mapping[str, Any]) -> bytes:
    """Encode any value of a stage as JSON; this never fails.

    Types without a JSON equivalent are written as text (`str`).
    A value that cannot be encoded (a cycle, nested too deep) becomes its truncated `repr`.
    """
    try:
        return orjson.dumps(value)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return orjson.dumps(value, default=str, option=_OPTIONS)
    except (TypeError, ValueError, RecursionError):
        # Lone surrogates, integers beyond 64 bits, more than 254 levels: rare, and supported by the standard library.
        return _slowly(value)


def value(one: object) -> str:
    """Return any value as JSON; like `dumps` this never fails.

    >>> value({"n": 2**64}), value(1.5)
    ('{"n":18446744073709551616}', '1.5')
    """
    try:
        return orjson.dumps(one, default=str, option=_OPTIONS).decode()
    except (TypeError, ValueError, RecursionError):
        return _slow_value(one).encode("utf-8", "replace").decode()


def rfc3339(nanoseconds: int) -> str:
    """Format Unix nanoseconds as RFC 3339 in UTC, with nine digits.

    >>> rfc3339(1_700_000_000_000_000_001)
    '2023-11-14T22:13:20.000000001Z'
    """
    second, rest = divmod(nanoseconds, _NS_PER_SECOND)
    return f"{_format_seconds(second)}.{rest:09d}Z"


@lru_cache(maxsize=1024)
def _format_seconds(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _slowly(value: Mapping[str, Any]) -> bytes:
    made = [
        f"{json.dumps(str(key), ensure_ascii=False)}:{_slow_value(one)}"
        for key, one in value.items()
    ]
    return f"{{{','.join(made)}}}".encode("utf-8", "replace")


def _slow_value(one: object) -> str:
    try:
        return json.dumps(
            one,
            default=str,
            skipkeys=True,
            allow_nan=False,
            ensure_ascii=False,
            separators=(",", ":"),
        )
    except (TypeError, ValueError, RecursionError):
        return json.dumps(shortened(one), ensure_ascii=False)


def shortened(value: object) -> str:
    """Return the truncated `repr` of a value; a cycle has none."""
    try:
        return repr(value)[:1024]
    except RecursionError:
        return f"<{type(value).__name__}, nested too deep>"


def _unparsed(record: Record) -> bytes:
    """As `to_document`, for records in the most frequent form, in half the time."""
    level = b"" if record.level is None else b'"level":%b,' % orjson.dumps(record.level)
    labels = b',"labels":%b' % dumps(dict(record.labels)) if record.labels else b""
    return b'{"time":"%b",%b"message":%b,"file":%b,"offset":%d%b}' % (
        rfc3339(record.time).encode(),
        level,
        orjson.dumps(record.text),
        _path(record.file),
        record.offset,
        labels,
    )


def _parsed(record: Record) -> bytes:
    """As `to_document`, for structured records, in half the time."""
    fields = record.fields
    if (
        "time" in fields
        and (record.level is None or "level" in fields)
        and "file" not in fields
        and "offset" not in fields
        and not record.labels
    ):  # the usual case: only file and offset are missing
        return b'%b,"file":%b,"offset":%d}' % (
            orjson.dumps(fields)[:-1],
            _path(record.file),
            record.offset,
        )
    head = b"" if "time" in fields else b'"time":"%b",' % rfc3339(record.time).encode()
    if record.level is not None and "level" not in fields:
        head += b'"level":%b,' % orjson.dumps(record.level)
    tail = b"" if "file" in fields else b',"file":%b' % _path(record.file)
    if "offset" not in fields:
        tail += b',"offset":%d' % record.offset
    if record.labels and "labels" not in fields:
        tail += b',"labels":%b' % dumps(dict(record.labels))
    body = orjson.dumps(fields)[1:-1]
    return b"{%b%b%b}" % (head, body, tail if body else tail[1:])


def _block(block: Block, labels: Mapping[str, str]) -> bytes:
    if block.starts is not None or block.offsets is not None:
        return b"".join([json_line(record) + b"\n" for record in block.records(labels)])
    pieces = block.data.split(b"\n")
    pieces.pop()
    offsets = accumulate(map(len, pieces), lambda at, length: at + length + 1, initial=block.start)
    text = block.data[:-1].decode("utf-8", "replace")
    if "\r" in text:
        texts = [one.removesuffix("\r") for one in text.split("\n")]
    else:
        texts = text.split("\n")
    # One call for all lines. Inside a JSON string every quote follows a backslash,
    # so that `","` can only stand between two strings.
    messages = orjson.dumps(texts)[2:-2].split(b'","')
    head = b'{"time":"%b","message":"' % rfc3339(block.read_at).encode()
    middle = b'","file":%b,"offset":' % _path(block.file)
    tail = b',"labels":%b}\n' % dumps(dict(labels)) if labels else b"}\n"
    return b"".join(
        [
            b"%b%b%b%d%b" % (head, message, middle, offset, tail)
            for message, offset in zip(messages, offsets, strict=False)
        ]
    )


@lru_cache(maxsize=1024)
def readable(path: str) -> str:
    """Return a path as text: invalid UTF-8 becomes U+FFFD, as in lines."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@lru_cache(maxsize=1024)
def _path(path: str) -> bytes:
    return orjson.dumps(readable(path))
