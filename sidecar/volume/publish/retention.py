"""Limits of the whole history: by bytes, by deleted files, and for lack of space.

`history` limits the number of versions of one file, or of the set. This module orders all versions for removal:
first unknown entries and those with a timestamp in the future, then versions of deleted files if space is needed,
then the oldest. The list is created only when a limit may be reached; between that, additions are summed up.
"""

from __future__ import annotations

import contextlib
import os
import stat
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sidecar.fs import dirs, layout
from sidecar.volume.publish import budget, history
from sidecar.volume.publish.models import VolumeConfig

#: The history is trimmed to this share of its limit, so that the next publishes need no new list.
_TRIM_TARGET = 7 / 8
_MIN_NEW_NAMES = 64
#: Generations outside the history are removed after everything in it.
_GENERATION_RANK = 1 << 80


@dataclass(frozen=True, slots=True)
class ArchivedVersion:
    """A version in the history, or a generation."""

    rank: int
    path: str
    """Relative to the volume's directory."""
    size: int = 0
    """Disk space in bytes that its removal frees, after those before it in the list are removed."""
    folder: str | None = None
    """The directory of its file, None for a generation."""
    gone: bool = False
    """Whether the file is deleted."""


def survey(dir_fd: int, generations: Sequence[str] = ()) -> list[ArchivedVersion]:
    """Return all versions in the history, oldest first, then `generations`; current versions have size 0."""
    found, sizes = _list_entries(dir_fd, generations)
    return [replace(entry, size=sizes.get(entry.path, 0)) for entry in found]


def reclaim(dir_fd: int, wanted: int, generations: list[str], *, dry_run: bool) -> int:
    """Remove old versions until `wanted` bytes are freed, or nothing if that is not possible; return the bytes.

    Versions of deleted files are removed first, then the oldest; `generations` outside the history are removed last.
    """
    kept = [entry for entry in survey(dir_fd, generations) if entry.size]
    kept.sort(key=lambda entry: (bool(entry.rank) and not entry.gone, entry.rank))
    if (possible := sum(entry.size for entry in kept)) < wanted or dry_run:
        return possible
    freed = 0
    for entry in kept:
        if freed >= wanted:
            break
        remove(dir_fd, entry)
        freed += entry.size
    return freed


def remove(dir_fd: int, kept: ArchivedVersion) -> None:
    """Remove one version, and the history directory of its file if it becomes empty."""
    dirs.rmtree(dir_fd, kept.path)
    if kept.folder is not None:
        with contextlib.suppress(OSError):
            os.rmdir(kept.folder, dir_fd=dir_fd)


