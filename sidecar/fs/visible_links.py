"""Create, swap and undo the links of a set: `..data` and the visible links through it.

Conflicts are detected before the first step that readers can see.
If a later step fails, the earlier steps are undone: a set becomes active completely or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from typing import NoReturn, TypeAlias

from sidecar.fs import atomic, dirs, layout, permissions
from sidecar.fs.layout import DATA, HIDDEN
from sidecar.fs.oserrors import SymlinksUnsupported

#: Errors of symlink(2) on file systems without symbolic links: vfat, some FUSE and CIFS.
_NO_SYMLINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
_LOST_AND_FOUND = "lost+found"

Displaced: TypeAlias = Callable[[str, str], None]
"""Called with an entry that was replaced by a link, and the new name of the old entry. Never raises."""


class LinkUpdate:
    """A change of the links of a set: links are created under temporary names first and renamed at the end.

    `generation` None leaves `..data` unchanged and only repairs the visible links.
    `names` are the names of all files of the set; `path` is the path of the directory, used to detect mounts.
    The links of `optional` entries may stay missing: their conflicts are recorded in `blocked` instead of raised.

    Raises:
        SymlinksUnsupported: the file system has no symbolic links.
        Refused: the sticky bit protects an entry that a link must replace.
        OSError: there is no space for a link; `EISDIR` if a directory with other files has the name of a link,
            `EBUSY` if a mount has it. `filename` is the entry.
    """

    def __init__(
        self,
        dir_fd: int,
        generation: str | None,
        names: Collection[str],
        path: str,
        *,
        optional: Collection[str] = (),
    ) -> None:
        self._dir_fd = dir_fd
        self._path = path
        self._optional = optional
        self._staged: dict[str, str] = {}
        self._applied: dict[str, str | None] = {}
        """The entries renamed so far, each with the new name of the old entry, None if there was none."""
        self._previous_target: str | None = None
        """The target of `..data` before the swap."""
        self.blocked: dict[str, OSError] = {}
        entries, ours = top_level_names(names), set_links(dir_fd)
        self._obsolete = [entry for entry in ours if entry not in entries]
        try:
            if generation is not None:
                self._stage_data(generation)
            for entry in sorted(entries - ours):
                try:
                    self._stage(entry, _data_link_target(entry), names)
                except OSError as error:
                    self._block_or_raise(entry, error)
        except BaseException:
            self.discard()
            raise

    @property
    def has_changes(self) -> bool:
        """Whether any link has to change."""
        return bool(self._staged or self._obsolete)

    def swap_data(self) -> None:
        """Activate the generation by one rename of `..data`."""
        temporary = self._staged[DATA]
        self._previous_target = layout.link_target(self._dir_fd, DATA)
        if self._previous_target is None:
            self._applied[DATA] = atomic.rename_or_exchange(self._dir_fd, temporary, DATA)
        else:
            atomic.move(self._dir_fd, temporary, self._dir_fd, DATA)
            self._applied[DATA] = None
        del self._staged[DATA]

    def apply(self, displaced: Displaced | None = None) -> None:
        """Rename the visible links into place, and remove the links of files that left the set.

        Other entries stay, unless the set contains their name.
        Before such an entry is removed, `displaced` is called.

        Raises:
            OSError: a link could not be renamed; call `undo`. `filename` is the entry.
        """
        for entry, temporary in list(self._staged.items()):
            try:
                self._applied[entry] = atomic.rename_or_exchange(self._dir_fd, temporary, entry)
            except OSError as error:
                self._block_or_raise(entry, error)
            else:
                del self._staged[entry]
        for entry in self._obsolete:
            with contextlib.suppress(
                OSError
            ):  # a dangling link correctly says that the file is gone
                os.unlink(entry, dir_fd=self._dir_fd)
        self._remove_displaced(displaced)

    def undo(self) -> bool:
        """Undo all renames, and return whether the previous state is restored. Never raises."""
        try:
            for entry, before in reversed(list(self._applied.items())):
                if entry == DATA and self._previous_target is not None:
                    back = layout.temporary_name()
                    os.symlink(self._previous_target, back, dir_fd=self._dir_fd)
                    atomic.move(self._dir_fd, back, self._dir_fd, DATA)
                elif before is not None:
                    dirs.rmtree(self._dir_fd, atomic.exchange(self._dir_fd, before, entry))
                else:
                    os.unlink(entry, dir_fd=self._dir_fd)
                del self._applied[entry]
        except OSError:
            return False
        return True

    def discard(self) -> None:
        """Remove the temporary links that were not renamed. Never raises."""
        for temporary in self._staged.values():
            dirs.rmtree(self._dir_fd, temporary)
        self._staged.clear()

    def _stage_data(self, generation: str) -> None:
        try:
            self._stage(DATA, generation, ())
        except OSError as error:
            self._block_or_raise(DATA, error)

    def _stage(self, entry: str, target: str, names: Collection[str]) -> None:
        _check_entry(self._dir_fd, entry, names, os.path.join(self._path, entry))
        temporary = layout.temporary_name()
        try:
            os.symlink(target, temporary, dir_fd=self._dir_fd)
        except OSError as error:
            if error.errno in _NO_SYMLINKS and _is_writable(self._dir_fd):
                raise SymlinksUnsupported(
                    error.errno,
                    "this file system has no symbolic links, of which a set is made"
                    " (publish single files here, or take another volume for the set)",
                ) from error
            raise
        self._staged[entry] = temporary

    def _block_or_raise(self, entry: str, error: OSError) -> None:
        if entry not in self._optional or isinstance(error, SymlinksUnsupported) or _is_full(error):
            error.filename = entry
            raise error
        self.blocked[entry] = error

    def _remove_displaced(self, displaced: Displaced | None) -> None:
        """Remove the entries that were replaced by links."""
        for entry, before in self._applied.items():
            if before is not None and entry != DATA:
                if displaced is not None:
                    displaced(entry, before)
                dirs.rmtree(self._dir_fd, before)
            elif before is not None:
                # `..data` was not a link, so no publisher created it: keep it under another name.
                aside = f"{DATA}-replaced-{before.removeprefix(layout.TEMPORARY)}"
                atomic.move(self._dir_fd, before, self._dir_fd, aside)
        self._applied.clear()


def check_conflicts(
    dir_fd: int, names: Collection[str], path: str, optional: Collection[str]
) -> None:
    """Raise the conflicts that `LinkUpdate` would find, without creating links: for a dry run on a full volume.

    Raises:
        OSError: as `LinkUpdate`. `filename` is the entry.
    """
    for entry in sorted({DATA} | (top_level_names(names) - set_links(dir_fd) - set(optional))):
        try:
            _check_entry(dir_fd, entry, names, os.path.join(path, entry))
        except OSError as error:
            error.filename = entry
            raise


def top_level_names(names: Collection[str]) -> set[str]:
    """Return the first path component of each name."""
    return {name.split("/", 1)[0] for name in names}


def set_links(dir_fd: int) -> set[str]:
    """Return the visible entries that are links through `..data`."""
    entries = (entry for entry in os.listdir(dir_fd) if not entry.startswith(HIDDEN))
    return {
        entry for entry in entries if layout.link_target(dir_fd, entry) == _data_link_target(entry)
    }


def loose_names_beside_set(dir_fd: int) -> list[str]:
    """Return the visible entries that belong to no set. Readers of a directory with `..data` ignore them."""
    ours = set_links(dir_fd)
    entries = (e for e in os.listdir(dir_fd) if not e.startswith(HIDDEN) and e != _LOST_AND_FOUND)
    return sorted(entry for entry in entries if entry not in ours)


def _data_link_target(entry: str) -> str:
    return f"{DATA}/{entry}"


def _check_entry(dir_fd: int, entry: str, names: Collection[str], where: str) -> None:
    """Raise if `entry` cannot be replaced by a link, or is a directory that holds files outside the set."""
    try:
        status = os.stat(entry, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    permissions.check_sticky(os.fstat(dir_fd), status)
    if stat.S_ISLNK(status.st_mode):
        return  # nothing can be mounted on a link
    permissions.check_not_mounted(entry, where)
    if stat.S_ISDIR(status.st_mode) and entry != DATA and _has_other_files(dir_fd, entry, names):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), entry)


def _has_other_files(dir_fd: int, entry: str, names: Collection[str]) -> bool:
    return any(path not in names for path in _files_in(dir_fd, entry))


def _files_in(dir_fd: int, entry: str) -> Iterator[str]:
    for path, directories, files, fd in dirs.walk(dir_fd, entry, onerror=_raise):
        deeper = directories if path.count("/") >= dirs.MAX_DEPTH else ()
        yield from (f"{path}/{name}" for name in (*files, *deeper))
        with os.scandir(fd) as listing:
            yield from (f"{path}/{link.name}" for link in listing if link.is_symlink())


def _raise(error: OSError) -> NoReturn:
    raise error


def _is_writable(dir_fd: int) -> bool:
    with contextlib.suppress(OSError):
        permissions.check_writable(dir_fd)
        return True
    return False


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
