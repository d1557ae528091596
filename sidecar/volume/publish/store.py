"""All operations on one directory, as blocking calls that each run in one thread.

A call that changes anything holds the directory lock, checks the preconditions, acts, and returns the result.
A call that is cancelled before its content is visible leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, TypeVar

from sidecar import _errors
from sidecar.fs import (
    atomic,
    atomic_writer,
    dirs,
    flock,
    layout,
    mounts,
    open_file,
    openat,
    oserrors,
)
from sidecar.volume.content import listing, loader, payload, source_state
from sidecar.volume.content import metadata as stored
from sidecar.volume.content import snapshot as snapshots
from sidecar.volume.content.metadata import HiddenMetadata, Metadata
from sidecar.volume.content.payload import Payload
from sidecar.volume.content.snapshot import Content, Snapshot
from sidecar.volume.content.source_state import SourceState
from sidecar.volume.publish import file_sets, history, models, retention, single_files
from sidecar.volume.publish.budget import Budget, OverBudget
from sidecar.volume.publish.metadata_store import MetadataStore
from sidecar.volume.publish.models import (
    FileInfo,
    Operation,
    Preconditions,
    Publication,
    VolumeConfig,
    check_name,
)
from sidecar.volume.validation import signatures
from sidecar.volume.validation.signatures import SignedList

R = TypeVar("R")

_log = logging.getLogger(__name__)

_LOCK_TIMEOUT = 10.0
_MUTEX_POLL_INTERVAL = 0.05
_REPLACED_RETRIES = 5
#: Maximum size for publishing in the event loop thread; duration that counts as slow;
#: and seconds for which threads are used after a slow publish.
_INLINE_MAX_BYTES = 64 << 10
_INLINE_SLOW_SECONDS = 0.02
_INLINE_BACKOFF_SECONDS = 1.0
_MAX_EXPIRED_FILES = 512
#: Seconds between two publishes in the event loop thread within which the directory stays open.
_STAY_OPEN_SECONDS = 0.1
#: Expired files that are kept for reuse: more than are published within one tick of the kernel clock.
_REUSABLE_FILES = 128
_LOCAL_FILESYSTEMS = frozenset(("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs"))


class OldVersion(NamedTuple):
    """A version in the history: its files by name, whether it is a set, and its metadata."""

    files: dict[str, Content]
    is_set: bool
    metadata: Metadata | None


class Store:
    """The blocking part of `Volume`: one directory with its files or its set, and its history."""

    def __init__(self, settings: VolumeConfig) -> None:
        self._settings = settings
        self._path = settings.path
        self._digests = open_file.DigestCache()
        self._budget = Budget(settings.volume_budget, self._reclaim)
        self._retention = retention.Retention(settings)
        self._metadata = MetadataStore(settings)
        self._loose = single_files.SingleFiles(
            settings, self._digests, self._budget, self._retention, self._metadata
        )
        self._set = file_sets.FileSet(settings, self._budget, self._retention, self._metadata)
        # flock(2) excludes other writers; this mutex also works on file systems without locks.
        self._mutex = threading.Lock()
        self._opened = _OpenDirectory()
        self._last_inline = float("-inf")
        self._last_progress = float("-inf")
        """When the lock was last acquired."""
        self._identity: tuple[int, int] | None = None
        self._local: tuple[tuple[int, int], bool] | None = None
        self._inline_after = 0.0
        """When the event loop thread may publish again."""

    def reset_after_fork(self) -> None:
        """Replace the mutex in a forked process: its holder exists only in the parent. Close the parent's descriptors."""
        self._mutex = threading.Lock()
        self._opened = _OpenDirectory()

    @property
    def durable(self) -> bool:
        """Whether published content must survive a power failure."""
        return self._settings.durable

    def prepare(self, initial: Mapping[str, bytes], operation: Operation) -> int:
        """Create the directory, remove leftovers, publish missing `initial` files; return the number of leftovers."""
        with oserrors.map_publish_errors(f"prepare {self._path}"):
            dirs.make_directory(self._path)
        for name in initial:
            self._reject_file_mount(check_name(name))
        with (
            self._locked_dir(operation) as fd,
            oserrors.map_publish_errors(f"prepare {self._path}"),
        ):
            flock.share(fd)
            swept = flock.remove_orphans(fd) + atomic_writer.sweep(fd)
            self._set.repair(fd)
            self._metadata.sweep(fd)
            # The last rename of a killed writer is visible, but perhaps not durable yet.
            self._settings.sync_directory(fd)
            self._enforce_retention(fd)
            missing = [name for name in initial if single_files.entry(fd, name) is None]
        for name in missing:
            with contextlib.suppress(_errors.VersionConflict):
                self.put(name, initial[name], Operation(Preconditions(if_none_match=("*",))))
        return swept

    def stage(self, operation: Operation) -> atomic.TempFile | None:
        """Create a temporary file for an upload; None for a dry run without directory, or that needs the history purged."""

        def stage(fd: int) -> atomic.TempFile | None:
            if operation.needs_reclaim:
                return None
            with oserrors.map_publish_errors(f"publish to {self._path}"):
                return atomic.TempFile(fd)

        if self._is_dry_run_without_dir(operation):
            self._check_creatable(operation, 0, self._path)
            return None
        with self._locked_dir(operation) as fd:
            return self._retry_after_purge(fd, stage, operation)

    def put(self, name: str, content: Payload, operation: Operation) -> Publication:
        """Publish one file, loose or as part of the active set."""
        check_name(name)
        size = payload.size(content)
        if self._is_dry_run_without_dir(operation):
            self._check_signed(name, operation)
            self._check_creatable(operation, size, self._settings.display_path(name))
            version, _ = payload.content_size(content)
            return Publication(version, True, True, time.time(), size)
        # Only on local file systems: elsewhere a lease does not see readers on other machines.
        operation.defer_removal = (
            operation.defer_removal and self._is_local() and self.expired <= _MAX_EXPIRED_FILES
        )

        def put(fd: int) -> Publication:
            self._set.restore_lost(fd, operation)
            if _has_set(fd):
                operation.check_before_wait()
                return self._set.put(fd, name, content, operation)
            self._check_signed(name, operation)
            return self._loose.put(fd, name, content, operation)

        upload = content[0].name if isinstance(content, tuple) else None
        with self._locked_dir(operation) as fd:
            retry = not isinstance(content, tuple)
            done = self._retry_after_purge(fd, put, operation, size=size, retry=retry)
            if isinstance(content, tuple) and upload and content[0].name != upload:
                self._budget.end_upload(upload, published=True)
            return done

    def has_set(self) -> bool:
        """Whether the directory has a set."""
        with contextlib.suppress(_errors.ReadError), self._open_dir() as fd:
            return _has_set(fd)
        return False

    def _check_signed(self, name: str, operation: Operation) -> None:
        if operation.unsigned is not None:
            raise signatures.refused(self._settings.display_path(name), operation.unsigned)

    def put_inline(
        self, name: str, content: bytes, metadata: Metadata | None = None
    ) -> Publication | None:
        """Publish one loose file in the event loop thread; None if that could block: then use `put`.

        A thread switch costs more than such a publish, so it is avoided if nothing is synced, the content is small,
        and the file system is local. After a slow publish, threads are used for `_INLINE_BACKOFF_SECONDS`.
        """
        if (
            self._settings.durable
            or len(content) > _INLINE_MAX_BYTES
            or time.monotonic() < self._inline_after
            or self._retention.is_due
            or not self._budget.is_quick
            or self.expired > _MAX_EXPIRED_FILES
            or not self._is_local()
        ):
            return None
        started, waits = time.monotonic(), _voluntary_switches()
        try:
            operation = Operation(no_wait=True, defer_removal=True, metadata=metadata)
            return self.put(name, content, operation)
        except models.WouldWaitError:
            return None
        finally:
            # Only voluntary context switches count: a preempted thread did not block, and a worker would be no faster.
            if (
                now := time.monotonic()
            ) - started > _INLINE_SLOW_SECONDS and _voluntary_switches() > waits:
                self._inline_after = now + _INLINE_BACKOFF_SECONDS

    @property
    def expired(self) -> int:
        """The number of expired files that `expire` removes, unless they are reused for new content."""
        return len(self._loose.expired)

    @property
    def needs_expiry(self) -> bool:
        """Whether `expire` has anything to remove or to close."""
        return bool(self._loose.expired) or self._opened.fd >= 0

    def expire(self, *, busy: bool = False) -> None:
        """Remove expired versions from the disk, close the directory. Never raises; leftovers are removed after the next start.

        While the volume is `busy`, some files are kept for reuse by new content, see `fs.inode_reuse`,
        and the directory stays open.
        """
        # While a publish runs, the directory stays open; then this is called again.
        if not busy and self._mutex.acquire(blocking=False):
            try:
                self._opened.close()
            finally:
                self._mutex.release()
        with contextlib.suppress(_errors.SidecarError), self._open_dir() as fd:
            self._loose.expire(fd, _REUSABLE_FILES if busy else 0)

    def publish(self, files: Mapping[str, bytes | Content], operation: Operation) -> Publication:
        """Publish a set that consists of exactly these files."""
        models.check_names(files)
        size = sum(map(payload.size, files.values()))
        if self._is_dry_run_without_dir(operation):
            self._check_creatable(operation, size, self._path)
            version = snapshots.version_of_set(
                {n: payload.content_size(c)[0] for n, c in files.items()}
            )
            return Publication(version, True, True, time.time(), size)
        with self._locked_dir(operation) as fd:
            return self._retry_after_purge(
                fd, lambda fd: self._set.publish(fd, files, operation), operation, size=size
            )

    def update(
        self, changes: Mapping[str, bytes | Content | None], operation: Operation
    ) -> Publication:
        """Publish the set with some files added, replaced or (None) removed, all at once."""
        for name in changes:
            check_name(name)
        given = {name: content for name, content in changes.items() if content is not None}
        if self._is_dry_run_without_dir(operation):
            if self._settings.check_set is not None and given:
                self._settings.check_set(given)
            return self.publish(given, operation)
        size = sum(map(payload.size, given.values()))

        def update(fd: int) -> Publication:
            self._set.restore_lost(fd, operation)
            return self._set.update(fd, changes, operation)

        with self._locked_dir(operation) as fd:
            return self._retry_after_purge(fd, update, operation, size=size)

    def delete(self, name: str, operation: Operation) -> Publication | None:
        """Delete one file; return the publication of the remaining set, None for a loose file."""
        check_name(name)

        def delete(fd: int) -> Publication | None:
            done: Publication | None = None
            self._set.restore_lost(fd, operation)
            try:
                if _has_set(fd):
                    done = self._set.delete(fd, name, operation)
                else:
                    self._loose.delete(fd, name, operation)
            except _errors.FileMissing:
                if not (operation.purge and history.has_version(fd, name)):
                    raise
            if operation.purge and not operation.dry_run:
                for entry in history.has_version(fd, name):
                    dirs.rmtree(fd, entry)
                self._metadata.forget(fd, name)
                self._budget.invalidate()
            return done

        if self._is_dry_run_without_dir(operation):
            where = self._settings.display_path(name)
            operation.conditions.check(f"delete {where}", None)
            raise models.missing(where)
        with self._locked_dir(operation) as fd:
            return self._retry_after_purge(fd, delete, operation)

    def mark_source(self, state: SourceState) -> None:
        """Say beside the content whether its source is stale; nothing is written where it was fresh and stays so."""
        with self._locked_dir(Operation()) as fd:
            if not state.reasons and not source_state.read(fd).reasons:
                return
            with models.staged(
                fd, state.json(), self._settings.display_path(layout.SOURCE)
            ) as file:
                file.finalize(self._settings.mode, self._settings.group, durable=False)
                file.rename_into(layout.SOURCE, fd)

    def grow(self, upload: str, size: int) -> bool:
        """Add bytes of an upload to the budget; return False, without adding, if `admit_upload` is needed."""
        return self._budget.grow(upload, size)

    def admit_upload(self, upload: str, size: int, where: str) -> None:
        """Add bytes of an upload to the budget; remove old versions if necessary.

        Raises:
            VolumeFull: removing the whole history would not suffice.
        """
        with self._locked_dir(Operation()) as fd:
            self._budget.admit_upload(fd, upload, size, where)

    def could_admit(self, size: int, where: str) -> bool:
        """Whether removing old versions would make room for `size` bytes of a dry-run upload.

        Raises:
            VolumeFull: the budget would not suffice even without the history.
        """
        with self._locked_dir(Operation(dry_run=True)) as fd:
            self._budget.admit(fd, size, where, dry_run=True)
            return self._could_reclaim(fd, size)

    def end_upload(self, upload: str) -> None:
        """Remove a discarded upload from the budget."""
        self._budget.end_upload(upload, published=False)

    @property
    def used(self) -> int | None:
        """The disk space in bytes that the directory uses, as far as known; None without a budget."""
        return self._budget.used if self._budget.limit is not None else None

    @property
    def budget(self) -> int | None:
        """The disk space in bytes that the directory may use, None without a limit."""
        return self._budget.limit

    def measure(self) -> None:
        """Measure the disk space that the directory uses, if there is a budget."""
        if self._budget.limit is not None:
            with self._locked_dir(Operation()) as fd:
                self._budget.count(fd)

    def purge_history(self, size: int) -> bool:
        """Remove old versions if that makes room for `size` bytes; return whether anything was removed."""
        with self._locked_dir(Operation()) as fd:
            return self._purge_history(fd, size)

    def read(self, name: str) -> Content:
        """Read one file, from the active set if there is one.

        Raises:
            NameRefused, NothingPublished, ReadError: see there.
        """
        check_name(name)
        with self._open_dir() as fd:
            return self._read_active(fd, name)

    def read_with_list(self, name: str) -> tuple[Content, SignedList]:
        """Read one file as `read` does, and the list of digests of the directory, both of the same generation."""
        check_name(name)
        with self._open_dir() as fd:
            while True:
                generation = layout.active_generation(fd)
                content = self._read_active(fd, name)
                found = signatures.read_list(fd, generation or ".")
                if layout.active_generation(fd) == generation:
                    return content, found

    def names(self) -> dict[str, int]:
        """Return the visible files and their sizes; empty if the directory is missing."""
        with contextlib.suppress(_errors.NothingPublished), self._open_dir() as fd:
            return listing.visible_sizes(fd, self._settings.max_entries)
        return {}

    def entries(self) -> list[FileInfo]:
        """Return the visible files with their versions; unreadable loose files are omitted.

        Raises:
            NothingPublished, ReadError: the directory is missing or cannot be read.
        """
        with self._open_dir() as fd:
            if _has_set(fd):
                return self._set.entries(fd)
            return self._loose.entries(fd, listing.visible_sizes(fd, self._settings.max_entries))

    def snapshot(self) -> Snapshot[None]:
        """Read the whole directory."""
        return self.scan()[0]

    def scan(self) -> tuple[Snapshot[None], bool]:
        """Read the whole directory; also return whether it is a set."""
        with self._open_dir() as fd:
            limit = self._settings.max_size
            seen = loader.read_directory(fd, self._path, limit=limit, before=None)
            if seen.states.generation is not None:
                for problem in seen.problems.values():
                    raise _errors.ReadError(errno.EIO, problem)
            return seen.require_complete(), seen.states.generation is not None

    def versions(self, name: str | None) -> list[history.Version]:
        """Return the versions of a loose file, or of the set, newest first."""
        if name is not None:
            check_name(name)
        with self._open_dir() as fd:
            found = self._set.versions(fd) if name is None or _has_set(fd) else []
            if name is not None:
                # Versions of the loose file that the set has replaced.
                loose = self._loose.versions(fd, name)
                found += [v for v in loose if not (found and v.current)]
            return found

    def load_version(self, version: str, name: str | None) -> OldVersion:
        """Return the files of an older version; the version is verified.

        Raises:
            UnknownVersion: the history does not contain it, or it was modified since.
        """
        where = self._settings.display_path(name) if name is not None else self._path
        archived: list[history.Version] = []
        with contextlib.suppress(_errors.NothingPublished):
            archived = [found for found in self.versions(name) if found.version == version]
        if not archived:
            raise _errors.UnknownVersion(
                f"there is no version {snapshots.etag(version)} of {where}: the history does not hold it"
                " (list it with GET /versions)"
            )
        with self._open_dir() as fd:
            readable = (
                old
                for found in archived
                if (old := self._read_archived(fd, found, name)) is not None
            )
            old = next(readable, None)
        if isinstance(old, Snapshot):
            return OldVersion(old.contents(), True, old.metadata)
        if old is None or name is None:
            raise _errors.UnknownVersion(
                f"there is no version {snapshots.etag(version)} of {where} any more: what was kept of it is altered"
                " or cannot be read (publish the old content from its source)"
            )
        return OldVersion({name: old}, False, old.metadata)

    def check_writable(self) -> None:
        """Test whether a publish would work now, without leaving anything behind.

        Raises:
            PublishError: it would fail; the message says why.
        """
        staged = self.stage(Operation())
        if staged is not None:
            staged.discard()

    def _retry_after_purge(
        self,
        fd: int,
        work: Callable[[int], R],
        operation: Operation,
        *,
        size: int = 0,
        retry: bool = True,
    ) -> R:
        """Run `work`; if the volume is full, purge the history and retry."""
        try:
            done = work(fd)
        except OverBudget:
            raise  # the history was already considered
        except _errors.VolumeFull:
            self._budget.invalidate()
            if operation.dry_run:
                if not self._could_reclaim(fd, size):
                    raise
                operation.needs_reclaim = True
            # The file of a streamed upload is gone: only the client can retry.
            elif not self._purge_history(fd, size) or not retry:
                raise
            done = work(fd)
        except _errors.PublishError:
            self._budget.invalidate()
            raise
        if not operation.dry_run:
            self._enforce_retention(fd)
        return done

    def _enforce_retention(self, fd: int) -> None:
        """Remove versions above the limits of the history."""
        with contextlib.suppress(OSError):
            self._budget.change(-self._retention.enforce(fd))

    def _reclaim(self, fd: int, wanted: int, dry_run: bool) -> int:
        """Free at least `wanted` bytes of old versions, or nothing; return the bytes that are, or would be, freed."""
        freed = retention.reclaim(fd, wanted, self._set.reclaimable(fd), dry_run=dry_run)
        if not dry_run:
            self._metadata.sweep(fd)
        if freed >= wanted and not dry_run:
            _log.warning(
                "%s has reached its budget: forgot older versions",
                self._path,
                extra={"event": "volume.budget_reached"},
            )
        return freed

    def _could_reclaim(self, fd: int, size: int) -> bool:
        """Whether purging the history would make room for `size` bytes."""
        volume, reclaimable = os.fstatvfs(fd), self._set.reclaimable(fd)
        archived = retention.reclaim(fd, 0, reclaimable, dry_run=True)
        return bool(archived) and volume.f_bavail * volume.f_frsize + archived >= size

    def _purge_history(self, fd: int, size: int) -> bool:
        reclaimable, volume = self._set.reclaimable(fd), os.fstatvfs(fd)
        archived = retention.reclaim(fd, 0, reclaimable, dry_run=True)
        if volume.f_bavail * volume.f_frsize + archived < size:
            return False  # too large in any case: keep the history
        for entry in reclaimable:
            dirs.rmtree(fd, entry)
        forgotten = history.purge(fd) or bool(reclaimable)
        self._metadata.sweep(fd)
        if forgotten:
            _log.warning(
                "%s is full: removed older versions to free space",
                self._path,
                extra={"event": "volume.full"},
            )
        return forgotten

    def _read_active(self, fd: int, name: str) -> Content:
        """Read a file of the active generation or a loose file; retry if the generation was replaced meanwhile."""
        while True:
            generation = layout.active_generation(fd)
            path = f"{layout.DATA}/{name}" if generation is not None else name
            try:
                found = self._read(fd, path, name)
            except _errors.NothingPublished:
                if layout.active_generation(fd) == generation:
                    raise
                continue
            if generation is None:
                return found
            described = stored.of_member(fd, generation, found.metadata)
            if layout.active_generation(fd) == generation:
                return replace(found, metadata=described)

    def _read(self, fd: int, path: str, name: str) -> Content:
        """Read the file `name`, found at `path`. A large file is kept open, and its version cached."""
        started, where = time.time_ns(), self._settings.display_path(name)
        found = open_file.read(fd, path, self._settings.max_size, where, known=self._digests)
        modified = found.signature.mtime_ns / 1e9
        hidden = HiddenMetadata(fd)
        if isinstance(found, openat.FileRead):
            version = snapshots.version_of(found.data)
            metadata = stored.of_attribute(found.attribute, version, name, hidden)
            return Content(name, found.data, version, modified, metadata)
        if found.digest is None:
            raise _errors.ReadError(
                errno.EBUSY,
                f"cannot read {where}: it changes while it is read (is it being written?)",
            )
        version = found.digest[: snapshots.VERSION_DIGITS]
        if single_files.signature_is_reliable(found.signature, started):
            self._digests.put(found.signature, version)
        metadata = stored.of_attribute(found.attribute, version, name, hidden)
        return Content(name, found.file, version, modified, metadata)

    def _read_archived(
        self, fd: int, archived: history.Version, name: str | None
    ) -> Content | Snapshot[None] | None:
        """Return an archived version of the file `name` or of the set, None if it does not match the version in its name."""
        where, limit = self._settings.display_path(archived.entry), self._settings.max_size
        with contextlib.suppress(_errors.ReadError), openat.read_errors(where):
            if not atomic_writer.is_generation(archived.entry):
                found = self._read(fd, archived.entry, name or archived.entry)
                return found if found.version == archived.version else None
            with dirs.open_subdir(fd, archived.entry) as generation:
                hidden = HiddenMetadata(fd)
                seen = loader.read_directory(
                    generation, where, limit=limit, before=None, hidden=hidden
                )
                old = seen.require_complete().with_metadata(archived.metadata)
            return old if old.version == archived.version else None
        return None

    def _reject_file_mount(self, name: str) -> None:
        where = self._settings.display_path(name)
        if mounts.is_file_mount(where):
            raise _errors.VolumeUnavailable(
                errno.EBUSY,
                f"cannot publish {where}: the file is a mount of its own (subPath), which can neither"
                " be replaced nor see updates (mount the directory instead)",
            )

    @contextmanager
    def _open_dir(self) -> Iterator[int]:
        """Open the directory for reading; map every `OSError` to a `ReadError`."""
        with openat.read_errors(self._path):
            fd, _ = self._open()
            try:
                yield fd
            finally:
                openat.close(fd)

    @contextmanager
    def _locked_dir(self, operation: Operation) -> Iterator[int]:
        """Open and lock the directory, excluding all other writers; map every `OSError` to a `PublishError`."""
        started = time.monotonic()
        with (
            self._mutex_held(started, operation),
            oserrors.map_publish_errors(f"publish to {self._path}"),
        ):
            # Only for an event loop, which calls `expire` soon: an open directory cannot be unmounted.
            opened = self._opened if operation.no_wait else _OpenDirectory()
            stay_open = operation.no_wait and started - self._last_inline < _STAY_OPEN_SECONDS
            for _ in range(_REPLACED_RETRIES):
                if opened.fd < 0:
                    opened.fd, opened.identity = self._open()
                try:
                    timeout = max(self._lock_deadline(started) - time.monotonic(), 0.0)
                    with flock.directory_lock(
                        opened.fd,
                        timeout=timeout,
                        where=self._path,
                        before_wait=operation.check_before_wait,
                        create=not operation.dry_run,
                        kept=opened.lock if stay_open else None,
                    ):
                        if self._is_at_path(opened.identity):
                            self._last_progress = time.monotonic()
                            self._budget.enter(opened.fd)
                            yield opened.fd
                            self._budget.leave(opened.fd)
                            if operation.no_wait:
                                self._last_inline = started
                            if not stay_open:
                                opened.close()
                                self._opened.close()  # `expire` may have met this publish
                            return
                except BaseException:
                    opened.close()
                    raise
                opened.close()
        raise _errors.VolumeUnavailable(
            errno.ESTALE,
            f"cannot publish to {self._path}: the directory is being replaced all the time (who renames it?)",
        )

    def _is_dry_run_without_dir(self, operation: Operation) -> bool:
        """Whether this is a dry run and the directory, which a publish would create, is missing."""
        return operation.dry_run and not os.path.lexists(self._path)

    def _check_creatable(self, operation: Operation, size: int, where: str) -> None:
        """Raise the error that a publish would meet when it creates the directory, as far as that is known in advance."""
        operation.conditions.check(f"publish {where}", None)
        with oserrors.map_publish_errors(f"prepare {self._path}"):
            dirs.check_creatable(self._path, size)
        self._budget.admit_first(size, where)

    def _open(self) -> tuple[int, tuple[int, int]]:
        """Open the directory, and return its identity; skip the lookup of its mount point if it is still the same."""
        if self._identity is not None:
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            if (identity := _identity(fd)) == self._identity:
                return fd, identity
            openat.close(fd)
        fd = openat.open_directory(self._path)
        self._identity = identity = _identity(fd)
        return fd, identity

    def _is_local(self) -> bool:
        """Whether the directory is on a local file system, whose calls do not wait for another machine or process."""
        if self._identity is None:
            return False
        if self._local is None or self._local[0] != self._identity:
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._local = self._identity, mounts.filesystem(fd) in _LOCAL_FILESYSTEMS
            finally:
                openat.close(fd)
        return self._local[1]

    def _is_at_path(self, identity: tuple[int, int]) -> bool:
        """Whether the path still refers to the open directory: it may have been replaced meanwhile."""
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == identity

    @contextmanager
    def _mutex_held(self, started: float, operation: Operation) -> Iterator[None]:
        """Exclude other threads that use this object."""
        while not self._mutex.acquire(timeout=0 if operation.no_wait else _MUTEX_POLL_INTERVAL):
            operation.check_before_wait()
            if time.monotonic() > self._lock_deadline(started):
                raise _errors.VolumeUnavailable(
                    errno.EWOULDBLOCK,
                    f"cannot publish to {self._path}: an earlier publish has not ended within"
                    f" {_LOCK_TIMEOUT:g} s (is the storage stuck?)",
                )
        try:
            yield
        finally:
            self._mutex.release()

    def _lock_deadline(self, started: float) -> float:
        """Return the deadline for the lock; it moves as long as other writers make progress."""
        return max(started, self._last_progress) + _LOCK_TIMEOUT


class _OpenDirectory:
    """The directory and its lock; they stay open between publishes in the event loop thread that follow each other closely."""

    __slots__ = ("fd", "identity", "lock")

    def __init__(self) -> None:
        self.fd = -1
        self.identity = (0, 0)
        self.lock = flock.OpenLock()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close both."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            openat.close(fd)
        self.lock.close()


def _voluntary_switches() -> int:
    """Return the number of voluntary context switches of this thread; see getrusage(2)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _has_set(fd: int) -> bool:
    return layout.active_generation(fd) is not None


def _identity(fd: int) -> tuple[int, int]:
    """Return device and inode of a newly opened directory; close it on error."""
    try:
        status = os.fstat(fd)
    except OSError:
        openat.close(fd)
        raise
    return status.st_dev, status.st_ino
