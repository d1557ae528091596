"""Which names of a directory count: what consumers may see, before anything of it is read.

Left out is what begins with `..`, names that are not UTF-8 (no URL could say them), links to directories,
and the `lost+found` that a new file system brings.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sidecar.disk import beneath, naming

_MAX_DEPTH = 32
#: What a name costs in memory beside its content: so many bytes of a limit must stand behind each.
_BYTES_A_NAME = 1024
_LEAST_NAMES = 1000


@dataclass(slots=True)
class Listing:
    """The visible names of a directory and of those in it, before anything is read."""

    files: dict[str, beneath.Signature] = field(default_factory=dict)
    folders: dict[str, beneath.Signature] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of all that is noted here: each takes its memory."""
        return len(self.files) + len(self.folders) + len(self.problems)


def most_names(limit: int) -> int:
    """Return how many names are listed, where all files together may have `limit` bytes."""
    return max(_LEAST_NAMES, limit // _BYTES_A_NAME)


def names_beneath(dir_fd: int, most: int) -> dict[str, int]:
    """Return the visible regular files of an open directory, with their sizes in bytes.

    Raises:
        OSError: the directory cannot be read; `E2BIG`: there are more than `most`.
    """
    with opened(dir_fd, naming.in_force(dir_fd)) as fd:
        return {name: signature.size for name, signature in list_visible(fd, most).files.items()}


@contextmanager
def opened(dir_fd: int, generation: str | None) -> Iterator[int]:
    """Open the directory whose files count: the target of `..data`, else the directory itself."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    fd = beneath.open_beneath(dir_fd, "." if generation is None else naming.DATA, flags)
    try:
        yield fd
    finally:
        beneath.close(fd)


def list_visible(dir_fd: int, most: int) -> Listing:
    """List the visible names of a directory, in order, with their signatures or with what is wrong about them."""
    listing = Listing()
    _list_into(listing, dir_fd, "", most)
    return listing


def _list_into(listing: Listing, dir_fd: int, prefix: str, most: int) -> None:
    listing.folders[prefix.rstrip("/")] = beneath.Signature.of(os.fstat(dir_fd))
    for entry in _visible_entries(dir_fd, most + 1 - len(listing)):
        name = prefix + entry.name
        try:
            link = entry.is_symlink()
            # A link has to be resolved with care; everything else is what it is.
            status = (
                beneath.stat_beneath(dir_fd, entry.name)
                if link
                else entry.stat(follow_symlinks=False)
            )
            if stat.S_ISREG(status.st_mode):
                listing.files[name] = beneath.Signature.of(status)
            elif not stat.S_ISDIR(status.st_mode):
                kind = beneath.kind_of(status.st_mode)
                listing.problems[name] = f"it is {kind}, and only regular files are read"
            elif not link and name.count("/") < _MAX_DEPTH:
                _list_folder(listing, dir_fd, entry.name, name, most)
        except FileNotFoundError:
            continue  # gone, or a link whose target is gone
        except OSError as error:
            listing.problems[name] = beneath.reason(error)


def _list_folder(listing: Listing, dir_fd: int, entry: str, name: str, most: int) -> None:
    fd = beneath.open_beneath(dir_fd, entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _list_into(listing, fd, name + "/", most)
    finally:
        beneath.close(fd)


def _visible_entries(dir_fd: int, most: int) -> list[os.DirEntry[str]]:
    """Return the visible entries of a directory, in order.

    Raises:
        OSError: `E2BIG`: they are more than `most`, and would fill the memory.
    """
    found: list[os.DirEntry[str]] = []
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            if _is_visible(entry.name):
                found.append(entry)
                if len(found) > most:
                    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    return sorted(found, key=lambda entry: entry.name)


def _is_visible(name: str) -> bool:
    if name.startswith(naming.HIDDEN) or name == "lost+found":
        return False
    return name.isascii() or naming.is_text(name)
