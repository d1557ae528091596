"""Publish single (loose) files: each is replaced atomically and durably, and has its own history.

Blocking. The caller has opened and locked the directory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import TypeVar

from sidecar import _errors
from sidecar.fs import (
    atomic,
    dirs,
    inode_reuse,
    layout,
    open_file,
    openat,
    oserrors,
    permissions,
    xattrs,
)
from sidecar.process import executor
from sidecar.volume.content import payload, snapshot
from sidecar.volume.content.metadata import HiddenMetadata, described_by
from sidecar.volume.content.payload import Payload
from sidecar.volume.publish import history, models
from sidecar.volume.publish.budget import Budget, on_disk
from sidecar.volume.publish.metadata_store import MetadataStore
from sidecar.volume.publish.models import (
    FileInfo,
    Operation,
    Preconditions,
    Publication,
    VolumeConfig,
)
from sidecar.volume.publish.retention import Retention

T = TypeVar("T")

_HASH_CHUNK_BYTES = 1 << 20
#: Nanoseconds after a change during which an equal signature proves nothing: file system clocks are coarse.
_CLOCK_GRANULARITY_NS = 2_000_000_000
#: Files whose last state is cached. For others the state is determined again, at the cost of a sync or a digest.
#: The number of names is unbounded, for example in a spool directory whose consumer deletes files.
_MAX_CACHED_NAMES = 4096
#: Errors of `open_beneath` for a name without a readable file: missing, or a link that leads outside.
_NOT_FOUND_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENXIO)


class SingleFiles:
    """The files of a directory that belong to no set."""

    def __init__(
        self,
        settings: VolumeConfig,
        digests: open_file.DigestCache,
        budget: Budget,
        retention: Retention,
        metadata: MetadataStore,
    ) -> None:
        self._settings = settings
        self._metadata = metadata
        self._digests = digests
        self._budget = budget
        self._retention = retention
        self._histories: dict[str, tuple[str, ...]] = {}
        self.expired: deque[tuple[str, str]] = deque()
        """Names and history entries that have expired and are removed in the background."""
        self._version_cache: dict[str, tuple[openat.StatSignature, str]] = {}
        self._durable: dict[str, openat.StatSignature] = {}
        self._last_written: dict[str, tuple[openat.StatSignature, str]] = {}
        """The signature of each file after the last write by this object, and its version."""
        self._uncertain: set[str] = set()

    def put(self, fd: int, name: str, content: Payload, operation: Operation) -> Publication:
        """Publish one file."""
        where = self._settings.display_path(name)
        version, size = payload.content_size(content)
        status = entry(fd, name)
        # Read the old content only if its version matters.
        what = f"publish {where}"
        own_version = None if status is None else self._own_version(name, status)
        may_be_same = (
            status is not None and status.st_size == size and own_version in (None, version)
        )
        current = (
            self._current(fd, name, what, operation.conditions)
            if operation.conditions or may_be_same
            else None
        )
        operation.conditions.check(what, current)
        same = status if current == version else None
        if same is not None and self._is_redescribed(fd, name, version, operation):
            same = None
        fits = same is not None and self._settings.access_matches(same)
        if same is not None and fits and self._is_durable(fd, name):
            return Publication(version, False, False, same.st_mtime_ns / 1e9, size)
        if not isinstance(content, tuple):
            self._budget.admit(fd, size, where, dry_run=operation.dry_run)
        if operation.needs_reclaim:
            with oserrors.map_name_errors(what):
                self._check_target(fd, name, status, operation)
            return Publication(version, True, status is None, time.time(), size)
        reused = None if operation.dry_run else self._reuse_expired(fd, size)
        with models.staged(fd, content, where, reused) as staged, oserrors.map_name_errors(what):
            self._check_target(fd, name, status, operation)
            metadata = operation.metadata
            if current == version:
                # The same bytes, with other metadata or access.
                present = self._metadata.of_entry(fd, name, name, version)
                metadata = described_by(metadata, present)
            attribute = None if metadata is None else metadata.to_json(version)
            is_attached = staged.set_attribute(attribute)
            staged.finalize(
                self._settings.mode, self._settings.group, durable=self._settings.durable
            )
            # If the mount fixes modes and groups, a new file would have the same access.
            alike = same is not None and models.has_same_access(same, staged.status())
            if same is not None and alike and not fits and self._is_durable(fd, name):
                return Publication(version, False, False, same.st_mtime_ns / 1e9, size)
            operation.raise_if_cancelled()
            if operation.dry_run:
                return Publication(version, True, status is None, time.time(), size)
            replaced = own_version or current
            if status is not None and own_version is None:
                replaced = self._archive_foreign(fd, name, status) or replaced
            if metadata is not None:
                self._budget.change(on_disk(1))
                if not is_attached:
                    self._metadata.write_hidden(fd, name, version, metadata)
            archive = partial(
                self._archive_published,
                fd,
                name,
                version,
                status,
                staged,
                ours=own_version is not None,
                defer_removal=operation.defer_removal,
            )
            self._replace(fd, staged, name, version, archive)
            modified = self._record_published(name, version, staged)
            if status is not None and not self._settings.access_matches(status):
                history.restrict(fd, name, self._settings.mode, self._settings.group)
        before = None if status is None else status.st_size
        return Publication(version, True, status is None, modified, size, replaced, before)

    def _is_redescribed(self, fd: int, name: str, version: str, operation: Operation) -> bool:
        """Whether the content that is there is published with another type or signature."""
        given = operation.metadata
        return (
            given is not None
            and given.describes_content()
            and given.redescribes(self._metadata.of_entry(fd, name, name, version))
        )

    def delete(self, fd: int, name: str, operation: Operation) -> None:
        """Delete one file, and its parent directories that become empty."""
        where = self._settings.display_path(name)
        what = f"delete {where}"
        current = (
            self._current(fd, name, what, operation.conditions) if operation.conditions else None
        )
        operation.conditions.check(what, current)
        status = entry(fd, name)
        if status is None or stat.S_ISDIR(status.st_mode):
            raise models.missing(where)
        operation.raise_if_cancelled()
        above, _, leaf = name.rpartition("/")
        if operation.dry_run:
            with oserrors.map_publish_errors(what), dirs.open_subdir(fd, above) as parent:
                permissions.check_writable(parent)
                permissions.check_replaceable(parent, leaf, where)
            return
        version = self._own_version(name, status) or current
        if not operation.purge and self._own_version(name, status) is None:
            version = self._archive_foreign(fd, name, status) or version
        operation.replaced = (version, status.st_size)
        with oserrors.map_publish_errors(what), dirs.open_subdir(fd, above) as parent:
            try:
                os.unlink(leaf, dir_fd=parent)
            except PermissionError as error:
                raise permissions.explain(error, parent, leaf) from error
            self._drop_state(name)
            self._retention.deleted(name)
            if status.st_nlink == 1:
                self._budget.change(-status.st_blocks * 512)
            try:
                self._settings.sync_directory(parent)
            except OSError as error:
                raise _errors.PublishUncertain(
                    f"deleted {where}, but perhaps not durably: syncing its directory failed:"
                    f" {oserrors.hint(error)} (a power cut may bring it back)",
                    "",
                ) from error
        dirs.remove_empty_parents(fd, above)

    def _reuse_expired(self, fd: int, size: int) -> tuple[str, int] | None:
        """Return an expired file for reuse; None if no suitable one exists."""
        if size > inode_reuse.MAX_BYTES or not self.expired:
            return None
        with contextlib.suppress(
            IndexError, OSError
        ):  # another thread may remove them concurrently
            name, entry = self.expired.popleft()
            with dirs.open_subdir(fd, layout.history_of(name)) as folder:
                taken = inode_reuse.try_reuse(folder, entry, fd, self._settings.access_matches)
            if taken is None:
                self.expired.append((name, entry))  # too recent, or open in a reader
            return taken
        return None

    def expire(self, fd: int, leave: int = 0) -> None:
        """Remove all expired files except the newest `leave`. Any thread may call this without the lock."""
        names: dict[str, list[str]] = defaultdict(list)
        with contextlib.suppress(IndexError):
            while len(self.expired) > leave:
                name, entry = self.expired.popleft()
                names[name].append(entry)
        for name, entries in names.items():
            self._budget.change(-history.expire(fd, name, entries))

    def version(self, fd: int, name: str) -> str | None:
        """Return the current version of a file, None if there is no regular file.

        Raises:
            OSError: the file cannot be read; `EFBIG` if it is larger than the limit.
        """
        try:
            file = openat.open_beneath(fd, name)
        except OSError as error:
            if error.errno in _NOT_FOUND_ERRNOS:
                return None
            raise
        try:
            return self._version_of(file, name)
        finally:
            openat.close(file)

    def entries(self, fd: int, names: Collection[str]) -> list[FileInfo]:
        """Return all files with their versions, sorted; unreadable files are omitted."""
        for gone in [name for name in list(self._version_cache) if name not in names]:
            self._version_cache.pop(gone, None)
        found = [self.entry(fd, name) for name in sorted(names)]
        return [entry for entry in found if entry is not None]

    def entry(self, fd: int, name: str) -> FileInfo | None:
        """Return a file with its version, None if it cannot be read."""
        with contextlib.suppress(OSError):
            version, status = self.version(fd, name), openat.stat_beneath(fd, name)
            if version is not None:
                return FileInfo(name, version, status.st_size, status.st_mtime_ns / 1e9)
        return None

    def versions(self, fd: int, name: str) -> list[history.Version]:
        """Return the versions of a file, newest first."""
        current = None
        with contextlib.suppress(OSError):
            current = self.version(fd, name)
        found = history.versions_of_file(fd, name, current, self._settings.max_entries)
        hidden = HiddenMetadata(fd)
        return [
            replace(one, metadata=self._metadata.of_entry(fd, one.entry, name, one.version, hidden))
            for one in found[: self._settings.keep]
        ]

    def _version_of(self, file: int, name: str) -> str | None:
        status = os.fstat(file)
        signature = openat.StatSignature.of(status)
        if (known := self._version_cache.get(name)) is not None and known[0] == signature:
            return known[1]
        if not stat.S_ISREG(status.st_mode):
            return None
        if (digest := self._digests.get(signature)) is not None:
            return digest
        started = time.time_ns()
        version = _hash(file, self._settings.max_size)
        if signature_is_reliable(signature, started):
            self._version_cache[name] = (signature, version)
        return version

    def _current(self, fd: int, name: str, what: str, conditions: Preconditions) -> str | None:
        """Return the version to be replaced; a read error is raised only if there are preconditions."""
        try:
            return self.version(fd, name)
        except OSError as error:
            if not conditions:
                return None
            raise _errors.VolumeUnavailable(
                error.errno,
                f"cannot {what}: what is there cannot be compared with the condition:"
                f" {openat.explain(error)}",
            ) from error

    def _own_version(self, name: str, status: os.stat_result) -> str | None:
        """Return the version last written by this object, None if another writer has changed the file since.

        A file that was rewritten in place within one clock tick has the same signature,
        so the file must be read before its content is considered equal.
        """
        own_version = self._last_written.get(name)
        return (
            own_version[1]
            if own_version is not None and own_version[0] == openat.StatSignature.of(status)
            else None
        )

    def _is_durable(self, fd: int, name: str) -> bool:
        """Whether the visible content is durable, so that nothing has to be published.

        Content of other writers is synced first: they may have been killed before their sync.
        """
        if name in self._uncertain:
            return False
        if not self._settings.durable:
            return True
        above, _, leaf = name.rpartition("/")
        with contextlib.suppress(OSError), dirs.open_subdir(fd, above) as parent:
            file = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
            try:
                signature = openat.StatSignature.of(os.fstat(file))
                if self._durable.get(name) != signature:
                    atomic.sync_file(file)
                    atomic.sync_directory(parent)
                    _remember(self._durable, name, signature)
            finally:
                openat.close(file)
            return True
        return False

    def _replace(
        self,
        fd: int,
        staged: atomic.TempFile,
        name: str,
        version: str,
        archive: Callable[[], None],
    ) -> None:
        """Rename, archive and sync. After an error, check which version readers see now."""
        above, _, leaf = name.rpartition("/")
        with dirs.open_subdir(fd, above, make=True, durable=self._settings.durable) as parent:
            renamed = False
            try:
                staged.rename_into(leaf, parent)
                renamed = True
                if self._settings.durable:
                    # The history is not synced, so it is written while the directory is.
                    executor.run_beside(archive, partial(atomic.sync_directory, parent))
                else:
                    archive()
            except OSError as error:
                if isinstance(error, PermissionError) and not renamed:
                    raise permissions.explain(error, parent, leaf) from error
                # On NFS a rename may have happened although it failed: rename(2), BUGS.
                in_doubt = renamed or error.errno in (errno.EIO, errno.ESTALE)
                if in_doubt and self._is_visible_version(fd, name, version, unreadable=renamed):
                    # A later successful sync proves nothing, so equal content is published again next time.
                    self._uncertain.add(name)
                    raise models.uncertain(
                        self._settings.display_path(name), version, error
                    ) from error
                raise

    def _is_visible_version(self, fd: int, name: str, version: str, *, unreadable: bool) -> bool:
        """Whether readers see that version; returns `unreadable` if the file cannot be read."""
        try:
            return self.version(fd, name) == version
        except OSError:
            return unreadable

    def _archive_foreign(self, fd: int, name: str, status: os.stat_result) -> str | None:
        """Archive the content of another writer before it is replaced; return its version if it was determined."""
        if not stat.S_ISREG(status.st_mode):
            return None
        return archive_existing(fd, name, name, self._settings, self._version_of)

    def _drop_state(self, name: str) -> None:
        """Drop the cached state of a deleted file."""
        for states in (self._version_cache, self._durable, self._last_written, self._histories):
            states.pop(name, None)
        self._uncertain.discard(name)

    def _archive_published(
        self,
        fd: int,
        name: str,
        version: str,
        before: os.stat_result | None,
        staged: atomic.TempFile,
        *,
        ours: bool,
        defer_removal: bool,
    ) -> None:
        """Archive the published content; list the history only if another writer may have changed it."""
        known = self._histories.pop(name, None) if ours else None
        keep = self._settings.keep
        folder = history.archive_file(
            fd,
            name,
            version,
            time.time_ns(),
            keep,
            link=staged.link_as,
            known=known,
            defer_removal=defer_removal,
        )
        if folder is not None:
            _remember(self._histories, name, folder.entries)
            self.expired.extend((name, entry) for entry in folder.expired)
            self._retention.published(name, new_name=folder.created)
            self._budget.change(-folder.freed)
        elif before is not None and before.st_nlink == 1:
            self._budget.change(-before.st_blocks * 512)
        if folder is not None and before is not None and keep > 1:
            self._retention.added(before.st_blocks * 512 - folder.freed)

    def _record_published(self, name: str, version: str, staged: atomic.TempFile) -> float:
        """Cache the state of the published and archived file; return its mtime.

        It refers to the renamed file, not to its name: another writer may have replaced it already.
        """
        self._uncertain.discard(name)
        self._durable.pop(name, None)
        self._last_written.pop(name, None)
        with contextlib.suppress(OSError):
            # After archiving, because the hard link has changed ctime.
            signature = openat.StatSignature.of(staged.status())
            _remember(self._durable, name, signature)
            _remember(self._last_written, name, (signature, version))
            if signature.size > open_file.LARGE_FILE_BYTES:
                # A file this large cannot be rewritten within one clock tick.
                self._digests.put(signature, version)
            return signature.mtime_ns / 1e9
        return time.time()

    def _check_target(
        self, fd: int, name: str, status: os.stat_result | None, operation: Operation
    ) -> None:
        """Raise the error that a rename to that name would meet, before anything is done; also for a dry run."""
        above, _, leaf = name.rpartition("/")
        if status is None:
            with contextlib.suppress(FileNotFoundError), dirs.open_subdir(fd, above):
                pass
        elif stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        if operation.dry_run:
            _check_permitted(fd, above, leaf, self._settings.display_path(name))


def _remember(states: dict[str, T], name: str, state: T) -> None:
    """Cache the state of a file; evict the oldest entry above `_MAX_CACHED_NAMES`."""
    states.pop(name, None)
    states[name] = state
    if len(states) > _MAX_CACHED_NAMES:
        del states[next(iter(states))]


def archive_existing(
    fd: int,
    path: str,
    name: str,
    settings: VolumeConfig,
    version_of: Callable[[int, str], str | None] | None = None,
) -> str | None:
    """Archive the regular file at `path` in the history of `name`, and return its version. Never raises `OSError`.

    None if there is no history, or the file cannot be read.
    """
    if settings.keep <= 1:
        return None
    found: str | None = None
    with contextlib.suppress(OSError):
        # Compare the content, not the inode: an in-place rewrite also changes the hard link in the history.
        file = openat.open_beneath(fd, path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return None
            found = version_of(file, name) if version_of else _hash(file, settings.max_size)
            if found is not None and found != history.latest_version(fd, name):
                link = partial(_link_or_copy, file)
                history.archive_file(fd, name, found, status.st_mtime_ns, settings.keep, link=link)
        finally:
            openat.close(file)
    return found


def signature_is_reliable(signature: openat.StatSignature, started: int) -> bool:
    """Whether any change after `started` (Unix nanoseconds, the start of the read) would change the signature."""
    return started - max(signature.mtime_ns, signature.ctime_ns) > _CLOCK_GRANULARITY_NS


def entry(fd: int, name: str) -> os.stat_result | None:
    """Return the status of the entry `name` without following links; None if there is no entry.

    Raises:
        OSError: the entry cannot be inspected.
    """
    above, _, leaf = name.rpartition("/")
    try:
        with dirs.open_subdir(fd, above) as parent:
            return os.stat(leaf, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _check_permitted(fd: int, above: str, leaf: str, where: str) -> None:
    """Raise the error that a rename, or creating the missing parent directories, would meet."""
    try:
        with dirs.open_subdir(fd, above) as parent:
            permissions.check_writable(parent)
            permissions.check_replaceable(parent, leaf, where)
    except FileNotFoundError:
        above, _, leaf = above.rpartition("/")
        _check_permitted(fd, above, leaf, os.path.dirname(where))


def _link_or_copy(file: int, entry: str, dir_fd: int) -> None:
    """Link an open file into the history, or copy it if only its owner may link it; see proc_sys_fs(5)."""
    try:
        atomic.link_open(file, dir_fd, entry)
    except PermissionError:
        status = os.fstat(file)
        if status.st_uid == os.geteuid():
            raise  # the file system has no hard links
        mode = stat.S_IMODE(status.st_mode) & 0o666
        copy = os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=dir_fd)
        try:
            os.lseek(file, 0, os.SEEK_SET)
            while chunk := os.read(file, _HASH_CHUNK_BYTES):
                atomic.write_all(copy, chunk)
            xattrs.copy(file, copy)
        finally:
            os.close(copy)


def _hash(file: int, limit: int) -> str:
    """Return the version of an open file. Raises `OSError` (`EFBIG`) as soon as the limit is exceeded."""
    digest, size = hashlib.sha256(), 0
    # Limited by the file size: os.read allocates the full requested size.
    piece = min(os.fstat(file).st_size + 1, _HASH_CHUNK_BYTES)
    while chunk := os.read(file, piece):
        digest.update(chunk)
        size += len(chunk)
        if size > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return digest.hexdigest()[: snapshot.VERSION_DIGITS]
