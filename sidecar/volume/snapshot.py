"""What a volume held at one moment: an immutable mapping of names to bytes, with a version.

`load_file` and `load_directory` read it from the disk without ever mixing two contents.
Large files are not held in memory but open: see `sidecar.disk.pinned`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeAlias

from typing_extensions import TypeVar

from sidecar import _errors
from sidecar.disk import atomic, beneath, pinned

T = TypeVar("T", default=None)

#: A file that is too large to be held in memory.
Large: TypeAlias = pinned.Pinned | pinned.Named

VERSION_DIGITS = 32
MAX_SIZE = 64 << 20
#: File systems stamp in ticks, FAT in two seconds; so soon after a change an equal signature proves nothing.
_STAMP_DOUBT = 2.0
_SET_RETRIES = 20
_MAX_DEPTH = 32
#: What a name costs in memory beside its content: so many bytes of `limit` must stand behind each.
_BYTES_A_NAME = 1024
_LEAST_NAMES = 1000
_MOST_NAMES = 1 << 20


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


def _go_on() -> None:
    """Read a large file without asking anybody."""


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
    """One file, with its version and the time of its last change in Unix seconds.

    `held` are its bytes, or, above 1 MiB, the file itself where it was read from a volume.

    >>> Content("config", b"123", version_of(b"123"), modified=1.5).etag
    '"a665a45920422f9d417e4867efdc4fb8"'
    """

    name: str
    held: bytes | Large
    version: str
    modified: float

    @property
    def data(self) -> bytes:
        """The bytes. Those of a large file are read from the disk now, all of them, and each time anew.

        Raises:
            ContentAltered: a large file was rewritten in place since.
            OSError: it cannot be read.
        """
        return self.held if isinstance(self.held, bytes) else self.held.whole()

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.held) if isinstance(self.held, bytes) else self.held.size

    @property
    def is_large(self) -> bool:
        """Whether it lies on the disk and not in memory."""
        return not isinstance(self.held, bytes)

    @property
    def etag(self) -> str:
        """The strong entity tag, in quotes."""
        return etag(self.version)


class Snapshot(Mapping[str, bytes], Generic[T]):
    """An immutable mapping of names to bytes: all files as they were at one moment.

    Names are relative paths with `/`. The snapshot of a single file has one name, `snapshot.name`.
    `version` is the same for the same content everywhere: in the writer, in the reader, on every machine.

    A file of more than 1 MiB that was read from a volume is held open and not in memory:
    each access to its bytes reads them again, blocking, and raises `ContentAltered`
    if somebody has rewritten it in place meanwhile. A file that was replaced or deleted is still there.

    >>> one = Snapshot.of({"greeting.txt": b"hello"})
    >>> one["greeting.txt"], one.text("greeting.txt"), len(one)
    (b'hello', 'hello', 1)
    """

    __slots__ = ("_files", "_single", "_value", "_version")

    def __init__(
        self, files: Mapping[str, Content], *, single: bool, value: T, version: str | None = None
    ) -> None:
        self._files = dict(files)
        self._single = single
        self._value = value
        if version is None:
            versions = self.versions()
            version = next(iter(versions.values())) if single else version_of_set(versions)
        self._version = version

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

    def __contains__(self, name: object) -> bool:
        return name in self._files  # the one of `Mapping` would read the file

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
    def version(self) -> str:
        """The version: 32 hex digits, the same wherever the content is the same."""
        return self._version

    @property
    def value(self) -> T:
        """What `schema=` made of the content; None without a schema."""
        return self._value

    @property
    def etag(self) -> str:
        """The strong entity tag: the version in quotes."""
        return etag(self._version)

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
        return sum(content.size for content in self._files.values())

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

    def get_content(self, name: str) -> Content | None:
        """Return one file, None if there is none of that name."""
        return self._files.get(name)

    def holds_others_than(self, before: Snapshot[Any]) -> bool:
        """Whether the same content lies in other large files by now: those of `before` may be gone."""
        return any(
            content.is_large and (old := before.get_content(name)) and old.held is not content.held
            for name, content in self._files.items()
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
        before = since.versions() if since is not None else {}
        return frozenset(name for name, _ in before.items() ^ self.versions().items())

    def versions(self) -> dict[str, str]:
        """Return the version of each file, by name."""
        return {name: content.version for name, content in self._files.items()}

    def with_value(self, parse: Callable[[Snapshot[Any]], Any]) -> Snapshot[Any]:
        """Return the same content with `value` set to what `parse` makes of it."""
        return Snapshot(self._files, single=self._single, value=parse(self), version=self._version)


class Mark(NamedTuple):
    """What was seen on the disk, to tell without reading whether it is still the same."""

    directory: tuple[int, int]
    """Device and inode of the directory."""
    generation: str | None
    """What `..data` pointed at, None for files that lie loose."""
    signatures: Mapping[str, beneath.Signature]
    """The state of each file that was read."""
    folders: Mapping[str, beneath.Signature]
    """The state of each directory that was listed: it changes when names come, go or are replaced."""
    doubtful: Mapping[str, float]
    """Names that a coarse clock could hide a further change of, since when (monotonic seconds)."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at the disk: a snapshot, and how far it can be trusted."""

    snapshot: Snapshot[None]
    mark: Mark
    unsettled: frozenset[str]
    """Names that changed while they were read."""
    linked: frozenset[str]
    """Names of files that have another name too: they were not made where they were found."""
    problems: Mapping[str, str]
    """Why a name of a directory could not be read, in words; its last good content stands in."""
    unread: frozenset[str] = frozenset()
    """Unsettled names of large files that were not read to the end: they have no version."""

    def whole(self) -> Snapshot[None]:
        """Return the snapshot, for one who looks only once.

        Raises:
            ReadError: a large file changed while it was read.
        """
        for name in self.unread:
            raise _errors.ReadError(
                errno.EBUSY,
                f"cannot read {name}: it changes while it is read (is it being written?)",
            )
        return self.snapshot

    def without(self, held: frozenset[str], before: Sighting | None) -> Sighting:
        """Return the same look with the content of `held` names as it was before, or without them."""
        files = {n: self.snapshot.content(n) for n in self.snapshot if n not in held}
        signatures = {n: s for n, s in self.mark.signatures.items() if n not in held}
        if before is not None:
            old = before.mark.signatures
            files |= {n: before.snapshot.content(n) for n in held if n in before.snapshot}
            signatures |= {n: old[n] for n in held if n in old}
        snapshot = Snapshot(dict(sorted(files.items())), single=False, value=None)
        return replace(self, snapshot=snapshot, mark=self.mark._replace(signatures=signatures))


