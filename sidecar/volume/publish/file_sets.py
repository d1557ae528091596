"""Publish sets: files that change together, in the layout of Kubernetes volumes.

Changing one file also creates a new generation, which reuses the other files.
Blocking. The caller has opened and locked the directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sidecar import _errors
from sidecar.fs import atomic, atomic_writer, dirs, layout, open_file, oserrors, visible_links
from sidecar.volume.content import listing, loader, payload
from sidecar.volume.content import metadata as stored
from sidecar.volume.content import snapshot as snapshots
from sidecar.volume.content.payload import Payload
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.content.snapshot import Content
from sidecar.volume.publish import activation, history, models, repair, replaced
from sidecar.volume.publish.budget import Budget, on_disk
from sidecar.volume.publish.metadata_store import MetadataStore
from sidecar.volume.publish.models import FileInfo, Operation, Publication, VolumeConfig
from sidecar.volume.publish.retention import Retention

#: Maximum number of generations in their grace period, however often the set is published.
_MAX_INACTIVE_GENERATIONS = 16


class FileSet:
    """The set of a directory, if it has one."""

    def __init__(
        self,
        settings: VolumeConfig,
        budget: Budget,
        retention: Retention,
        metadata: MetadataStore,
    ) -> None:
        self._settings = settings
        self._metadata = metadata
        self._budget = budget
        self._retention = retention
        self._last_scan: ScanResult | None = None
        self._durable: str | None = None
        self._own_generation: str | None = None
        """The generation that this object published last."""
        self._uncertain = False
        self._copies_kept = False
        """Whether the file system has no hard links, so that kept files are copied."""
        self._access_checked: ScanResult | None = None
        """The scan whose files are known to have the configured mode and group."""

    def publish(
        self, fd: int, files: Mapping[str, bytes | Content], operation: Operation
    ) -> Publication:
        """Publish a set that consists of exactly these files."""
        path = self._settings.path
        versions = {name: payload.content_size(content)[0] for name, content in files.items()}
        try:
            # Loose files are not a set, even if their content is equal.
            before = self.scan(fd) if layout.active_generation(fd) is not None else None
        except _errors.ReadError as error:
            # Publishing a new set repairs a damaged one, but preconditions cannot be checked against it.
            if operation.conditions:
                raise _damaged_error(path, error) from error
            before = None
        operation.conditions.check(
            f"publish {path}", before.snapshot.version if before is not None else None
        )
        # Generations of other publishers may hold links, which cannot be taken over.
        is_ours = (layout.active_generation(fd) or "").startswith(layout.GENERATION)
        old = _versions(before) if before is not None and is_ours else {}
        again = _redescribed(files, old, before)
        fresh = {n: c for n, c in files.items() if old.get(n) != versions[n] or n in again}
        desired = _DesiredSet(versions, fresh, is_new=bool(again))
        done = self._activate(fd, desired, before, operation)
        return replace(done, size=sum(map(payload.size, files.values())), **_replaced(done, before))

    def update(
        self, fd: int, changes: Mapping[str, bytes | Content | None], operation: Operation
    ) -> Publication:
        """Publish the set with some files added, replaced or (None) removed, all at once."""
        path = self._settings.path
        before = None
        if layout.active_generation(fd) is not None:
            before = self._scan_complete(fd, path, operation)
        old = _versions(before) if before is not None else {}
        operation.conditions.check(
            f"publish {path}", before.snapshot.version if before is not None else None
        )
        given = {name: content for name, content in changes.items() if content is not None}
        if before is None and not given:
            version = snapshots.version_of_set({})
            return Publication(version, False, False, time.time(), 0)
        desired = {name: version for name, version in old.items() if name not in changes}
        desired |= {name: payload.content_size(content)[0] for name, content in given.items()}
        models.check_names(desired)
        self._check_signed(desired, given, before)
        kept = (
            sum(before.snapshot.content(n).size for n in old if n not in changes) if before else 0
        )
        total = kept + sum(map(payload.size, given.values()))
        if total > self._settings.max_size:
            raise payload.too_large(path, self._settings.max_size)
        again = _redescribed(given, old, before)
        fresh = {n: c for n, c in given.items() if old.get(n) != desired[n] or n in again}
        optional = visible_links.top_level_names(old) - visible_links.top_level_names(given)
        wanted = _DesiredSet(desired, fresh, is_new=bool(again))
        done = self._activate(fd, wanted, before, operation, optional)
        return replace(done, size=total, **_replaced(done, before))

    def put(self, fd: int, name: str, content: Payload, operation: Operation) -> Publication:
        """Publish the set with one file added or replaced."""
        where = self._settings.display_path(name)
        before = self._scan_complete(fd, where, operation)
        old = _versions(before)
        operation.conditions.check(f"publish {where}", old.get(name))
        version, size = payload.content_size(content)
        desired = {**old, name: version}
        models.check_names(desired)
        self._check_signed(desired, {name: content}, before)
        self._check_total_size(before, name, size)
        optional = visible_links.top_level_names(old) - visible_links.top_level_names([name])
        metadata = operation.metadata
        redescribed = (
            metadata is not None
            and name in old
            and metadata.redescribes(before.snapshot.content(name).metadata)
        )
        if redescribed and desired == old:
            metadata = stored.described_by(metadata, before.snapshot.content(name).metadata)
        if desired == old and not redescribed:
            unchanged = _DesiredSet(old, {}, of_one_file=True)
            done = self._activate(fd, unchanged, before, operation, optional)
            modified = before.snapshot.modified_of(name)
            return Publication(version, done.changed, False, modified, size)
        if not isinstance(content, tuple):
            self._budget.admit(fd, size, where, dry_run=operation.dry_run)
        if operation.needs_reclaim:
            given = content[0] if isinstance(content, tuple) else content
            fresh = _DesiredSet(desired, {name: given}, of_one_file=True, is_new=redescribed)
            done = self._activate(fd, fresh, before, operation, optional)
            return Publication(version, True, name not in old, done.modified, size)
        with models.staged(fd, content, where) as staged:
            if not (metadata is None or operation.dry_run):
                with oserrors.map_publish_errors(f"publish {where}"):
                    self._metadata.attach(fd, staged.fd, name, version, metadata)
            fresh = _DesiredSet(desired, {name: staged}, of_one_file=True, is_new=redescribed)
            done = self._activate(fd, fresh, before, operation, optional)
        previous = before.snapshot.get_content(name)
        return Publication(
            version,
            done.changed,
            name not in old,
            done.modified,
            size,
            old.get(name) if done.changed else None,
            previous.size if done.changed and previous is not None else None,
        )

    def delete(self, fd: int, name: str, operation: Operation) -> Publication:
        """Publish the set without this file."""
        where = self._settings.display_path(name)
        before = self._scan_complete(fd, where, operation)
        versions = _versions(before)
        operation.conditions.check(f"delete {where}", versions.get(name))
        if versions.pop(name, None) is None:
            raise models.missing(where)
        self._check_signed(versions, {}, before)
        gone = before.snapshot.content(name)
        operation.replaced = (gone.version, gone.size)
        optional = visible_links.top_level_names(versions)
        return self._activate(fd, _DesiredSet(versions, {}), before, operation, optional)

    def scan(self, fd: int) -> ScanResult:
        """Return the active set; only changed files are read again.

        Raises:
            ReadError: the set cannot be read completely.
        """
        if self._last_scan is None or not loader.is_unchanged(fd, self._last_scan):
            before, self._last_scan = self._last_scan, None
            path, limit = self._settings.path, self._settings.max_size
            scan = loader.read_directory(fd, path, limit=limit, before=before)
            for problem in scan.problems.values():
                raise _errors.ReadError(errno.EIO, problem)
            scan.require_complete()
            self._last_scan = scan
        return self._last_scan

    def entries(self, fd: int) -> list[FileInfo]:
        """Return the files of the set."""
        snapshot = self.scan(fd).snapshot
        found = [snapshot.content(name) for name in sorted(snapshot)]
        return [FileInfo(c.name, c.version, c.size, c.modified) for c in found]

    def versions(self, fd: int) -> list[history.Version]:
        """Return the versions of the set, newest first."""
        found = history.versions_of_set(fd, self._settings.max_entries)[: self._settings.keep]
        return [
            replace(one, metadata=stored.of_generation(fd, one.entry.removeprefix("./")))
            for one in found
        ]

    def repair(self, fd: int) -> None:
        """Complete the activation that a killed writer left unfinished, and repair damaged links.

        Errors are logged, because they must not prevent the writer from starting.
        """
        repair.restore(fd, self._settings)
        if layout.active_generation(fd) is None:
            return
        try:
            names = list(self.scan(fd).snapshot)
        except _errors.ReadError:
            return  # damaged: a new publish repairs it, and readers report the damage
        with repair.logged(self._settings):
            self._repair_links(fd, names, visible_links.top_level_names(names))
        repair.log_loose_files(fd, self._settings, names)
        self._archive_expired(fd, layout.active_generation(fd) or "")

    def restore_lost(self, fd: int, operation: Operation) -> None:
        """Repair the `..data` link of a set that this object has seen active, if it was removed meanwhile.

        Raises:
            VolumeUnavailable: the link is gone, and a dry run repairs nothing.
        """
        if (self._last_scan is not None or self._durable is not None) and layout.active_generation(
            fd
        ) is None:
            if operation.dry_run:
                raise _errors.VolumeUnavailable(
                    errno.ENOENT,
                    f"cannot try to publish to {self._settings.path}: {layout.DATA} is missing, and a trial mends nothing"
                    " (the next publish does)",
                )
            repair.restore(fd, self._settings)

    def reclaimable(self, fd: int) -> list[str]:
        """Return the generations that may be removed before their grace period ends: all but the previous one."""
        return _inactive_generations(fd, layout.active_generation(fd) or "")[:-1]

    def _activate(
        self,
        fd: int,
        desired: _DesiredSet,
        before: ScanResult | None,
        operation: Operation,
        optional: Collection[str] = (),
    ) -> Publication:
        """Build a generation and activate it; the previous one enters its grace period.

        The links of `optional` entries may stay missing, so that they do not block other names.
        """
        version, created = (
            snapshots.version_of_set(desired.versions),
            layout.active_generation(fd) is None,
        )
        with oserrors.map_publish_errors(f"publish {self._settings.path}"):
            same = self._same_set(before, version, desired, operation)
            fits = before is None or self._access_matches(fd, before)
            done = same and Publication(version, False, False, same.snapshot.modified, desired.size)
            if (
                done
                and fits
                and (operation.dry_run or self._is_durable(fd, desired.versions, optional))
            ):
                return done
            if not operation.dry_run:
                atomic_writer.sweep(fd)
            copied = self._bytes_to_copy(desired, before, fits=fits)
            if to_write := desired.bytes_to_write + copied:
                self._budget.admit(fd, to_write, self._settings.path, dry_run=operation.dry_run)
            if operation.needs_reclaim:
                activation.check_conflicts(fd, self._settings, desired.versions, optional)
                return Publication(version, True, created, time.time(), desired.size)
            new = self._build(fd, desired, operation, version, exact=not fits)
            try:
                self._copies_kept = (
                    _was_copied(fd, new, desired.reused) if fits else self._copies_kept
                )
                if copied or self._copies_kept:
                    self._budget.invalidate()  # which of them were copied is not known
                if done and not fits and self._has_same_access(fd, new, desired.versions):
                    self._access_checked = (
                        before  # the mount fixes modes and groups, so a new set would not differ
                    )
                    return done
                operation.raise_if_cancelled()
                generation = activation.activate(
                    fd,
                    self._settings,
                    new,
                    desired.versions,
                    version,
                    optional=optional,
                    before=before,
                    dry_run=operation.dry_run,
                )
                if generation is None:
                    return Publication(version, True, created, time.time(), desired.size)
            except _errors.PublishUncertain:
                # A later successful sync proves nothing, so an equal set is published again next time.
                self._uncertain = True
                raise
            finally:
                dirs.rmtree(fd, new)  # after success it was renamed and no longer exists
        self._durable = self._own_generation = generation
        self._uncertain = False
        if not fits:
            history.restrict_sets(fd, generation, self._settings.mode, self._settings.group)
        if created:
            repair.log_loose_files(fd, self._settings, desired.versions)
        self._archive_expired(fd, generation)
        described = 0 if operation.metadata is None else on_disk(1) * (1 + desired.of_one_file)
        self._budget.change(described)
        self._retention.added(desired.on_disk + copied + described)
        modified = _modified_time(fd, generation, desired.fresh)
        return Publication(version, True, created, modified, desired.size)

    def _bytes_to_copy(self, desired: _DesiredSet, before: ScanResult | None, *, fits: bool) -> int:
        """Return the disk space that kept files take a second time, because they cannot be linked."""
        if before is None or (fits and not self._copies_kept):
            return 0
        return sum(on_disk(before.snapshot.content(name).size) for name in desired.reused)

    @staticmethod
    def _same_set(
        before: ScanResult | None, version: str, desired: _DesiredSet, operation: Operation
    ) -> ScanResult | None:
        """Return the active set if the desired one is the same; not if the signature of the set or the type of a file differs."""
        if before is None or before.snapshot.version != version or desired.is_new:
            return None
        given = operation.metadata
        if given is None or desired.of_one_file:
            return before
        return None if given.redescribes(before.snapshot.metadata) else before

    def _build(
        self, fd: int, desired: _DesiredSet, operation: Operation, version: str, *, exact: bool
    ) -> str:
        def attach(path: str, file: int) -> None:
            """Store the metadata of the set, and what describes a content that was read from a volume."""
            if not path:
                given = operation.metadata
                if given is not None and not operation.dry_run:
                    given = given.of_set() if desired.of_one_file else given
                    self._metadata.attach_to_generation(file, version, given)
                return
            content = desired.fresh[path]
            own = content.metadata if isinstance(content, Content) else None
            if own is not None and own.describes_content() and not operation.dry_run:
                self._metadata.attach(fd, file, path, desired.versions[path], own)

        for content in desired.fresh.values():
            if isinstance(content, atomic.TempFile):
                content.finalize(
                    self._settings.mode, self._settings.group, durable=self._settings.durable
                )
        return atomic_writer.build(
            fd,
            {name: _build_source(content) for name, content in desired.fresh.items()},
            mode=self._settings.mode,
            group=self._settings.group,
            keep=desired.reused,
            durable=self._settings.durable,
            exact=exact,
            sync_kept=layout.active_generation(fd) != self._own_generation,
            attach=attach,
        )

    def _access_matches(self, fd: int, before: ScanResult) -> bool:
        """Whether all files of the active set have the configured mode and group.

        Generations published by this object always do.
        """
        if self._access_checked is not before and before.states.generation != self._own_generation:
            with listing.open_content_dir(fd, before.states.generation) as held:
                names = before.snapshot
                if not all(self._settings.access_matches(os.stat(n, dir_fd=held)) for n in names):
                    return False
            self._access_checked = before
        return True

    def _has_same_access(self, fd: int, new: str, names: Collection[str]) -> bool:
        """Whether the files of a new generation have the same modes and groups as those of the active one."""
        with (
            dirs.open_subdir(fd, new) as one,
            listing.open_content_dir(fd, layout.active_generation(fd)) as other,
        ):
            pairs = ((os.stat(n, dir_fd=one), os.stat(n, dir_fd=other)) for n in names)
            return all(models.has_same_access(*pair) for pair in pairs)

    def _is_durable(self, fd: int, names: Collection[str], optional: Collection[str]) -> bool:
        """Whether the active set has all its links and is durable, so that nothing has to be published.

        Sets of other writers are synced first: they may have been killed before their sync.
        """
        if self._uncertain:
            return False
        generation = layout.active_generation(fd)
        with contextlib.suppress(OSError):
            if self._repair_links(fd, names, optional) or self._durable != generation:
                self._settings.sync_directory(fd)
            self._durable = generation
            return True
        return False

    def _repair_links(self, fd: int, names: Collection[str], optional: Collection[str]) -> bool:
        """Update the visible links to match the active set; return whether any had to change."""
        links = visible_links.LinkUpdate(fd, None, names, self._settings.path, optional=optional)
        needed = links.has_changes
        try:
            links.apply(partial(replaced.archive_loose_files, fd, self._settings))
        finally:
            links.discard()
        repair.log_blocked(self._settings, links.blocked)
        return needed

    def _archive_expired(self, fd: int, current: str) -> None:
        """Archive generations whose grace period has ended, oldest first."""
        with contextlib.suppress(OSError):
            retiring = _inactive_generations(fd, current)
            over = time.time_ns() - int(self._settings.grace * 1e9)
            followers = [*retiring, current][1:]
            for position, (entry, follower) in enumerate(zip(retiring, followers, strict=True)):
                # The grace period starts when the next generation was activated.
                crowded = len(retiring) - position > _MAX_INACTIVE_GENERATIONS
                if crowded or atomic_writer.timestamp_of(follower) <= over:
                    history.archive_generation(fd, entry, self._settings.keep)

    def _scan_complete(self, fd: int, where: str, operation: Operation) -> ScanResult:
        """Return the complete active set, in which one file is about to change; repair it first if damaged."""
        try:
            return self.scan(fd)
        except _errors.ReadError as error:
            if not operation.dry_run:
                repair.restore(fd, self._settings)
                with contextlib.suppress(_errors.ReadError):
                    return self.scan(fd)
            raise _damaged_error(where, error) from error

    def _check_signed(
        self, names: Collection[str], given: Mapping[str, Payload], before: ScanResult | None
    ) -> None:
        """Raise `ContentRefused` if the set of these names is not signed as a whole: the `given` files, and kept ones."""
        if self._settings.check_set is None:
            return
        files: dict[str, bytes | Content] = {}
        for name in names:
            if name not in given and before is not None:
                files[name] = before.snapshot.content(name)
            elif isinstance(one := given[name], tuple):
                files[name] = payload.as_content(one[0].fd, one[1], name, one[0].name)
            else:
                files[name] = one
        self._settings.check_set(files)

    def _check_total_size(self, before: ScanResult, name: str, size: int) -> None:
        """Raise `ContentTooLarge` if the set with the new file would exceed `max_size`."""
        own = before.snapshot.get_content(name)
        others = before.snapshot.size - (own.size if own is not None else 0)
        if size + others > self._settings.max_size:
            raise payload.too_large(self._settings.display_path(name), self._settings.max_size)


@dataclass(frozen=True, slots=True)
class _DesiredSet:
    """The set to publish: the versions of all files, and the content of new files; other files are reused."""

    versions: Mapping[str, str]
    fresh: Mapping[str, bytes | atomic.TempFile | Content]
    of_one_file: bool = False
    """Whether one file is published, so that type and signature in the metadata are that file's."""
    is_new: bool = False
    """Whether it counts as changed although all bytes are the same."""

    @property
    def reused(self) -> list[str]:
        return [name for name in self.versions if name not in self.fresh]

    @property
    def bytes_to_write(self) -> int:
        """Disk space in bytes that must still be written."""
        fresh = self.fresh.values()
        return sum(on_disk(payload.size(c)) for c in fresh if not isinstance(c, atomic.TempFile))

    @property
    def on_disk(self) -> int:
        """Disk space in bytes of all new files."""
        return sum(
            on_disk(c.size if isinstance(c, atomic.TempFile) else payload.size(c))
            for c in self.fresh.values()
        )

    @property
    def size(self) -> int:
        return sum(len(c) if isinstance(c, bytes) else c.size for c in self.fresh.values())


