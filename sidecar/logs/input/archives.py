"""Read compressed log files by offsets of their decompressed bytes: gzip, bzip2, xz, zstd, ZIP, recognised by magic bytes.

Decompression is sequential. An archive therefore has a reader for each offset at which a sink reads, which keeps its
last bytes: the content is decompressed once, however many sinks read it and in whatever steps.

Calls block. Nothing here knows lines.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from sidecar import _errors

MAX_MAGIC_BYTES = 10
_READ_BYTES = 1 << 16
_HEAD_CACHE_BYTES = 4096
"""Bytes at the beginning that are cached, since fingerprints need them often."""
_KEPT_BYTES_BEHIND = 1 << 16
"""Bytes before the last offset that a reader keeps."""
_MAX_READERS = 16
_GZIP_WINDOW = 31  # gzip wrapper, largest window; see zlib.decompressobj
_MAX_DECODER_BYTES = 1 << 28
"""Memory limit of decompression: `xz -9` needs a quarter of it. Archives on a volume are untrusted."""


class Unreadable(_errors.ReadError):
    """The file is compressed in an unsupported format."""


class _Decompressor(Protocol):
    """The common interface of the modules for bzip2, xz and zstd."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflate:
    """The decompressor of zlib with the interface of the others."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP_WINDOW)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)


class _Decoder(Protocol):
    """Decompresses an archive from its beginning."""

    damaged: str | None

    @property
    def ended(self) -> bool: ...
    @property
    def is_truncated(self) -> bool: ...
    def read(self, size: int) -> bytes: ...


class _Members:
    """Concatenated compressed streams (`cat a.gz b.gz`), with padding of zeros at the end."""

    def __init__(self, fd: int, make: Callable[[], _Decompressor]) -> None:
        self._fd, self._make = fd, make
        self._member = make()
        self._source = 0
        self._between = False
        """One member has ended, and the next has not begun."""
        self.damaged: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the last member is complete and nothing follows it."""
        return self._between or (self._member.eof and not self._member.unused_data)

    @property
    def is_truncated(self) -> bool:
        """Whether the file ends in the middle of a member: it may still be being written."""
        if self.damaged or self._between or self._member.eof or not self._member.needs_input:
            return False
        return 0 < os.fstat(self._fd).st_size <= self._source

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the present end."""
        while not self.damaged:
            feed = b""
            if self._member.eof:
                feed = self._member.unused_data
                self._member, self._between = self._make(), True
            if not feed and self._member.needs_input:
                feed = os.pread(self._fd, _READ_BYTES, self._source)
                self._source += len(feed)
                if not feed:
                    return b""
            if self._between and not feed.strip(b"\0"):
                continue  # padding, as tape programs add it
            self._between = False
            try:
                piece = self._member.decompress(feed, size)
            except Exception as error:  # noqa: BLE001 (each module has errors of its own)
                self.damaged = str(error) or type(error).__name__
                return b""
            if piece:
                return piece
        return b""


class _ZipEntries:
    """The files in a ZIP archive, one after the other. Its directory is at its end: nothing is read before it exists."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._entries: list[Callable[[], Any]] | None = None
        self._entry: Any = None
        self.damaged: str | None = None

    @property
    def ended(self) -> bool:
        return self._entries is not None and not self._entries and self._entry is None

    @property
    def is_truncated(self) -> bool:
        return self._entries is None and not self.damaged

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the present end."""
        try:
            while self._open_next():
                if piece := bytes(self._entry.read(size)):
                    return piece
                self._entry = None
        except Exception as error:  # noqa: BLE001 (encrypted, an unknown method, a wrong checksum, lzma.LZMAError, …)
            self.damaged = str(error) or type(error).__name__
        return b""

    def _open_next(self) -> bool:
        if self.damaged:
            return False
        if self._entries is None:
            import zipfile  # rarely needed, and uses 0.5 MB

            try:
                archive = zipfile.ZipFile(io.BufferedReader(_PreadFile(self._fd)))
            except zipfile.BadZipFile:
                return False  # still being written, or cut off
            names = [one for one in archive.infolist() if not one.is_dir()]
            self._entries = [partial(archive.open, one) for one in names]
        if self._entry is None and self._entries:
            self._entry = self._entries.pop(0)()
        return self._entry is not None


class _PreadFile(io.RawIOBase):
    """A file object that uses pread(2), since the descriptor is shared."""

    def __init__(self, fd: int) -> None:
        self._fd, self._offset = fd, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset}.get(whence)
        self._offset = offset + (os.fstat(self._fd).st_size if base is None else base)
        return self._offset

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._fd, [buffer], self._offset)
        self._offset += count
        return count


@dataclass(frozen=True, slots=True)
class _Format:
    """A compression format: its magic bytes, and its decoder."""

    name: str
    magic: tuple[bytes, ...]
    make: Callable[[int], _Decoder] | None = None


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(memlimit=_MAX_DECODER_BYTES)


def _zstd() -> _Decompressor:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise Unreadable(
            "it is compressed with zstd, which needs a module: pip install 'podsidecar[logs]'"
        ) from error
    made: _Decompressor = zstd.ZstdDecompressor()
    return made


_FORMATS = (
    _Format("gzip", (b"\x1f\x8b",), lambda fd: _Members(fd, _Inflate)),
    _Format(
        "bzip2",
        tuple(b"BZh%d" % n + end for n in range(1, 10) for end in (b"1AY&SY", b"\x17rE8P\x90")),
        lambda fd: _Members(fd, bz2.BZ2Decompressor),
    ),
    _Format("xz", (b"\xfd7zXZ\0",), lambda fd: _Members(fd, _xz)),
    _Format("zstd", (b"\x28\xb5\x2f\xfd",), lambda fd: _Members(fd, _zstd)),
    _Format("ZIP", (b"PK\x03\x04",), _ZipEntries),
    _Format("compress (.Z)", (b"\x1f\x9d",)),
    _Format("LZ4", (b"\x04\x22\x4d\x18",)),
    _Format("7-Zip", (b"7z\xbc\xaf\x27\x1c",)),
)


def is_archive(head: bytes) -> bool:
    r"""Whether a file with this head is compressed.

    >>> is_archive(b"\x1f\x8b\x08"), is_archive(b"BZh is a line")
    (True, False)
    """
    return any(head.startswith(format_.magic) for format_ in _FORMATS)


def open_archive(fd: int, head: bytes) -> Archive | None:
    """Return the archive in an open file with this head, None if it is not compressed.

    Raises:
        Unreadable: it is compressed in an unsupported format.
    """
    format_ = next((format_ for format_ in _FORMATS if head.startswith(format_.magic)), None)
    if format_ is None:
        return None
    if format_.make is None:
        raise Unreadable(
            f"it is compressed with {format_.name}, which is not read:"
            " exclude it, or compress with gzip, bzip2, xz, zstd or ZIP"
        )
    format_.make(fd)  # fails now if a module is missing
    return Archive(fd, format_.make)


class _Reader:
    """Reads the content sequentially, and keeps its last bytes."""

    def __init__(self, decoder: _Decoder) -> None:
        self.decoder = decoder
        self.start = 0
        """Offset of the first byte that is kept."""
        self._kept = bytearray()

    @property
    def end(self) -> int:
        return self.start + len(self._kept)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on, which must not be before `start`."""
        while (missing := offset + size - self.end) > 0:
            piece = self.decoder.read(min(missing, _READ_BYTES))
            if not piece:
                break
            self._kept += piece
            self._discard_before(min(offset, self.end) - _KEPT_BYTES_BEHIND)
        first = offset - self.start
        data = bytes(self._kept[first : first + size])
        self._discard_before(offset - _KEPT_BYTES_BEHIND)
        return data

    def _discard_before(self, before: int) -> None:
        if before > self.start:
            before = min(before, self.end)
            del self._kept[: before - self.start]
            self.start = before


