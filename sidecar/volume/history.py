"""What a volume held before: the last contents, kept beside the present one.

    ..versions/file-<name>/<nanoseconds>-<version>    a content of a loose file, a hard link to what was published
    ..versions/gen-<nanoseconds>-<version>/           a generation of a set that is no longer in force

Linking and renaming copy nothing, so history costs the space of the contents themselves and no more.
It records what became visible. It is not synced: a power cut may cost its last entry, never a content in force.
A content is checked against the version in its name before it is used again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sidecar.disk import atomic
from sidecar.volume import snapshot as snapshots

DIRECTORY = "..versions"
_SET = "gen-"
_FILE = "file-"
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Version:
    """A content that was published: when (Unix seconds), how large (bytes), of how many files."""

    version: str
    published: float
    size: int
    files: int
    current: bool
    entry: str = ""
    """Where it lies, relative to the volume's directory."""

    @property
    def etag(self) -> str:
        """The strong entity tag, in quotes."""
        return snapshots.etag(self.version)


def stamp_of(entry: str) -> int:
    """Return the nanoseconds in the name of a generation or of a kept content, 0 if there are none."""
    digits = entry.rsplit("/", 1)[-1].removeprefix("..").removeprefix(_SET).split("-", 1)[0]
    return int(digits) if digits.isdecimal() else 0


def version_in(entry: str) -> str:
    """Return the version in the name of a generation or of a kept content."""
    return entry.rsplit("-", 1)[-1]


def entry_name(stamp: int, version: str) -> str:
    """Return `<nanoseconds>-<version>`, which sorts by time."""
    return f"{stamp:020d}-{version}"


def directory_of(name: str) -> str:
    """Return the directory that keeps the contents of a loose file."""
    quoted = urllib.parse.quote(name, safe="")
    if len(quoted) > _LONGEST:
        quoted = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{DIRECTORY}/{_FILE}{quoted}"


def keep_file(dir_fd: int, name: str, version: str, stamp: int, keep: int) -> None:
    """Note that `name` now holds `version`, and forget all but the newest `keep` contents.

    Best effort: what cannot be linked (a file system without hard links) is not kept.
    """
    if keep <= 0:
        return
    with contextlib.suppress(OSError), _opened(dir_fd, directory_of(name)) as fd:
        entries = sorted(os.listdir(fd))
        if not entries or version_in(entries[-1]) != version:
            entry = entry_name(max(stamp, stamp_of(entries[-1]) + 1 if entries else 0), version)
            os.link(name, entry, src_dir_fd=dir_fd, dst_dir_fd=fd, follow_symlinks=False)
            entries.append(entry)
        for old in entries[:-keep]:
            atomic.remove_tree(fd, old)


def retire(dir_fd: int, generation: str, keep: int) -> None:
    """Move a generation that is no longer in force into the history; with `keep` 0, remove it."""
    if keep <= 0:
        atomic.remove_tree(dir_fd, generation)
        return
    with contextlib.suppress(OSError), _opened(dir_fd, DIRECTORY) as fd:
        atomic.move(dir_fd, generation, fd, generation.removeprefix(".."))
        entries = sorted(e for e in os.listdir(fd) if e.startswith(_SET))
        for old in entries[: -max(keep - 1, 0)] if keep > 1 else entries:
            atomic.remove_tree(fd, old)


def versions_of_file(dir_fd: int, name: str, current: str | None) -> list[Version]:
    """Return the kept contents of a loose file, newest first."""
    folder = directory_of(name)
    return _listed(dir_fd, folder, "", current)


def versions_of_set(dir_fd: int, current: str | None) -> list[Version]:
    """Return the kept generations of a set, newest first, those in their grace period included."""
    found = _listed(dir_fd, DIRECTORY, _SET, current)
    found += _listed(dir_fd, ".", atomic.GENERATION, current)
    return sorted(found, key=lambda version: stamp_of(version.entry), reverse=True)


def _listed(dir_fd: int, folder: str, prefix: str, current: str | None) -> list[Version]:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError:
        return []
    found: list[Version] = []
    try:
        entries = sorted((e for e in os.listdir(fd) if e.startswith(prefix)), reverse=True)
        for entry in entries:
            if not (stamp := stamp_of(entry)):
                continue
            version = version_in(entry)
            files, size = _weight(fd, entry)
            is_current = version == current and not any(v.current for v in found)
            found.append(
                Version(version, stamp / 1e9, size, files, is_current, f"{folder}/{entry}")
            )
    finally:
        os.close(fd)
    return found


def _weight(dir_fd: int, entry: str) -> tuple[int, int]:
    """Return the number of files and of bytes of a kept content."""
    try:
        fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    except NotADirectoryError:
        return 1, os.stat(entry, dir_fd=dir_fd, follow_symlinks=False).st_size
    except OSError:
        return 0, 0
    try:
        sizes = snapshots.names_beneath(fd).values()
        return len(sizes), sum(sizes)
    finally:
        os.close(fd)


@contextmanager
def _opened(dir_fd: int, folder: str) -> Iterator[int]:
    """Open a directory of the history, made where it is missing."""
    fd = os.dup(dir_fd)
    try:
        for part in folder.split("/"):
            inner = atomic.subdirectory(fd, part)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)