def load_file(
    dir_fd: int,
    directory: str,
    name: str,
    *,
    limit: int,
    before: Sighting | None,
    linked: bool = True,
    working: Callable[[], None] = _go_on,
) -> Sighting:
    """Read one file beneath an open directory. One that is not `linked` is known to be no link.

    `working` is called now and then while a large file is read; it ends that by raising.

    Raises:
        NothingPublished: there is no such file.
        ReadError: it must not or cannot be read.
    """
    where = os.path.join(directory, name)
    with beneath.reading(where):
        for _ in range(_SET_RETRIES):
            generation = _generation(dir_fd, name) if linked else None
            reading = _Reading(before, working)
            try:
                if not _keep_large(reading, dir_fd, name):
                    reading.read(dir_fd, name, limit, where)
            except _errors.NothingPublished:
                if generation is None or generation == _generation(dir_fd, name):
                    raise
                continue  # the link was followed, and its target replaced and removed before it was opened
            return _sighting(dir_fd, generation, _Listing(), reading, single=True)
    raise _restless(where)


def load_directory(
    dir_fd: int,
    directory: str,
    *,
    limit: int,
    before: Sighting | None,
    working: Callable[[], None] = _go_on,
) -> Sighting:
    """Read all files beneath an open directory; `working` as for `load_file`.

    Where there is a `..data`, they are those of the generation in force,
    pinned by its descriptor, so they belong together whatever is published meanwhile.
    Files whose signature is the one of `before` are not read again.
    What is no regular file, leads out of the volume, or exceeds `limit` together with the files before it
    is a problem of that name alone, and the last good content stands in for it,
    except in a generation, whose files are shown together or not at all.

    Raises:
        NothingPublished: there is no file, or generations are replaced faster than one can be read.
        ReadError: the directory cannot be read, or a generation has lost a file.
    """
    with beneath.reading(directory):
        for _ in range(_SET_RETRIES):
            generation = atomic.in_force(dir_fd)
            try:
                reading = _Reading(before, working)
                return _load_once(dir_fd, directory, generation, limit, reading)
            except OSError:
                if generation == atomic.in_force(dir_fd):
                    raise
                # It was being removed, and another one is in force.
    raise _restless(directory)


