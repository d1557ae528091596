"""List the visible names of a directory, before any file is read.

Names are ignored if they begin with `..`, are not UTF-8, or contain control characters (no URL can contain them).
Links to directories, `lost+found`, and the files that NFS and FUSE keep for removed but open files are ignored, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.fs import layout, openat
from sidecar.volume.content.filters import EVERYTHING, Filter

_MAX_DEPTH = 32
#: Memory per name besides its content; determines the maximum number of names for a size limit.
_BYTES_PER_NAME = 1024
_MIN_NAMES = 1000
#: Names of files that were removed while open: `nfs_sillyrename` of Linux, `hidden_path` of libfuse.
_REMOVED = re.compile(r"\.nfs[0-9a-fA-F]{8,}\Z|\.fuse_hidden[0-9a-fA-F]+\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class FileListing:
    """The visible names of a directory tree, before any file is read."""

    files: dict[str, openat.StatSignature] = field(default_factory=dict)
    folders: dict[str, openat.StatSignature] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of all entries, which determines the memory used."""
        return len(self.files) + len(self.folders) + len(self.problems)


def max_names(limit: int) -> int:
    """Return the maximum number of listed names if all files together may have `limit` bytes."""
    return max(_MIN_NAMES, limit // _BYTES_PER_NAME)


def visible_sizes(dir_fd: int, max_entries: int) -> dict[str, int]:
    """Return the visible regular files of an open directory, with their sizes in bytes.

    Raises:
        OSError: the directory cannot be read; `E2BIG`: there are more than `max_entries`.
    """
    with open_content_dir(dir_fd, layout.active_generation(dir_fd)) as fd:
        return {
            name: signature.size for name, signature in list_visible(fd, max_entries).files.items()
        }


@contextmanager
def open_content_dir(dir_fd: int, generation: str | None) -> Iterator[int]:
    """Open the content directory: the target of `..data` if there is a generation, else the directory itself."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    fd = openat.open_beneath(dir_fd, "." if generation is None else layout.DATA, flags)
    try:
        yield fd
    finally:
        openat.close(fd)


class Observer(Protocol):
    """Is notified of each directory and link of a listing, before it is read."""

    def enter(self, fd: int, name: str, device: int) -> None:
        """Called for a nested directory."""

    def resolve(self, dir_fd: int, name: str) -> None:
        """Called for a link to a file, with its name relative to the content directory."""

    def forget(self, keys: Iterable[str]) -> None:
        """Called for removed names; those of directories end with `/`."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The filter for loose files, and the observer of a listing."""

    filter: Filter = EVERYTHING
    observer: Observer | None = None


ALL = Scope()


def list_visible(dir_fd: int, max_entries: int, scope: Scope = ALL) -> FileListing:
    """List the visible names of a directory, in order, with their signatures or problems."""
    listing = FileListing()
    _Walk(dir_fd, listing, max_entries, scope).list_folder(dir_fd, "")
    return listing


def relist(
    dir_fd: int,
    before: FileListing,
    names: Collection[str],
    folders: Collection[str],
    *,
    max_entries: int,
    scope: Scope,
) -> set[str]:
    """Update a listing, and return the names that were listed again.

    `names` are entries that may have been added, removed or changed; `folders` are directories with unknown changes.
    """
    walk = _Walk(dir_fd, before, max_entries, scope)
    for folder in sorted(folders):
        walk.relist_folder(folder)
    for name in sorted(names):
        walk.update(name)
    return walk.rescanned


class _Walk:
    """Walks a directory tree and records its entries in the listing."""

    def __init__(self, dir_fd: int, listing: FileListing, max_entries: int, scope: Scope) -> None:
        self.rescanned: set[str] = set()
        self._dir_fd = dir_fd
        self._device = os.fstat(dir_fd).st_dev
        self._listing = listing
        self._max_entries = max_entries
        self._filter = scope.filter
        self._observer = scope.observer

    def list_folder(self, fd: int, name: str) -> None:
        """Record all entries of an open directory, recursively."""
        if name and self._observer is not None:
            self._observer.enter(fd, name, self._device)
        self._listing.folders[name] = openat.StatSignature.of(os.fstat(fd))
        prefix = name + "/" if name else ""
        for entry in _visible_entries(fd, self._max_entries + 1 - len(self._listing)):
            self._add(prefix + entry.name, fd, entry)

    def relist_folder(self, name: str) -> None:
        """Record the entries of a directory again, without entering subdirectories that are still the same."""
        if name not in self._listing.folders:
            return
        try:
            fd = openat.open_beneath(self._dir_fd, name or ".", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            self.update(name)
            return
        try:
            if name and self._observer is not None:
                self._observer.enter(fd, name, self._device)
            self._listing.folders[name] = openat.StatSignature.of(os.fstat(fd))
            prefix = name + "/" if name else ""
            entries = {
                prefix + entry.name: entry
                for entry in _visible_entries(fd, self._max_entries + 1 - len(self._listing))
            }
            for old in self._entries_of(prefix) - entries.keys():
                self._remove(old)
            for path, entry in entries.items():
                known = self._listing.folders.get(path)
                if known is None or entry.inode() != known.inode:
                    self._remove(path)
                    self._add(path, fd, entry)
        finally:
            openat.close(fd)

    def update(self, name: str) -> None:
        """Record one name again."""
        self._remove(name)
        above, _, leaf = name.rpartition("/")
        if not name or not _is_visible(leaf) or above not in self._listing.folders:
            return
        try:
            fd = openat.open_beneath(self._dir_fd, above or ".", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return  # its directory is gone, which is reported separately
        try:
            self._listing.folders[above] = openat.StatSignature.of(os.fstat(fd))
            self._add(name, fd, _Entry(fd, leaf))
        finally:
            openat.close(fd)

    def _add(self, name: str, fd: int, entry: os.DirEntry[str] | _Entry) -> None:
        self.rescanned.add(name)
        try:
            status = self._status(name, entry)
            link = status is None
            if status is None:
                # Links must be resolved beneath the directory; other entries need no resolution.
                status = openat.stat_beneath(self._dir_fd, name)
            if stat.S_ISDIR(status.st_mode):
                if not link and name.count("/") < _MAX_DEPTH and self._filter.enters(name):
                    self._descend(fd, entry.name, name)
            elif not self._filter.takes(name):
                pass
            elif stat.S_ISREG(status.st_mode):
                self._listing.files[name] = openat.StatSignature.of(status)
            else:
                kind = openat.kind_of(status.st_mode)
                self._listing.problems[name] = f"it is {kind}, and only regular files are read"
        except FileNotFoundError:
            return  # gone, or a link whose target is gone
        except OSError as error:
            self._listing.problems[name] = openat.explain(error)

    def _status(self, name: str, entry: os.DirEntry[str] | _Entry) -> os.stat_result | None:
        """Return the status of an entry, None for a link, whose target is reported to the observer."""
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                if self._observer is not None:
                    self._observer.resolve(self._dir_fd, name)
                return None
            return status
        self._forget([name])
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def _forget(self, keys: Collection[str]) -> None:
        if self._observer is not None:
            self._observer.forget(keys)

    def _descend(self, above: int, entry: str, name: str) -> None:
        fd = openat.open_beneath(above, entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self.list_folder(fd, name)
        finally:
            openat.close(fd)

    def _entries_of(self, prefix: str) -> set[str]:
        """Return the recorded names directly under a prefix."""
        start = len(prefix)
        found = self._listing
        return {
            name
            for names in (found.files, found.folders, found.problems)
            for name in names
            if name and name.startswith(prefix) and "/" not in name[start:]
        }

    def _remove(self, name: str) -> None:
        """Remove a name and everything beneath it from the listing."""
        found = self._listing
        gone = [name]
        if found.folders.pop(name, None) is not None:
            prefix = name + "/"
            beneath_it = [folder for folder in found.folders if folder.startswith(prefix)]
            for folder in beneath_it:
                del found.folders[folder]
            gone += [file for file in found.files if file.startswith(prefix)]
            gone += [file for file in found.problems if file.startswith(prefix)]
            self._forget([prefix, *(folder + "/" for folder in beneath_it), *gone])
        for path in gone:
            self.rescanned.add(path)
            found.files.pop(path, None)
            found.problems.pop(path, None)


class _Entry:
    """An entry of a directory, with the interface of `os.DirEntry`."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        return os.stat(self.name, dir_fd=self._fd, follow_symlinks=follow_symlinks)


def _visible_entries(dir_fd: int, max_entries: int) -> list[os.DirEntry[str]]:
    """Return the visible entries of a directory, in order.

    Raises:
        OSError: `E2BIG`: there are more than `max_entries`.
    """
    found: list[os.DirEntry[str]] = []
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            if _is_visible(entry.name):
                found.append(entry)
                if len(found) > max_entries:
                    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    return sorted(found, key=lambda entry: entry.name)


def was_removed(name: str) -> bool:
    """Whether this is the name that NFS or FUSE gives to a file that was removed while open."""
    return _REMOVED.match(name) is not None


def _is_visible(name: str) -> bool:
    if name.startswith("."):
        if name.startswith(layout.HIDDEN) or _REMOVED.match(name):
            return False
    elif name == "lost+found":
        return False
    if name.isascii():
        return name.isprintable()
    return layout.is_text(name) and not _CONTROL.search(name)