def _redescribed(
    files: Mapping[str, bytes | Content], old: Mapping[str, str], before: ScanResult | None
) -> set[str]:
    """Return the names of contents whose bytes are there, under another type or signature than their own."""
    return {
        name
        for name, content in files.items()
        if isinstance(content, Content)
        and content.metadata is not None
        and before is not None
        and old.get(name) == content.version
        and content.metadata.redescribes(before.snapshot.content(name).metadata)
    }


def _replaced(done: Publication, before: ScanResult | None) -> dict[str, Any]:
    """Return what a publish of a set has replaced, for its publication."""
    if before is None or not done.changed:
        return {}
    return {"replaced": before.snapshot.version, "replaced_size": before.snapshot.size}


def _build_source(
    content: bytes | atomic.TempFile | Content,
) -> bytes | atomic.TempFile | open_file.Copy:
    """Return a content in the form that `atomic_writer.build` takes."""
    if not isinstance(content, Content):
        return content
    if isinstance(content.held, bytes):
        return content.held
    return open_file.Copy(content.held, content.version)


def _inactive_generations(fd: int, current: str) -> list[str]:
    """Return the inactive generations, oldest first."""
    entries = [e for e in os.listdir(fd) if e.startswith(layout.GENERATION) and e != current]
    return sorted(entries, key=atomic_writer.timestamp_of)


def _was_copied(fd: int, generation: str, names: Sequence[str]) -> bool:
    """Whether the kept files of a new generation are copies, and not hard links."""
    return bool(names) and os.stat(f"{generation}/{names[0]}", dir_fd=fd).st_nlink == 1


def _modified_time(fd: int, generation: str, names: Collection[str]) -> float:
    """Return the modification time that readers see."""
    with contextlib.suppress(OSError):
        times = [os.stat(f"{generation}/{name}", dir_fd=fd).st_mtime_ns for name in names]
        return max(times, default=atomic_writer.timestamp_of(generation)) / 1e9
    return time.time()


def _versions(scan: ScanResult) -> dict[str, str]:
    return {name: scan.snapshot.content(name).version for name in scan.snapshot}


def _damaged_error(where: str, error: _errors.ReadError) -> _errors.VolumeUnavailable:
    return _errors.VolumeUnavailable(
        error.errno,
        f"cannot publish {where}: the active set cannot be read completely, and none of it may be lost:"
        f" {error.strerror or error} (publish the whole set again, or roll it back)",
    )
