"""A content as JSON: one string, or for a set an object of names and strings.

A content in memory is encoded at once. A large file is read in chunks:
once per version to learn whether it is UTF-8 and the size of its JSON, so that the response is complete or an error,
and then once per client, at its pace.
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
"""Bytes per chunk: as JSON up to six times as many, and as text in between four times."""


def is_large(source: Snapshot[None] | Content) -> bool:
    """Whether part of the content is not in memory."""
    if isinstance(source, Content):
        return source.is_large
    return any(source.content(name).is_large for name in source)


def dump_json(source: Snapshot[None] | Content) -> bytes:
    """Return the JSON of a content in memory.

    Raises:
        Problem: 406, it is not text.
    """
    if isinstance(source, Content):
        return orjson.dumps(_text(source))
    if source.name is not None:
        return orjson.dumps(_text(source.content()))
    return orjson.dumps({name: _text(source.content(name)) for name in source})


@dataclass(frozen=True)
class JsonStream:
    """The JSON of a large content, as the body of a response. It has no ranges."""

    source: Snapshot[None] | Content
    size: int

    def check(self) -> None:
        for content in _contents(self.source):
            if isinstance(content.held, OpenFile):
                content.held.check()

    def payload(self, _: slice) -> IterPayload:
        return IterPayload(iter_json(self.source), self.size)


def measure(source: Snapshot[None] | Content) -> JsonStream:
    """Read a content, and return a stream of its JSON. Blocking.

    Raises:
        Problem: 406, it is not text.
        ContentAltered: a large file has changed.
    """
    return JsonStream(source, sum(map(len, iter_json(source))))


def iter_json(source: Snapshot[None] | Content) -> Iterator[bytes]:
    """Yield the JSON of a content, the same bytes that `dump_json` returns. Blocking; raises as `measure`."""
    if isinstance(source, Content) or source.name is not None:
        (content,) = _contents(source)
        yield from _iter_string(content)
        return
    between = b"{"
    for content in _contents(source):
        yield between + orjson.dumps(content.name) + b":"
        yield from _iter_string(content)
        between = b","
    yield b"}" if between == b"," else b"{}"


def _contents(source: Snapshot[None] | Content) -> list[Content]:
    return [source] if isinstance(source, Content) else [source.content(name) for name in source]


def _iter_string(content: Content) -> Iterator[bytes]:
    if isinstance(content.held, bytes):
        yield orjson.dumps(_text(content))
        return
    file, decoder = content.held.open(), codecs.getincrementaldecoder("utf-8")()

    def encoded_chunk(start: int) -> bytes:
        # A separate function, so that its locals are freed while the client reads the chunk.
        data = file.read(start, _CHUNK_SIZE)
        kept = len(decoder.getstate()[0])  # the start of a character that ends in this chunk
        try:
            text = decoder.decode(data, final=start + len(data) >= file.size)
        except UnicodeDecodeError as error:
            raise _make_not_text_problem(content, start - kept + error.start) from error
        return orjson.dumps(text)[1:-1]

    yield b'"'
    for start in range(0, file.size, _CHUNK_SIZE):
        yield encoded_chunk(start)
    yield b'"'


def _text(content: Content) -> str:
    try:
        return content.data.decode()
    except UnicodeDecodeError as error:
        raise _make_not_text_problem(content, error.start) from error


def _make_not_text_problem(content: Content, offset: int) -> problems.Problem:
    return problems.Problem(
        "not-text",
        f"{content.name} is not UTF-8 (offset {offset}), so there is no JSON string for it;"
        " GET /raw or /files/NAME has the bytes",
    )
