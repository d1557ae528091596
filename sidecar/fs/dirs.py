"""Directories of a volume and what lies in them: made and entered, walked through, removed.

No link is followed on the way: a neighbour could have planted it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from typing import Final

from sidecar.fs import atomic, layout, openat, permissions

MAX_DEPTH: Final = 64
"""Directories within each other that are looked into; a name of ours has half as many."""


def make_directory(path: str) -> None:
    """Create a directory and its missing parents with mode 0755, whatever the umask, durably.

    Where a group shares the directory above, it may write in the new ones, too: see `permissions.set_directory_access`.
    A link on the way that leads out of the volume is not followed: `beneath.open_directory` says where that ends.

    Raises:
        OSError: as mkdir(2); nothing is raised for a directory that exists.
    """
    whole = os.path.abspath(path)
    parent, name = os.path.split(whole)
    if os.path.lexists(whole):
        if not os.path.isdir(whole):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        # Whoever made it may have been killed before this; where we may not look, it is not ours to do.
        with contextlib.suppress(OSError):
            _sync(parent)
        return
    if not os.path.isdir(parent):
        make_directory(parent)
    _create_in(parent, name)


def check_creatable(path: str, size: int = 0) -> None:
    """Raise what `make_directory`, and a file of `size` bytes in it, would meet, as far as that can be known; make nothing.

    Raises:
        Refused: this user may not make it.
        OSError: as mkdir(2) and write(2).
    """
    above = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    fd = openat.open_directory(above)
    try:
        permissions.check_writable(fd)
        volume = os.fstatvfs(fd)
        if volume.f_bavail * volume.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        openat.close(fd)


def _create_in(parent: str, name: str) -> None:
    above = openat.open_directory(parent)
    try:
        with contextlib.suppress(FileExistsError):  # another one makes it at the same time
            os.mkdir(name, permissions.DIRECTORY_MODE, dir_fd=above)
            made = openat.open_here(above, name)
            try:
                permissions.set_directory_access(made, above)
            finally:
                openat.close(made)
            atomic.sync_directory(above)
    finally:
        openat.close(above)


class open_subdir:  # noqa: N801 (used as a function, see `oserrors.map_publish_errors`)
    """Yield the directory at the relative `path`; `dir_fd` itself for an empty path.

    With `make`, what is missing is created, as `permissions.set_directory_access` says;
    with `inherit_access` it is writable for all who may write to the directory above it.
    With `durable` the names on the way are synced.

    Raises:
        OSError: as openat(2); `ENOTDIR` or `ELOOP` where a link lies on the way.
    """

    __slots__ = ("_dir_fd", "_durable", "_fd", "_inherit_access", "_make", "_path")

    def __init__(
        self,
        dir_fd: int,
        path: str,
        *,
        make: bool = False,
        durable: bool = False,
        inherit_access: bool = False,
    ) -> None:
        self._dir_fd = self._fd = dir_fd
        self._path = path
        self._make = make
        self._durable = durable
        self._inherit_access = inherit_access

    def __enter__(self) -> int:
        if self._path and not self._make and not self._durable:
            self._fd = openat.open_folder(self._dir_fd, self._path)
        elif self._path:
            try:
                for part in filter(None, self._path.split("/")):
                    self._descend(part)
            except BaseException:
                self.__exit__()
                raise
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd != self._dir_fd:
            openat.close(self._fd)

    def _descend(self, part: str) -> None:
        above = self._fd
        if self._make:
            self._fd = _open_or_create(self._dir_fd, above, part, self._inherit_access)
        else:
            self._fd = openat.open_here(above, part)
        try:
            if self._durable:
                atomic.sync_directory(above)
        finally:
            if above != self._dir_fd:
                openat.close(above)


def remove_empty_parents(dir_fd: int, path: str) -> None:
    """Remove the directory at `path` and those above it, as far as they are empty. Never raises."""
    with contextlib.suppress(OSError):
        while path:
            path, _, last = path.rpartition("/")
            with open_subdir(dir_fd, path) as above:
                os.rmdir(last, dir_fd=above)


def walk(
    dir_fd: int, folder: str, *, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str], int]]:
    """Yield of a directory, and of each beneath it, its path, directories, files and descriptor; follow no link.

    It is `os.fwalk`, to a depth of `MAX_DEPTH`: the directories there are named, and not gone into.
    Each that it is in holds a descriptor, and a neighbour can nest more than a process may open.
    """
    for path, directories, files, fd in os.fwalk(folder, dir_fd=dir_fd, onerror=onerror):
        yield path, directories, files, fd
        if path.count("/") >= MAX_DEPTH:
            directories.clear()


def disk_usage(dir_fd: int, *, leave_out: Collection[str] = ()) -> int:
    """Return the bytes that an open directory takes on its disk with all that it holds, as `du` counts.

    A file with several links counts once; other file systems that are mounted beneath do not count,
    nor do names of the directory itself in `leave_out`. What cannot be looked at is left out.
    """
    status = os.fstat(dir_fd)
    seen: set[int] = set()
    return status.st_blocks * 512 + _usage(dir_fd, status.st_dev, seen, leave_out, MAX_DEPTH)


def _usage(
    dir_fd: int, device: int, seen: set[int], leave_out: Collection[str], levels: int
) -> int:
    total = 0
    with contextlib.suppress(OSError), os.scandir(dir_fd) as entries:
        for entry in entries:
            if entry.name in leave_out:
                continue
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if status.st_dev != device or status.st_ino in seen:
                    continue
                total += status.st_blocks * 512
                if stat.S_ISDIR(status.st_mode):
                    if levels:
                        total += _usage_in(dir_fd, entry.name, device, seen, levels - 1)
                elif status.st_nlink > 1:
                    seen.add(status.st_ino)
    return total


def _usage_in(dir_fd: int, name: str, device: int, seen: set[int], levels: int) -> int:
    fd = openat.open_here(dir_fd, name)
    try:
        return _usage(fd, device, seen, (), levels)
    finally:
        openat.close(fd)


def rmtree(dir_fd: int, name: str) -> None:
    """Remove a file, a link or a directory with all it holds. Never raises, never follows a link."""
    # A neighbour can nest directories deeper than a recursion may go.
    with contextlib.suppress(OSError, RecursionError):
        if stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=dir_fd)
        else:
            os.unlink(name, dir_fd=dir_fd)


def _sync(path: str) -> None:
    fd = openat.open_directory(path)
    try:
        atomic.sync_directory(fd)
    finally:
        openat.close(fd)


def _open_or_create(root_fd: int, dir_fd: int, name: str, inherit_access: bool) -> int:
    """Open a directory; a missing one gets its mode under a temporary name, and only then its own."""
    with contextlib.suppress(FileNotFoundError):
        return openat.open_here(dir_fd, name)
    temporary = layout.temporary_name()
    os.mkdir(temporary, 0o700, dir_fd=root_fd)
    try:
        made = openat.open_here(root_fd, temporary)
        try:
            (
                permissions.inherit_parent_access
                if inherit_access
                else permissions.set_directory_access
            )(made, dir_fd)
            atomic.move(root_fd, temporary, dir_fd, name)
        except BaseException as error:
            openat.close(made)
            if isinstance(error, PermissionError):
                raise permissions.explain(error, dir_fd, name) from error
            raise
    except BaseException:
        rmtree(root_fd, temporary)
        raise
    return made
