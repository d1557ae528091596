"""Find the files that match patterns: globs with `**`, braces and excludes, scanned repeatedly at little cost.

A directory is listed again only if its modification time has changed,
so a scan of a thousand idle files costs one `stat` per directory.
A listing contains device and inode of each file, by which a renamed file is found again.
Both are those of the file itself: with bind mounts and overlays its device differs from that of the directory.

Calls block. Files are opened through `sidecar.fs.openat`, and their content is not read here.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sidecar import _errors
from sidecar.fs import openat
from sidecar.logs.input.fingerprint import base_log_name
from sidecar.logs.input.log_once import LogOnce

_log = logging.getLogger(__name__)

Key = tuple[int, int]
"""Device and inode."""

_WILDCARD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MTIME_RESOLUTION_NS = 100_000_000
"""A directory that changed this recently may change again with the same timestamp."""
_MAX_DIRECTORIES = 100_000


@dataclass(slots=True)
class Listing:
    """The entries of a directory at one time."""

    changed_ns: int
    is_stable: bool
    keys: dict[str, Key] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ScanIndex:
    """The result of one scan."""

    files: dict[str, Key] = field(default_factory=dict)
    """The matching paths, each with the device and inode of its file (links are resolved)."""
    paths_by_inode: dict[Key, list[str]] = field(default_factory=dict)
    """All paths of the listed directories, matching or not, by device and inode."""
    inode_by_path: dict[str, Key] = field(default_factory=dict)
    """The reverse: device and inode by path."""
    directories: dict[str, None] = field(default_factory=dict)
    """The directories to watch, in order."""
    link_dirs: set[str] = field(default_factory=set)
    """Those of them that only contain targets of links."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    base: str
    parts: tuple[str | re.Pattern[str] | None, ...]
    """Below the base: a name, a pattern for a name, or None for `**`."""