def unchanged(dir_fd: int, before: Sighting, *, quick: bool = False) -> bool:
    """Whether everything still has the signatures of `before`; nothing is read.

    False where signatures alone cannot tell: within two seconds of a change, as file systems' clocks are coarse.
    `quick` asks the directories alone, which finds what came, went or was replaced, and not what was rewritten.
    """
    mark = before.mark
    if mark.doubtful:
        return False
    try:
        if before.snapshot.name is not None:
            return {n: _signature(dir_fd, n) for n in mark.signatures} == mark.signatures
        if atomic.in_force(dir_fd) != mark.generation:
            return False
        with _opened(dir_fd, mark.generation) as fd:
            if quick:
                return all(_signature(fd, name or ".") == s for name, s in mark.folders.items())
            return _list(fd).files == mark.signatures
    except (OSError, _errors.ReadError):
        return False


def names_beneath(dir_fd: int) -> dict[str, int]:
    """Return the visible regular files of an open directory, with their sizes in bytes.

    Raises:
        OSError: the directory cannot be read.
    """
    with _opened(dir_fd, atomic.in_force(dir_fd)) as fd:
        return {name: signature.size for name, signature in _list(fd).files.items()}


@dataclass(slots=True)
class _Listing:
    """The visible names of a directory and of those in it, before anything is read."""

    files: dict[str, beneath.Signature] = field(default_factory=dict)
    folders: dict[str, beneath.Signature] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Reading:
    """What reading the names of a listing has brought."""

    before: Sighting | None
    working: Callable[[], None]
    directory: pinned.Directory | None = None
    """The one that is read, held open: for large files that are not, because too many are already."""
    contents: dict[str, Content] = field(default_factory=dict)
    signatures: dict[str, beneath.Signature] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    begun: dict[str, float] = field(default_factory=dict)
    """Since when large files have been read, in monotonic seconds: it may take longer than clocks are coarse."""
    linked: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)

    def keep(self, name: str, signature: beneath.Signature, content: Content) -> None:
        self.contents[name], self.signatures[name] = content, signature

    def read(self, dir_fd: int, name: str, limit: int, where: str) -> int:
        """Read a file, and return how many bytes it has."""
        begun = time.monotonic()
        found = pinned.read(dir_fd, name, limit, where, working=self.working)
        if found.links > 1:
            self.linked.add(name)
        if isinstance(found, pinned.LargeRead):
            self.begun[name] = begun
            self._take_large(name, found)
        else:
            self.keep(name, found.signature, _content(found, name, self.before))
            if not found.settled:
                self.unsettled.add(name)
        return self.contents[name].size

    def _take_large(self, name: str, found: pinned.LargeRead) -> None:
        if found.digest is None:
            self.unsettled.add(name)
            self.unread.add(name)
        file: Large = found.file
        if self.directory is not None and not pinned.room():
            file = pinned.Named(self.directory, name, found.signature, found.file.where)
        version = (found.digest or "")[:VERSION_DIGITS]
        modified = found.signature.mtime_ns / 1e9
        old = self.before.snapshot.get_content(name) if self.before is not None else None
        if old is not None and old.version == version and _is_same_file(old, found.signature):
            file = old.held  # type: ignore[assignment]  # only large ones are the same file
        self.keep(name, found.signature, Content(name, file, version, modified))