class Retention:
    """The limits of one history. All methods are called under the directory lock."""

    def __init__(self, settings: VolumeConfig) -> None:
        self._settings = settings
        self._bytes: int | None = None
        """Upper bound of the archived bytes; None before the first count."""
        self._gone: dict[str, None] = {}
        """The history directories of deleted files, in the order of removal."""
        self._names = 0
        self._new_names = 0

    def added(self, size: int) -> None:
        """Add bytes that may be archived once they are no longer current; negative if freed."""
        if self._bytes is not None:
            self._bytes = max(self._bytes + size, 0)

    def published(self, name: str, *, new_name: bool) -> None:
        """Record that the file exists; `new_name`: it had no history before."""
        self._gone.pop(layout.history_of(name), None)
        self._new_names += new_name

    def deleted(self, name: str) -> None:
        """Record that the file was deleted."""
        folder = layout.history_of(name)
        self._gone.pop(folder, None)
        self._gone[folder] = None

    def enforce(self, dir_fd: int) -> int:
        """Remove versions above the limits, and return the freed bytes."""
        freed = 0
        if self.is_due:
            freed += self._count(dir_fd)
        while len(self._gone) > self._settings.keep_deleted:
            folder = next(iter(self._gone))
            del self._gone[folder]
            size = _usage(dir_fd, folder)
            dirs.rmtree(dir_fd, folder)
            self.added(-size)
            freed += size
        return freed

    @property
    def is_due(self) -> bool:
        """Whether the next publish has to list the history."""
        if self._bytes is None or self._bytes > self._settings.keep_bytes:
            return True
        # Consumers may have deleted files themselves, without a notification.
        return self._new_names > max(_MIN_NEW_NAMES, self._settings.keep_deleted, self._names // 4)

    def _count(self, dir_fd: int) -> int:
        kept = survey(dir_fd)
        self._bytes, freed = sum(entry.size for entry in kept), 0
        if self._bytes > self._settings.keep_bytes:
            least = self._settings.keep_bytes * _TRIM_TARGET
            while kept and self._bytes > least:
                entry = kept.pop(0)
                if entry.size or not entry.rank:
                    remove(dir_fd, entry)
                    self._bytes -= entry.size
                    freed += entry.size
        self._new_names, self._names = 0, len({entry.folder for entry in kept})
        known = dict.fromkeys(
            entry.folder for entry in kept if entry.gone and entry.folder is not None
        )
        # In the order of deletion, if known.
        later = {folder: None for folder in self._gone if folder in known}
        self._gone = {folder: None for folder in known if folder not in later} | later
        return freed


@dataclass(slots=True)
class _Inode:
    size: int
    links: int
    paths: list[tuple[int, str]] = field(default_factory=list)


def _list_entries(
    dir_fd: int, generations: Sequence[str]
) -> tuple[list[ArchivedVersion], dict[str, int]]:
    """Return the entries of the history in order, and the bytes that the removal of each frees, by path."""
    inodes: dict[int, _Inode] = {}
    own: dict[str, int] = defaultdict(int)
    found: list[ArchivedVersion] = []
    for entry, fd, name in _entries(dir_fd, generations):
        found.append(entry)
        with contextlib.suppress(OSError):
            _add_usage(fd, name, entry, inodes, own)
    # Space shared by several entries is freed with the last of them, if no other link exists.
    shared = {
        path
        for inode in inodes.values()
        if len(inode.paths) < inode.links
        for _, path in inode.paths
    }
    for inode in inodes.values():
        if len(inode.paths) >= inode.links:
            own[max(inode.paths)[1]] += inode.size
    found.sort(key=lambda entry: entry.rank)
    present = {entry.folder for entry in found if entry.path in shared}
    marked = [
        replace(
            entry,
            gone=entry.folder is not None
            and entry.folder not in present
            and not _file_exists(dir_fd, entry.folder),
        )
        for entry in found
    ]
    return marked, own


def _entries(dir_fd: int, generations: Sequence[str]) -> Iterator[tuple[ArchivedVersion, int, str]]:
    """Yield each entry of the history, then the generations, with the directory that it lies in and its name there."""
    with contextlib.suppress(OSError), dirs.open_subdir(dir_fd, layout.HISTORY) as top:
        for name in os.listdir(top):
            path = f"{layout.HISTORY}/{name}"
            if not layout.is_history_of_file(name):
                yield ArchivedVersion(history.rank(name), path), top, name
                continue
            with contextlib.suppress(OSError), dirs.open_subdir(top, name) as folder:
                for entry in os.listdir(folder):
                    yield (
                        ArchivedVersion(history.rank(entry), f"{path}/{entry}", folder=path),
                        folder,
                        entry,
                    )
    for position, name in enumerate(generations):
        yield ArchivedVersion(_GENERATION_RANK + position, name), dir_fd, name


def _add_usage(
    fd: int, name: str, entry: ArchivedVersion, inodes: dict[int, _Inode], own: dict[str, int]
) -> None:
    """Add the disk usage of an entry; files of a generation are added separately, since they may be shared."""
    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    own[entry.path] += 0 if stat.S_ISREG(status.st_mode) else status.st_blocks * 512
    if stat.S_ISREG(status.st_mode):
        _add_inode(status, entry, inodes)
    elif stat.S_ISDIR(status.st_mode):
        for _, directories, files, inner in dirs.walk(fd, name):
            for file in files:
                with contextlib.suppress(OSError):
                    _add_inode(os.stat(file, dir_fd=inner, follow_symlinks=False), entry, inodes)
            own[entry.path] += len(directories) * budget.on_disk(1)


def _add_inode(status: os.stat_result, entry: ArchivedVersion, inodes: dict[int, _Inode]) -> None:
    inode = inodes.setdefault(status.st_ino, _Inode(status.st_blocks * 512, status.st_nlink))
    inode.paths.append((entry.rank, entry.path))


def _file_exists(dir_fd: int, folder: str) -> bool:
    """Whether the file of a history directory exists; False for a hashed (too long) name."""
    name = urllib.parse.unquote(folder.removeprefix(f"{layout.HISTORY}/{layout.HISTORY_OF_FILE}"))
    above, _, leaf = name.rpartition("/")
    with contextlib.suppress(OSError), dirs.open_subdir(dir_fd, above) as parent:
        os.stat(leaf, dir_fd=parent, follow_symlinks=False)
        return True
    return False


def _usage(dir_fd: int, folder: str) -> int:
    """Return the disk usage of a directory."""
    with contextlib.suppress(OSError), dirs.open_subdir(dir_fd, folder) as fd:
        return dirs.disk_usage(fd)
    return 0
