"""Which content is this? No single property of a file answers that, so four of them do together.

Inodes are reused, names move, first lines repeat, files shrink and grow again.
A content is recognised by its head (up to 1 KiB, as much as there is),
by the bytes just before the offset up to which it was read (up to 1 KiB again), by a size that reaches the offset,
and by device and inode, which decide where to look first and are never enough alone.

Pure functions and values; nothing here opens a file.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from array import array
from dataclasses import dataclass
from typing import Protocol

HEAD_BYTES = 1024
"""Bytes of the head that count. Less is used while the file is smaller."""
TAIL_BYTES = 1024
"""Bytes before the offset that count: as a rule more than a line, since many lines end alike."""
MIN_EVIDENCE = 64
"""A content of fewer bytes may well begin again by chance: an application that writes `started`."""


class Readable(Protocol):
    """A content that can be read anywhere: `sidecar.logs.input.file_content` has them."""

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on; fewer only at the end."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Length and digest of some bytes: enough to recognise them, not to read them in a checkpoint."""

    length: int
    digest: str

    @classmethod
    def of(cls, data: bytes) -> Fingerprint:
        return cls(len(data), hashlib.blake2b(data, digest_size=12).hexdigest())

    def matches(self, data: bytes) -> bool:
        """Whether `data` begins with the bytes this was made of."""
        return len(data) >= self.length and Fingerprint.of(data[: self.length]) == self


NOTHING = Fingerprint.of(b"")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a content was read: the offset, and what stands just before it."""

    offset: int
    tail: Fingerprint = NOTHING

    @classmethod
    def of(cls, offset: int, mark: bytes) -> Position:
        return cls(offset, Fingerprint.of(mark[-TAIL_BYTES:]))


def is_continued_by(head: Fingerprint, position: Position, content: Readable) -> bool:
    """Whether `content` is the one that had this head and was read up to this place.

    False for a content of which nothing is known: an empty head fits everything.
    """
    if head.length == 0:
        return False
    if not head.matches(content.read(0, head.length)):
        return False
    start = position.offset - position.tail.length
    before = content.read(start, position.tail.length)
    return len(before) == position.tail.length and position.tail.matches(before)


def is_copy(copy: Readable, copy_size: int, original: Readable) -> bool:
    """Whether `copy` (perhaps still growing) repeats the beginning of `original`.

    Head and end are compared, not everything between: a copy of a large file must not cost reading it twice.
    """
    if copy_size == 0:
        return False
    head = min(copy_size, 4 * HEAD_BYTES)
    tail = max(copy_size - 4 * HEAD_BYTES, 0)
    return _same(copy, original, 0, head) and _same(copy, original, tail, copy_size - tail)


def _same(one: Readable, other: Readable, offset: int, size: int) -> bool:
    expected = one.read(offset, size)
    return len(expected) == size and other.read(offset, size) == expected


class SampledHashes:
    """What stands at some places of a content that was read, as hashes: to recognise its beginning where it ends early.

    `copytruncate` under a busy writer leaves a copy that is shorter than what a quick reader has read.
    Places are a sixteenth of the way apart, the last 64 of them are kept: a kilobyte a file.

    >>> hashes = SampledHashes()
    >>> hashes.add(0, bytes(range(256)) * 32, 8192)
    >>> hashes
    <SampledHashes 8, the last at 8192>
    """

    _MAX_SAMPLES = 64
    _SPACING_SHIFT = 4
    _SAMPLE_BYTES = 256

    __slots__ = ("_hashes", "_offsets")

    def __init__(self) -> None:
        self._offsets, self._hashes = array("q"), array("q")

    def add(self, start: int, data: bytes, size: int) -> None:
        """Remember places in the first `size` bytes of `data`, which stand at `start`."""
        last = self._offsets[-1] if self._offsets else 0
        while (
            position := max(
                last + max(HEAD_BYTES, last >> self._SPACING_SHIFT), start + self._SAMPLE_BYTES
            )
        ) <= start + size:
            at = position - start
            self._offsets.append(position)
            self._hashes.append(hash(data[at - self._SAMPLE_BYTES : at]))
            last = position
        if len(self._offsets) > self._MAX_SAMPLES:
            del self._offsets[: -self._MAX_SAMPLES], self._hashes[: -self._MAX_SAMPLES]

    def matches(self, content: Readable, size: int) -> bool:
        """Whether the last place before `size` looks as it did. False if none is known."""
        index = bisect.bisect_right(self._offsets, size) - 1
        if index < 0:
            return False
        there = content.read(self._offsets[index] - self._SAMPLE_BYTES, self._SAMPLE_BYTES)
        return len(there) == self._SAMPLE_BYTES and hash(there) == self._hashes[index]

    def __repr__(self) -> str:
        last = self._offsets[-1] if self._offsets else 0
        return f"<SampledHashes {len(self._offsets)}, the last at {last}>"


_COMPRESSED = re.compile(r"[-._](?:gz|Z|bz2|xz|zst|zip|lz4)$", re.IGNORECASE)
_ROTATION = re.compile(
    r"""(?: [-._]?(?:gz|bz2|xz|zst|zip|lz4|tmp|old|bak|orig) $   # what compressing and copying append
          | [-._@]\d[\d_T:.-]* (?=\.|$) )           # a number, a date
    """,
    re.VERBOSE | re.IGNORECASE,
)


def plain_name(name: str) -> str:
    """Return what a compressed file was called before.

    >>> plain_name("app.log.1.gz"), plain_name("app.log.1")
    ('app.log.1', 'app.log.1')
    """
    return _COMPRESSED.sub("", name) or name


def base_log_name(name: str) -> str:
    """Return what rotation leaves of a file name.

    >>> {base_log_name(n) for n in ("app.log", "app.log.1", "app.log.2.gz", "app-20260101.log", "app.log-20260101.gz")}
    {'app.log'}
    """
    while (shorter := _ROTATION.sub("", name)) != name and shorter:
        name = shorter
    return name


def same_log_family(one: str, other: str) -> bool:
    """Whether the names may be of one log file and its rotated past. Some scripts put another extension in place.

    >>> [same_log_family("app.log", other) for other in ("app.log.1", "app.bak", "app.1", "app.err", "other.bak")]
    [True, True, True, False, False]
    """
    first, second = base_log_name(one), base_log_name(other)
    return first == second or _stem(first) == second or first == _stem(second)


def _stem(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return stem if dot and stem and extension.isalpha() else name
