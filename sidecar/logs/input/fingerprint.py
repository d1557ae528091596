"""Fingerprints that identify a stream independently of path and inode.

Inodes are reused, names change, first lines repeat, files shrink and grow again, so no single property is enough.
A stream is recognised by a fingerprint of its head (up to 1 KiB), a fingerprint of the bytes before the offset up to
which it was read (up to 1 KiB), a size that reaches this offset, and by device and inode.
Device and inode only decide which file is tried first.

Pure functions and values: nothing here opens a file.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from array import array
from dataclasses import dataclass
from typing import Protocol

HEAD_BYTES = 1024
"""Bytes at the beginning of a file that the fingerprint covers; fewer while the file is smaller."""
TAIL_BYTES = 1024
"""Bytes before the offset that the fingerprint covers: usually more than a line, since many lines end alike."""
MIN_EVIDENCE = 64
"""A shorter beginning may repeat by chance, such as the first line `started` of an application."""


class Readable(Protocol):
    """A content with random access, see `sidecar.logs.input.file_content`."""

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on; fewer only at the end."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Length and digest of some bytes: a checkpoint can recognise them without containing them."""

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
    """An offset, and the fingerprint of the bytes before it."""

    offset: int
    tail: Fingerprint = NOTHING

    @classmethod
    def of(cls, offset: int, mark: bytes) -> Position:
        return cls(offset, Fingerprint.of(mark[-TAIL_BYTES:]))


def is_continued_by(head: Fingerprint, position: Position, content: Readable) -> bool:
    """Whether `content` has this head, and the bytes of this position before its offset.

    False for an empty head, which would match every file.
    """
    if head.length == 0:
        return False
    if not head.matches(content.read(0, head.length)):
        return False
    start = position.offset - position.tail.length
    before = content.read(start, position.tail.length)
    return len(before) == position.tail.length and position.tail.matches(before)


def is_copy(copy: Readable, copy_size: int, original: Readable) -> bool:
    """Whether `copy`, which may still grow, repeats the beginning of `original`.

    Only head and end are compared: a copy of a large file must not be read completely.
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
    """Hashes of samples of a stream that was read, to recognise a copy that ends early.

    `copytruncate` during heavy writing leaves a copy that is shorter than what was read.
    The distance of two samples is 1/16 of the offset; the last 64 are kept, 1 KiB a stream.

    >>> hashes = SampledHashes()
    >>> hashes.add(0, bytes(range(256)) * 32, 8192)
    >>> hashes
    <SampledHashes 8, last at 8192>
    """

    _MAX_SAMPLES = 64
    _SPACING_SHIFT = 4
    _SAMPLE_BYTES = 256

    __slots__ = ("_hashes", "_offsets")

    def __init__(self) -> None:
        self._offsets, self._hashes = array("q"), array("q")

    def add(self, start: int, data: bytes, size: int) -> None:
        """Sample the first `size` bytes of `data`, which begins at offset `start`."""
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
        """Whether the last sample before `size` matches. False if there is none."""
        index = bisect.bisect_right(self._offsets, size) - 1
        if index < 0:
            return False
        sample = content.read(self._offsets[index] - self._SAMPLE_BYTES, self._SAMPLE_BYTES)
        return len(sample) == self._SAMPLE_BYTES and hash(sample) == self._hashes[index]

    def __repr__(self) -> str:
        last = self._offsets[-1] if self._offsets else 0
        return f"<SampledHashes {len(self._offsets)}, last at {last}>"


_COMPRESSED = re.compile(r"[-._](?:gz|Z|bz2|xz|zst|zip|lz4)$", re.IGNORECASE)
_ROTATION = re.compile(
    r"""(?: [-._]?(?:gz|bz2|xz|zst|zip|lz4|tmp|old|bak|orig) $   # suffixes of compression and copies
          | [-._@]\d[\d_T:.-]* (?=\.|$) )           # a number, a date
    """,
    re.VERBOSE | re.IGNORECASE,
)


def plain_name(name: str) -> str:
    """Return the file name without the extension of a compression.

    >>> plain_name("app.log.1.gz"), plain_name("app.log.1")
    ('app.log.1', 'app.log.1')
    """
    return _COMPRESSED.sub("", name) or name


def base_log_name(name: str) -> str:
    """Return the name of the log, without the suffixes of rotation and compression.

    >>> {base_log_name(n) for n in ("app.log", "app.log.1", "app.log.2.gz", "app-20260101.log", "app.log-20260101.gz")}
    {'app.log'}
    """
    while (shorter := _ROTATION.sub("", name)) != name and shorter:
        name = shorter
    return name


def same_log_family(one: str, other: str) -> bool:
    """Whether two names may belong to a log and its rotated files. Some scripts replace the extension.

    >>> [same_log_family("app.log", other) for other in ("app.log.1", "app.bak", "app.1", "app.err", "other.bak")]
    [True, True, True, False, False]
    """
    first, second = base_log_name(one), base_log_name(other)
    return first == second or _stem(first) == second or first == _stem(second)


def _stem(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return stem if dot and stem and extension.isalpha() else name
