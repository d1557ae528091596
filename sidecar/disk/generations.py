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

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import NoReturn, Self

from sidecar.disk import atomic, beneath, naming, permissions, pinned, trees
from sidecar.disk.naming import DATA, GENERATION, HIDDEN

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


def stamp_of(generation: str) -> int:
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
    files: Mapping[str, bytes | atomic.Staged | pinned.Copy],
    *,
    mode: int,
    group: int | None,
    keep: Collection[str] = (),
    durable: bool = True,
) -> str:
    """Write a generation under a temporary name, whole and synced unless it need not be, and return that name.

    `keep` names files that are taken over from the generation in force, as hard links where those work.

    Raises:
        ContentAltered: a file that is to be copied is not what it was.
        OSError: whatever the file system says; nothing is left of it then.
    """
    name = naming.temporary_name()
    os.mkdir(name, 0o700, dir_fd=dir_fd)
    try:
        with _Builder(dir_fd, name, mode, group, durable) as builder:
            for path, content in files.items():
                builder.add(path, content)
            for path in keep:
                builder.take_over(path)
            builder.finish()
    except BaseException:
        trees.remove(dir_fd, name)
        raise
    return name


class Links:
    """The links that put a generation in force: made under temporary names, and put in place at the end.

    `generation` None leaves `..data` as it is, and mends the visible links alone.

    Raises:
        OSError: there is no room for a link; `EISDIR` if a directory with other files lies in its place.
    """

    def __init__(self, dir_fd: int, generation: str | None, names: Collection[str]) -> None:
        self._dir_fd = dir_fd
        self._staged: dict[str, str] = {}
        entries = _top(names)
        self._obsolete = [entry for entry in _visible(dir_fd) if entry not in entries]
        try:
            if generation is not None:
                self._stage(DATA, generation)
            for entry in _to_be_linked(dir_fd, names):
                self._stage(entry, _through_data(entry))
        except BaseException:
            self.discard()
            raise

    @property
    def needed(self) -> bool:
        """Whether anything is to be changed."""
        return bool(self._staged or self._obsolete)

    def switch(self) -> None:
        """Put the generation in force: one rename."""
        atomic.move(self._dir_fd, self._staged[DATA], self._dir_fd, DATA)
        del self._staged[DATA]

    def finish(self) -> None:
        """Put the visible links in place, and remove those whose content is gone.

        Links of others, and files that are no links, are left alone, unless a name of the set needs their place.
        """
        for entry, temporary in list(self._staged.items()):
            try:
                atomic.move(self._dir_fd, temporary, self._dir_fd, entry)
            except IsADirectoryError:
                trees.remove(self._dir_fd, atomic.exchange(self._dir_fd, temporary, entry))
            del self._staged[entry]
        for entry in self._obsolete:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=self._dir_fd)

    def discard(self) -> None:
        """Remove the links that were not put in place. Never raises."""
        for temporary in self._staged.values():
            trees.remove(self._dir_fd, temporary)
        self._staged.clear()

    def _stage(self, entry: str, target: str) -> None:
        temporary = naming.temporary_name()
        os.symlink(target, temporary, dir_fd=self._dir_fd)
        self._staged[entry] = temporary


def sweep(dir_fd: int) -> int:
    """Remove generations that never came in force, and return how many those were.

    Their writer was killed between naming them and the switch.
    They are newer than the one in force, because the time in the names only grows.
    """
    current = naming.in_force(dir_fd)
    if current is not None and not current.startswith(GENERATION):
        return 0  # a generation of somebody else's: nothing tells the age of ours beside it
    newest = stamp_of(current or "")
    found = [entry for entry in os.listdir(dir_fd) if entry.startswith(GENERATION)]
    unborn = [entry for entry in found if stamp_of(entry) > newest]
    for entry in unborn:
        trees.remove(dir_fd, entry)
    return len(unborn)


