"""Publish sets of files in the layout that kubelet's AtomicWriter uses for ConfigMap, Secret and projected volumes.

The layout has one directory per generation, the link `..data` to the active generation, and visible links
through `..data`. Every program that reads ConfigMap volumes can read it:

    ..gen-<nanoseconds>-<version>/      a generation; it never changes once it is active
    ..data -> ..gen-…                   replaced by one rename, so all files change together
    index.html -> ..data/index.html     created after its content and removed after it

A generation is built under a temporary name and gets its final name just before activation,
so the timestamp in the name is the time of the change.
Every step that needs disk space happens before the first step that readers can see.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Self

from sidecar.fs import (
    atomic,
    dirs,
    layout,
    open_file,
    openat,
    permissions,
    visible_links,
    xattrs,
)
from sidecar.fs.layout import DATA, GENERATION, HIDDEN

#: Files that are open at a time. Writeback has started for all of them before the first is synced,
#: which saves about a third of the time for a set of thousands of files.
_MAX_OPEN_FILES = 64
_COPY_CHUNK_BYTES = 1 << 20
#: FAT, some FUSE and some network file systems have no hard links;
#: `fs.protected_hardlinks` forbids links to files of other users (proc_sys_fs(5)).
_NO_HARD_LINK_ERRNOS = (
    errno.EPERM,
    errno.EACCES,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
)


def timestamp_of(generation: str) -> int:
    """Return the timestamp in the name of a generation, in nanoseconds; 0 if it has none."""
    digits = (
        generation.rsplit("/", 1)[-1].removeprefix(HIDDEN).removeprefix("gen-").split("-", 1)[0]
    )
    return int(digits) if digits.isdecimal() else 0


def is_generation(entry: str) -> bool:
    """Whether `entry` is the name of a generation, active or archived."""
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
    sync_kept: bool = False,
    attach: Callable[[str, int], None] = lambda *_: None,
) -> str:
    """Write a complete generation under a temporary name, synced if `durable`, and return that name.

    The files in `keep` are reused from the active generation, as hard links where possible.
    With `exact`, files whose mode or group differs are copied instead.
    With `sync_kept`, they are synced, too: another publisher may have written them without a sync.
    `attach` is called with the name and the descriptor of each new file, and at the end with `""` and the directory
    of the generation, to set extended attributes. It must not change the content.

    Raises:
        ContentAltered: a file changed since it was read.
        OSError: an error of the file system; the partial generation is removed.
    """
    name = layout.temporary_name()
    os.mkdir(name, 0o700, dir_fd=dir_fd)
    try:
        with _GenerationBuilder(dir_fd, name, mode, group, durable=durable, exact=exact) as builder:
            for path, content in files.items():
                builder.add(path, content, attach)
            for path in keep:
                builder.link_from_active(path, sync=sync_kept)
            builder.complete(attach)
    except BaseException:
        dirs.rmtree(dir_fd, name)
        raise
    return name


def sweep(dir_fd: int) -> int:
    """Remove generations that were never activated, and return their number.

    Their writer was killed between naming the generation and swapping `..data`.
    They are newer than the active generation, because the timestamps in the names only increase.
    If `..data` is damaged, the active generation is unknown and nothing is removed.
    """
    if damage(dir_fd) is not None:
        return 0
    current = layout.active_generation(dir_fd)
    if current is not None and not current.startswith(GENERATION):
        return 0  # another publisher's generation is active, so the age of ours cannot be compared
    newest = timestamp_of(current or "")
    found = [entry for entry in os.listdir(dir_fd) if entry.startswith(GENERATION)]
    inactive = [entry for entry in found if timestamp_of(entry) > newest]
    for entry in inactive:
        dirs.rmtree(dir_fd, entry)
    return len(inactive)


def damage(dir_fd: int) -> str | None:
    """Describe the damage of the `..data` link; None if it is intact or there is no set.

    Raises:
        OSError: the link cannot be inspected.
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


