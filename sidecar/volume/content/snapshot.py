"""The content of a volume at one moment: an immutable mapping of names to bytes, with a version.

`sidecar.volume.content.loader` reads it from the disk.
Large files are kept open instead of in memory: see `sidecar.fs.open_file`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, KeysView, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias

from typing_extensions import TypeVar

from sidecar.fs import open_file
from sidecar.process import arguments
from sidecar.volume.content.metadata import Metadata

T = TypeVar("T", default=None)

#: A file that is too large to hold in memory.
Large: TypeAlias = open_file.OpenFile | open_file.LazyFile

VERSION_DIGITS = 32
MAX_SIZE = 64 << 20


def version_of(content: bytes) -> str:
    """Return the version of a file's content: the first 32 hex digits of its SHA-256.

    >>> version_of(b"")
    'e3b0c44298fc1c149afbf4c8996fb924'
    """
    return hashlib.sha256(content).hexdigest()[:VERSION_DIGITS]


def version_of_set(versions: Mapping[str, str]) -> str:
    """Return the version of a set, from the versions of its files by name.

    Names are hashed with their lengths, so two different sets cannot have the same input.
    """
    return _version_of_lines(_line(name, versions[name]) for name in sorted(versions))


def _line(name: str, version: str) -> str:
    return f"{len(name) if name.isascii() else len(os.fsencode(name))}:{name}{version}"


def _version_of_lines(lines: Iterable[str]) -> str:
    text = os.fsencode("".join(lines))
    return hashlib.sha256(b"sidecar set\n" + text).hexdigest()[:VERSION_DIGITS]


def etag(version: str) -> str:
    """Return the strong entity tag of a version (RFC 9110 section 8.8.3).

    >>> etag("e3b0c44298fc1c149afbf4c8996fb924")
    '"e3b0c44298fc1c149afbf4c8996fb924"'
    """
    return f'"{version}"'


def to_bytes(content: bytes | str) -> bytes:
    """Return bytes unchanged and text as UTF-8.

    Raises:
        TypeError: `content` is neither; mutable buffers (`bytearray`, `memoryview`) are not accepted.
    """
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, bytes):
        return content
    raise TypeError(f"a content is bytes or str, not {type(content).__name__}")


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@dataclass(frozen=True, slots=True)
class Content:
    """One file, with its version and the time of its last change in Unix seconds.

    `held` is the bytes, or, above 1 MiB, the open file if it was read from a volume.

    >>> Snapshot.of({"config": "123"}).content("config").etag
    '"a665a45920422f9d417e4867efdc4fb8"'
    """

    name: str
    held: bytes | Large
    version: str
    modified: float
    metadata: Metadata | None = None
    """Who published it, when, and its media type, as far as that is known; of a file of a set, see `Snapshot.metadata_of`."""

    @property
    def data(self) -> bytes:
        """The bytes. A large file is read completely from the disk on each access.

        Raises:
            ContentAltered: a large file was rewritten in place.
            OSError: the file cannot be read.
        """
        return self.held if isinstance(self.held, bytes) else self.held.read_all()

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.held) if isinstance(self.held, bytes) else self.held.size

    def write_to(self, write: Callable[[bytes], object]) -> None:
        """Pass the bytes to `write`, in chunks for a large file. Blocking.

        Raises:
            ContentAltered: a large file no longer matches its version.
            OSError: the file cannot be read, or `write` failed.
        """
        if isinstance(self.held, bytes):
            write(self.held)
        else:
            open_file.copy(self.held, self.version, write)

    @property
    def is_large(self) -> bool:
        """Whether the content is on the disk and not in memory."""
        return not isinstance(self.held, bytes)

    @property
    def etag(self) -> str:
        """The strong entity tag, in quotes."""
        return etag(self.version)


class Snapshot(Mapping[str, bytes], Generic[T]):
    """An immutable mapping of names to bytes: all files as they were at one moment.

    Names are relative paths with `/`. The snapshot of a single file has one name, `snapshot.name`.
    `version` is the same for the same content everywhere: in the writer, in the reader, on every machine.

    A file of more than 1 MiB that was read from a volume is kept open instead of in memory:
    each access to its bytes reads them again, blocking, and raises `ContentAltered`
    if the file was rewritten in place meanwhile. A replaced or deleted file remains readable.

    >>> one = Snapshot.of({"greeting.txt": b"hello"})
    >>> one["greeting.txt"], one.text("greeting.txt"), len(one)
    (b'hello', 'hello', 1)
    """

    __slots__ = (
        "_files",
        "_large",
        "_lines",
        "_metadata",
        "_single",
        "_size",
        "_value",
        "_version",
    )

    def __init__(
        self,
        files: Mapping[str, Content],
        *,
        single: bool,
        value: T,
        version: str | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        self._files = dict(files)
        self._large: frozenset[str] | None = None
        self._lines: dict[str, str] | None = None
        self._metadata = metadata
        self._single = single
        self._size: int | None = None
        self._value = value
        if version is None:
            versions = self.versions()
            version = next(iter(versions.values())) if single else version_of_set(versions)
        self._version = version

    @staticmethod
    def of(files: Mapping[str, bytes | str], *, single: bool = False) -> Snapshot[None]:
        """Create a snapshot of contents in memory, for example in tests. Raises `TypeError` for other types."""
        arguments.check_mapping("Snapshot.of", files)
        now = time.time()
        contents = {
            name: Content(name, data := to_bytes(value), version_of(data), now)
            for name, value in files.items()
        }
        return Snapshot(contents, single=single, value=None)

    def __getitem__(self, name: str) -> bytes:
        return self._files[name].data

    def __contains__(self, name: object) -> bool:
        return name in self._files  # the one of `Mapping` would read the file

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def keys(self) -> KeysView[str]:
        """Return a view of the names."""
        return self._files.keys()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Snapshot):
            return self.version == other.version and self._single == other._single
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.version)

    def __repr__(self) -> str:
        what = f"name={self.name!r}" if self._single else f"files={len(self)}"
        return f"<Snapshot version={self.version[:8]} {what}>"

    @property
    def version(self) -> str:
        """The version: 32 hex digits, the same wherever the content is the same."""
        return self._version

    @property
    def value(self) -> T:
        """The result of `schema=` for the content; None without a schema."""
        return self._value

    @property
    def etag(self) -> str:
        """The strong entity tag: the version in quotes."""
        return etag(self._version)

    @property
    def metadata(self) -> Metadata | None:
        """Who published it and when, as far as that is known: of the one file, or of the set; None for loose files.

        Every process that can write to the volume can write it, as it can write the content.
        """
        return self.content().metadata if self._single else self._metadata

    def metadata_of(self, name: str) -> Metadata | None:
        """Return the metadata of one file; in a set, who published the set, with the type of the file."""
        own = self._files[name].metadata
        return own if self._metadata is None else self._metadata.of_file(own)

    @property
    def name(self) -> str | None:
        """The name of the one file, None for the snapshot of a directory."""
        return next(iter(self._files)) if self._single else None

    @property
    def data(self) -> bytes:
        """The bytes of the one file. Raises `TypeError` for the snapshot of a directory."""
        return self.content().data

    @property
    def modified(self) -> float:
        """The time of the newest change in Unix seconds, 0.0 for an empty set."""
        return max((content.modified for content in self._files.values()), default=0.0)

    @property
    def size(self) -> int:
        """The sum of the sizes in bytes."""
        if self._size is None:
            self._size = sum(content.size for content in self._files.values())
        return self._size

    def content(self, name: str | None = None) -> Content:
        """Return the content of one file; without a name, of the only file.

        Raises:
            KeyError: there is no file of that name.
            TypeError: `name` is None, and this is the snapshot of a directory.
        """
        if name is not None:
            return self._files[name]
        if not self._single:
            raise TypeError(f"{self!r} is of a directory: say which file is meant")
        return next(iter(self._files.values()))

    def get_content(self, name: str) -> Content | None:
        """Return the content of one file, None if there is no such file."""
        return self._files.get(name)

    def contents(self) -> dict[str, Content]:
        """Return the contents of all files by name."""
        return dict(self._files)

    def replaced(self, changed: Mapping[str, Content], gone: Collection[str]) -> Snapshot[None]:
        """Return the snapshot of a directory with some files changed or added, and others removed.

        The known data of unchanged files is reused, which matters for sets of thousands of files.
        """
        files, lines = dict(self._files), self._version_lines()
        for name in gone:
            files.pop(name, None)
            lines.pop(name, None)
        added = changed.keys() - files.keys()
        for name, content in changed.items():
            files[name] = content
            lines[name] = _line(name, content.version)
        if added:
            # Not `sorted(files.items())`: ten thousand tuples set off the garbage collector, for tens of milliseconds.
            names = sorted(files)
            files, lines = {n: files[n] for n in names}, {n: lines[n] for n in names}
        version = _version_of_lines(lines.values())
        made: Snapshot[None] = Snapshot(files, single=False, value=None, version=version)
        made._lines = lines
        made._large = (self._names_of_large() - changed.keys() - set(gone)) | {
            name for name, content in changed.items() if content.is_large
        }
        before = [self._files[name] for name in {*changed, *gone} if name in self._files]
        made._size = self.size - sum(c.size for c in before) + sum(c.size for c in changed.values())
        return made

    def _names_of_large(self) -> frozenset[str]:
        if self._large is None:
            self._large = frozenset(name for name, c in self._files.items() if c.is_large)
        return self._large

    def _version_lines(self) -> dict[str, str]:
        if self._lines is not None:
            return dict(self._lines)
        return {name: _line(name, self._files[name].version) for name in sorted(self._files)}

    def other_than(self, files: Mapping[str, Content]) -> list[str]:
        """Return the names whose content is not the same object as in `files`."""
        return [name for name, content in self._files.items() if files.get(name) is not content]

    def has_new_files(self, before: Snapshot[Any]) -> bool:
        """Whether large content is held in other files than in `before`, whose files may be gone."""
        return any(
            (old := before.get_content(name)) and old.held is not self._files[name].held
            for name in self._names_of_large()
        )

    def has_new_metadata(self, before: Snapshot[Any]) -> bool:
        """Whether the same content was published again with other metadata."""
        if self is before:
            return False
        return self._metadata != before._metadata or any(
            (old := before.get_content(name)) and old.metadata != content.metadata
            for name, content in self._files.items()
            if content.metadata is not None
        )

    def text(self, name: str | None = None, encoding: str = "utf-8") -> str:
        """Return a file's content as text.

        Raises:
            KeyError: there is no file of that name.
            UnicodeDecodeError: the content is no such text.
        """
        return self.content(name).data.decode(encoding)

    def json(self, name: str | None = None) -> Any:
        """Return a file's content parsed as JSON. Raises `ValueError` if it is none."""
        return json.loads(self.content(name).data)

    @contextmanager
    def as_directory(self) -> Iterator[Path]:
        """Write all files into a private temporary directory, and remove it at the end of the block. Blocking.

        For libraries that need paths instead of bytes: the files belong together and do not change.
        The directory is in `/dev/shm` (memory) if available; it has mode 0700, its files 0600.

        Raises:
            ContentAltered: a large file was rewritten in place.
            OSError: there is not enough space.

        >>> with Snapshot.of({"tls.crt": "…", "tls.key": "…"}).as_directory() as directory:
        ...     sorted(path.name for path in directory.iterdir())
        ['tls.crt', 'tls.key']
        """
        import tempfile  # here: it brings a dozen modules along, and few programs need it

        memory = "/dev/shm"  # noqa: S108 (a directory of mkdtemp in it)
        parent = memory if os.access(memory, os.W_OK | os.X_OK) else None
        with tempfile.TemporaryDirectory(prefix="sidecar-", dir=parent) as made:
            for name in self:
                path = Path(made, name)
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with open(path, "xb", opener=_open_private) as file:
                    self.content(name).write_to(file.write)
            yield Path(made)

    @contextmanager
    def as_file(self, name: str | None = None) -> Iterator[Path]:
        """Write one file into a private temporary directory, under its own name; see `as_directory`.

        Raises:
            KeyError, TypeError: as `content`.
            ContentAltered, OSError: as `as_directory`.

        >>> with Snapshot.of({"ca.crt": "…"}, single=True).as_file() as path:
        ...     path.read_text()
        '…'
        """
        one = self.content(name)
        with Snapshot({one.name: one}, single=True, value=None).as_directory() as directory:
            yield directory / one.name

    def etag_of(self, name: str) -> str:
        """Return the entity tag of one file."""
        return self._files[name].etag

    def modified_of(self, name: str) -> float:
        """Return the time of one file's last change, in Unix seconds."""
        return self._files[name].modified

    def changed(self, since: Snapshot[Any] | None) -> frozenset[str]:
        """Return the names that were added, removed or changed since an older snapshot.

        >>> old = Snapshot.of({"a": b"1", "b": b"2"})
        >>> sorted(Snapshot.of({"a": b"1", "c": b"3"}).changed(old))
        ['b', 'c']
        """
        before = since.versions() if since is not None else {}
        return frozenset(name for name, _ in before.items() ^ self.versions().items())

    def versions(self) -> dict[str, str]:
        """Return the version of each file, by name."""
        return {name: content.version for name, content in self._files.items()}

    def with_metadata(self, metadata: Metadata | None) -> Snapshot[T]:
        """Return the same set with the metadata of its publication."""
        if metadata is None:
            return self
        return Snapshot(
            self._files,
            single=False,
            value=self._value,
            version=self._version,
            metadata=metadata,
        )

    def with_value(self, parse: Callable[[Snapshot[Any]], Any]) -> Snapshot[Any]:
        """Return the same content with `value` set to the result of `parse`."""
        return Snapshot(
            self._files,
            single=self._single,
            value=parse(self),
            version=self._version,
            metadata=self._metadata,
        )
