"""What is asked of a volume, and what it answers: names, conditions, orders, publications."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sidecar import _errors
from sidecar.fs import atomic, layout, oserrors
from sidecar.volume.content import listing, snapshot
from sidecar.volume.content.payload import Payload

#: Bytes, a file that was streamed, with its version, or a large content that is to be copied.

_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1024
#: Files that are listed in any case: their names take some 25 MB.
_MIN_LISTED_FILES = 1 << 16
#: As deep as snapshots look.
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Publication:
    """What a publish did.

    `changed` is False if the content was there already, `created` is True if nothing was there before.
    `modified` is the time of the content in Unix seconds, `size` its bytes.

    >>> done = Publication("a665a459", changed=True, created=False, modified=1.5, size=3)
    >>> done.etag
    '"a665a459"'
    """

    version: str
    changed: bool
    created: bool
    modified: float
    size: int

    @property
    def etag(self) -> str:
        """The strong entity tag: the version in quotes."""
        return snapshot.etag(self.version)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A visible file without its bytes: `size` of them, last changed at `modified` in Unix seconds."""

    name: str
    version: str
    size: int
    modified: float

    @property
    def etag(self) -> str:
        """The strong entity tag: the version in quotes."""
        return snapshot.etag(self.version)


@dataclass(frozen=True, slots=True)
class Preconditions:
    """Entity tags that must, and must not, be in force (RFC 9110 sections 13.1.1 and 13.1.2); `*` is any."""

    if_match: Collection[str] | None = None
    if_none_match: Collection[str] | None = None

    def __bool__(self) -> bool:
        return self.if_match is not None or self.if_none_match is not None

    def check(self, what: str, version: str | None) -> None:
        """Compare with the version in force. `what` completes "cannot …", as in "publish /shared/config".

        Raises:
            VersionConflict: a condition does not hold.
        """
        current = snapshot.etag(version) if version is not None else None
        if self.if_match is not None and not _matches(self.if_match, current):
            raise _errors.VersionConflict(
                f"cannot {what}: it is {current or 'missing'} now, and the condition wants"
                f" {' or '.join(self.if_match) or 'nothing'} (read it again, and decide anew)",
                current,
            )
        if self.if_none_match is not None and _matches(self.if_none_match, current):
            raise _errors.VersionConflict(
                f"cannot {what}: {current} is there already"
                " (leave the condition out to replace it)",
                current,
            )


class WouldWaitError(Exception):
    """It cannot be done at once; nothing has been done."""


@dataclass(slots=True)
class Operation:
    """How a change is wanted: under which conditions, for trial only, and whether still at all."""

    conditions: Preconditions = Preconditions()
    dry_run: bool = False
    purge: bool = False
    """Whether what is deleted is to leave the history, too."""
    needs_reclaim: bool = False
    """Of a trial: whether the content cannot be written now, but could be once old ones have given way for it."""
    cancelled: bool = False
    no_wait: bool = False
    """Whether it is better not done than waited for: the caller is an event loop."""
    defer_removal: bool = False
    """Whether what leaves the history may be removed after the answer: the caller sees to it."""

    def cancel(self) -> None:
        """Give up what has not become visible yet."""
        self.cancelled = True

    def raise_if_cancelled(self) -> None:
        """Stop the work if nobody waits for it any more."""
        if self.cancelled:
            raise _errors.PublishError("the publish was cancelled before its content was visible")

    def check_before_wait(self) -> None:
        """Stop the work if it may not wait for others, or nobody waits for it any more."""
        if self.no_wait:
            raise WouldWaitError
        self.raise_if_cancelled()


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """What holds for every change of one directory; see `sidecar.Volume`. `path` is absolute."""

    path: str
    mode: int
    group: int | None
    keep: int
    grace: float
    max_size: int
    durable: bool = True
    """Whether files and directories are synced, so that a power cut takes nothing back."""
    keep_bytes: int = 256 << 20
    """Bytes that the contents may take that are not in force."""
    keep_deleted: int = 10
    """Files that are gone of which the history keeps contents."""
    volume_budget: int | None = None
    """Bytes on the disk that all of it may take; None is no bound."""

    @property
    def max_entries(self) -> int:
        """How many files are listed: `max_size` may be small, as it is that of one content."""
        return max(_MIN_LISTED_FILES, listing.max_names(self.max_size))

    def access_matches(self, status: os.stat_result) -> bool:
        """Whether a file has the mode and the group that are asked for."""
        if stat.S_IMODE(status.st_mode) != self.mode:
            return False
        return self.group is None or status.st_gid == self.group

    def display_path(self, name: str) -> str:
        """Return the path of a file, as messages say it."""
        return os.path.join(self.path, name)

    def sync_directory(self, dir_fd: int) -> None:
        """Make the names of a directory durable, where that is wanted."""
        if self.durable:
            atomic.sync_directory(dir_fd)


