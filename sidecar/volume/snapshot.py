"""What a volume held at one moment: an immutable mapping of names to bytes, with a version.

`load` reads it from the disk, a file or a directory, without ever mixing two contents.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeVar

from sidecar import _errors
from sidecar.disk import atomic, beneath

T = TypeVar("T", default=None)

VERSION_DIGITS = 32
MAX_SIZE = 64 << 20
#: File systems stamp in ticks, FAT in two seconds; so soon after a change an equal signature proves nothing.
_STAMP_DOUBT = 2.0
_SET_RETRIES = 20
_MAX_DEPTH = 32


def version_of(content: bytes) -> str:
    """Return the version of a file's content: the first 32 hex digits of its SHA-256.

    >>> version_of(b"")
    'e3b0c44298fc1c149afbf4c8996fb924'
    """
    return hashlib.sha256(content).hexdigest()[:VERSION_DIGITS]


def version_of_set(versions: Mapping[str, str]) -> str:
    """Return the version of a set, from the versions of its files by name.

    Names and versions enter with their lengths, so no two sets can look alike.
    """
    digest = hashlib.sha256(b"sidecar set\n")
    for name in sorted(versions):
        raw = os.fsencode(name)
        digest.update(b"%d:%s%s" % (len(raw), raw, versions[name].encode()))
    return digest.hexdigest()[:VERSION_DIGITS]


def etag(version: str) -> str:
    """Return the strong entity tag of a version (RFC 9110 section 8.8.3).

    >>> etag("e3b0c44298fc1c149afbf4c8996fb924")
    '"e3b0c44298fc1c149afbf4c8996fb924"'
    """
    return f'"{version}"'


def encoded(content: bytes | str) -> bytes:
    """Return bytes as they are and text as UTF-8."""
    return content.encode() if isinstance(content, str) else bytes(content)


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one file, with its version and the time of its last change in Unix seconds."""

    name: str
    data: bytes
    version: str
    modified: float

    @property
    def etag(self) -> str:
        """The strong entity tag, in quotes."""
        return etag(self.version)


class Snapshot(Mapping[str, bytes], Generic[T]):
    """An immutable mapping of names to bytes: all files as they were at one moment.

    Names are relative paths with `/`. The snapshot of a single file has one name, `snapshot.name`.
    `version` is the same for the same content everywhere: in the writer, in the reader, on every machine.

    >>> one = Snapshot.of({"greeting.txt": b"hello"})
    >>> one["greeting.txt"], one.text("greeting.txt"), len(one)
    (b'hello', 'hello', 1)
    """

    __slots__ = ("_files", "_single", "value", "version")

    version: str
    value: T
    """What `schema=` made of the content; None without a schema."""

    def __init__(self, files: Mapping[str, Content], *, single: bool, value: T) -> None:
        self._files = dict(files)
        self._single = single
        self.value = value
        if single:
            (content,) = self._files.values()
            self.version = content.version
        else:
            self.version = version_of_set({n: c.version for n, c in self._files.items()})

    @staticmethod
    def of(files: Mapping[str, bytes | str], *, single: bool = False) -> Snapshot[None]:
        """Make a snapshot of contents in memory, as tests do."""
        now = time.time()
        contents = {
            name: Content(name, data := encoded(value), version_of(data), now)
            for name, value in files.items()
        }
        return Snapshot(contents, single=single, value=None)

    def __getitem__(self, name: str) -> bytes:
        return self._files[name].data

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

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
    def etag(self) -> str:
        """The strong entity tag: the version in quotes."""
        return etag(self.version)

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
        return sum(len(content.data) for content in self._files.values())

    def content(self, name: str | None = None) -> Content:
        """Return bytes, version and time of one file; without a name, of the only one.

        Raises:
            KeyError: there is no file of that name.
            TypeError: no name was given, and this is the snapshot of a directory.
        """
        if name is not None:
            return self._files[name]
        if not self._single:
            raise TypeError(f"{self!r} is of a directory: say which file is meant")
        return next(iter(self._files.values()))

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

    def etag_of(self, name: str) -> str:
        """Return the entity tag of one file."""
        return self._files[name].etag

    def modified_of(self, name: str) -> float:
        """Return the time of one file's last change, in Unix seconds."""
        return self._files[name].modified

    def changed(self, since: Snapshot[Any] | None) -> frozenset[str]:
        """Return the names that were added, removed or altered since an older snapshot.

        >>> old = Snapshot.of({"a": b"1", "b": b"2"})
        >>> sorted(Snapshot.of({"a": b"1", "c": b"3"}).changed(old))
        ['b', 'c']
        """
        before = since._files if since is not None else {}
        names = self._files.keys() | before.keys()
        return frozenset(
            name
            for name in names
            if name not in before
            or name not in self._files
            or before[name].version != self._files[name].version
        )

    def with_value(self, parse: Callable[[Snapshot[Any]], Any]) -> Snapshot[Any]:
        """Return the same content with `value` set to what `parse` makes of it."""
        return Snapshot(self._files, single=self._single, value=parse(self))