class _GenerationBuilder:
    """Fills one generation: its directories as they are needed, its files in batches."""

    def __init__(
        self, dir_fd: int, name: str, mode: int, group: int | None, *, durable: bool, exact: bool
    ) -> None:
        self._durable = durable
        self._exact = exact
        self._mode = mode
        self._group = group
        self._dir_fd = dir_fd
        self._published_at = timestamp_of(layout.active_generation(dir_fd) or "")
        self._directories = {"": openat.open_here(dir_fd, name)}
        self._sources: dict[str, int] = {}
        self._pending: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self._pending, *self._directories.values(), *self._sources.values()):
            openat.close(fd)

    def add(
        self,
        path: str,
        content: bytes | atomic.TempFile | open_file.Copy,
        attach: Callable[[str, int], None],
    ) -> None:
        above, _, name = path.rpartition("/")
        directory = self._directory(above)
        if isinstance(content, atomic.TempFile):
            content.rename_into(name, directory)
            return
        fd = self._create(directory, name)
        attach(path, fd)
        if isinstance(content, open_file.Copy):
            open_file.copy(*content, partial(atomic.write_all, fd))
            self._finish_file(fd, content.file.size)
            return
        atomic.write_all(fd, content)
        self._finish_file(fd, len(content))

    def link_from_active(self, path: str, *, sync: bool) -> None:
        above, _, name = path.rpartition("/")
        source, directory = self._source(above), self._directory(above)
        if self._exact and not self._fits(os.stat(name, dir_fd=source, follow_symlinks=False)):
            self._copy(source, directory, name)
            return
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_HARD_LINK_ERRNOS:
                raise
            self._copy(source, directory, name)
            return
        if self._durable and (sync or self._is_rewritten(name, directory)):
            self._pending.append(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory))
            if len(self._pending) >= _MAX_OPEN_FILES:
                self._sync_pending()

    def _is_rewritten(self, name: str, directory: int) -> bool:
        """Whether a file was changed in place after its generation was published, perhaps without a sync."""
        return (
            os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns > self._published_at
        )

    def complete(self, attach: Callable[[str, int], None]) -> None:
        """Set the attribute of the directory, sync the files, then set the access of all directories and sync them."""
        attach("", self._directories[""])
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
            while chunk := os.read(old, _COPY_CHUNK_BYTES):
                atomic.write_all(fd, chunk)
                size += len(chunk)
            xattrs.copy(old, fd)
        finally:
            openat.close(old)
        self._finish_file(fd, size)

    def _create(self, directory: int, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        self._pending.append(fd)
        return fd

    def _finish_file(self, fd: int, size: int) -> None:
        atomic.check_size(atomic.set_owner_and_mode(fd, self._mode, self._group), size)
        if len(self._pending) >= _MAX_OPEN_FILES:
            self._sync_pending()
        elif self._durable:
            atomic.start_writeback(fd)

    def _sync_pending(self) -> None:
        if self._durable:
            atomic.sync_files(self._pending)
        while self._pending:
            os.close(self._pending.pop(0))  # NFS and FUSE report a full disk only on close(2)

    def _directory(self, path: str) -> int:
        """Return the descriptor of the directory `path` in the new generation; create it if missing."""
        if path not in self._directories:
            above, _, name = path.rpartition("/")
            parent = self._directory(above)
            os.mkdir(name, 0o700, dir_fd=parent)
            self._directories[path] = openat.open_here(parent, name)
        return self._directories[path]

    def _above(self, path: str) -> int:
        """Return the descriptor of the parent directory of `path`."""
        return self._directories[path.rpartition("/")[0]] if path else self._dir_fd

    def _source(self, path: str) -> int:
        """Return the descriptor of the directory `path` in the active generation."""
        if path not in self._sources:
            where = f"{DATA}/{path}" if path else DATA
            self._sources[path] = openat.open_beneath(
                self._dir_fd, where, os.O_RDONLY | os.O_DIRECTORY
            )
        return self._sources[path]