def has_same_access(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two files have the same type, mode and group."""
    return (one.st_mode, one.st_gid) == (other.st_mode, other.st_gid)


def check_name(name: str) -> str:
    """Return `name` if a file of a volume may have it: a relative path that stays where it is.

    Raises:
        NameRefused: it is empty, absolute, too long, holds `..`, a control character or bytes that are not UTF-8.
        TypeError: it is no `str`.
    """
    check_text(name)
    wrong = _wrong_with(name)
    if wrong:
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise _errors.NameRefused(f"cannot use {shown!r} as the name of a file: {wrong}")
    return name


def check_text(name: object) -> None:
    """Raise `TypeError` if a name is no `str`."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a file is a str, not {type(name).__name__}: {name!r}")


def check_names(names: Collection[str]) -> None:
    """Check all names of a set, and that none is a directory for another.

    Raises:
        NameRefused: as `check_name`.
        NameTaken: one of them is a directory for another.
    """
    for name in names:
        check_name(name)
        above = name.split("/")
        for depth in range(1, len(above)):
            if (prefix := "/".join(above[:depth])) in names:
                raise _errors.NameTaken(
                    f"cannot use {name!r} as the name of a file: {prefix!r} is a file of the same set"
                )


@contextmanager
def staged(
    fd: int, content: Payload, where: str, reused: tuple[str, int] | None = None
) -> Iterator[atomic.TempFile]:
    """Yield the content as a temporary file in an open directory; whatever is left of it at the end is removed.

    `reused` is a file to write it into, see `inode_reuse.try_reuse`.
    """
    with oserrors.map_publish_errors(f"publish {where}"):
        if isinstance(content, tuple):
            file = content[0]
        else:
            file = atomic.TempFile(fd, short_lived=True, reused=reused)
    try:
        with oserrors.map_publish_errors(f"publish {where}"):
            if isinstance(content, bytes):
                file.write(content)
            elif isinstance(content, snapshot.Content):
                write(content, file.write)
        yield file
    finally:
        file.discard()


def write(content: snapshot.Content, into: Callable[[bytes], object]) -> None:
    """Hand a content to `into`, a large one in pieces.

    Raises:
        ContentAltered: it is not what its version says any more.
    """
    content.write_to(into)


def uncertain(
    where: str, version: str, error: OSError, *, failed: str = "syncing its directory"
) -> _errors.PublishUncertain:
    """Return the error for a content that is visible, and of which a later step has failed."""
    return _errors.PublishUncertain(
        f"published {where}, but perhaps not durably: readers see version {version[:8]},"
        f" and {failed} failed: {oserrors.hint(error)}"
        " (a power cut may bring the old content back; publish again once the storage is well)",
        version,
    )


def missing(where: str) -> _errors.FileMissing:
    """Return the error for a file that was to be deleted."""
    return _errors.FileMissing(f"cannot delete {where}: there is no such file")


@functools.lru_cache(maxsize=1024)
def _wrong_with(name: str) -> str | None:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if not name or name.startswith("/") or name.endswith("/"):
        return "a name is a relative path to a file"
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        return "it holds a control character"
    if len(raw) > _MAX_PATH_BYTES:
        return f"it is longer than {_MAX_PATH_BYTES} bytes"
    if name.count("/") > MAX_DEPTH:
        return f"it lies more than {MAX_DEPTH} directories deep"
    return next(filter(None, map(_wrong_with_part, name.split("/"))), None)


def _wrong_with_part(part: str) -> str | None:
    if len(part.encode()) > _MAX_NAME_BYTES:
        return f"a part of it is longer than {_MAX_NAME_BYTES} bytes"
    if part in ("", "."):
        return "a part of it is empty, or `.`"
    if part.startswith(layout.HIDDEN):
        return "parts that begin with `..` are reserved, and none may lead upwards"
    if part == "lost+found":
        return "file systems keep that name for themselves"
    return None


def _matches(tags: Collection[str], current: str | None) -> bool:
    return current is not None and ("*" in tags or current in tags)
