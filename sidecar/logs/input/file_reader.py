"""Read one log stream: a sequence of bytes that keeps its positions whatever happens to its file.

A stream is neither a path nor an inode. Rotation gives it another name, `copytruncate` another file,
and compression another form; its positions stay valid.
For each sink it has a cursor (how far it was read) and a window (how far it was acknowledged).

Reads block. Which file belongs to which stream is decided by `sidecar.logs.input.rotation`.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

from sidecar.logs.input.ack_window import OffsetWindow
from sidecar.logs.input.archives import MAX_MAGIC_BYTES, is_archive
from sidecar.logs.input.block_framing import (
    FramingConfig,
    count_records,
    decode,
    ends_with_newline,
    limit_frame,
    next_frame,
)
from sidecar.logs.input.discovery import Key
from sidecar.logs.input.file_content import Content, open_content
from sidecar.logs.input.fingerprint import (
    HEAD_BYTES,
    MIN_EVIDENCE,
    NOTHING,
    TAIL_BYTES,
    Fingerprint,
    Position,
    SampledHashes,
    is_continued_by,
)
from sidecar.logs.input.framing import (
    Encoding,
    Frame,
    MultilineGrouper,
    detect_encoding,
    zero_prefix,
)
from sidecar.logs.records import Block

_BOM_BYTES = 3


class ContentReplaced(Exception):
    """The file no longer contains the bytes that were read from it."""


@dataclass(slots=True, eq=False)
class ReadPosition:
    """How far a sink has read."""

    offset: int
    tail_bytes: bytes = b""
    partial: bool = False
    """The bytes after the offset are not a complete line (or group) yet."""
    unterminated: bool = False
    """The last line of these bytes has no newline yet."""
    flush: bool = False
    """The next read treats these bytes as complete."""
    at_end: bool = False
    """The last read reached the end of the file."""


@dataclass(slots=True, eq=False)
class LogStream:
    """One log stream, its present file, and its positions."""

    path: str
    key: Key | None
    head: Fingerprint = NOTHING
    content: Content | None = None
    size: int = 0
    """Size at the last check; of a compressed file: how far it was read."""
    live: bool = True
    """Its path matches a pattern: it may grow at any time."""
    deleted: bool = False
    retired_at: float | None = None
    """Unix time since which it has no file and nothing to read: it is kept only to recognise copies."""
    file_id: str = ""
    parent_id: str = ""
    size_and_mtime: tuple[int, ...] = ()
    modified_ns: int = 0
    """The latest modification time of its file."""
    scan_started_ns: int = 0
    """`modified_ns` at the start of the present scan: files that rotation creates since then are not older."""
    last_complete_scan_ns: int = 0
    """`modified_ns` at the start of the last scan that opened all files: older files are known."""
    last_growth: float = 0.0
    """Monotonic time of the last change of its file."""
    cursors: dict[str, ReadPosition] = field(default_factory=dict)
    windows: dict[str, OffsetWindow] = field(default_factory=dict)
    target_offset: int = 0
    """The offset up to which a run with `until_end` delivers: the size at its start."""
    saved_offset: int = 0
    """The offset that every sink had acknowledged when the checkpoint was saved."""
    preallocated_from: int | None = None
    """Only zeros follow this offset: preallocated space, not data that waits."""
    skipped_bytes: int = 0
    """Bytes of holes that were skipped and are not reported yet."""
    head_bytes: bytes = b""
    unresolved: Position | None = None
    """Set while its file is not found: the furthest position, by which it is recognised."""
    loss_reason: str = "vanished"
    """The reason to report if its file is never found and unread bytes are lost."""
    search_deadline: float | None = None
    """Monotonic time at which the search ends. Names change during a rotation."""
    _encoding: Encoding | None = None
    _skipped_end: int = 0
    _sampled_hashes: SampledHashes = field(default_factory=SampledHashes)

    @property
    def read_by_all(self) -> int:
        return min((cursor.offset for cursor in self.cursors.values()), default=0)

    @property
    def read_by_none(self) -> bool:
        return not any(cursor.offset for cursor in self.cursors.values())

    @property
    def acknowledged_by_all(self) -> int:
        return min((window.offset for window in self.windows.values()), default=0)

    @property
    def written(self) -> int:
        """The size without preallocated space: how much there is to deliver."""
        return (
            self.size if self.preallocated_from is None else min(self.preallocated_from, self.size)
        )

    @property
    def has_partial(self) -> bool:
        """Whether a sink waits for the end of a line or group."""
        return any(cursor.partial for cursor in self.cursors.values())

    @property
    def reached_target(self) -> bool:
        """Whether every sink has read up to the target offset."""
        if self.content is not None and self.content.compressed:
            return all(c.at_end and not c.partial for c in self.cursors.values())
        return self.unresolved is None and self.read_by_all >= min(self.target_offset, self.written)

    @property
    def furthest(self) -> Position:
        """The position of the sink that has read most, by which the next file is recognised."""
        cursor = max(self.cursors.values(), key=lambda c: c.offset, default=None)
        return Position(0) if cursor is None else Position.of(cursor.offset, cursor.tail_bytes)

    @property
    def is_fully_acknowledged(self) -> bool:
        """Whether all sinks have read to the same offset, and acknowledged it."""
        ends = {c.offset for c in self.cursors.values()} | {w.offset for w in self.windows.values()}
        return len(ends) <= 1

    def attach(self, content: Content, key: Key, path: str) -> None:
        """Continue in this file at the present positions. The caller has verified the file."""
        self.detach()
        self.content, self.key, self.path = content, key, path
        self.deleted, self.retired_at, self.size_and_mtime, self.preallocated_from = (
            False,
            None,
            (),
            None,
        )
        self.head_bytes = self.read_head(HEAD_BYTES)
        self.head = Fingerprint.of(self.head_bytes)
        if not content.compressed:
            self.size = content.length()
        for cursor in self.cursors.values():
            cursor.tail_bytes = _read_tail_bytes(content, cursor.offset)

    def truncate(self, content: Content) -> None:
        """Move all positions back to the end of a file that holds only the beginning of this stream."""
        end = content.length()
        mark = _read_tail_bytes(content, end)
        for cursor in self.cursors.values():
            if cursor.offset > end:
                cursor.offset, cursor.tail_bytes, cursor.partial = end, mark, False
        for window in self.windows.values():
            window.truncate(end, mark)
        self.size = end
        # Bytes written after that end differ from those read before: the new identifier lets receivers tell them apart.
        self.parent_id, self.file_id = self.file_id or self.parent_id, ""

    def detach(self) -> None:
        """Close the file, if it is open."""
        if self.content is not None:
            self.content.close()
            self.content = None

    def read_head(self, size: int) -> bytes:
        """Return up to `size` bytes of the head, without trailing zeros: those may be filled later."""
        content = self.content
        if content is None:
            return b""
        data = content.read(0, size)
        if content.compressed:
            return data
        head = data.rstrip(b"\0")
        if head or not data:
            return head
        if self._find_hole_end(len(data)) is not None:
            return data
        self.preallocated_from = 0
        return b""

    def extend_fingerprint(self, size: int) -> bool:
        """Extend the fingerprint of the head up to this file size. Return False if the known bytes have changed.

        It never reads beyond `size`: the caller classifies the file by that size.

        Raises:
            Unreadable: the file is compressed in an unsupported format.
        """
        known, content = self.head_bytes, self.content
        if content is not None and len(known) < HEAD_BYTES:
            head = self.read_head(HEAD_BYTES if content.compressed else min(HEAD_BYTES, size))
            if not head.startswith(known):
                return False
            if head != known:
                self.head_bytes, self.head = head, Fingerprint.of(head)
            if not content.compressed and len(known) < MAX_MAGIC_BYTES and is_archive(head):
                self.content = open_content(content.fd)  # it was empty when found
        return True

    def is_intact(self) -> bool:
        """Whether the file still contains the bytes that were read from it."""
        content = self.content
        if content is None:
            return True
        if content.read(0, len(self.head_bytes)) != self.head_bytes:
            return False
        return all(
            content.read(c.offset - len(c.tail_bytes), len(c.tail_bytes)) == c.tail_bytes
            for c in self.cursors.values()
        )

    def may_start_with(self, data: bytes) -> bool:
        """Whether the stream may begin with `data`. A quick test, since many logs are compared with each other."""
        known = self.head_bytes[: len(data)]
        return data.startswith(known)

    def is_continued_by(self, content: Content) -> bool:
        """Whether a file holds this stream, at least up to the furthest position."""
        return is_continued_by(self.head, self.unresolved or self.furthest, content)

    def is_truncated_copy_in(self, content: Content) -> bool:
        """Whether a file holds the beginning of this stream, but not all that was read of it."""
        size, seen = content.length(), max(self.furthest.offset, len(self.head_bytes))
        if not MIN_EVIDENCE <= size < seen or not self.head_bytes:
            return False
        head = content.read(0, len(self.head_bytes))
        if not self.head_bytes.startswith(head):
            return False
        return len(head) == size or self._sampled_hashes.matches(content, size)

    def is_contained_in(self, content: Content) -> bool:
        """Whether a file holds all of this stream, including what is not read yet."""
        if not self.is_continued_by(content):
            return False
        if self.content is None:
            return True
        start = max(self.size - TAIL_BYTES, 0)
        end = self.content.read(start, self.size - start)
        return content.read(start, len(end)) == end

    def has_writer(self) -> bool | None:
        """Whether a process has the file open for writing; None if unknown."""
        return None if self.content is None else self.content.has_writer()

    def writers_gone(self) -> bool:
        """Whether the file is known to have no writer."""
        return self.has_writer() is False

    def read_block(
        self, sink: str, config: FramingConfig, grouper: MultilineGrouper | None
    ) -> tuple[Block | None, bool]:
        """Return the next block for a sink, if there is one, and whether more may follow at once.

        Raises:
            ContentReplaced: the bytes before the position are not the ones that were read.
            OSError: as pread(2).
        """
        cursor = self.cursors[sink]
        size = config.chunk
        while True:
            raw = self._read(cursor, size)
            short = len(raw) < size
            encoding = self._find_encoding(cursor, raw, short, config.encoding)
            skipped = None if encoding is None else self._skip(cursor, raw, encoding)
            if encoding is None or skipped is None:
                return None, False
            if skipped:
                continue
            ended = self._cannot_grow()
            frame = next_frame(
                raw,
                encoding,
                config,
                grouper,
                final=short and (cursor.flush or ended),
                ended=ended or self.deleted or not self.live,
            )
            if frame is not None:
                break
            if short:
                # An incomplete character cannot be flushed, and is not waited for.
                cursor.partial = bool(raw) and not cursor.flush
                cursor.unterminated = not ends_with_newline(raw, encoding)
                cursor.flush, cursor.at_end = False, True
                return None, False
            # The line (or group) is longer than what was read: read more, up to the limit.
            size = max(size * 2, config.max_line + 1)
        frame, taken = limit_frame(raw, frame, encoding)
        more = not short or frame.size < len(raw)
        cursor.at_end = not more
        return self._block(cursor, raw, taken, frame, encoding), more

    def _read(self, cursor: ReadPosition, size: int) -> bytes:
        content = self.content
        if content is None:
            return b""
        back = len(cursor.tail_bytes)
        if content.compressed:
            # Decompression is sequential: read the bytes before the offset first.
            before = content.read(cursor.offset - back, back) if back else b""
            raw = content.read(cursor.offset, size)
        else:
            # Read the bytes before the offset last: if they are unchanged then, the data is not from a new content either.
            raw = content.read(cursor.offset, size)
            before = content.read(cursor.offset - back, back) if back else b""
        if before != cursor.tail_bytes or (
            cursor.offset == 0 and not raw.startswith(self.head_bytes)
        ):
            raise ContentReplaced(self.path)
        known = len(self.head_bytes)
        if known < HEAD_BYTES and cursor.offset <= known < cursor.offset + len(raw):
            head = self.head_bytes[: cursor.offset] + raw[: HEAD_BYTES - cursor.offset]
            self.head_bytes = head.rstrip(b"\0") or head
            self.head = Fingerprint.of(self.head_bytes)
        return raw

    def _find_encoding(
        self, cursor: ReadPosition, raw: bytes, short: bool, declared: str
    ) -> Encoding | None:
        """Return the encoding; None while there are too few bytes to see a byte order mark."""
        if self._encoding is None:
            if short and len(raw) < _BOM_BYTES and not raw.endswith(b"\n") and not cursor.flush:
                cursor.partial = bool(raw)
                return None
            self._encoding = detect_encoding(self.head_bytes or raw, declared)
        return self._encoding

    def _skip(self, cursor: ReadPosition, raw: bytes, encoding: Encoding) -> bool | None:
        """Skip a byte order mark or a hole. Return True to read again, None to wait, False if there is nothing to skip."""
        if cursor.offset == 0 and encoding.skip:
            self._advance(cursor, raw, encoding.skip)
            return True
        if raw[:1] != b"\0" or not encoding.plain:
            if raw:
                self.preallocated_from = None
            return False
        hole = zero_prefix(raw)
        if hole == len(raw):
            following = self._find_hole_end(cursor.offset + hole)
            if following is None:
                # It may be preallocated space that its writer will fill later.
                cursor.partial, cursor.unterminated, cursor.at_end = not cursor.flush, True, True
                cursor.flush, self.preallocated_from = False, cursor.offset
                return None
            hole = following - cursor.offset  # gigabytes in one step
        self.preallocated_from = None
        if cursor.offset + hole > self._skipped_end:
            self.skipped_bytes += hole
            self._skipped_end = cursor.offset + hole
        cursor.tail_bytes = (cursor.tail_bytes + bytes(min(hole, TAIL_BYTES)))[-TAIL_BYTES:]
        cursor.offset += hole
        self.size = max(self.size, cursor.offset)
        return True

    def _find_hole_end(self, offset: int) -> int | None:
        """Return the offset at which the zeros end; None if only zeros follow."""
        content, step = self.content, 1 << 20
        if content is None or content.compressed:
            return None
        while (data := content.next_data(offset)) is not None:
            piece = content.read(data, step)
            if not piece:
                return None
            if (zeros := zero_prefix(piece)) < len(piece):
                return data + zeros
            offset = (
                data + zeros
            )  # zeros that were written: the file was filled with them in advance
        return None

    def _cannot_grow(self) -> bool:
        """Whether the file is an archive that was read to its end, as far as it can be."""
        content = self.content
        return content is not None and (content.ended or content.damaged is not None)

    def _block(
        self, cursor: ReadPosition, raw: bytes, taken: bytes, frame: Frame, encoding: Encoding
    ) -> Block:
        start = cursor.offset
        self._advance(cursor, raw, frame.size)
        cursor.partial = frame.size < len(raw)
        cursor.unterminated = not ends_with_newline(raw, encoding)
        if not cursor.partial:
            cursor.flush = False
        data, offsets = decode(taken, frame, encoding, start)
        if not self.file_id:
            self.file_id = self._make_id()
        return Block(
            data=data,
            file=self.path,
            file_id=self.file_id,
            start=start,
            end=cursor.offset,
            read_at=time.time_ns(),
            mark=cursor.tail_bytes,
            starts=frame.starts,
            offsets=offsets,
            count=count_records(data, frame),
        )

    def _advance(self, cursor: ReadPosition, raw: bytes, size: int) -> None:
        self._sampled_hashes.add(cursor.offset, raw, size)
        end = raw[max(size - TAIL_BYTES, 0) : size]
        cursor.tail_bytes = (
            end if len(end) == TAIL_BYTES else (cursor.tail_bytes + end)[-TAIL_BYTES:]
        )
        cursor.offset += size
        self.size = max(self.size, cursor.offset)

    def _make_id(self) -> str:
        """Return an identifier that is the same after a kill before the first checkpoint, but differs for a new stream on a reused inode."""
        first_line = self.head_bytes.partition(b"\n")[0]
        device, inode = self.key or (0, 0)
        seed = f"{device}:{inode}:{self.parent_id}:".encode() + first_line
        return hashlib.blake2b(seed, digest_size=8).hexdigest()

    def __repr__(self) -> str:
        kind = (
            "gone"
            if self.retired_at
            else "deleted"
            if self.deleted
            else "live"
            if self.live
            else "rotated"
        )
        return f"<Stream {self.path} {kind} read={self.read_by_all} of {self.size}>"


def _read_tail_bytes(content: Content, offset: int) -> bytes:
    start = max(offset - TAIL_BYTES, 0)
    return content.read(start, offset - start)