class _Builder:
    """Fills one generation: its directories as they are needed, its files in batches."""

    def __init__(self, dir_fd: int, name: str, mode: int, group: int | None, durable: bool) -> None:
        self._durable = durable
        self._mode = mode
        self._group = group
        self._dir_fd = dir_fd
        self._directories = {"": beneath.open_here(dir_fd, name)}
        self._sources: dict[str, int] = {}
        self._pending: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self._pending, *self._directories.values(), *self._sources.values()):
            beneath.close(fd)

    def add(self, path: str, content: bytes | atomic.Staged | pinned.Copy) -> None:
        above, _, name = path.rpartition("/")
        directory = self._directory(above)
        if isinstance(content, atomic.Staged):
            content.replace(name, directory)
            return
        fd = self._create(directory, name)
        if isinstance(content, pinned.Copy):
            pinned.copy(*content, partial(atomic.write_all, fd))
            self._complete(fd, content.file.size)
            return
        atomic.write_all(fd, content)
        self._complete(fd, len(content))

    def take_over(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        source, directory = self._source(above), self._directory(above)
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
            permissions.give_directory(fd, self._above(path), self._group)
        if self._durable:
            for fd in reversed(self._directories.values()):
                atomic.sync_directory(fd)

    def _copy(self, source: int, directory: int, name: str) -> None:
        old = beneath.open_beneath(source, name, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fd, size = self._create(directory, name), 0
            while chunk := os.read(old, _COPY_CHUNK):
                atomic.write_all(fd, chunk)
                size += len(chunk)
        finally:
            beneath.close(old)
        self._complete(fd, size)

    def _create(self, directory: int, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        self._pending.append(fd)
        return fd

    def _complete(self, fd: int, size: int) -> None:
        atomic.check_size(os.fstat(fd), size)
        atomic.give(fd, self._mode, self._group)
        if len(self._pending) >= _BATCH:
            self._sync_pending()
        elif self._durable:
            atomic.begin_sync(fd)

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
            self._directories[path] = beneath.open_here(parent, name)
        return self._directories[path]

    def _above(self, path: str) -> int:
        """Return the directory that holds the one at `path`."""
        return self._directories[path.rpartition("/")[0]] if path else self._dir_fd

    def _source(self, path: str) -> int:
        """Return the directory of the generation in force at `path`."""
        if path not in self._sources:
            where = f"{DATA}/{path}" if path else DATA
            self._sources[path] = beneath.open_beneath(
                self._dir_fd, where, os.O_RDONLY | os.O_DIRECTORY
            )
        return self._sources[path]


def check_places(dir_fd: int, names: Collection[str]) -> None:
    """Raise what `Links` would, and make nothing.

    Raises:
        OSError: `EISDIR` if a directory with other files lies in the place of a link.
    """
    _to_be_linked(dir_fd, names)


def _to_be_linked(dir_fd: int, names: Collection[str]) -> list[str]:
    """Return the entries that have no link yet, each with a place for it."""
    missing = [e for e in sorted(_top(names)) if naming.link_target(dir_fd, e) != _through_data(e)]
    for entry in missing:
        _check_place(dir_fd, entry, names)
    return missing


def _top(names: Collection[str]) -> set[str]:
    return {name.split("/", 1)[0] for name in names}


def _through_data(entry: str) -> str:
    return f"{DATA}/{entry}"


def _visible(dir_fd: int) -> list[str]:
    """Return the visible links of ours."""
    entries = [entry for entry in os.listdir(dir_fd) if not entry.startswith(HIDDEN)]
    return [entry for entry in entries if naming.link_target(dir_fd, entry) == _through_data(entry)]


def _check_place(dir_fd: int, entry: str, names: Collection[str]) -> None:
    """Refuse to put a link in the place of a directory that holds more than the set itself."""
    try:
        directory = stat.S_ISDIR(os.stat(entry, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return
    if directory and _holds_others(dir_fd, entry, names):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), entry)


def _holds_others(dir_fd: int, entry: str, names: Collection[str]) -> bool:
    return any(path not in names for path in _files_in(dir_fd, entry))


def _files_in(dir_fd: int, entry: str) -> Iterator[str]:
    for path, directories, files, fd in trees.walk(dir_fd, entry, onerror=_raise):
        deeper = directories if path.count("/") >= trees.DEEPEST else ()
        yield from (f"{path}/{name}" for name in (*files, *deeper))
        with os.scandir(fd) as listing:
            yield from (f"{path}/{link.name}" for link in listing if link.is_symlink())


def _raise(error: OSError) -> NoReturn:
    raise error
