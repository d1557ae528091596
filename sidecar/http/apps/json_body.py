"""A content as JSON text: one string, or of a set an object of names and strings.

What is in memory is dumped whole. Where a file is large, it is read piece by piece:
once for each version to learn whether it is UTF-8 and how long its JSON is, so that the answer is complete or an error,
and then for each client as that takes it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from sidecar.fs.open_file import OpenFile
from sidecar.http import problems
from sidecar.http.server.sendfile import IterPayload
from sidecar.volume.content.snapshot import Content, Snapshot

_CHUNK_SIZE = 1 << 17
"""Bytes at a time: as JSON they may be six times as many, and as text in between four times."""


def is_large(found: Snapshot[None] | Content) -> bool:
    """Whether a part of the content is not in memory."""
    if isinstance(found, Content):
        return found.is_large
    return any(found.content(name).is_large for name in found)


def dump_json(found: Snapshot[None] | Content) -> bytes:
    """Return the JSON of a content in memory.

    Raises:
        Problem: 406 where it is no text.
    """
    if isinstance(found, Content):
        return orjson.dumps(_text(found))
    if found.name is not None:
        return orjson.dumps(_text(found.content()))
    return orjson.dumps({name: _text(found.content(name)) for name in found})


@dataclass(frozen=True)
class JsonStream:
    """The JSON of a content that is not in memory, as the body of an answer. It has no ranges."""

    found: Snapshot[None] | Content
    size: int

    def check(self) -> None:
        for content in _contents(self.found):
            if isinstance(content.held, OpenFile):
                content.held.check()

    def payload(self, _: slice) -> IterPayload:
        return IterPayload(iter_json(self.found), self.size)


def measure(found: Snapshot[None] | Content) -> JsonStream:
    """Read a content, and return its JSON as something that can be sent. Blocking.

    Raises:
        Problem: 406 where it is no text.
        ContentAltered: a large file is not what it was.
    """
    return JsonStream(found, sum(map(len, iter_json(found))))


def iter_json(found: Snapshot[None] | Content) -> Iterator[bytes]:
    """Yield the JSON of a content, the very bytes that `dump_json` returns. Blocking; raises as `measure`."""
    if isinstance(found, Content) or found.name is not None:
        (content,) = _contents(found)
        yield from _string(content)
        return
    between = b"{"
    for content in _contents(found):
        yield between + orjson.dumps(content.name) + b":"
        yield from _string(content)
        between = b","
    yield b"}" if between == b"," else b"{}"


def _contents(found: Snapshot[None] | Content) -> list[Content]:
    return [found] if isinstance(found, Content) else [found.content(name) for name in found]


def _string(content: Content) -> Iterator[bytes]:
    if isinstance(content.held, bytes):
        yield orjson.dumps(_text(content))
        return
    file, decoder = content.held.open(), codecs.getincrementaldecoder("utf-8")()

    def encoded_chunk(start: int) -> bytes:
        # A function of its own: while a client takes this piece, nothing else of it is held.
        data = file.read(start, _CHUNK_SIZE)
        kept = len(decoder.getstate()[0])  # the beginning of a character whose end is in this piece
        try:
            text = decoder.decode(data, final=start + len(data) >= file.size)
        except UnicodeDecodeError as error:
            raise _no_text(content, start - kept + error.start) from error
        return orjson.dumps(text)[1:-1]

    yield b'"'
    for start in range(0, file.size, _CHUNK_SIZE):
        yield encoded_chunk(start)
    yield b'"'


def _text(content: Content) -> str:
    try:
        return content.data.decode()
    except UnicodeDecodeError as error:
        raise _no_text(content, error.start) from error


def _no_text(content: Content, offset: int) -> problems.Problem:
    return problems.Problem(
        "not-text",
        f"{content.name} is not UTF-8 (offset {offset}), so there is no JSON string for it;"
        " GET /raw or /files/NAME has the bytes",
    )
