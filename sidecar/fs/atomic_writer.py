"""Sets of files in the layout that kubelet uses for ConfigMap, Secret and projected volumes.

A directory for each generation, the link `..data` to the one in force, and visible links through `..data`.
So whatever reads a ConfigMap volume reads ours:

    ..gen-<nanoseconds>-<version>/      a generation; it never changes once it is in force
    ..data -> ..gen-…                   swapped by one rename: all files change together
    index.html -> ..data/index.html     made after its content, removed after it

A generation is made under a temporary name and gets its own just before it comes in force,
so the time in that name is the time of the change.
Whatever may fail for want of room happens before the first step that readers can see.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Mapping
from functools import partial
from typing import Self

from sidecar.fs import atomic, dirs, layout, open_file, openat, permissions, visible_links
from sidecar.fs.layout import DATA, GENERATION, HIDDEN

#: Files that are open at a time: each is on its way to the disk before the first of them is waited for,
#: which saves about a third of the time of a set of thousands.
_BATCH = 64
_COPY_CHUNK = 1 << 20
#: FAT, some FUSE and network file systems have no hard links;
#: `fs.protected_hardlinks` forbids those to files of other users (proc_sys_fs(5)).
_NO_LINK = (
    errno.EPERM,
    errno.EACCES,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
)


def timestamp_of(generation: str) -> int:
    """Return the nanoseconds in the name of a generation, 0 if there are none."""
    digits = (
        generation.rsplit("/", 1)[-1].removeprefix(HIDDEN).removeprefix("gen-").split("-", 1)[0]
    )
    return int(digits) if digits.isdecimal() else 0


def is_generation(entry: str) -> bool:
    """Whether that is the name of a generation, in force or in the history."""
    return entry.rsplit("/", 1)[-1].removeprefix(HIDDEN).startswith("gen-")


def build(
    dir_fd: int,
    files: Mapping[str, bytes | atomic.TempFile | open_file.Copy],
    *,
    mode: int,
    group: int | None,
    keep: Collection[str] = (),
    durable: bool = True,
    exact: bool = False,
) -> str:
    """Write a generation under a temporary name, whole and synced unless it need not be, and return that name.

    `keep` names files that are taken over from the generation in force, as hard links where those work;
    with `exact` those are copied that have another mode or group.

    Raises:
        ContentAltered: a file that is to be copied is not what it was.
        OSError: whatever the file system says; nothing is left of it then.
    """
    name = layout.temporary_name()
    os.mkdir(name, 0o700, dir_fd=dir_fd)
    try:
        with _Builder(dir_fd, name, mode, group, durable=durable, exact=exact) as builder:
            for path, content in files.items():
                builder.add(path, content)
            for path in keep:
                builder.take_over(path)
            builder.finish()
    except BaseException:
        dirs.rmtree(dir_fd, name)
        raise
    return name


def sweep(dir_fd: int) -> int:
    """Remove generations that never came in force, and return how many those were.

    Their writer was killed between naming them and the switch.
    They are newer than the one in force, because the time in the names only grows.
    Where `..data` is damaged nothing tells which one that was: then all stay.
    """
    if damage(dir_fd) is not None:
        return 0
    current = layout.active_generation(dir_fd)
    if current is not None and not current.startswith(GENERATION):
        return 0  # a generation of somebody else's: nothing tells the age of ours beside it
    newest = timestamp_of(current or "")
    found = [entry for entry in os.listdir(dir_fd) if entry.startswith(GENERATION)]
    unborn = [entry for entry in found if timestamp_of(entry) > newest]
    for entry in unborn:
        dirs.rmtree(dir_fd, entry)
    return len(unborn)


def damage(dir_fd: int) -> str | None:
    """Say what is wrong with the link to the set in force; None if nothing is, or if there is no set.

    Raises:
        OSError: nobody can tell.
    """
    try:
        if not stat.S_ISLNK(os.stat(DATA, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            return "is no link"
    except FileNotFoundError:
        return "is missing" if visible_links.set_links(dir_fd) else None
    try:
        flags = os.O_PATH | os.O_DIRECTORY
        openat.close(openat.open_beneath(dir_fd, DATA, flags))
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR:
                return "leads nowhere"
            case errno.EXDEV | errno.ELOOP:
                return "leads out of the volume"
        raise
    return None


class _Builder:
    """Fills one generation: its directories as they are needed, its files in batches."""

    def __init__(
        self, dir_fd: int, name: str, mode: int, group: int | None, *, durable: bool, exact: bool
    ) -> None:
        self._durable = durable
        self._exact = exact
        self._mode = mode
        self._group = group
        self._dir_fd = dir_fd
        self._directories = {"": openat.open_here(dir_fd, name)}
        self._sources: dict[str, int] = {}
        self._pending: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self._pending, *self._directories.values(), *self._sources.values()):
            openat.close(fd)

    def add(self, path: str, content: bytes | atomic.TempFile | open_file.Copy) -> None:
        above, _, name = path.rpartition("/")
        directory = self._directory(above)
        if isinstance(content, atomic.TempFile):
            content.replace(name, directory)
            return
        fd = self._create(directory, name)
        if isinstance(content, open_file.Copy):
            open_file.copy(*content, partial(atomic.write_all, fd))
            self._complete(fd, content.file.size)
            return
        atomic.write_all(fd, content)
        self._complete(fd, len(content))

    def take_over(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        source, directory = self._source(above), self._directory(above)
        if self._exact and not self._fits(os.stat(name, dir_fd=source, follow_symlinks=False)):
            self._copy(source, directory, name)
            return
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self._copy(source, directory, name)

    def finish(self) -> None:
        """Wait until the files are on the disk, then open the directories to readers and sync them."""
        self._sync_pending()
        for path, fd in self._directories.items():
            permissions.set_directory_access(fd, self._above(path), self._group)
        if self._durable:
            for fd in reversed(self._directories.values()):
                atomic.sync_directory(fd)

    def _fits(self, status: os.stat_result) -> bool:
        same_group = self._group is None or status.st_gid == self._group
        return not stat.S_ISREG(status.st_mode) or (
            stat.S_IMODE(status.st_mode) == self._mode and same_group
        )

    def _copy(self, source: int, directory: int, name: str) -> None:
        old = openat.open_beneath(source, name, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fd, size = self._create(directory, name), 0
            while chunk := os.read(old, _COPY_CHUNK):
                atomic.write_all(fd, chunk)
                size += len(chunk)
        finally:
            openat.close(old)
        self._complete(fd, size)

    def _create(self, directory: int, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        self._pending.append(fd)
        return fd

    def _complete(self, fd: int, size: int) -> None:
        atomic.check_size(atomic.set_owner_and_mode(fd, self._mode, self._group), size)
        if len(self._pending) >= _BATCH:
            self._sync_pending()
        elif self._durable:
            atomic.start_writeback(fd)

    def _sync_pending(self) -> None:
        if self._durable:
            atomic.sync_files(self._pending)
        while self._pending:
            os.close(self._pending.pop(0))  # NFS and FUSE report a full disk only here

    def _directory(self, path: str) -> int:
        """Return the directory of the new generation at `path`, made where it is missing."""
        if path not in self._directories:
            above, _, name = path.rpartition("/")
            parent = self._directory(above)
            os.mkdir(name, 0o700, dir_fd=parent)
            self._directories[path] = openat.open_here(parent, name)
        return self._directories[path]

    def _above(self, path: str) -> int:
        """Return the directory that holds the one at `path`."""
        return self._directories[path.rpartition("/")[0]] if path else self._dir_fd

    def _source(self, path: str) -> int:
        """Return the directory of the generation in force at `path`."""
        if path not in self._sources:
            where = f"{DATA}/{path}" if path else DATA
            self._sources[path] = openat.open_beneath(
                self._dir_fd, where, os.O_RDONLY | os.O_DIRECTORY
            )
        return self._sources[path]