class Mark(NamedTuple):
    """What was seen on the disk, to tell without reading whether it is still the same."""

    signatures: Mapping[str, beneath.Signature]
    generation: str | None
    first_seen: float
    """Monotonic seconds of the first read that met these signatures."""
    sure: bool
    """False while the coarse clock of a file system could hide a further change."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at the disk: a snapshot, and how far it can be trusted."""

    snapshot: Snapshot[None]
    mark: Mark
    settled: bool
    """False if a file changed while it was read."""
    in_place: frozenset[str]
    """Names whose inode is the one seen before with other bytes: somebody rewrites in place."""
    appeared: frozenset[str]
    """Names that had no file before."""
    problems: Mapping[str, str]
    """Why a name of a directory could not be read, in words; its last good content stands in."""

    def without(self, held: frozenset[str], before: Sighting | None) -> Sighting:
        """Return the same look with the content of `held` names as it was before, or without them."""
        files = {n: self.snapshot.content(n) for n in self.snapshot if n not in held}
        if before is not None:
            files |= {n: before.snapshot.content(n) for n in held if n in before.snapshot}
        snapshot = Snapshot(dict(sorted(files.items())), single=False, value=None)
        old = before.mark.signatures if before is not None else {}
        signatures = {n: s for n, s in self.mark.signatures.items() if n not in held}
        signatures |= {n: old[n] for n in held if n in old}
        mark = self.mark._replace(signatures=signatures, sure=False)
        return replace(self, snapshot=snapshot, mark=mark)


def load_file(
    dir_fd: int, directory: str, name: str, *, limit: int, before: Sighting | None
) -> Sighting:
    """Read one file beneath an open directory.

    Raises:
        NothingPublished: there is no such file.
        ReadError: it must not or cannot be read.
    """
    found = beneath.read_beneath(dir_fd, name, limit, os.path.join(directory, name))
    content = _content(found, name, before)
    mark = _mark({name: found.signature}, None, before)
    return Sighting(
        Snapshot({name: content}, single=True, value=None),
        mark,
        found.settled,
        _in_place(mark, before),
        _appeared(mark, before),
        {},
    )


def load_directory(dir_fd: int, directory: str, *, limit: int, before: Sighting | None) -> Sighting:
    """Read all files beneath an open directory.

    Where there is a `..data`, they are those of the generation in force,
    pinned by its descriptor, so they belong together whatever is published meanwhile.
    Files whose signature is the one of `before` are not read again.
    What is no regular file, leads out of the volume, or exceeds `limit` together with the files before it
    is a problem of that name alone, and the last good content stands in for it.

    Raises:
        NothingPublished: generations are replaced faster than one can be read.
        ReadError: the directory cannot be read.
    """
    for _ in range(_SET_RETRIES):
        with contextlib.suppress(_Vanished), beneath.reading(directory):
            sighting = _load_once(dir_fd, directory, limit, before)
            _check_whole(dir_fd, directory, sighting, before)
            return sighting
    raise _errors.NothingPublished(
        errno.ENOENT, f"cannot read {directory}: its files come and go faster than they can be read"
    )