def _load_once(
    dir_fd: int,
    directory: str,
    generation: str | None,
    limit: int,
    reading: _Reading,
) -> Sighting:
    before = reading.before
    if generation is None and os.fstat(dir_fd).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
    with _opened(dir_fd, generation) as held:
        listing = _list(held, max(_LEAST_NAMES, limit // _BYTES_A_NAME))
        if generation is not None and generation != atomic.in_force(dir_fd):
            # Publishers remove a generation only after the link has left it: what is listed may lack files.
            raise _restless(directory)
        _read(held, directory, listing, limit, reading)
    problems = {
        name: f"cannot read {os.path.join(directory, name)}: {why}"
        for name, why in listing.problems.items()
    }
    if generation is not None:
        _check_whole(directory, generation, reading, problems, before)
    elif not reading.contents and not problems:
        raise _errors.NothingPublished(
            errno.ENOENT, f"cannot read {directory}: no file has been published there"
        )
    elif before is not None:
        for name in problems.keys() & before.snapshot.keys():
            reading.contents[name] = before.snapshot.content(name)
    listing.problems = problems
    return _sighting(dir_fd, generation, listing, reading, single=False)


def _read(dir_fd: int, directory: str, listing: _Listing, limit: int, reading: _Reading) -> None:
    """Read what is listed, as far as it is not known already; what cannot be read becomes a problem."""
    room = limit
    for name, signature in listing.files.items():
        kept = _kept(name, signature, reading.before)
        if kept is not None:
            reading.keep(name, signature, kept)
            room -= kept.size
            continue
        try:
            if signature.size > room:
                listing.problems[name] = (
                    f"its {signature.size} bytes are more than what is left of the limit of {limit}"
                    " for all files together (raise max_size)"
                )
                continue
            if reading.directory is None and signature.size > pinned.LARGE:
                reading.directory = pinned.Directory(os.dup(dir_fd))
            room -= reading.read(dir_fd, name, room, os.path.join(directory, name))
        except _errors.NothingPublished:
            reading.missing.add(name)  # deleted between the listing and the reading
        except _errors.ReadError as error:
            listing.problems[name] = str(error).partition(": ")[2]


def _check_whole(
    directory: str,
    generation: str,
    reading: _Reading,
    problems: Mapping[str, str],
    before: Sighting | None,
) -> None:
    """Refuse a generation that lacks what it held, or whose files cannot all be read any more.

    The old content of one file must not stand beside the new content of the others.
    """
    known = before.snapshot.keys() if before is not None else frozenset[str]()
    for name in problems.keys() & known:
        raise _errors.ReadError(errno.EIO, problems[name])
    lost = set(reading.missing)
    if before is not None and before.mark.generation == generation:
        lost |= known - reading.contents.keys()
    if lost:
        raise _errors.ReadError(
            errno.ENOENT,
            f"cannot read {directory}: {generation} has lost {min(lost)}"
            " (a generation never changes; publish the set again)",
        )


def _sighting(
    dir_fd: int,
    generation: str | None,
    listing: _Listing,
    reading: _Reading,
    *,
    single: bool,
) -> Sighting:
    for name in reading.unread if generation is not None else ():
        raise _errors.ReadError(
            errno.EBUSY,
            f"cannot read {name}: it changes while it is read"
            " (a generation never changes; publish the set again)",
        )
    status = os.fstat(dir_fd)
    mark = Mark(
        (status.st_dev, status.st_ino),
        generation,
        reading.signatures,
        listing.folders,
        _doubtful(reading),
    )
    return Sighting(
        Snapshot(dict(sorted(reading.contents.items())), single=single, value=None),
        mark,
        frozenset(reading.unsettled),
        frozenset(reading.linked),
        listing.problems,
        frozenset(reading.unread),
    )


def _restless(where: str) -> _errors.NothingPublished:
    return _errors.NothingPublished(
        errno.ENOENT, f"cannot read {where}: its files come and go faster than they can be read"
    )


def _generation(dir_fd: int, name: str) -> str | None:
    """Return the generation that a file is read from, None for one that lies loose."""
    link = atomic.link_target(dir_fd, name)
    if link is None or not link.startswith(atomic.DATA + "/"):
        return None
    return atomic.in_force(dir_fd)


@contextmanager
def _opened(dir_fd: int, generation: str | None) -> Iterator[int]:
    """Open the directory whose files count: the target of `..data`, else the directory itself."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    fd = beneath.open_beneath(dir_fd, "." if generation is None else atomic.DATA, flags)
    try:
        yield fd
    finally:
        beneath.close(fd)


def _list(dir_fd: int, most: int = _MOST_NAMES) -> _Listing:
    """List the visible names of a directory, in order, with their signatures or with what is wrong about them.

    Left out: what begins with `..`, names that are not UTF-8 (no URL could say them), links to directories,
    and the `lost+found` that a new file system brings.
    """
    listing = _Listing()
    _list_into(listing, dir_fd, "", most)
    return listing


def _list_into(listing: _Listing, dir_fd: int, prefix: str, most: int) -> None:
    listing.folders[prefix.rstrip("/")] = beneath.Signature.of(os.fstat(dir_fd))
    for entry in _visible_entries(dir_fd, most - len(listing.files) - len(listing.problems)):
        name = prefix + entry.name
        try:
            link = entry.is_symlink()
            # A link has to be resolved with care; everything else is what it is.
            status = (
                beneath.stat_beneath(dir_fd, entry.name)
                if link
                else entry.stat(follow_symlinks=False)
            )
            if stat.S_ISREG(status.st_mode):
                listing.files[name] = beneath.Signature.of(status)
            elif not stat.S_ISDIR(status.st_mode):
                kind = beneath.kind_of(status.st_mode)
                listing.problems[name] = f"it is {kind}, and only regular files are read"
            elif not link and name.count("/") < _MAX_DEPTH:
                _list_folder(listing, dir_fd, entry.name, name, most)
        except FileNotFoundError:
            continue  # gone, or a link whose target is gone
        except OSError as error:
            listing.problems[name] = beneath.reason(error)


def _list_folder(listing: _Listing, dir_fd: int, entry: str, name: str, most: int) -> None:
    fd = beneath.open_beneath(dir_fd, entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _list_into(listing, fd, name + "/", most)
    finally:
        beneath.close(fd)


def _visible_entries(dir_fd: int, most: int) -> list[os.DirEntry[str]]:
    """Return the visible entries of a directory, in order; more than `most` are refused before they fill the memory."""
    found: list[os.DirEntry[str]] = []
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            if _visible(entry.name):
                found.append(entry)
                if len(found) > most:
                    raise _errors.ReadError(
                        errno.EFBIG,
                        "cannot read it: it holds more files than fit into memory (raise max_size)",
                    )
    return sorted(found, key=lambda entry: entry.name)


def _visible(name: str) -> bool:
    if name.startswith(atomic.HIDDEN) or name == "lost+found":
        return False
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _signature(dir_fd: int, name: str) -> beneath.Signature:
    return beneath.Signature.of(beneath.stat_beneath(dir_fd, name))


def _kept(name: str, now: beneath.Signature, before: Sighting | None) -> Content | None:
    """Return the content read before, if the signature proves that it is still the same."""
    if before is None or name in before.mark.doubtful or before.mark.signatures.get(name) != now:
        return None
    return before.snapshot.content(name)


def _keep_large(reading: _Reading, dir_fd: int, name: str) -> bool:
    """Keep a large file that is still the same, without reading it again; small ones are believed by their bytes."""
    before = reading.before
    if before is None or not before.snapshot.content().is_large:
        return False
    now = _signature(dir_fd, name)
    kept = _kept(name, now, before)
    if kept is not None:
        reading.keep(name, now, kept)
    return kept is not None


def _is_same_file(old: Content, now: beneath.Signature) -> bool:
    """Whether a large content lies in this very file, which was not written to since."""
    if isinstance(old.held, bytes):
        return False
    was = old.held.signature
    return (was.identity, was.size, was.mtime_ns) == (now.identity, now.size, now.mtime_ns)


def _doubtful(reading: _Reading) -> dict[str, float]:
    """Return the names that must be read again although their signature stays the same.

    A signature is sure once the file has been read two seconds after its last change,
    by the clock of the files where that is plausible, else by our own:
    a file dated in the future must not be read again for ever.
    What counts is when its reading began: a large one may have changed behind it since.
    """
    before, now = reading.before, time.monotonic()
    horizon = time.time_ns() - int(_STAMP_DOUBT * 1e9)
    doubtful: dict[str, float] = {}
    for name, signature in reading.signatures.items():
        begun = reading.begun.get(name, now)
        then = horizon - int((now - begun) * 1e9)
        if signature.mtime_ns < then and signature.ctime_ns < then:
            continue
        since = begun
        if before is not None and before.mark.signatures.get(name) == signature:
            since = before.mark.doubtful.get(name, now - _STAMP_DOUBT)
        if begun - since < _STAMP_DOUBT:
            doubtful[name] = since
    return doubtful


def _content(found: beneath.FileRead, name: str, before: Sighting | None) -> Content:
    """Make the content; bytes that equal those before are compared, not hashed again."""
    modified = found.signature.mtime_ns / 1e9
    old = before.snapshot.get_content(name) if before is not None else None
    if old is not None and old.held == found.data:
        return Content(name, old.held, old.version, modified)
    return Content(name, found.data, version_of(found.data), modified)
