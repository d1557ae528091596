"""The version history of a volume: the last versions of each file, and of the set.

    ..versions/file-<name>/<nanoseconds>-<version>    a version of a loose file, a hard link to the published file
    ..versions/gen-<nanoseconds>-<version>/           an inactive generation of a set

Versions are linked and renamed, not copied, so the history only uses the space of the contents themselves.
It records what became visible. It is not synced: a power failure may lose its last entry, but never current content.
A version is verified against the version in its name before it is used again.

Any process that can write to the volume can create entries there. Entries with another name, or with a timestamp
in the future, count as older than all others: they never block a publish, and are removed first.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from sidecar.fs import atomic, dirs, layout, openat, oserrors, permissions
from sidecar.fs.atomic_writer import timestamp_of
from sidecar.volume.content import listing, snapshot
from sidecar.volume.content.metadata import Metadata

_SET = "gen-"
_NAME = re.compile(rf"(?:{_SET})?(\d{{20}})-[0-9a-f]{{{snapshot.VERSION_DIGITS}}}", re.ASCII)
#: Tolerance for a clock that was set back; a later timestamp counts as invalid.
_MAX_CLOCK_STEP_NS = 86_400 * 10**9

_log = logging.getLogger(__name__)
_WARNED_NAMES: set[str] = set()
_MAX_WARNED_NAMES = 1000


@dataclass(frozen=True, slots=True)
class Version:
    """A published version: time (Unix seconds), size (bytes), and number of files.

    >>> before = [Version("2", 9.0, 10, 1, current=True), Version("1", 8.0, 12, 1, current=False)]
    >>> [one.etag for one in before if not one.current]
    ['"1"']
    """

    version: str
    published: float
    size: int
    files: int
    current: bool
    entry: str = ""
    """Its path relative to the directory of the volume."""
    metadata: Metadata | None = None
    """Who published it and when, as far as that is known."""

    @property
    def etag(self) -> str:
        """The strong entity tag, in quotes."""
        return snapshot.etag(self.version)


def entry_name(stamp: int, version: str) -> str:
    """Return `<nanoseconds>-<version>`, which sorts by time."""
    return f"{stamp:020d}-{version}"


def version_in(entry: str) -> str:
    """Return the version in the name of a generation or an archived file."""
    return entry.rsplit("-", 1)[-1]


def rank(entry: str) -> int:
    """Return the timestamp in the name of an entry, in nanoseconds; 0 if the name is invalid or in the future.

    >>> rank("00000000000000000007-" + "a" * 32), rank("planted"), rank("9" * 20 + "-" + "a" * 32)
    (7, 0, 0)
    """
    found = _NAME.fullmatch(entry)
    stamp = int(found[1]) if found is not None else 0
    return stamp if stamp < time.time_ns() + _MAX_CLOCK_STEP_NS else 0


def latest_version(dir_fd: int, name: str) -> str | None:
    """Return the last archived version of a loose file, None if there is none."""
    with contextlib.suppress(OSError), dirs.open_subdir(dir_fd, layout.history_of(name)) as fd:
        last = max(os.listdir(fd), key=rank, default="")
        return version_in(last) if rank(last) else None
    return None


class Folder(NamedTuple):
    """The history of one loose file after a change: its entries, oldest first, and the change."""

    entries: tuple[str, ...]
    created: bool = False
    """Whether it had no history before."""
    freed: int = 0
    """Disk space in bytes that was freed."""
    expired: tuple[str, ...] = ()
    """Entries to be removed later by `expire`."""


def archive_file(
    dir_fd: int,
    name: str,
    version: str,
    stamp: int,
    keep: int,
    *,
    link: Callable[[str, int], None],
    known: Sequence[str] | None = None,
    defer_removal: bool = False,
) -> Folder | None:
    """Archive `version` of the loose file `name`, and remove all but the newest `keep` versions.

    `link` links the published file itself into an open directory; its name may already refer to another file.
    `known` are the entries after the last change, if no other writer has changed the file since; then nothing is listed.
    With `defer_removal`, old entries are returned as expired instead of removed: unlink(2) waits for writeback.
    Best effort: None if the file cannot be linked (no hard links), or nothing is to be kept.
    """
    if keep <= 0:
        return None
    with (
        _BestEffort(name),
        _HistoryDirectory(dir_fd, layout.history_of(name)) as (fd, created),
    ):
        entries = sorted(os.listdir(fd), key=rank) if known is None else list(known)
        if entries and version_in(entries[-1]) == version:
            dirs.rmtree(fd, entries.pop())  # published again, because it was uncertain
        # The clock may have been set back, but the order must be kept.
        entry = entry_name(max(stamp, rank(entries[-1]) + 1 if entries else 0), version)
        link(entry, fd)
        entries.append(entry)
        old = tuple(entries[:-keep])
        if defer_removal and known is not None:
            return Folder(tuple(entries[-keep:]), created, expired=old)
        # Also entries that an earlier process left behind.
        return Folder(tuple(entries[-keep:]), created, sum(_remove(fd, expired) for expired in old))
    return None


def has_version(dir_fd: int, name: str) -> list[str]:
    """Return the paths that hold old versions of a file: its history directory, and inactive generations."""
    current = layout.active_generation(dir_fd)
    found = [folder for folder in (layout.history_of(name),) if _exists(dir_fd, folder)]
    for folder, prefix in ((".", layout.GENERATION), (layout.HISTORY, _SET)):
        with _listing(dir_fd, folder) as (fd, entries):
            ours = (e for e in entries if e.startswith(prefix) and (folder, e) != (".", current))
            found += [f"{folder}/{e}" for e in ours if _exists(fd, f"{e}/{name}")]
    return found


def _exists(dir_fd: int, path: str) -> bool:
    above, _, leaf = path.rpartition("/")
    with contextlib.suppress(OSError), dirs.open_subdir(dir_fd, above) as parent:
        _lstat(parent, leaf)
        return True
    return False


class _BestEffort:
    """Ignore errors of archiving; log missing permissions once per name."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, OSError):
            return False
        if (
            error.errno == errno.EACCES
            and self._what not in _WARNED_NAMES
            and len(_WARNED_NAMES) < _MAX_WARNED_NAMES
        ):
            _WARNED_NAMES.add(self._what)
            _log.warning(
                "cannot keep versions of %s: %s",
                self._what,
                oserrors.hint(error),
                extra={"event": "history.not_kept"},
            )
        return True