def unchanged(dir_fd: int, before: Sighting) -> bool:
    """Whether everything still has the signatures of `before`; nothing is read.

    False where signatures alone cannot tell: within two seconds of a change, as file systems' clocks are coarse.
    """
    mark = before.mark
    if not mark.sure:
        return False
    try:
        if before.snapshot.name is not None:
            return {n: _signature(dir_fd, n) for n in mark.signatures} == mark.signatures
        if atomic.in_force(dir_fd) != mark.generation:
            return False
        with _pinned(dir_fd, mark.generation) as fd:
            found = {n: s for n, s in _entries(fd) if isinstance(s, beneath.Signature)}
    except OSError:
        return False
    return found == mark.signatures


def names_beneath(dir_fd: int) -> dict[str, int]:
    """Return the visible regular files of an open directory, with their sizes in bytes.

    Raises:
        OSError: the directory cannot be read.
    """
    with _pinned(dir_fd, atomic.in_force(dir_fd)) as fd:
        return {n: s.size for n, s in _entries(fd) if isinstance(s, beneath.Signature)}


class _Vanished(Exception):
    """A file of a generation went away while it was read: a newer one is in force."""


def _check_whole(dir_fd: int, directory: str, sighting: Sighting, before: Sighting | None) -> None:
    """Refuse a set that was read while somebody was removing it.

    Publishers remove a generation only after the link has left it, so a link that stayed proves that it is whole.
    """
    generation = sighting.mark.generation
    if generation is None:
        if not sighting.snapshot and not sighting.problems:
            raise _errors.NothingPublished(
                errno.ENOENT, f"cannot read {directory}: no file has been published there"
            )
        return
    if atomic.in_force(dir_fd) != generation:
        raise _Vanished
    if before is not None and before.mark.generation == generation:
        lost = before.mark.signatures.keys() - sighting.mark.signatures.keys()
        if lost:
            raise _errors.ReadError(
                errno.ENOENT,
                f"cannot read {directory}: {generation} has lost {min(lost)}"
                " (a generation never changes; publish the set again)",
            )


def _load_once(dir_fd: int, directory: str, limit: int, before: Sighting | None) -> Sighting:
    generation = atomic.in_force(dir_fd)
    if generation is None and os.fstat(dir_fd).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
    contents: dict[str, Content] = {}
    signatures: dict[str, beneath.Signature] = {}
    problems: dict[str, str] = {}
    settled, room = True, limit
    with _pinned(dir_fd, generation) as pinned:
        for name, entry in _entries(pinned):
            if isinstance(entry, str):
                problems[name] = f"cannot read {os.path.join(directory, name)}: {entry}"
                continue
            kept = _kept(name, entry, before)
            if kept is None:
                try:
                    found = beneath.read_beneath(pinned, name, room, os.path.join(directory, name))
                except _errors.NothingPublished as error:
                    if generation is not None:
                        raise _Vanished from error
                    continue  # deleted between the listing and the reading
                except _errors.ReadError as error:
                    problems[name] = str(error)
                    continue
                kept, entry = _content(found, name, before), found.signature
                settled = settled and found.settled
            contents[name], signatures[name] = kept, entry
            room -= len(kept.data)
    if before is not None:
        for name in problems.keys() & before.snapshot.keys():
            contents[name] = before.snapshot.content(name)
    mark = _mark(signatures, generation, before)
    return Sighting(
        Snapshot(dict(sorted(contents.items())), single=False, value=None),
        mark,
        settled,
        _in_place(mark, before) if generation is None else frozenset(),
        _appeared(mark, before) if generation is None else frozenset(),
        problems,
    )


