"""The links that put a set in force, `..data` and the visible ones: examined, made, put in place, taken back.

Whatever can be known to fail is found before the first step that readers can see.
If a step fails all the same, those before it are undone: a set is in force wholly or not at all.
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

#: What symlink(2) says on a file system that has none: vfat, some FUSE and CIFS.
_NO_SYMLINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
_LOST_AND_FOUND = "lost+found"

Displaced: TypeAlias = Callable[[str, str], None]
"""Called with an entry in whose place there is a link now, and the name of what lay there before. Never raises."""


class LinkUpdate:
    """The links that put a generation in force: made under temporary names, and put in place at the end.

    `generation` None leaves `..data` as it is, and mends the visible links alone.
    `names` are those of all files of the set; `path` is that of the directory, by which mounts are known.
    Of `spared` entries the link may be missing: what stands in their way is noted as `blocked`, and not raised.

    Raises:
        SymlinksUnsupported: the file system has no symbolic links.
        Refused: the sticky bit protects what lies in the place of a link.
        OSError: there is no room for a link; `EISDIR` if a directory with other files lies in its place,
            `EBUSY` if that is a mount. `filename` is the entry.
    """

    def __init__(
        self,
        dir_fd: int,
        generation: str | None,
        names: Collection[str],
        path: str,
        *,
        spared: Collection[str] = (),
    ) -> None:
        self._dir_fd = dir_fd
        self._path = path
        self._spared = spared
        self._staged: dict[str, str] = {}
        self._placed: dict[str, str | None] = {}
        """What has been put in place, and the name of what lay there before."""
        self._before: str | None = None
        """Where `..data` pointed before the switch."""
        self.blocked: dict[str, OSError] = {}
        entries, ours = top_level_names(names), set_links(dir_fd)
        self._obsolete = [entry for entry in ours if entry not in entries]
        try:
            if generation is not None:
                self._stage_data(generation)
            for entry in sorted(entries - ours):
                try:
                    self._stage(entry, _through_data(entry), names)
                except OSError as error:
                    self._give_up(entry, error)
        except BaseException:
            self.discard()
            raise

    @property
    def needed(self) -> bool:
        """Whether anything is to be changed."""
        return bool(self._staged or self._obsolete)

    def switch(self) -> None:
        """Put the generation in force: one rename."""
        temporary = self._staged[DATA]
        self._before = layout.link_target(self._dir_fd, DATA)
        if self._before is None:
            self._placed[DATA] = atomic.rename_or_exchange(self._dir_fd, temporary, DATA)
        else:
            atomic.move(self._dir_fd, temporary, self._dir_fd, DATA)
            self._placed[DATA] = None
        del self._staged[DATA]

    def finish(self, displaced: Displaced | None = None) -> None:
        """Put the visible links in place, and remove those whose content is gone.

        Links of others, and files that are no links, are left alone, unless a name of the set needs their place.
        Then `displaced` is told of each before it is removed.

        Raises:
            OSError: a link could not be put in place: `undo` what is done. `filename` is the entry.
        """
        for entry, temporary in list(self._staged.items()):
            try:
                self._placed[entry] = atomic.rename_or_exchange(self._dir_fd, temporary, entry)
            except OSError as error:
                self._give_up(entry, error)
            else:
                del self._staged[entry]
        for entry in self._obsolete:
            with contextlib.suppress(OSError):  # it leads nowhere by now, which is what it says
                os.unlink(entry, dir_fd=self._dir_fd)
        self._forget_before(displaced)

    def undo(self) -> bool:
        """Take back what was put in place, and say whether all of that is as it was. Never raises."""
        try:
            for entry, before in reversed(list(self._placed.items())):
                if entry == DATA and self._before is not None:
                    back = layout.temporary_name()
                    os.symlink(self._before, back, dir_fd=self._dir_fd)
                    atomic.move(self._dir_fd, back, self._dir_fd, DATA)
                elif before is not None:
                    dirs.rmtree(self._dir_fd, atomic.exchange(self._dir_fd, before, entry))
                else:
                    os.unlink(entry, dir_fd=self._dir_fd)
                del self._placed[entry]
        except OSError:
            return False
        return True

    def discard(self) -> None:
        """Remove the links that were not put in place. Never raises."""
        for temporary in self._staged.values():
            dirs.rmtree(self._dir_fd, temporary)
        self._staged.clear()

    def _stage_data(self, generation: str) -> None:
        try:
            self._stage(DATA, generation, ())
        except OSError as error:
            self._give_up(DATA, error)

    def _stage(self, entry: str, target: str, names: Collection[str]) -> None:
        _check_place(self._dir_fd, entry, names, os.path.join(self._path, entry))
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

    def _give_up(self, entry: str, error: OSError) -> None:
        if entry not in self._spared or isinstance(error, SymlinksUnsupported) or _is_full(error):
            error.filename = entry
            raise error
        self.blocked[entry] = error

    def _forget_before(self, displaced: Displaced | None) -> None:
        """Remove what lay in the places of the links."""
        for entry, before in self._placed.items():
            if before is not None and entry != DATA:
                if displaced is not None:
                    displaced(entry, before)
                dirs.rmtree(self._dir_fd, before)
            elif before is not None:
                # Nothing but a link of a publisher has this name: whatever it is, it is not ours to remove.
                aside = f"{DATA}-replaced-{before.removeprefix(layout.TEMPORARY)}"
                atomic.move(self._dir_fd, before, self._dir_fd, aside)
        self._placed.clear()


def check_conflicts(
    dir_fd: int, names: Collection[str], path: str, spared: Collection[str]
) -> None:
    """Raise what `LinkUpdate` would find in the places of a set, where not even links can be made: for a trial.

    Raises:
        OSError: as `LinkUpdate`. `filename` is the entry.
    """
    for entry in sorted({DATA} | (top_level_names(names) - set_links(dir_fd) - set(spared))):
        try:
            _check_place(dir_fd, entry, names, os.path.join(path, entry))
        except OSError as error:
            error.filename = entry
            raise


def top_level_names(names: Collection[str]) -> set[str]:
    """Return the entries of a directory that the files of a set lie under."""
    return {name.split("/", 1)[0] for name in names}


def set_links(dir_fd: int) -> set[str]:
    """Return the visible entries that are links through `..data`."""
    entries = (entry for entry in os.listdir(dir_fd) if not entry.startswith(HIDDEN))
    return {entry for entry in entries if layout.link_target(dir_fd, entry) == _through_data(entry)}


def loose_names_beside_set(dir_fd: int) -> list[str]:
    """Return the visible entries that belong to no set: no reader of a directory with `..data` looks at them."""
    ours = set_links(dir_fd)
    entries = (e for e in os.listdir(dir_fd) if not e.startswith(HIDDEN) and e != _LOST_AND_FOUND)
    return sorted(entry for entry in entries if entry not in ours)


def _through_data(entry: str) -> str:
    return f"{DATA}/{entry}"


def _check_place(dir_fd: int, entry: str, names: Collection[str], where: str) -> None:
    """Refuse to put a link where that cannot be done, or in the place of a directory with more than the set itself."""
    try:
        status = os.stat(entry, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    permissions.check_sticky(os.fstat(dir_fd), status)
    if stat.S_ISLNK(status.st_mode):
        return  # nothing can be mounted on a link
    permissions.check_not_mounted(entry, where)
    if stat.S_ISDIR(status.st_mode) and entry != DATA and _holds_others(dir_fd, entry, names):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), entry)


def _holds_others(dir_fd: int, entry: str, names: Collection[str]) -> bool:
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
