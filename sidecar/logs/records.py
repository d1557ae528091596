"""The data that flows from a file to a sink: blocks of complete lines, and records.

A `Block` holds complete lines of one file as bytes, with their offsets.
It is split into records only on demand: moving blocks is several times cheaper than handling each line.
A `Record` is one line (or one multiline group), for stages and for sinks that need records.
A `Batch` is delivered to a sink, and acknowledged, as a whole.

Nothing here reads, writes or waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

Parser = Callable[[bytes], Mapping[str, Any]]
"""A repeatable function of a parsing stage: from the bytes of a line to its fields."""

_NO_LABELS: Mapping[str, str] = {}


class Record:
    """One line of a log file, or one multiline group.

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
    """The original line without its line ending. Groups keep the line endings between their lines."""
    file: str
    """The path of the file."""
    file_id: str
    """Identifies the stream across renames; together with `offset` it identifies the record."""
    offset: int
    """Offset of the line in its file in bytes (of the decompressed content, if it is compressed)."""
    end: int
    """Offset of the next line."""
    time: int
    """Unix nanoseconds: when the line was read, or the time that a stage found in the line."""
    level: str | None
    """`trace`, `debug`, `info`, `warn`, `error` or `fatal`, once a stage has found it."""
    fields: dict[str, Any]
    """Fields from parsing, and those added by stages."""
    labels: Mapping[str, str]
    """Labels of all lines of the source, such as Pod and container. Replace the mapping; do not change it in place."""

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
        """The line as text; invalid UTF-8 becomes U+FFFD. Can be assigned."""
        if self._text is None:
            return self.raw.decode("utf-8", "replace")
        return self._text

    @text.setter
    def text(self, value: str) -> None:
        self._text = value

    @property
    def text_is_raw(self) -> bool:
        """Whether no text was assigned."""
        return self._text is None

    def parsed(self, fields: dict[str, Any], parser: Parser) -> None:
        """Set the fields that `parser` found in the line. Parsing alone does not make a record `changed`.

        `parser(record.raw)` must return equal fields again: changes are detected by this comparison, at any depth.
        """
        self.fields = fields
        self._parser = parser

    @property
    def structured(self) -> bool:
        """Whether a parser has set the fields: they contain everything, and the text need not be sent as well."""
        return self._parser is not None

    @property
    def changed(self) -> bool:
        """Whether the record differs from its original line.

        Sinks that write original lines (stdout, file) write such a record as JSON.
        """
        if self._text is not None and self._text != self.raw.decode("utf-8", "replace"):
            return True
        if self._parser is None:
            return bool(self.fields)
        try:
            return self.fields != self._parser(self.raw)
        except (
            RecursionError
        ):  # nested deeper than the stack of Python: assume that a stage has changed it
            return True

    def __repr__(self) -> str:
        return f"<Record {self.file}:{self.offset} {self.text[:60]!r}>"


Stage = Callable[[Record], Record | None]
"""A stage between file and sink: a synchronous function, called in order in the thread of the event loop.

It returns the record (changed or not), another record, or None to drop it.
Stages run separately for each sink, since each sink has its own positions.
An exception in a stage ends the collection, after everything before it is acknowledged and saved:
a stage that can fail on a line has to handle that line itself.
"""


MAX_BLOCK_RECORDS = 1 << 14
"""Limit of records in a block, at 500 bytes of memory each: 1 MB of empty lines would need 500 MB without it."""

_SAMPLE_BYTES = 4096
_SHORT_LINE_BYTES = 48
"""Bytes per line: `count` is faster for shorter lines, memchr(3) for longer ones."""


def newlines_in(data: bytes) -> int:
    r"""Return the number of newlines.

    Before Python 3.13 `bytes.count` examines each byte, which took a fifth of the time of moving lines.
    `replace` finds newlines by memchr(3): it is six times as fast for lines of 1 KiB, including the copy.

    >>> newlines_in(b"one\ntwo\n"), newlines_in(b"one"), newlines_in(b"x" * 4096 + b"\ny\n")
    (2, 0, 2)
    """
    if data.count(b"\n", 0, _SAMPLE_BYTES) * _SHORT_LINE_BYTES > min(len(data), _SAMPLE_BYTES):
        return data.count(b"\n")
    return len(data) - len(data.replace(b"\n", b""))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    r"""Complete lines of one file, as bytes.

    `data` always ends with a newline, even if the file has none there (its last line, a part of an overlong line).

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
    """Offset after the last byte; acknowledging the block moves the position here."""
    read_at: int
    """Unix nanoseconds."""
    mark: bytes = b""
    """Up to 1 KiB of the file before `end`, for the fingerprint in the checkpoint."""
    starts: Sequence[int] | None = None
    """Where the records begin in `data`, if records are multiline groups."""
    offsets: Sequence[int] | None = None
    """The file offset of each record, if it is not `start` plus its index in `data` (transcoded files)."""
    count: int | None = None
    """The number of records, if known: see `lines`."""

    def __len__(self) -> int:
        return len(self.data)

    @property
    def lines(self) -> int:
        """The number of records in the block."""
        if self.count is not None:
            return self.count
        return newlines_in(self.data) if self.starts is None else len(self.starts)

    def pieces(self, size: int) -> Iterator[Block]:
        r"""Split the block into blocks of at most `size` bytes (a longer line alone). Blocks of groups are not split.

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
        """Yield the records. A carriage return before the newline belongs to the line ending."""
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
            # Set the attributes as `__init__` does: the call would double the cost.
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
    r"""The unit of delivery to a sink: acknowledged as a whole, and retried as a whole after a failure.

    >>> batch = Batch([Block(b"one\ntwo\n", "/log/a", "id", start=0, end=8, read_at=0)])
    >>> batch.raw, batch.size, len(batch.records())
    (True, 8, 2)
    """

    blocks: Sequence[Block]
    """The blocks of the batch, in the order of each file. Blocks of several files may be mixed."""
    kept: list[Record] | None = None
    """The records that the stages returned. None without stages: the blocks are the content then."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def raw(self) -> bool:
        """Whether no stage ran: the sink can write the bytes of the blocks unchanged."""
        return self.kept is None

    @property
    def size(self) -> int:
        """Bytes of the original lines, including dropped ones."""
        return sum(len(block.data) for block in self.blocks)

    def records(self) -> list[Record]:
        """Return the records to deliver; they are created on the first call if no stage ran."""
        if self.kept is None:
            self.kept = [record for block in self.blocks for record in block.records(self.labels)]
        return self.kept
