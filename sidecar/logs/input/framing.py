"""Framing: split bytes into complete lines and multiline groups.

Functions over bytes: how many bytes form a block, which have to wait for more,
and where overlong lines, holes and groups begin and end. Lines are examined one by one only where that is needed.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sidecar._errors import ConfigError
from sidecar.logs import regex
from sidecar.logs.records import newlines_in
from sidecar.process import arguments

NEWLINE = b"\n"
_ZERO_PAGES = bytes(1 << 20)
"""Zero pages that are never written: they use no memory."""
_WRITER_SEARCH_BYTES = 128
"""Bytes at the beginning and the end of a line in which the writer is searched."""
_BLANK_SEARCH_BYTES = 4096
"""Bytes before the split of an overlong line in which a blank is searched."""
_MAX_UTF8_BYTES = 4
"""Longest character in UTF-8."""
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class Multiline:
    r"""A multiline rule: which lines form one record, such as a stack trace with its message.

    A group begins at each line that matches `start`, or ends with each line that matches `end`.
    A line that matches `continuation` never begins a group; without `start` every other line does.
    The last group of a file is complete when the next one begins, or after `timeout` seconds without a write.

    >>> Multiline(start=r"\d{4}-\d\d-\d\d ")
    Multiline(start='\\d{4}-\\d\\d-\\d\\d ', end=None, timeout=1.0, max_lines=1000, apart=None, continuation=None)
    """

    start: str | None = None
    end: str | None = None
    timeout: float = 1.0
    max_lines: int = 1000
    """A longer group is split, so that a rule that never matches cannot block a file."""
    apart: str | None = None
    """A pattern whose group `writer` names the writer of a line: lines of several writers may be interleaved."""
    continuation: str | None = None
    """A pattern for lines that continue the record before them: `^Caused by:` (see `sidecar.logs.stack_traces`)."""

    def __post_init__(self) -> None:
        begins = self.start is not None or self.continuation is not None
        if begins == (self.end is not None):
            raise ConfigError(
                "a rule needs either start or end, and not both (continuation goes with start)"
            )
        arguments.check_seconds("timeout", self.timeout)
        arguments.check_integer("max_lines", self.max_lines, least=1)
        for pattern in (self.start, self.end, self.apart, self.continuation):
            regex.compile_pattern(pattern or "")


@dataclass(frozen=True, slots=True)
class Frame:
    """How many of the bytes that were read form a block."""

    size: int
    newline: bool = False
    """The block needs an additional newline: it is a part of an overlong line, or the last line of the file."""
    starts: Sequence[int] | None = None
    order: Sequence[int] | None = None
    """The order of the lines, if groups are interleaved; `starts` refers to the ordered lines."""
    count: int | None = None
    """The number of records, if known."""


def frame_lines(raw: bytes, max_line: int, *, final: bool) -> Frame | None:
    """Return the frame of the complete lines at the beginning of `raw`, None if more bytes are needed.

    A line of more than `max_line` bytes is framed alone and split between characters.
    With `final` the last line needs no newline. A frame ends where a line begins with a hole of NUL bytes.
    """
    size = raw.rfind(NEWLINE) + 1
    if size == 0:
        if len(raw) > max_line:
            return _split_long_line(raw, max_line)
        return Frame(len(raw), newline=True) if final and raw else None
    # Searching one byte is many times faster than searching two, and few logs contain NUL.
    if b"\0" in raw and (hole := raw.find(b"\n\0", 0, size)) >= 0:
        size = hole + 1
    if size <= max_line:
        return Frame(size)
    start = 0
    while size - start > max_line + 1:
        end = raw.rfind(NEWLINE, start, min(start + max_line + 1, size))
        if end < 0:
            return Frame(start) if start else _split_long_line(raw, max_line)
        start = end + 1
    return Frame(size)


def limit_records(frame: Frame, taken: bytes, most: int) -> Frame:
    """Return a frame of at most `most` records. `taken` are its bytes: complete lines in UTF-8."""
    if frame.newline or frame.order is not None:
        return frame
    if frame.starts is not None:
        if len(frame.starts) <= most:
            return frame
        return Frame(frame.starts[most], starts=frame.starts[:most])
    count = newlines_in(taken)
    if count <= most:
        return Frame(frame.size, count=count)
    end = 0
    for _ in range(most):
        end = taken.index(NEWLINE, end) + 1
    return Frame(end, count=most)


def _split_long_line(raw: bytes, most: int) -> Frame:
    """Return the frame of the first part of an overlong line: it ends at a blank, if there is one near, else between characters.

    A split between words keeps each word whole for `redact`.
    """
    near = min(_BLANK_SEARCH_BYTES, most // 16)
    if (blank := raw.rfind(b" ", most - near, most)) > 0:
        return Frame(blank, newline=True)
    size = most
    while most - size < _MAX_UTF8_BYTES - 1 and size > 1 and raw[size] & 0xC0 == 0x80:
        size -= 1
    whole = raw[size] & 0xC0 != 0x80
    return Frame(size if whole else most, newline=True)


def zero_prefix(raw: bytes) -> int:
    """Return the number of NUL bytes at the beginning of `raw`."""
    # Preallocated files contain megabytes of zeros: a comparison takes a fiftieth of the time of stripping.
    if raw == _ZERO_PAGES[: len(raw)]:
        return len(raw)
    return len(raw) - len(raw.lstrip(b"\0"))


class MultilineGrouper:
    """Finds the groups of a multiline rule. It keeps no state: incomplete groups are read again."""

    def __init__(self, rule: Multiline) -> None:
        self.rule = rule
        self._start = regex.compile_pattern(rule.start) if rule.start is not None else None
        self._end = regex.compile_pattern(rule.end) if rule.end is not None else None
        self._continuation = regex.compile_pattern(rule.continuation) if rule.continuation else None
        self._apart = regex.compile_pattern(rule.apart) if rule.apart is not None else None

    def group(self, lines: bytes, *, final: bool) -> Frame | None:
        """Return the frame of the complete groups at the beginning of `lines`, None if the only group may still grow."""
        if self._apart is not None:
            return self._group_interleaved(split_lines(lines), final=final)
        starts: list[int] = []
        position, in_group = 0, 0
        open_group = False
        for line in lines.splitlines(keepends=True) if b"\r" not in lines else split_lines(lines):
            begins = in_group == 0 or in_group >= self.rule.max_lines
            if begins or self._starts_group(line.rstrip(b"\r\n")):
                starts.append(position)
                in_group = 0
            in_group += 1
            position += len(line)
            open_group = True
            if self._end is not None and self._end.found_in(line.rstrip(b"\r\n")):
                in_group, open_group = 0, False
        if not starts:
            return None
        if open_group and not final and in_group < self.rule.max_lines:
            last = starts.pop()
            return Frame(last, starts=starts) if starts else None
        return Frame(len(lines), starts=starts)

    def _group_interleaved(self, lines: Sequence[bytes], *, final: bool) -> Frame | None:
        """As `group`, for interleaved lines of several writers."""
        groups: list[list[int]] = []
        of_writer: dict[str | None, list[int]] = {}
        for number, line in enumerate(lines):
            bare = line.rstrip(b"\r\n")
            ends = self._end is not None and self._end.found_in(bare)
            if ends and not of_writer:  # the usual case: the writer does not matter
                groups.append([number])
                continue
            writer = self._writer(bare)
            group = of_writer.get(writer)
            if (
                group is None
                or self._starts_group(bare)
                or number - group[0] >= self.rule.max_lines
            ):
                group = of_writer[writer] = []
                groups.append(group)
            group.append(number)
            if ends:
                del of_writer[writer]
        # Lines after the first open group have to wait: a position has no gaps.
        open_since = [g[0] for g in of_writer.values() if len(lines) - g[0] < self.rule.max_lines]
        most = len(lines) if final else min(open_since, default=len(lines))
        while (
            groups
            and most < len(lines)
            and (late := _first_reaching_beyond(groups, most)) is not None
        ):
            most = late
        whole = [group for group in groups if group[0] < most]
        order = [number for group in whole for number in group]
        starts, position = [], 0
        for group in whole:
            starts.append(position)
            position += sum(len(lines[number]) for number in group)
        if not starts:
            return None
        return Frame(position, starts=starts, order=None if order == sorted(order) else order)

    def _starts_group(self, line: bytes) -> bool:
        if self._start is None:
            return self._continuation is not None and not self._continuation.found_in(line)
        if not self._start.found_in(line):
            return False
        return self._continuation is None or not self._continuation.found_in(line)

    def _writer(self, line: bytes) -> str | None:
        named = (
            line
            if len(line) <= 2 * _WRITER_SEARCH_BYTES
            else line[:_WRITER_SEARCH_BYTES] + line[-_WRITER_SEARCH_BYTES:]
        )
        found = (
            self._apart.groups(named.decode("utf-8", "replace"))
            if self._apart is not None
            else None
        )
        return found.get("writer") if found is not None else None


def _first_reaching_beyond(groups: Sequence[Sequence[int]], most: int) -> int | None:
    """Return the first line of the first group that begins before line `most` and ends after it."""
    return next((group[0] for group in groups if group[0] < most <= group[-1]), None)


def split_lines(lines: bytes) -> list[bytes]:
    """Split at newlines only: a carriage return inside a line is not a line ending."""
    return [line + NEWLINE for line in lines.split(NEWLINE)[:-1]]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the bytes of a file are converted to lines in UTF-8."""

    name: str
    skip: int = 0
    """Length of the byte order mark."""

    @property
    def plain(self) -> bool:
        """Whether the bytes are passed on unchanged."""
        return self.name == "utf-8"

    @property
    def newline(self) -> bytes:
        return NEWLINE.decode().encode(self.name)

    def frame(self, raw: bytes, max_line: int, *, final: bool, ended: bool = False) -> Frame | None:
        """As `frame_lines`, for this encoding. The size is in bytes of the file.

        With `ended` an incomplete last character is included: the file does not grow any more.
        """
        width = len(self.newline)
        if width == 1:
            return frame_lines(raw, max_line, final=final)
        end = raw.rfind(self.newline)
        while end >= 0 and end % width:
            end = raw.rfind(self.newline, 0, end + width - 1)
        if end >= 0:
            return Frame(end + width)
        if len(raw) > max_line:
            return Frame(max_line - max_line % width, newline=True)
        whole = len(raw) if ended else len(raw) - len(raw) % width
        return Frame(whole, newline=True) if final and whole else None

    def group(self, lines: bytes, grouper: MultilineGrouper, *, final: bool) -> Frame | None:
        """As `MultilineGrouper.group`, for lines in this encoding. `starts` refers to the lines in UTF-8."""
        if self.plain:
            return grouper.group(lines, final=final)
        text, _ = self.to_utf8(lines, 0)
        frame = grouper.group(text, final=final)
        if frame is None or frame.size == len(text):
            return frame and replace(frame, size=len(lines))
        return replace(frame, size=self._end_of_line(lines, text.count(NEWLINE, 0, frame.size)))

    def _end_of_line(self, raw: bytes, lines: int) -> int:
        """Return the offset after `lines` lines."""
        newline, end = self.newline, 0
        while lines > 0:
            end = raw.find(newline, end) + len(newline)
            if end % len(newline) == 0:
                lines -= 1
            else:  # the end of one character and the beginning of the next
                end -= len(newline) - 1
        return end

    def to_utf8(self, raw: bytes, start: int) -> tuple[bytes, list[int]]:
        """Return the lines in UTF-8, and the file offset of each."""
        text = raw.decode(self.name, "replace")
        lines = text.split("\n")
        if lines[-1] == "":
            lines.pop()
        offsets = []
        width = len(self.newline)
        for line in lines:
            offsets.append(start)
            start += len(line.encode(self.name, "replace")) + width
        return "".join(line + "\n" for line in lines).encode("utf-8", "replace"), offsets


def check_encoding(name: str) -> None:
    """Check that files in this encoding can be split into lines.

    Raises:
        ValueError: the encoding is unknown, is not a text encoding, or encodes a newline differently at each place.
    """
    try:
        newline = "\n".encode(name)
        fits = "\n\n".encode(name) == 2 * newline and newline.decode(name, "replace") == "\n"
    except LookupError as error:
        raise ValueError(f"no encoding of texts is called {name!r}") from error
    except UnicodeError:
        fits = False
    if not fits:
        raise ValueError(
            f"the encoding {name!r} cannot be cut into lines: byte order marks are found by themselves,"
            " so name what is without one, as utf-8, utf-16-le or utf-16-be"
        )


def detect_encoding(head: bytes, declared: str) -> Encoding:
    """Return the encoding of a file with this head: a byte order mark overrides the declared encoding.

    Raises:
        LookupError: the declared encoding is unknown.
    """
    for bom, name in _BOMS:
        if head.startswith(bom):
            return Encoding(name, len(bom))
    return Encoding(codecs.lookup(declared).name)
