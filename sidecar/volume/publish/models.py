"""Request and result types of a volume: names, preconditions, operations, publications."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sidecar import _errors
from sidecar.fs import atomic, layout, oserrors
from sidecar.volume.content import listing, snapshot
from sidecar.volume.content.metadata import Metadata
from sidecar.volume.content.payload import Payload

_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1024
#: Minimum limit for the number of listed files; the names use about 25 MB.
_MIN_LISTED_FILES = 1 << 16
#: The same depth as in snapshots.
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Publication:
    """The result of a publish.

    `changed` is False if the same content was already published; `created` is True if nothing existed before.
    `modified` is the modification time in Unix seconds, `size` the size in bytes.
    `replaced` is the version that was there before and `replaced_size` its size; None if there was none, or if it is unknown.

    >>> done = Publication("a665a459", changed=True, created=False, modified=1.5, size=3)
    >>> done.etag
    '"a665a459"'
    """

    version: str
    changed: bool
    created: bool
    modified: float
    size: int
    replaced: str | None = None
    replaced_size: int | None = None

    @property
    def etag(self) -> str:
        """The strong entity tag: the version in quotes."""
        return snapshot.etag(self.version)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """The metadata of a visible file: `size` in bytes, `modified` in Unix seconds."""

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
    """Entity tags that must, or must not, match the current one (RFC 9110 sections 13.1.1 and 13.1.2); `*` is any."""

    if_match: Collection[str] | None = None
    if_none_match: Collection[str] | None = None

    def __bool__(self) -> bool:
        return self.if_match is not None or self.if_none_match is not None

    def check(self, what: str, version: str | None) -> None:
        """Compare with the current version. `what` completes "cannot …", as in "publish /shared/config".

        Raises:
            VersionConflict: a precondition failed.
        """
        current = snapshot.etag(version) if version is not None else None
        if self.if_match is not None and not _matches(self.if_match, current):
            raise _errors.VersionConflict(
                f"cannot {what}: it is {current or 'missing'} now, but the condition requires"
                f" {' or '.join(self.if_match) or 'nothing'} (read it again, and retry with its present tag)",
                current,
            )
        if self.if_none_match is not None and _matches(self.if_none_match, current):
            raise _errors.VersionConflict(
                f"cannot {what}: {current} is there already"
                " (leave the condition out to replace it)",
                current,
            )


class WouldWaitError(Exception):
    """The operation would block; nothing was done."""


@dataclass(slots=True)
class Operation:
    """The options and the cancellation state of one change."""

    conditions: Preconditions = Preconditions()
    dry_run: bool = False
    purge: bool = False
    """Whether a delete also removes all versions from the history."""
    needs_reclaim: bool = False
    """For a dry run: whether the content fits only after old versions are removed."""
    unsigned: str | None = None
    """Why the file must not be published by itself: only a set that is signed as a whole may have it."""
    cancelled: bool = False
    no_wait: bool = False
    """Whether to raise `WouldWaitError` instead of blocking: the caller is an event loop."""
    defer_removal: bool = False
    """Whether the caller removes expired versions later."""
    metadata: Metadata | None = None
    """The metadata to store with the content."""
    replaced: tuple[str | None, int | None] = (None, None)
    """After a delete: version and size of what was deleted, as far as known."""

    def cancel(self) -> None:
        """Cancel the change if its content is not visible yet."""
        self.cancelled = True

    def raise_if_cancelled(self) -> None:
        """Raise `PublishError` if the change was cancelled."""
        if self.cancelled:
            raise _errors.PublishError("the publish was cancelled before its content was visible")

    def check_before_wait(self) -> None:
        """Raise if the change must not block (`WouldWaitError`) or was cancelled (`PublishError`)."""
        if self.no_wait:
            raise WouldWaitError
        self.raise_if_cancelled()


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """The configuration of a volume; see `sidecar.Volume`. `path` is absolute."""

    path: str
    mode: int
    group: int | None
    keep: int
    grace: float
    max_size: int
    durable: bool = True
    """Whether files and directories are synced, so that changes survive a power failure."""
    keep_bytes: int = 256 << 20
    """Maximum bytes of all versions that are not current."""
    keep_deleted: int = 10
    """Deleted files whose versions the history keeps."""
    volume_budget: int | None = None
    """Maximum disk space in bytes of the directory; None is no limit."""
    check_set: Callable[[Mapping[str, bytes | snapshot.Content]], None] | None = None
    """Raises `ContentRefused` for a set that is not signed; None accepts each."""

    @property
    def max_entries(self) -> int:
        """Maximum number of listed files, independent of a small `max_size`, which limits one content."""
        return max(_MIN_LISTED_FILES, listing.max_names(self.max_size))

    def access_matches(self, status: os.stat_result) -> bool:
        """Whether a file has the configured mode and group."""
        if stat.S_IMODE(status.st_mode) != self.mode:
            return False
        return self.group is None or status.st_gid == self.group

    def display_path(self, name: str) -> str:
        """Return the path of a file, for messages."""
        return os.path.join(self.path, name)

    def sync_directory(self, dir_fd: int) -> None:
        """Sync a directory, if `durable`."""
        if self.durable:
            atomic.sync_directory(dir_fd)


def has_same_access(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two files have the same type, mode and group."""
    return (one.st_mode, one.st_gid) == (other.st_mode, other.st_gid)


def check_name(name: str) -> str:
    """Return `name` if it is a valid file name in a volume: a relative path that stays inside.

    Raises:
        NameRefused: it is empty, absolute or too long, or contains `..`, a control character or invalid UTF-8.
        TypeError: it is not a `str`.
    """
    check_text(name)
    wrong = _wrong_with(name)
    if wrong:
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise _errors.NameRefused(f"cannot use {shown!r} as the name of a file: {wrong}")
    return name


def check_text(name: object) -> None:
    """Raise `TypeError` if a name is not a `str`."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a file is a str, not {type(name).__name__}: {name!r}")


def check_names(names: Collection[str]) -> None:
    """Check all names of a set, and that no name is a parent directory of another.

    Raises:
        NameRefused: as `check_name`.
        NameTaken: a name is a parent directory of another.
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
    """Yield the content as a temporary file in an open directory; remove the file at the end if it still exists.

    `reused` is an existing file to write into, see `inode_reuse.try_reuse`.
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
    """Pass a content to `into`, in chunks if it is large.

    Raises:
        ContentAltered: the content no longer matches its version.
    """
    content.write_to(into)


def uncertain(
    where: str, version: str, error: OSError, *, failed: str = "syncing its directory"
) -> _errors.PublishUncertain:
    """Return the error for content that is visible although a later step failed."""
    return _errors.PublishUncertain(
        f"published {where}, but perhaps not durably: readers see version {version[:8]},"
        f" and {failed} failed: {oserrors.hint(error)}"
        " (a power cut may bring the old content back; publish again once the storage is well)",
        version,
    )


def missing(where: str) -> _errors.FileMissing:
    """Return the error for deleting a file that does not exist."""
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
