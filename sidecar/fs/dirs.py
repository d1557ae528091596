"""Create, open, walk and remove directories of a volume.

Symbolic links are never followed: another user of the volume could have created them.
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
"""Maximum depth of directories to walk; names that are published have at most half as many levels."""


def make_directory(path: str) -> None:
    """Create a directory and its missing parents durably, with mode 0755 independent of the umask.

    If a group shares the parent directory, it may also write to the new ones: see `permissions.set_directory_access`.
    Links that lead out of the volume are not followed: see `openat.open_directory`.

    Raises:
        OSError: as mkdir(2); an existing directory is not an error.
    """
    whole = os.path.abspath(path)
    parent, name = os.path.split(whole)
    if os.path.lexists(whole):
        if not os.path.isdir(whole):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        # Its creator may have been killed before the sync. Without permission to open the parent, skip it.
        with contextlib.suppress(OSError):
            _sync(parent)
        return
    if not os.path.isdir(parent):
        make_directory(parent)
    _create_in(parent, name)


def check_creatable(path: str, size: int = 0) -> None:
    """Raise the error that `make_directory` and a file of `size` bytes in it would meet, as far as known; create nothing.

    Raises:
        Refused: this user may not create it.
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
        with contextlib.suppress(FileExistsError):  # created concurrently
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
    """Open the directory at the relative `path`, and close it at the end of the block; `dir_fd` itself for an empty path.

    With `make`, missing directories are created with `permissions.set_directory_access`;
    with `inherit_access`, they are writable for everyone who may write to the parent directory.
    With `durable`, the directories on the path are synced.

    Raises:
        OSError: as openat(2); `ENOTDIR` or `ELOOP` if a component is a link.
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
    """Remove the directory at `path` and its parents as long as they are empty. Never raises."""
    with contextlib.suppress(OSError):
        while path:
            path, _, last = path.rpartition("/")
            with open_subdir(dir_fd, path) as above:
                os.rmdir(last, dir_fd=above)


def walk(
    dir_fd: int, folder: str, *, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str], int]]:
    """Walk a directory tree: yield path, directories, files and descriptor of each directory; follow no links.

    Like `os.fwalk`, but only to a depth of `MAX_DEPTH`; deeper directories are listed and not entered.
    Each open level uses a descriptor, and a tree can be nested deeper than the descriptor limit.
    """
    for path, directories, files, fd in os.fwalk(folder, dir_fd=dir_fd, onerror=onerror):
        yield path, directories, files, fd
        if path.count("/") >= MAX_DEPTH:
            directories.clear()


def disk_usage(dir_fd: int, *, leave_out: Collection[str] = ()) -> int:
    """Return the disk space in bytes of an open directory and its contents, as counted by `du`.

    A file with several hard links counts once. Other file systems mounted beneath it, the top-level names
    in `leave_out`, and entries that cannot be inspected are not counted.
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
    """Remove a file, a link or a directory tree. Never raises, never follows a link."""
    # A tree can be nested deeper than the recursion limit.
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
    """Open a directory; create a missing one under a temporary name, set its access, and rename it."""
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
