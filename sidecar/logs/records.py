"""What flows from a file to a sink: blocks of whole lines, and records where somebody asks for them.

A `Block` is a run of whole lines of one file, as bytes, with the offsets they came from.
It stays bytes as long as nobody wants to see a line:
moving blocks is several times cheaper than touching each line.
A `Record` is one line (or one group of lines), made from a block for the stages and for the sinks that want records.
A `Batch` is what a sink gets at once, and what it acknowledges as a whole.

Nothing here reads, writes or waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

Parser = Callable[[bytes], Mapping[str, Any]]
"""What a parsing stage can do again: the bytes of a line to the fields it holds."""

_NO_LABELS: Mapping[str, str] = {}


class Record:
    """One line of a log file on its way to a sink.

    A stage may change it and return it, return another, or return None to drop it.

    >>> record = Record(b'{"user": "ada"}', file="/var/log/app.log", offset=120)
    >>> record.text
    '{"user": "ada"}'
    >>> record.changed
    False
    >>> record.fields["user"] = "***"
    >>> record.changed
    True
    """

    __slots__ = (
        "_parser",
        "_text",
        "end",
        "fields",
        "file",
        "file_id",
        "labels",
        "level",
        "offset",
        "raw",
        "time",
    )

    raw: bytes
    """The line as it came, without its line ending. Groups of lines keep the endings between them."""
    file: str
    """The path under which the file is known."""
    file_id: str
    """Stays the same for the same content, whatever it is renamed to; with `offset` it identifies the record."""
    offset: int
    """Where the line begins in its file, in bytes (in a compressed file: of the decompressed content)."""
    end: int
    """Where the next line begins."""
    time: int
    """Unix nanoseconds: when the line was read, until a stage finds a better one in the line."""
    level: str | None
    """`trace`, `debug`, `info`, `warn`, `error` or `fatal`, once a stage has found it."""
    fields: dict[str, Any]
    """What parsing found and stages added."""
    labels: Mapping[str, str]
    """What is the same for all lines of the source: the Pod, the container. Replace it, never change it in place."""

    def __init__(
        self,
        raw: bytes,
        *,
        file: str = "",
        offset: int = 0,
        end: int | None = None,
        file_id: str = "",
        time: int = 0,
        fields: dict[str, Any] | None = None,
        level: str | None = None,
        labels: Mapping[str, str] = _NO_LABELS,
    ) -> None:
        self.raw = raw
        self.file = file
        self.file_id = file_id
        self.offset = offset
        self.end = offset + len(raw) + 1 if end is None else end
        self.time = time
        self.fields = {} if fields is None else fields
        self.level = level
        self.labels = labels
        self._text: str | None = None
        self._parser: Parser | None = None

    @property
    def text(self) -> str:
        """The line as text; what is not UTF-8 becomes U+FFFD. May be assigned."""
        if self._text is None:
            return self.raw.decode("utf-8", "replace")
        return self._text

    @text.setter
    def text(self, value: str) -> None:
        self._text = value

    @property
    def text_is_raw(self) -> bool:
        """True as long as nobody has assigned a text."""
        return self._text is None

    def parsed(self, fields: dict[str, Any], parser: Parser) -> None:
        """Take `fields` as what the line says, by `parser`. Parsing alone does not make a record `changed`.

        `parser(record.raw)` must give equal fields again: that is how a later change is noticed, however deep it lies.
        """
        self.fields = fields
        self._parser = parser

    @property
    def structured(self) -> bool:
        """True once a parser has said what the line holds: `fields` says it all, the text need not be repeated."""
        return self._parser is not None

    @property
    def changed(self) -> bool:
        """True if the line as it came does not say any more what the record says.

        Sinks that write lines as they came (stdout, file) write JSON instead for such a record.
        """
        if self._text is not None and self._text != self.raw.decode("utf-8", "replace"):
            return True
        if self._parser is None:
            return bool(self.fields)
        try:
            return self.fields != self._parser(self.raw)
        except (
            RecursionError
        ):  # a line nested as deep as Python's stack: a secret may have been taken out of it
            return True

    def __repr__(self) -> str:
        return f"<Record {self.file}:{self.offset} {self.text[:60]!r}>"


Stage = Callable[[Record], Record | None]
"""One step between file and sink: a plain function, called in order, in the thread of the event loop.