@contextmanager
def _pinned(dir_fd: int, generation: str | None) -> Iterator[int]:
    """Open the directory whose files count: the target of `..data`, else the directory itself."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    fd = beneath.open_beneath(dir_fd, "." if generation is None else atomic.DATA, flags)
    try:
        yield fd
    finally:
        beneath.close(fd)


def _entries(
    dir_fd: int, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, beneath.Signature | str]]:
    """Yield each visible name, in order, with its signature, or with what is wrong about it.

    Left out: what begins with `..`, names that are not UTF-8 (no URL could say them), links to directories,
    and the `lost+found` that a new file system brings.
    """
    with os.scandir(dir_fd) as listing:
        found = sorted((e for e in listing if _visible(e.name)), key=lambda e: e.name)
    for entry in found:
        name = prefix + entry.name
        try:
            status = beneath.stat_beneath(dir_fd, entry.name)
            if not stat.S_ISDIR(status.st_mode):
                regular = stat.S_ISREG(status.st_mode)
                yield (
                    name,
                    beneath.Signature.of(status)
                    if regular
                    else f"it is {beneath.kind_of(status.st_mode)}, and only regular files are read",
                )
            elif not entry.is_symlink() and depth < _MAX_DEPTH:
                fd = beneath.open_beneath(
                    dir_fd, entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                )
                try:
                    yield from _entries(fd, f"{name}/", depth + 1)
                finally:
                    beneath.close(fd)
        except FileNotFoundError:
            continue  # gone, or a link whose target is gone
        except OSError as error:
            yield name, beneath.reason(error)


def _visible(name: str) -> bool:
    if name.startswith(atomic.HIDDEN) or name == "lost+found":
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _signature(dir_fd: int, name: str) -> beneath.Signature:
    return beneath.Signature.of(beneath.stat_beneath(dir_fd, name))


def _kept(name: str, now: beneath.Signature, before: Sighting | None) -> Content | None:
    """Return the content read before, if the signature proves that it is still the same."""
    if before is None or not before.mark.sure or before.mark.signatures.get(name) != now:
        return None
    return before.snapshot.content(name)


def _mark(
    signatures: dict[str, beneath.Signature], generation: str | None, before: Sighting | None
) -> Mark:
    """Note what was seen; it is sure once a read has happened two seconds after the last change.

    By the clock of the files where that is plausible, else by our own:
    a file dated in the future must not be read again for ever.
    """
    now = time.monotonic()
    first_seen = now
    if before is not None and before.mark.signatures == signatures:
        first_seen = before.mark.first_seen
    horizon = time.time_ns() - int(_STAMP_DOUBT * 1e9)
    old = all(max(s.mtime_ns, s.ctime_ns) < horizon for s in signatures.values())
    return Mark(signatures, generation, first_seen, old or now - first_seen >= _STAMP_DOUBT)


def _in_place(mark: Mark, before: Sighting | None) -> frozenset[str]:
    old = before.mark.signatures if before is not None else {}
    return frozenset(
        name
        for name, now in mark.signatures.items()
        if name in old
        and old[name].identity == now.identity
        # A further hard link changes ctime alone: the bytes were not touched.
        and (old[name].mtime_ns, old[name].size) != (now.mtime_ns, now.size)
    )


def _appeared(mark: Mark, before: Sighting | None) -> frozenset[str]:
    old = before.mark.signatures if before is not None else {}
    return frozenset(mark.signatures.keys() - old.keys())


def _content(found: beneath.FileRead, name: str, before: Sighting | None) -> Content:
    """Make the content; bytes that equal those before are compared, not hashed again."""
    modified = found.signature.mtime_ns / 1e9
    if before is not None and name in before.snapshot and before.snapshot[name] == found.data:
        old = before.snapshot.content(name)
        return Content(name, old.data, old.version, modified)
    return Content(name, found.data, version_of(found.data), modified)