def expire(dir_fd: int, name: str, entries: Collection[str]) -> int:
    """Remove expired entries of a loose file, and return the freed bytes."""
    with contextlib.suppress(OSError), dirs.open_subdir(dir_fd, layout.history_of(name)) as fd:
        return sum(_remove(fd, entry) for entry in entries)
    return 0


class _HistoryDirectory:
    """Open the history directory of a file; create it if missing, and replace anything else with its name."""

    def __init__(self, dir_fd: int, folder: str) -> None:
        self._dir_fd = dir_fd
        self._folder = folder
        self._inside = dirs.open_subdir(dir_fd, folder)

    def __enter__(self) -> tuple[int, bool]:
        try:
            return self._inside.__enter__(), False
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                self._clear()
            elif error.errno != errno.ENOENT:
                raise
        self._inside = dirs.open_subdir(self._dir_fd, self._folder, make=True, inherit_access=True)
        return self._inside.__enter__(), True

    def __exit__(self, *_: object) -> None:
        self._inside.__exit__()

    def _clear(self) -> None:
        """Remove entries that are not directories but have a reserved name."""
        for path in (layout.HISTORY, self._folder):
            if not stat.S_ISDIR(_lstat(self._dir_fd, path).st_mode):
                os.unlink(path, dir_fd=self._dir_fd)
                _log.warning(
                    "removed what lay in the place of the history: %s",
                    path,
                    extra={"event": "history.intruder_removed"},
                )
                return


def _remove(fd: int, entry: str) -> int:
    """Remove an entry, and return the freed bytes."""
    with contextlib.suppress(OSError):
        status = _lstat(fd, entry)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(entry, dir_fd=fd)
            return status.st_blocks * 512 if status.st_nlink == 1 else 0
        dirs.rmtree(fd, entry)
    return 0


def archive_generation(dir_fd: int, generation: str, keep: int) -> None:
    """Move an inactive generation into the history, or remove it if that fails.

    `keep` includes the active generation.
    """
    if keep > 1:
        with (
            _BestEffort("the set"),
            _HistoryDirectory(dir_fd, layout.HISTORY) as (fd, _),
        ):
            atomic.move(dir_fd, generation, fd, generation.removeprefix(layout.HIDDEN))
            for old in sorted((e for e in os.listdir(fd) if e.startswith(_SET)), key=rank)[
                : 1 - keep
            ]:
                dirs.rmtree(fd, old)
    dirs.rmtree(dir_fd, generation)


def disk_usage(dir_fd: int, folder: str = layout.HISTORY) -> int:
    """Return an upper bound of the archived bytes: shared files are counted more than once."""
    total = 0
    with contextlib.suppress(OSError):
        for _, _, files, fd in dirs.walk(dir_fd, folder):
            for name in files:
                with contextlib.suppress(OSError):
                    total += _lstat(fd, name).st_size
    return total


def purge(dir_fd: int) -> bool:
    """Remove all versions except the newest of each file, for a full volume; return whether any was removed.

    The newest version of a deleted file is removed, too: nothing else would ever free its space.
    """
    forgotten = False
    with contextlib.suppress(OSError), dirs.open_subdir(dir_fd, layout.HISTORY) as fd:
        for entry in os.listdir(fd):
            if entry.startswith(_SET):
                dirs.rmtree(fd, entry)
                forgotten = True
            elif layout.is_history_of_file(entry):
                forgotten = _purge_file_history(fd, entry) or forgotten
    return forgotten