class Discovery:
    """Finds the files that match patterns, anew with each `scan`.

    Args:
        patterns: absolute or relative globs.
        exclude: patterns for paths, or for file names if they contain no slash.
        root: the directory that links must not leave; by default the part of each pattern before its first wildcard.
        archive_dirs: further directories to list.
    """

    def __init__(
        self,
        patterns: Iterable[str],
        exclude: Iterable[str] = (),
        *,
        root: str | None = None,
        archive_dirs: Iterable[str] = (),
    ) -> None:
        self.patterns = [p for pattern in patterns for p in _absolute_patterns(pattern)]
        if not self.patterns:
            raise _errors.ConfigError("no log file is named: give a path or a pattern")
        self._compiled = [_compile(pattern) for pattern in self.patterns]
        self._exclude = [_exclude_test(p) for pattern in exclude for p in _expand_braces(pattern)]
        self._own_names: set[tuple[str, str]] = set()
        self._root = os.path.abspath(root) if root is not None else None
        self.archive_dirs = [os.path.abspath(path) for path in archive_dirs]
        """Directories that are listed besides those of the patterns."""
        self._listings: dict[str, Listing] = {}
        self._last: ScanIndex | None = None
        self.errors = LogOnce(_log)
        """The directories that could not be listed, with the reasons."""

    def exclude(self, path: str) -> bool:
        """Exclude a file and its rotated files. Return whether its path is one of the patterns."""
        directory, name = os.path.split(os.path.abspath(path))
        self._own_names.add((os.path.realpath(directory), base_log_name(name)))
        return os.path.abspath(path) in self.patterns

    def scan(self, *, changed_directories: Iterable[str] = ()) -> ScanIndex:
        """Scan once. `changed_directories` are listed again even if their modification time is the same."""
        for path in changed_directories:
            if self._listings.pop(path, None) is not None:
                self._last = None
        if self._last is not None and not self._last.link_dirs and self._is_unchanged():
            return self._last
        found = ScanIndex()
        seen: dict[str, Listing] = {}
        for pattern in self._compiled:
            for path, key in self._walk(pattern.base, pattern.parts, found, seen):
                if not self._excluded(path):
                    found.files[path] = key
        for path in self.archive_dirs:
            self._list(path, found, seen)
        for directory, listing in seen.items():
            for name, key in listing.keys.items():
                found.inode_by_path[os.path.join(directory, name)] = key
        found.inode_by_path.update(found.files)
        for path, key in found.inode_by_path.items():
            found.paths_by_inode.setdefault(key, []).append(path)
        for directory in found.link_dirs:
            found.directories.setdefault(directory)
        found.link_dirs -= seen.keys()
        self._listings = seen
        self._last = found if seen.keys() == found.directories.keys() else None
        return found

    def _is_unchanged(self) -> bool:
        """Whether no listed directory has changed. Never with links, since their targets may move."""
        try:
            return all(
                known.is_stable
                and not known.links
                and os.stat(path).st_mtime_ns == known.changed_ns
                for path, known in self._listings.items()
            )
        except OSError:
            return False

    def siblings(self, path: str) -> Iterator[str]:
        """Yield the files to which rotation may have moved the content of `path`: in its directory, and one level below."""
        directory = os.path.dirname(path)
        scratch: dict[str, Listing] = {}
        for place in dict.fromkeys([directory, *self.archive_dirs]):
            if self._listings.pop(place, None) is not None:
                self._last = None
            listing = self._list(place, ScanIndex(), scratch)
            if listing is None:
                continue
            below = [os.path.join(place, name) for name in listing.directories[:100]]
            for each in [place, *below]:
                inner = listing if each == place else self._list(each, ScanIndex(), scratch)
                for name in inner.keys if inner is not None else ():
                    yield os.path.join(each, name)

    def open(self, path: str) -> int:
        """Open a regular file beneath the root that a scan has found.

        Raises:
            OSError: as openat2(2).
            ReadError: it is not a regular file.
        """
        root = self._find_root(path)
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fd = openat.open_beneath(root_fd, os.path.relpath(path, root))
            except OSError:
                if not os.path.islink(path):
                    raise
                # An absolute link is allowed if its target is beneath the root; openat2 still checks that path.
                real_root = os.path.realpath(root)
                target = os.path.relpath(os.path.realpath(path), real_root)
                fd = openat.open_beneath(root_fd, target)
        finally:
            os.close(root_fd)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            raise _errors.ReadError(f"cannot tail {path}: it is {openat.kind_of(mode)}")
        return fd

    def _find_root(self, path: str) -> str:
        if self._root is not None:
            return self._root
        inside = [p.base for p in self._compiled if path.startswith(p.base.rstrip("/") + "/")]
        inside += [d for d in self.archive_dirs if path.startswith(d + "/")]
        return max(inside, key=len, default=os.path.dirname(path))

    def _excluded(self, path: str) -> bool:
        return self._is_own(path) or any(excludes(path) for excludes in self._exclude)

    def _is_own(self, path: str) -> bool:
        directory, name = os.path.split(path)
        core = base_log_name(name)
        return any(core == own for _, own in self._own_names) and (
            (os.path.realpath(directory), core) in self._own_names
        )

    def _walk(
        self,
        directory: str,
        parts: Sequence[str | re.Pattern[str] | None],
        found: ScanIndex,
        seen: dict[str, Listing],
    ) -> Iterator[tuple[str, Key]]:
        part, rest = parts[0], parts[1:]
        if part is None:
            for below in self._walk_tree(directory, found, seen):
                yield from self._walk(below, rest, found, seen)
            return
        listing = self._list(directory, found, seen)
        if listing is None or len(seen) > _MAX_DIRECTORIES:
            return
        if rest:
            for name in [*listing.directories, *listing.links]:
                if _matches(part, name):
                    path = os.path.join(directory, name)
                    if name not in listing.links or os.path.isdir(path):
                        yield from self._walk(path, rest, found, seen)
            return
        yield from self._matching_files(directory, listing, part, found)

    def _walk_tree(
        self, directory: str, found: ScanIndex, seen: dict[str, Listing]
    ) -> Iterator[str]:
        """Yield a directory and all directories below it. Iterative, since any writer may create deep trees."""
        waiting = [directory]
        while waiting and len(seen) <= _MAX_DIRECTORIES:
            place = waiting.pop()
            listing = self._list(place, found, seen)
            if listing is None:
                continue
            yield place
            below = [name for name in listing.directories if not name.startswith(".")]
            waiting += [os.path.join(place, name) for name in reversed(below)]

    def _matching_files(
        self, directory: str, listing: Listing, part: str | re.Pattern[str], found: ScanIndex
    ) -> Iterator[tuple[str, Key]]:
        for name in [part] if isinstance(part, str) else list(listing.keys):
            if name in listing.keys and _matches(part, name):
                yield os.path.join(directory, name), listing.keys[name]
        for name in listing.links:
            if _matches(part, name):
                path = os.path.join(directory, name)
                with contextlib.suppress(OSError):
                    status = os.stat(path)
                    if stat.S_ISREG(status.st_mode):
                        found.link_dirs.add(os.path.dirname(os.path.realpath(path)))
                        yield path, (status.st_dev, status.st_ino)

    def _list(self, directory: str, found: ScanIndex, seen: dict[str, Listing]) -> Listing | None:
        if directory in seen:
            return seen[directory]
        try:
            status = os.stat(directory)
            known = self._listings.get(directory)
            if known is None or not known.is_stable or known.changed_ns != status.st_mtime_ns:
                known = self._read_directory(directory, status)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                self.errors.log(directory, error)
            # It does not exist yet: watch the nearest existing parent.
            parent = directory
            while (parent := os.path.dirname(parent)) and not os.path.isdir(parent):
                if parent == os.path.dirname(parent):
                    return None
            found.directories.setdefault(parent)
            return None
        self.errors.clear(directory)
        seen[directory] = known
        found.directories.setdefault(directory)
        return known

    def _read_directory(self, directory: str, status: os.stat_result) -> Listing:
        is_stable = time.time_ns() - status.st_mtime_ns > _MTIME_RESOLUTION_NS
        listing = Listing(status.st_mtime_ns, is_stable)
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_symlink():
                        listing.links.append(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        listing.directories.append(entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        listing.keys[entry.name] = _read_key(entry, status.st_dev)
        return listing


def _read_key(entry: os.DirEntry[str], device: int) -> Key:
    """Return device and inode from stat(2): readdir(3) has no device, and returns the inode below a mount point."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # renamed since it was listed: the next scan finds its new name
        return device, entry.inode()
    return status.st_dev, status.st_ino


def _absolute_patterns(pattern: str) -> list[str]:
    """Return the absolute patterns after brace expansion."""
    return [os.path.abspath(each) for each in _expand_braces(pattern) if each]


def _expand_braces(pattern: str) -> list[str]:
    """Expand braces: `{a,b}.log` becomes `a.log` and `b.log`."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [each for option in match[1].split(",") for each in _expand_braces(head + option + tail)]


def _compile(pattern: str) -> _Pattern:
    names = pattern.split("/")[1:]
    fixed = 0
    while fixed < len(names) - 1 and not _WILDCARD.search(names[fixed]):
        fixed += 1
    parts: list[str | re.Pattern[str] | None] = []
    for name in names[fixed:]:
        if name == "**":
            if not parts or parts[-1] is not None:
                parts.append(None)
        else:
            parts.append(re.compile(fnmatch.translate(name)) if _WILDCARD.search(name) else name)
    if parts[-1] is None:
        parts.append(re.compile(".*", re.DOTALL))
    return _Pattern("/" + "/".join(names[:fixed]), tuple(parts))


def _exclude_test(pattern: str) -> Callable[[str], bool]:
    """Return the test of an exclude pattern: without a slash it matches file names in any directory, else paths."""
    if "/" not in pattern:
        name = re.compile(fnmatch.translate(pattern))
        return lambda path: name.fullmatch(os.path.basename(path)) is not None
    compiled = _compile(os.path.abspath(pattern))
    base = compiled.base.rstrip("/") + "/"
    return lambda path: (
        path.startswith(base) and _matches_path(compiled.parts, path[len(base) :].split("/"))
    )


def _matches_path(parts: Sequence[str | re.Pattern[str] | None], names: Sequence[str]) -> bool:
    if not parts:
        return not names
    part, rest = parts[0], parts[1:]
    if part is None:
        return any(_matches_path(rest, names[skipped:]) for skipped in range(len(names)))
    if not names:
        return False
    fits = part == names[0] if isinstance(part, str) else part.fullmatch(names[0]) is not None
    return fits and _matches_path(rest, names[1:])


def _matches(part: str | re.Pattern[str], name: str) -> bool:
    if isinstance(part, str):
        return name == part
    # As in a shell, a wildcard does not match a leading dot.
    if name.startswith(".") and not part.pattern.startswith(r"(?s:\."):
        return False
    return part.fullmatch(name) is not None