class Archive:
    """The decompressed content of a file.

    A file that is still being written is read up to its present end, and further later.
    """

    compressed = True

    def __init__(self, fd: int, make: Callable[[int], _Decoder]) -> None:
        self.fd = fd
        self.reported = False
        """Whether damage or truncation was logged."""
        self._make = make
        self._head = b""
        self._last = _Reader(make(fd))
        self._readers = [self._last]
        """Most recently used last."""

    @property
    def damaged(self) -> str | None:
        """Why no more can be read, None if it can."""
        return next((r.decoder.damaged for r in self._readers if r.decoder.damaged), None)

    @property
    def ended(self) -> bool:
        """Whether the archive is complete and was read to its end."""
        return self._last.decoder.ended

    @property
    def is_truncated(self) -> bool:
        """Whether the file was read to its end and ends in the middle: it may still be being written."""
        return max(self._readers, key=lambda reader: reader.end).decoder.is_truncated

    def length(self) -> int:
        """Return the length of the content that can be read. Decompresses all of it."""
        reader = self._find_reader(max(reader.end for reader in self._readers))
        while reader.read(reader.end, _READ_BYTES):
            pass
        return reader.end

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` decompressed bytes from `offset` on."""
        if offset + size <= len(self._head):
            return self._head[offset : offset + size]
        reader = self._last = self._find_reader(offset)
        data = reader.read(offset, size)
        if offset == 0 and len(self._head) < _HEAD_CACHE_BYTES:
            self._head = data[:_HEAD_CACHE_BYTES]
        return data

    def next_data(self, _: int) -> int | None:
        """Return None: decompressed content has no holes to skip."""
        return None

    def has_writer(self) -> bool | None:
        """Return False for a complete archive, which is not written any more; else None (unknown)."""
        return False if self.ended else None

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _find_reader(self, offset: int) -> _Reader:
        """Return the reader that is closest before the offset, or a new one."""
        fit = [reader for reader in self._readers if reader.start <= offset]
        if fit:
            reader = max(fit, key=lambda one: min(one.end, offset))
            self._readers.remove(reader)
        else:
            reader = _Reader(self._make(self.fd))
        self._readers = [*self._readers, reader][-_MAX_READERS:]
        return reader