It returns the record (changed or not), another one, or None to drop it.
Each sink has its own progress and therefore its own run of the stages.
An exception in a stage ends the collection, after everything before it has been acknowledged and saved:
a stage that may fail on a line decides itself what becomes of that line.
"""


MAX_BLOCK_RECORDS = 1 << 14
"""So many records are made at once, at most, 500 bytes of memory each: a megabyte of empty lines would be half a gigabyte."""

_SAMPLE_BYTES = 4096
_SHORT_LINE_BYTES = 48
"""Bytes a line: below it `count` is quicker, above it memchr(3)."""


def newlines_in(data: bytes) -> int:
    r"""Return how many newlines there are.

    Before Python 3.13 `bytes.count` looks at one byte after the other, and was a fifth of what moving lines costs.
    `replace` goes from newline to newline by memchr(3): with lines of 1 KiB six times as fast, the copy included.

    >>> newlines_in(b"one\ntwo\n"), newlines_in(b"one"), newlines_in(b"x" * 4096 + b"\ny\n")
    (2, 0, 2)
    """
    if data.count(b"\n", 0, _SAMPLE_BYTES) * _SHORT_LINE_BYTES > min(len(data), _SAMPLE_BYTES):
        return data.count(b"\n")
    return len(data) - len(data.replace(b"\n", b""))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    r"""Whole lines of one file, as bytes.

    `data` always ends with a newline, even where the file did not (its last line, a piece of an overlong line).

    >>> block = Block(b"one\ntwo\n", "/log/a", "id", start=0, end=8, read_at=0)
    >>> [(record.text, record.offset) for record in block.records()]
    [('one', 0), ('two', 4)]
    """

    data: bytes
    file: str
    file_id: str
    start: int
    """Offset of the first byte in the file."""
    end: int
    """Offset behind the last byte; acknowledging the block moves the position here."""
    read_at: int
    """Unix nanoseconds."""
    mark: bytes = b""
    """The bytes of the file before `end`, up to 1 KiB: part of the file's identity in the checkpoint."""
    starts: Sequence[int] | None = None
    """Where the records begin in `data`, if a record is not simply a line (multi-line groups)."""
    offsets: Sequence[int] | None = None
    """The file offset of each record, if it is not `start` + its place in `data` (transcoded files)."""
    count: int | None = None
    """How many records there are, where that is known already: see `lines`."""

    def __len__(self) -> int:
        return len(self.data)

    @property
    def lines(self) -> int:
        """How many records the block holds."""
        if self.count is not None:
            return self.count
        return newlines_in(self.data) if self.starts is None else len(self.starts)

    def pieces(self, size: int) -> Iterator[Block]:
        r"""The same lines in blocks of at most so many bytes, a longer line alone; one block where records are no lines.

        >>> block = Block(b"one\ntwo\nthree\n", "/log/a", "id", start=0, end=14, read_at=0)
        >>> [(piece.data, piece.start, piece.end) for piece in block.pieces(9)]
        [(b'one\ntwo\n', 0, 8), (b'three\n', 8, 14)]
        """
        data, at, start = self.data, 0, self.start
        if self.starts is None and self.offsets is None:
            while len(data) - at > size:
                end = data.rfind(b"\n", at, at + size) + 1 or data.index(b"\n", at + size) + 1
                if end == len(data):
                    break
                yield Block(
                    data[at:end], self.file, self.file_id, start + at, start + end, self.read_at
                )
                at = end
        yield self if at == 0 else replace(self, data=data[at:], start=start + at, count=None)

    def records(self, labels: Mapping[str, str] = _NO_LABELS) -> Iterator[Record]:
        """The lines one by one. A carriage return before the newline belongs to the line ending."""
        if self.starts is not None:
            pieces = _groups(self.data, self.starts)
        else:
            pieces = self.data.split(b"\n")
            pieces.pop()
        file, file_id, read_at, offsets = self.file, self.file_id, self.read_at, self.offsets
        lengths = (len(piece) + 1 for piece in pieces)
        bounds = list(offsets if offsets is not None else accumulate(lengths, initial=self.start))
        bounds[len(pieces) :] = [self.end]
        has_returns = b"\r" in self.data
        new = Record.__new__
        for piece, offset, end in zip(pieces, bounds, bounds[1:], strict=False):
            # As `__init__` does it: the call costs as much as everything else here.
            record = new(Record)
            record.raw = piece[:-1] if has_returns and piece.endswith(b"\r") else piece
            record.file, record.file_id = file, file_id
            record.offset, record.end, record.time = offset, end, read_at
            record.fields, record.level, record.labels = {}, None, labels
            record._text = record._parser = None  # noqa: SLF001
            yield record

    def __repr__(self) -> str:
        return f"<Block {self.file} {self.start}..{self.end}>"


def _groups(data: bytes, starts: Sequence[int]) -> list[bytes]:
    ends = [*starts[1:], len(data)]
    return [data[start : end - 1] for start, end in zip(starts, ends, strict=True)]


@dataclass(slots=True, eq=False)
class Batch:
    r"""What a sink gets at once. Acknowledged as a whole, given again as a whole after a failure.

    >>> batch = Batch([Block(b"one\ntwo\n", "/log/a", "id", start=0, end=8, read_at=0)])
    >>> batch.raw, batch.size, len(batch.records())
    (True, 8, 2)
    """

    blocks: Sequence[Block]
    """What the batch covers, in the order of the files. Blocks of several files may be mixed."""
    kept: list[Record] | None = None
    """What the stages let through. None where there are no stages: then the blocks are the content."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def raw(self) -> bool:
        """True if no stage has looked: the sink may write the blocks' bytes as they are."""
        return self.kept is None

    @property
    def size(self) -> int:
        """Bytes of the lines as they came, dropped ones included."""
        return sum(len(block.data) for block in self.blocks)

    def records(self) -> list[Record]:
        """The records to deliver; made here and now if no stage has asked for them before."""
        if self.kept is None:
            self.kept = [record for block in self.blocks for record in block.records(self.labels)]
        return self.kept