def _purge_file_history(dir_fd: int, folder: str) -> bool:
    old: list[str] = []
    with contextlib.suppress(OSError):
        with dirs.open_subdir(dir_fd, folder) as fd:
            old = sorted(os.listdir(fd), key=rank)
            if old and _lstat(fd, old[-1]).st_nlink > 1:
                del old[-1]  # it is current, and uses no space of its own
            for entry in old:
                dirs.rmtree(fd, entry)
        os.rmdir(folder, dir_fd=dir_fd)  # if nothing is left of it
    return bool(old)


def restrict(dir_fd: int, name: str, mode: int, group: int | None) -> None:
    """Remove permissions beyond the current mode from the versions of a loose file. Never raises."""
    with contextlib.suppress(OSError), dirs.open_subdir(dir_fd, layout.history_of(name)) as fd:
        permissions.restrict_files(fd, os.listdir(fd), mode, group)


def restrict_sets(dir_fd: int, current: str, mode: int, group: int | None) -> None:
    """As `restrict`, for the inactive generations of a set."""
    for folder, prefix in ((".", layout.GENERATION), (layout.HISTORY, _SET)):
        with _listing(dir_fd, folder) as (fd, entries):
            old = [e for e in entries if e.startswith(prefix) and (folder, e) != (".", current)]
            for entry in old:
                with contextlib.suppress(OSError):
                    for _, _, files, inner in dirs.walk(fd, entry):
                        permissions.restrict_files(inner, files, mode, group)


def versions_of_file(dir_fd: int, name: str, current: str | None, max_files: int) -> list[Version]:
    """Return the versions of a loose file, newest first; `current` is its current version.

    `max_files` is the maximum number of files of a version; larger entries are ignored as foreign.
    """
    folder = layout.history_of(name)
    with _listing(dir_fd, folder) as (fd, entries):
        newest_first = sorted(entries, key=rank, reverse=True)
        found = [v for e in newest_first if (v := _version(fd, folder, e, max_files)) is not None]
    present = next((v.entry for v in found if v.version == current), None)
    marked = [replace(v, current=v.entry == present) for v in found]
    if current is not None and present is None:
        # Published by another writer, or by one that was killed before archiving it.
        marked[:0] = _unarchived(dir_fd, name, current)
    return marked


def versions_of_set(dir_fd: int, max_files: int) -> list[Version]:
    """Return the generations of a set, newest first: the active one, those in their grace period, the archived.

    `max_files` is the maximum number of files of a version; larger entries are ignored as foreign.
    """
    current = layout.active_generation(dir_fd)
    found: list[Version] = []
    for folder, prefix in ((".", layout.GENERATION), (layout.HISTORY, _SET)):
        with _listing(dir_fd, folder) as (fd, entries):
            ours = [e for e in entries if e.startswith(prefix)]
            found += [v for e in ours if (v := _version(fd, folder, e, max_files)) is not None]
    marked = [replace(v, current=v.entry == f"./{current}") for v in found]
    return sorted(marked, key=lambda v: timestamp_of(v.entry), reverse=True)


@contextmanager
def _listing(dir_fd: int, folder: str) -> Iterator[tuple[int, list[str]]]:
    """Open a directory of the history and yield its descriptor and entries; no entries if it is missing."""
    with contextlib.ExitStack() as stack:
        entries: list[str] = []
        fd = -1
        with contextlib.suppress(OSError):
            fd = stack.enter_context(dirs.open_subdir(dir_fd, folder))
            entries = os.listdir(fd)
        yield fd, entries


def _version(dir_fd: int, folder: str, entry: str, max_files: int) -> Version | None:
    """Return one archived version, None if it was removed meanwhile or is invalid."""
    stamp = timestamp_of(entry)
    try:
        files, size = _count_files(dir_fd, entry, max_files)
    except OSError:
        return None
    if not stamp:
        return None
    return Version(version_in(entry), stamp / 1e9, size, files, False, f"{folder}/{entry}")


def _count_files(dir_fd: int, entry: str, max_files: int) -> tuple[int, int]:
    """Return the number of files and bytes of an archived version."""
    status = _lstat(dir_fd, entry)
    if not stat.S_ISDIR(status.st_mode):
        return 1, status.st_size
    with dirs.open_subdir(dir_fd, entry) as fd:
        sizes = listing.visible_sizes(fd, max_files).values()
        return len(sizes), sum(sizes)


def _unarchived(dir_fd: int, name: str, current: str) -> Iterator[Version]:
    with contextlib.suppress(OSError):
        status = openat.stat_beneath(dir_fd, name)
        yield Version(current, status.st_mtime_ns / 1e9, status.st_size, 1, True, name)


def _lstat(dir_fd: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
