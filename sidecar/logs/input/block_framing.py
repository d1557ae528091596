"""Cut the bytes of a stream into blocks: complete lines or groups of lines, in UTF-8, with the offset of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from sidecar.logs.input.framing import (
    Encoding,
    Frame,
    Multiline,
    MultilineGrouper,
    limit_records,
    split_lines,
)
from sidecar.logs.records import MAX_BLOCK_RECORDS, newlines_in


@dataclass(frozen=True, slots=True)
class FramingConfig:
    """How bytes are split into blocks of lines."""

    max_line: int = 1 << 20
    chunk: int = 1 << 17
    encoding: str = "utf-8"
    multiline: Multiline | None = None


def next_frame(
    raw: bytes,
    encoding: Encoding,
    config: FramingConfig,
    grouper: MultilineGrouper | None,
    *,
    final: bool,
    ended: bool,
) -> Frame | None:
    """Return the complete lines (or groups) at the start of the bytes; None if there is none yet.

    `final`: nothing follows the bytes, and a line without a newline is complete. `ended`: the file is not written any more.
    """
    frame = encoding.frame(raw, config.max_line, final=final, ended=ended)
    if frame is None or grouper is None or frame.newline:
        return frame
    too_long = len(raw) > config.max_line
    rest = raw[frame.size :]
    if final and rest and not too_long and rest[:1] != b"\0":
        # The last line has no newline, and still ends its group.
        grouped = encoding.group(raw + encoding.newline, grouper, final=True)
        return grouped and replace(grouped, size=len(raw), newline=True)
    return encoding.group(raw[: frame.size], grouper, final=final or too_long)


def ends_with_newline(raw: bytes, encoding: Encoding) -> bool:
    """Whether the bytes end with a newline of the encoding."""
    return raw.endswith(encoding.newline) and len(raw) % len(encoding.newline) == 0


def limit_frame(raw: bytes, frame: Frame, encoding: Encoding) -> tuple[Frame, bytes]:
    """Return the frame, limited to `MAX_BLOCK_RECORDS` records, and its bytes."""
    taken = raw[: frame.size] if frame.size < len(raw) else raw
    if encoding.plain:
        frame = limit_records(frame, taken, MAX_BLOCK_RECORDS)
    return frame, taken if frame.size == len(taken) else taken[: frame.size]


def decode(
    taken: bytes, frame: Frame, encoding: Encoding, start: int
) -> tuple[bytes, Sequence[int] | None]:
    """Return the lines of a frame that begins at `start` in UTF-8, and the offset of each line (or group); None if they follow from the lines."""
    data: bytes
    offsets: Sequence[int] | None
    data, offsets = taken + b"\n" if frame.newline else taken, None
    if not encoding.plain:
        data, offsets = encoding.to_utf8(taken, start)
    if frame.order is not None:
        data, offsets = _reorder_lines(data, frame.order, offsets, start)
    if frame.starts is not None and offsets is not None:
        offsets = _select_group_offsets(data, frame.starts, offsets)
    return data, offsets


def count_records(data: bytes, frame: Frame) -> int:
    """Return the number of records, counted while the bytes are in the CPU cache."""
    if frame.starts is not None:
        return len(frame.starts)
    return newlines_in(data) if frame.count is None else frame.count


def _reorder_lines(
    data: bytes, order: Sequence[int], offsets: Sequence[int] | None, start: int
) -> tuple[bytes, list[int]]:
    """Return the lines in the given order, and the offset of each."""
    lines = split_lines(data)
    if offsets is None:
        offsets = list(accumulate((len(line) for line in lines), initial=start))
    return b"".join([lines[number] for number in order]), [offsets[number] for number in order]


def _select_group_offsets(data: bytes, starts: Sequence[int], offsets: Sequence[int]) -> list[int]:
    """Return the offset of the first line of each group."""
    found, line, position = [], 0, 0
    for start in starts:
        line += data.count(b"\n", position, start)
        position = start
        found.append(offsets[line])
    return found
