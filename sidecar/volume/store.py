"""Everything that is done to one directory, as blocking steps: one call is one hop to a thread.

Each step holds the directory's lock, decides, acts, and says what became of it.
A step that has been withdrawn before its content became visible leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sidecar import _errors
from sidecar.disk import atomic, beneath
from sidecar.volume import history
from sidecar.volume import snapshot as snapshots
from sidecar.volume.snapshot import Content, Sighting, Snapshot

_LOCK_TIMEOUT = 10.0
_LONGEST_NAME = 255
_LONGEST_PATH = 1024
#: Generations in their grace period, at most: a set may be published a thousand times in it.
_MOST_RETIRING = 16
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Publication:
    """What a publish did.

    `changed` is False if the content was there already, `created` is True if nothing was there before.
    `modified` is the time of the content in Unix seconds, `size` its bytes.
    """

    version: str
    changed: bool
    created: bool
    modified: float
    size: int

    @property
    def etag(self) -> str:
        """The strong entity tag: the version in quotes."""
        return snapshots.etag(self.version)


@dataclass(frozen=True, slots=True)
class Entry:
    """A visible file without its bytes: `size` of them, last changed at `modified` in Unix seconds."""

    name: str
    version: str
    size: int
    modified: float

    @property
    def etag(self) -> str:
        """The strong entity tag: the version in quotes."""
        return snapshots.etag(self.version)


@dataclass(slots=True)
class Ticket:
    """One piece of work: its caller may withdraw it until the content has become visible."""

    withdrawn: bool = False

    def check(self) -> None:
        """Stop the work if nobody waits for it any more."""
        if self.withdrawn:
            raise _errors.PublishError("the publish was cancelled before its content was visible")


@dataclass(frozen=True, slots=True)
class Conditions:
    """Entity tags that must, and must not, be in force (RFC 9110 sections 13.1.1 and 13.1.2); `*` is any."""

    if_match: Collection[str] | None = None
    if_none_match: Collection[str] | None = None

    def __bool__(self) -> bool:
        return self.if_match is not None or self.if_none_match is not None

    def check(self, where: str, version: str | None) -> None:
        """Compare with the version in force.

        Raises:
            VersionConflict: a condition does not hold.
        """
        current = snapshots.etag(version) if version is not None else None
        if self.if_match is not None and not _matches(self.if_match, current):
            raise _errors.VersionConflict(
                f"cannot publish {where}: it is {current or 'missing'} now, and the condition wants"
                f" {' or '.join(self.if_match) or 'nothing'} (read it again, and decide anew)",
                current,
            )
        if self.if_none_match is not None and _matches(self.if_none_match, current):
            raise _errors.VersionConflict(
                f"cannot publish {where}: {current} is there already"
                " (leave the condition out to replace it)",
                current,
            )


def check_name(name: str) -> str:
    """Return `name` if a file of a volume may have it: a relative path that stays where it is.

    Raises:
        NameRefused: it is empty, absolute, too long, holds `..`, a control character or bytes that are not UTF-8.
    """
    wrong = _wrong_with(name)
    if wrong:
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise _errors.NameRefused(f"cannot use {shown!r} as the name of a file: {wrong}")
    return name


class Store:
    """The blocking half of `Volume`: one directory, its files or its set, and its history."""

    def __init__(
        self, path: str, *, mode: int, group: int | None, keep: int, grace: float, max_size: int
    ) -> None:
        self.path = os.path.abspath(path)
        self._mode = mode
        self._group = group
        self._keep = keep
        self._grace = grace
        self._max_size = max_size
        # flock(2) keeps other processes out; threads of this one share the descriptor.
        self._mutex = threading.Lock()
        self._set: Sighting | None = None
        self._known: dict[str, tuple[beneath.Signature, str]] = {}

    def prepare(self, initial: Mapping[str, bytes]) -> int:
        """Create the directory, sweep it, and publish `initial` where there is nothing; return what was swept."""
        with atomic.publishing(f"prepare {self.path}"):
            atomic.make_directory(self.path)
        for name in initial:
            self._refuse_single_mount(name)
        with self._writing() as fd, atomic.publishing(f"prepare {self.path}"):
            swept = atomic.sweep(fd)
            self._repair_set(fd)
        for name, data in initial.items():
            with contextlib.suppress(_errors.VersionConflict):
                self.put(name, data, Conditions(if_none_match=("*",)), Ticket(), dry_run=False)
        return swept

    def stage(self) -> tuple[atomic.Staged, int]:
        """Make a temporary file to stream into, with a descriptor of the directory that the caller closes."""
        with self._writing() as fd, atomic.publishing(f"publish to {self.path}"):
            own = os.dup(fd)
            try:
                return atomic.Staged(own), own
            except BaseException:
                os.close(own)
                raise

    def put(
        self,
        name: str,
        content: bytes | tuple[atomic.Staged, str],
        conditions: Conditions,
        ticket: Ticket,
        *,
        dry_run: bool,
    ) -> Publication:
        """Publish one file, loose or within the set that is in force. A staged content comes with its version."""
        check_name(name)
        with self._writing() as fd:
            if atomic.link_target(fd, atomic.DATA) is not None:
                return self._put_in_set(fd, name, content, conditions, ticket, dry_run=dry_run)
            return self._put_loose(fd, name, content, conditions, ticket, dry_run=dry_run)

    def publish(
        self,
        files: Mapping[str, bytes],
        conditions: Conditions,
        ticket: Ticket,
        *,
        dry_run: bool,
    ) -> Publication:
        """Publish a whole set: these files, and no others."""
        check_names(files)
        with self._writing() as fd:
            before = self._see_set(fd)
            versions = {name: snapshots.version_of(data) for name, data in files.items()}
            return self._publish_set(
                fd, versions, dict(files), before, conditions, ticket, dry_run=dry_run
            )

    def delete(
        self, name: str, conditions: Conditions, ticket: Ticket, *, dry_run: bool
    ) -> Publication | None:
        """Remove one file; return the set that is left, None for a loose file."""
        check_name(name)
        where = self._where(name)
        with self._writing() as fd:
            before = self._see_set(fd)
            version = self._version(fd, name, before)
            conditions.check(where, version)
            if version is None:
                raise _errors.FileMissing(f"cannot delete {where}: there is no such file")
            if before is not None:
                versions = {n: v for n, v in _versions(before).items() if n != name}
                return self._publish_set(
                    fd, versions, {}, before, Conditions(), ticket, dry_run=dry_run
                )
            ticket.check()
            if not dry_run:
                with atomic.publishing(f"delete {where}"):
                    atomic.remove(fd, name)
            return None

    def read(self, name: str) -> Content:
        """Read one file, from the set where there is one.

        Raises:
            NameRefused, NothingPublished, ReadError: see those.
        """
        check_name(name)
        where = self._where(name)
        with beneath.reading(where):
            fd = beneath.open_directory(self.path)
        try:
            inner = f"{atomic.DATA}/{name}"
            path = inner if atomic.link_target(fd, atomic.DATA) is not None else name
            found = beneath.read_beneath(fd, path, self._max_size, where)
        finally:
            os.close(fd)
        version = snapshots.version_of(found.data)
        return Content(name, found.data, version, found.signature.mtime_ns / 1e9)

    def names(self) -> dict[str, int]:
        """Return the visible files and their sizes; none where the directory is missing."""
        try:
            with beneath.reading(self.path):
                fd = beneath.open_directory(self.path)
                try:
                    return snapshots.names_beneath(fd)
                finally:
                    os.close(fd)
        except _errors.NothingPublished:
            return {}

    def entries(self) -> list[Entry]:
        """Return the visible files with their versions; those that cannot be read are left out.

        Raises:
            NothingPublished, ReadError: the directory is missing, or cannot be read.
        """
        with beneath.reading(self.path):
            fd = beneath.open_directory(self.path)
            try:
                before = self._see_set(fd)
                sizes = snapshots.names_beneath(fd)
                found = []
                for name in sorted(n for n, size in sizes.items() if size <= self._max_size):
                    version, status = self._version(fd, name, before), _status(fd, name)
                    if version is not None and status is not None:
                        found.append(Entry(name, version, status.st_size, status.st_mtime))
                return found
            finally:
                os.close(fd)

    def snapshot(self) -> Snapshot[None]:
        """Read the whole directory."""
        with beneath.reading(self.path):
            fd = beneath.open_directory(self.path)
        try:
            return snapshots.load_directory(
                fd, self.path, limit=self._max_size, before=None
            ).snapshot
        finally:
            os.close(fd)

    def versions(self, name: str | None) -> list[history.Version]:
        """Return the history of a loose file, or of the set, newest first."""
        if name is not None:
            check_name(name)
        with beneath.reading(self.path):
            fd = beneath.open_directory(self.path)
        try:
            before = self._see_set(fd)
            if name is not None and before is None:
                version = self._version(fd, name, None)
                return history.versions_of_file(fd, name, version)[: self._keep]
            current = before.snapshot.version if before is not None else None
            return history.versions_of_set(fd, current)[: self._keep]
        finally:
            os.close(fd)

    def rollback(
        self,
        version: str,
        name: str | None,
        conditions: Conditions,
        ticket: Ticket,
        *,
        dry_run: bool,
    ) -> Publication:
        """Publish an older content again, after checking that it is what its name says."""
        kept = next((v for v in self.versions(name) if v.version == version), None)
        where = self._where(name) if name is not None else self.path
        if kept is None:
            raise _errors.UnknownVersion(
                f"cannot roll {where} back to {snapshots.etag(version)}: the history does not hold it"
                " (list it with GET /versions)"
            )
        with beneath.reading(where):
            fd = beneath.open_directory(self.path)
        try:
            if name is not None and kept.entry.startswith(history.directory_of(name)):
                found = beneath.read_beneath(fd, kept.entry, self._max_size, where)
                self._check_kept(where, version, snapshots.version_of(found.data))
                return self.put(name, found.data, conditions, ticket, dry_run=dry_run)
            generation = beneath.open_beneath(fd, kept.entry, os.O_RDONLY | os.O_DIRECTORY)
            try:
                old = snapshots.load_directory(
                    generation, where, limit=self._max_size, before=None
                ).snapshot
            finally:
                os.close(generation)
            self._check_kept(where, version, old.version)
            return self.publish(dict(old), conditions, ticket, dry_run=dry_run)
        finally:
            os.close(fd)

    def writable(self) -> None:
        """Try what a publish needs, and leave nothing behind.

        Raises:
            PublishError: it would fail now, and why.
        """
        staged, own = self.stage()
        staged.discard()
        os.close(own)

    def _put_loose(
        self,
        fd: int,
        name: str,
        content: bytes | tuple[atomic.Staged, str],
        conditions: Conditions,
        ticket: Ticket,
        *,
        dry_run: bool,
    ) -> Publication:
        where = self._where(name)
        version, size = _weigh(content)
        status = _status(fd, name)
        # The old content has to be read only where it matters what it is.
        same_size = status is not None and status.st_size == size
        current = self._version(fd, name, None) if conditions or same_size else None
        conditions.check(where, current)
        if status is not None and current == version:
            return Publication(version, False, False, status.st_mtime, size)
        with _staged(fd, content, where) as staged, atomic.publishing(f"publish {where}"):
            staged.seal(self._mode, self._group)
            ticket.check()
            if not dry_run:
                self._replace(fd, staged, name, version, where)
                stamp = time.time_ns()
                history.keep_file(fd, name, version, stamp, self._keep)
        modified = _status(fd, name) if not dry_run else None
        created = status is None
        return Publication(
            version, True, created, modified.st_mtime if modified else time.time(), size
        )

    def _replace(self, fd: int, staged: atomic.Staged, name: str, version: str, where: str) -> None:
        """Rename and sync. After an error between the two, look at what readers see now."""
        parent = self._open_parent(fd, name)
        try:
            try:
                staged.replace(name.rsplit("/", 1)[-1], parent)
            except OSError as error:
                # On NFS a rename that failed may have happened all the same: rename(2), BUGS.
                if error.errno in (errno.EIO, errno.ESTALE) and self._holds(fd, name, version):
                    raise self._uncertain(where, version, error) from error
                raise
            try:
                atomic.sync_directory(parent)
            except OSError as error:
                if self._holds(fd, name, version):
                    raise self._uncertain(where, version, error) from error
                raise
        finally:
            os.close(parent)

    def _open_parent(self, fd: int, name: str) -> int:
        """Open the directory that holds `name`, made where it is missing."""
        parent = os.dup(fd)
        for part in name.split("/")[:-1]:
            try:
                inner = atomic.subdirectory(parent, part)
                atomic.sync_directory(parent)
            finally:
                os.close(parent)
            parent = inner
        return parent

    def _put_in_set(
        self,
        fd: int,
        name: str,
        content: bytes | tuple[atomic.Staged, str],
        conditions: Conditions,
        ticket: Ticket,
        *,
        dry_run: bool,
    ) -> Publication:
        where = self._where(name)
        before = self._see_set(fd)
        old = _versions(before)
        conditions.check(where, old.get(name))
        version, size = _weigh(content)
        versions = {**old, name: version}
        check_names(versions)
        with _staged(fd, content, where) as staged:
            with atomic.publishing(f"publish {where}"):
                staged.seal(self._mode, self._group)
            done = self._publish_set(
                fd, versions, {name: staged}, before, Conditions(), ticket, dry_run=dry_run
            )
        return Publication(version, done.changed, name not in old, done.modified, size)

    def _publish_set(
        self,
        fd: int,
        versions: Mapping[str, str],
        fresh: Mapping[str, bytes | atomic.Staged],
        before: Sighting | None,
        conditions: Conditions,
        ticket: Ticket,
        *,
        dry_run: bool,
    ) -> Publication:
        """Put a generation with `versions` in force: `fresh` files are written, the others taken over as links."""
        current = before.snapshot.version if before is not None else None
        conditions.check(self.path, current)
        version = snapshots.version_of_set(versions)
        size = sum(len(c) if isinstance(c, bytes) else c.size for c in fresh.values())
        if before is not None and current == version:
            with atomic.publishing(f"publish {self.path}"):
                if not dry_run and atomic.link_visible(fd, versions):
                    atomic.sync_directory(fd)
            return Publication(version, False, False, before.snapshot.modified, size)
        with atomic.publishing(f"publish {self.path}"):
            old = atomic.link_target(fd, atomic.DATA)
            stamp = max(time.time_ns(), history.stamp_of(old or "") + 1)
            name = atomic.GENERATION + history.entry_name(stamp, version)
            self._make_generation(fd, name, versions, fresh, old)
            try:
                ticket.check()
                if dry_run:
                    atomic.remove_tree(fd, name)
                    return Publication(version, True, old is None, time.time(), size)
                self._switch(fd, name, versions, version)
            except BaseException:
                if atomic.link_target(fd, atomic.DATA) != name:
                    atomic.remove_tree(fd, name)
                raise
        self._retire(fd, name)
        return Publication(version, True, old is None, stamp / 1e9, size)

    def _make_generation(
        self,
        fd: int,
        name: str,
        versions: Mapping[str, str],
        fresh: Mapping[str, bytes | atomic.Staged],
        old: str | None,
    ) -> None:
        taken = [n for n in versions if n not in fresh]
        source = (
            beneath.open_beneath(fd, atomic.DATA, os.O_RDONLY | os.O_DIRECTORY)
            if old is not None
            else -1
        )
        try:
            atomic.make_generation(
                fd,
                name,
                fresh,
                mode=self._mode,
                group=self._group,
                keep_from=source if source >= 0 else None,
                keep=taken,
            )
        finally:
            if source >= 0:
                os.close(source)

    def _switch(self, fd: int, name: str, names: Collection[str], version: str) -> None:
        """Put a generation in force, then bring the visible links in line, then make all of it durable."""
        atomic.replace_link(fd, atomic.DATA, name)
        try:
            atomic.link_visible(fd, names)
            atomic.sync_directory(fd)
        except OSError as error:
            raise self._uncertain(self.path, version, error) from error

    def _retire(self, fd: int, current: str) -> None:
        """Move generations whose grace is over into the history, oldest first."""
        with contextlib.suppress(OSError):
            retiring = sorted(
                entry
                for entry in os.listdir(fd)
                if entry.startswith(atomic.GENERATION) and entry != current
            )
            over = time.time_ns() - int(self._grace * 1e9)
            for position, entry in enumerate(retiring):
                # What counts is how long it has been out of force: since its successor came.
                follower = retiring[position + 1] if position + 1 < len(retiring) else current
                if history.stamp_of(follower) <= over or len(retiring) - position > _MOST_RETIRING:
                    history.retire(fd, entry, self._keep)

    def _repair_set(self, fd: int) -> None:
        """Finish what a killed writer began after its generation came in force."""
        before = self._see_set(fd)
        if before is not None:
            if atomic.link_visible(fd, before.snapshot):
                atomic.sync_directory(fd)
            self._retire(fd, atomic.link_target(fd, atomic.DATA) or "")

    def _see_set(self, fd: int) -> Sighting | None:
        """Return the set in force, read again only where it changed; None for loose files."""
        if atomic.link_target(fd, atomic.DATA) is None:
            return None
        if self._set is None or not snapshots.unchanged(fd, self._set):
            try:
                self._set = snapshots.load_directory(
                    fd, self.path, limit=self._max_size, before=self._set
                )
            except _errors.ReadError:
                # The set in force is damaged: publishing a new one is the remedy.
                self._set = None
        return self._set

    def _version(self, fd: int, name: str, before: Sighting | None) -> str | None:
        """Return the version of a file as it is now, None where there is no regular file."""
        if before is not None:
            return _versions(before).get(name)
        try:
            file = beneath.open_beneath(fd, name)
        except OSError:
            return None
        try:
            signature = beneath.Signature.of(os.fstat(file))
            if (known := self._known.get(name)) is not None and known[0] == signature:
                return known[1]
            version = _hash(file)
            if time.time_ns() - max(signature.mtime_ns, signature.ctime_ns) > 2_000_000_000:
                self._known[name] = (signature, version)
            return version
        except OSError:
            return None
        finally:
            os.close(file)

    def _holds(self, fd: int, name: str, version: str) -> bool:
        return self._version(fd, name, None) == version

    def _uncertain(self, where: str, version: str, error: OSError) -> _errors.PublishUncertain:
        return _errors.PublishUncertain(
            f"published {where}, but perhaps not durably: readers see version {version[:8]},"
            f" and syncing its directory failed: {atomic.remedy(error)}"
            " (a power cut may bring the old content back; publish again once the storage is well)",
            version,
        )

    def _check_kept(self, where: str, wanted: str, found: str) -> None:
        if wanted != found:
            raise _errors.UnknownVersion(
                f"cannot roll {where} back to {snapshots.etag(wanted)}: the kept content was altered"
                f" and is {snapshots.etag(found)} now (publish the old content from its source)"
            )

    def _refuse_single_mount(self, name: str) -> None:
        where = self._where(name)
        if atomic.is_single_file_mount(where):
            raise _errors.VolumeUnavailable(
                errno.EBUSY,
                f"cannot publish {where}: the file is a mount of its own (subPath), which can neither"
                " be replaced nor see updates (mount the directory instead)",
            )

    def _where(self, name: str) -> str:
        return os.path.join(self.path, name)

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """Open the directory and keep every other writer out of it."""
        with self._mutex:
            with atomic.publishing(f"publish to {self.path}"):
                fd = beneath.open_directory(self.path)
            try:
                with atomic.locked(fd, timeout=_LOCK_TIMEOUT, where=self.path):
                    yield fd
            finally:
                os.close(fd)


def check_names(names: Collection[str]) -> None:
    """Check all names of a set, and that none is a directory for another.

    Raises:
        NameRefused: as `check_name`.
    """
    for name in names:
        check_name(name)
        above = name.split("/")
        for depth in range(1, len(above)):
            if (prefix := "/".join(above[:depth])) in names:
                raise _errors.NameRefused(
                    f"cannot use {name!r} as the name of a file: {prefix!r} is a file of the same set"
                )


def _wrong_with(name: str) -> str | None:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if not name or name.startswith("/") or name.endswith("/"):
        return "a name is a relative path to a file"
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        return "it holds a control character"
    if len(raw) > _LONGEST_PATH:
        return f"it is longer than {_LONGEST_PATH} bytes"
    for part in name.split("/"):
        if len(part.encode()) > _LONGEST_NAME:
            return f"a part of it is longer than {_LONGEST_NAME} bytes"
        if part in ("", "."):
            return "a part of it is empty"
        if part.startswith(atomic.HIDDEN):
            return "parts that begin with `..` are reserved, and none may lead upwards"
    return None


def _matches(tags: Collection[str], current: str | None) -> bool:
    return current is not None and ("*" in tags or current in tags)


def _versions(sighting: Sighting | None) -> dict[str, str]:
    if sighting is None:
        return {}
    return {name: sighting.snapshot.content(name).version for name in sighting.snapshot}


def _weigh(content: bytes | tuple[atomic.Staged, str]) -> tuple[str, int]:
    """Return version and size of a content that is to be published."""
    if isinstance(content, bytes):
        return snapshots.version_of(content), len(content)
    return content[1], content[0].size


@contextmanager
def _staged(
    fd: int, content: bytes | tuple[atomic.Staged, str], where: str
) -> Iterator[atomic.Staged]:
    """Yield the content as a temporary file; whatever is left of it at the end is removed."""
    with atomic.publishing(f"publish {where}"):
        staged = atomic.Staged(fd) if isinstance(content, bytes) else content[0]
    try:
        if isinstance(content, bytes):
            with atomic.publishing(f"publish {where}"):
                staged.write(content)
        yield staged
    finally:
        staged.discard()


def _status(fd: int, name: str) -> os.stat_result | None:
    try:
        return beneath.stat_beneath(fd, name)
    except OSError:
        return None


def _hash(file: int) -> str | None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return None
    digest = hashlib.sha256()
    while chunk := os.read(file, _HASH_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()[: snapshots.VERSION_DIGITS]
