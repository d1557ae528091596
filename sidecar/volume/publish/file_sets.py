"""The set in force: files that are published together, in the layout of Kubernetes' own volumes.

A change of one file is a new generation, too: the others are taken over into it.
Blocking, one directory, which the caller has opened and locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

from sidecar import _errors
from sidecar.fs import atomic, atomic_writer, dirs, layout, open_file, oserrors, visible_links
from sidecar.volume.content import listing, loader, payload
from sidecar.volume.content import snapshot as snapshots
from sidecar.volume.content.payload import Payload
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.content.snapshot import Content
from sidecar.volume.publish import activation, history, models, repair, replaced
from sidecar.volume.publish.budget import Budget, on_disk
from sidecar.volume.publish.models import FileInfo, Operation, Publication, VolumeConfig
from sidecar.volume.publish.retention import Retention

#: Generations in their grace period, at most: a set may be published a thousand times in it.
_MOST_RETIRING = 16


class FileSet:
    """The one set of a directory, where it has one."""

    def __init__(self, settings: VolumeConfig, budget: Budget, retention: Retention) -> None:
        self._settings = settings
        self._budget = budget
        self._retention = retention
        self._seen: ScanResult | None = None
        self._durable: str | None = None
        self._made: str | None = None
        """The generation that this object has published last."""
        self._doubtful = False
        self._fitting: ScanResult | None = None
        """The set whose files were found to have the mode and group that are asked for."""

    def publish(
        self, fd: int, files: Mapping[str, bytes | Content], order: Operation
    ) -> Publication:
        """Publish these files, and no others."""
        path = self._settings.path
        versions = {name: payload.content_size(content)[0] for name, content in files.items()}
        try:
            # Loose files are no set, even if they are the very files of this one.
            before = self.see(fd) if layout.active_generation(fd) is not None else None
        except _errors.ReadError as error:
            # A damaged set is mended by publishing a new one, but it cannot be compared with anything.
            if order.conditions:
                raise _damaged(path, error) from error
            before = None
        order.conditions.check(
            f"publish {path}", before.snapshot.version if before is not None else None
        )
        return self._put_in_force(fd, _DesiredSet(versions, files), before, order)

    def put(self, fd: int, name: str, content: Payload, order: Operation) -> Publication:
        """Publish the set with one file added or replaced."""
        where = self._settings.where(name)
        before = self._see_whole(fd, where, order)
        old = _versions(before)
        order.conditions.check(f"publish {where}", old.get(name))
        version, size = payload.content_size(content)
        wanted = {**old, name: version}
        models.check_names(wanted)
        self._check_room(before, name, size)
        spared = visible_links.top_level_names(old) - visible_links.top_level_names([name])
        if wanted == old:
            done = self._put_in_force(fd, _DesiredSet(old, {}), before, order, spared)
            modified = before.snapshot.modified_of(name)
            return Publication(version, done.changed, False, modified, size)
        if not isinstance(content, tuple):
            self._budget.admit(fd, size, where, dry_run=order.dry_run)
        if order.unwritten:
            given = content[0] if isinstance(content, tuple) else content
            done = self._put_in_force(fd, _DesiredSet(wanted, {name: given}), before, order, spared)
            return Publication(version, True, name not in old, done.modified, size)
        with models.staged(fd, content, where) as staged:
            done = self._put_in_force(
                fd, _DesiredSet(wanted, {name: staged}), before, order, spared
            )
        return Publication(version, done.changed, name not in old, done.modified, size)

    def delete(self, fd: int, name: str, order: Operation) -> Publication:
        """Publish the set without one file."""
        where = self._settings.where(name)
        before = self._see_whole(fd, where, order)
        versions = _versions(before)
        order.conditions.check(f"delete {where}", versions.get(name))
        if versions.pop(name, None) is None:
            raise models.missing(where)
        spared = visible_links.top_level_names(versions)
        return self._put_in_force(fd, _DesiredSet(versions, {}), before, order, spared)

    def see(self, fd: int) -> ScanResult:
        """Return the set in force, read again only where it changed.

        Raises:
            ReadError: it cannot be read whole.
        """
        if self._seen is None or not loader.is_unchanged(fd, self._seen):
            before, self._seen = self._seen, None
            path, limit = self._settings.path, self._settings.max_size
            seen = loader.read_directory(fd, path, limit=limit, before=before)
            for problem in seen.problems.values():
                raise _errors.ReadError(errno.EIO, problem)
            seen.whole()
            self._seen = seen
        return self._seen

    def entries(self, fd: int) -> list[FileInfo]:
        """Return the files of the set."""
        snapshot = self.see(fd).snapshot
        found = [snapshot.content(name) for name in sorted(snapshot)]
        return [FileInfo(c.name, c.version, c.size, c.modified) for c in found]

    def versions(self, fd: int) -> list[history.Version]:
        """Return the history of the set, newest first."""
        return history.versions_of_set(fd, self._settings.most_names)[: self._settings.keep]

    def repair(self, fd: int) -> None:
        """Finish what a killed writer began after its generation came in force, and mend a link that was damaged.

        What cannot be mended is logged: it must not keep a writer from its start.
        """
        repair.restore(fd, self._settings)
        if layout.active_generation(fd) is None:
            return
        try:
            names = list(self.see(fd).snapshot)
        except _errors.ReadError:
            return  # damaged: publishing a new one is the remedy, and readers say what is wrong
        with repair.logged(self._settings):
            self._mend_links(fd, names, visible_links.top_level_names(names))
        repair.tell_of_beside(fd, self._settings, names)
        self._retire(fd, layout.active_generation(fd) or "")

    def restore_lost(self, fd: int, order: Operation) -> None:
        """Mend the link to a set that this object has seen in force, if somebody has removed that meanwhile.

        Raises:
            VolumeUnavailable: it is gone, and a trial mends nothing.
        """
        if (self._seen is not None or self._durable is not None) and layout.active_generation(
            fd
        ) is None:
            if order.dry_run:
                raise _errors.VolumeUnavailable(
                    errno.ENOENT,
                    f"cannot try to publish to {self._settings.path}: {layout.DATA} is missing, and a trial mends nothing"
                    " (the next publish does)",
                )
            repair.restore(fd, self._settings)

    def expendable(self, fd: int) -> list[str]:
        """Return the generations in their grace that may go early: all but the one before the present."""
        return _retiring(fd, layout.active_generation(fd) or "")[:-1]

    def _put_in_force(
        self,
        fd: int,
        wanted: _DesiredSet,
        before: ScanResult | None,
        order: Operation,
        spared: Collection[str] = (),
    ) -> Publication:
        """Make a generation and switch to it; the one before goes into its grace period.

        Of `spared` entries the links may be missing as they were before: they must not keep other names back.
        """
        version, created = (
            snapshots.version_of_set(wanted.versions),
            layout.active_generation(fd) is None,
        )
        with oserrors.map_publish_errors(f"publish {self._settings.path}"):
            same = before if before is not None and before.snapshot.version == version else None
            fits = before is None or self._fits(fd, before)
            done = None
            if same is not None:
                done = Publication(version, False, False, same.snapshot.modified, wanted.size)
            if done and fits and (order.dry_run or self._is_settled(fd, wanted.versions, spared)):
                return done
            if not order.dry_run:
                atomic_writer.sweep(fd)
            if wanted.to_be_written:
                self._budget.admit(
                    fd, wanted.to_be_written, self._settings.path, dry_run=order.dry_run
                )
            if order.unwritten:
                activation.examine(fd, self._settings, wanted.versions, spared)
                return Publication(version, True, created, time.time(), wanted.size)
            new = self._build(fd, wanted, exact=not fits)
            try:
                if done and not fits and self._is_alike(fd, new, wanted.versions):
                    self._fitting = (
                        before  # the mount fixes modes and groups: a new set would be no other
                    )
                    return done
                order.check()
                generation = activation.activate(
                    fd,
                    self._settings,
                    new,
                    wanted.versions,
                    version,
                    spared=spared,
                    before=before,
                    dry_run=order.dry_run,
                )
                if generation is None:
                    return Publication(version, True, created, time.time(), wanted.size)
            except _errors.PublishUncertain:
                # A later sync that succeeds proves nothing: the next equal set is published anew.
                self._doubtful = True
                raise
            finally:
                dirs.rmtree(fd, new)  # it has another name by now, if all went well
        self._durable = self._made = generation
        self._doubtful = False
        if not fits:
            history.restrict_sets(fd, generation, self._settings.mode, self._settings.group)
        if created:
            repair.tell_of_beside(fd, self._settings, wanted.versions)
        self._retire(fd, generation)
        self._retention.added(wanted.on_disk)
        modified = _newest(fd, generation, wanted.fresh)
        return Publication(version, True, created, modified, wanted.size)

    def _build(self, fd: int, wanted: _DesiredSet, *, exact: bool) -> str:
        for content in wanted.fresh.values():
            if isinstance(content, atomic.TempFile):
                content.seal(
                    self._settings.mode, self._settings.group, durable=self._settings.durable
                )
        return atomic_writer.build(
            fd,
            {name: _material(content) for name, content in wanted.fresh.items()},
            mode=self._settings.mode,
            group=self._settings.group,
            keep=wanted.taken_over,
            durable=self._settings.durable,
            exact=exact,
        )

    def _fits(self, fd: int, before: ScanResult) -> bool:
        """Whether all files of the set in force have the mode and the group that are asked for.

        What this object has published itself has them.
        """
        if self._fitting is not before and before.mark.generation != self._made:
            with listing.open_content_dir(fd, before.mark.generation) as held:
                names = before.snapshot
                if not all(self._settings.fits(os.stat(n, dir_fd=held)) for n in names):
                    return False
            self._fitting = before
        return True

    def _is_alike(self, fd: int, new: str, names: Collection[str]) -> bool:
        """Whether the files of a new generation have the modes and groups of those in force."""
        with (
            dirs.open_subdir(fd, new) as one,
            listing.open_content_dir(fd, layout.active_generation(fd)) as other,
        ):
            pairs = ((os.stat(n, dir_fd=one), os.stat(n, dir_fd=other)) for n in names)
            return all(models.has_same_access(*pair) for pair in pairs)

    def _is_settled(self, fd: int, names: Collection[str], spared: Collection[str]) -> bool:
        """Whether the set in force has all its links and is durable: then there is nothing to publish.

        What this object has not published itself is synced first: its writer may have been killed before it could.
        """
        if self._doubtful:
            return False
        generation = layout.active_generation(fd)
        with contextlib.suppress(OSError):
            if self._mend_links(fd, names, spared) or self._durable != generation:
                self._settings.sync_directory(fd)
            self._durable = generation
            return True
        return False

    def _mend_links(self, fd: int, names: Collection[str], spared: Collection[str]) -> bool:
        """Bring the visible links in line with the set in force, and say whether there was a need to."""
        links = visible_links.LinkUpdate(fd, None, names, self._settings.path, spared=spared)
        needed = links.needed
        try:
            links.finish(partial(replaced.keep_loose, fd, self._settings))
        finally:
            links.discard()
        repair.tell_of_blocked(self._settings, links.blocked)
        return needed

    def _retire(self, fd: int, current: str) -> None:
        """Move generations whose grace is over into the history, oldest first."""
        with contextlib.suppress(OSError):
            retiring = _retiring(fd, current)
            over = time.time_ns() - int(self._settings.grace * 1e9)
            followers = [*retiring, current][1:]
            for position, (entry, follower) in enumerate(zip(retiring, followers, strict=True)):
                # What counts is how long it has been out of force: since its successor came.
                crowded = len(retiring) - position > _MOST_RETIRING
                if crowded or atomic_writer.timestamp_of(follower) <= over:
                    history.archive_generation(fd, entry, self._settings.keep)

    def _see_whole(self, fd: int, where: str, order: Operation) -> ScanResult:
        """Return the set that one file of it is to be changed of: nothing of the rest may be lost."""
        try:
            return self.see(fd)
        except _errors.ReadError as error:
            if not order.dry_run:
                repair.restore(fd, self._settings)
                with contextlib.suppress(_errors.ReadError):
                    return self.see(fd)
            raise _damaged(where, error) from error

    def _check_room(self, before: ScanResult, name: str, size: int) -> None:
        """Refuse a file with which the set would be larger than readers take."""
        own = before.snapshot.get_content(name)
        others = before.snapshot.size - (own.size if own is not None else 0)
        if size + others > self._settings.max_size:
            raise payload.too_large(self._settings.where(name), self._settings.max_size)


@dataclass(frozen=True, slots=True)
class _DesiredSet:
    """A set to be: the versions of all its files, and those that are written anew; the others are taken over."""

    versions: Mapping[str, str]
    fresh: Mapping[str, bytes | atomic.TempFile | Content]

    @property
    def taken_over(self) -> list[str]:
        return [name for name in self.versions if name not in self.fresh]

    @property
    def to_be_written(self) -> int:
        """The bytes on the disk that are not there yet."""
        fresh = self.fresh.values()
        return sum(on_disk(payload.size(c)) for c in fresh if not isinstance(c, atomic.TempFile))

    @property
    def on_disk(self) -> int:
        """The bytes on the disk of all that is written anew."""
        return sum(
            on_disk(c.size if isinstance(c, atomic.TempFile) else payload.size(c))
            for c in self.fresh.values()
        )

    @property
    def size(self) -> int:
        return sum(len(c) if isinstance(c, bytes) else c.size for c in self.fresh.values())


def _material(
    content: bytes | atomic.TempFile | Content,
) -> bytes | atomic.TempFile | open_file.Copy:
    """Return a content as a generation is built of it."""
    if not isinstance(content, Content):
        return content
    if isinstance(content.held, bytes):
        return content.held
    return open_file.Copy(content.held, content.version)


def _retiring(fd: int, current: str) -> list[str]:
    """Return the generations that are out of force, oldest first."""
    entries = [e for e in os.listdir(fd) if e.startswith(layout.GENERATION) and e != current]
    return sorted(entries, key=atomic_writer.timestamp_of)


def _newest(fd: int, generation: str, names: Collection[str]) -> float:
    """Return the time that readers see of what was published."""
    with contextlib.suppress(OSError):
        times = [os.stat(f"{generation}/{name}", dir_fd=fd).st_mtime_ns for name in names]
        return max(times, default=atomic_writer.timestamp_of(generation)) / 1e9
    return time.time()


def _versions(sighting: ScanResult) -> dict[str, str]:
    return {name: sighting.snapshot.content(name).version for name in sighting.snapshot}


def _damaged(where: str, error: _errors.ReadError) -> _errors.VolumeUnavailable:
    return _errors.VolumeUnavailable(
        error.errno,
        f"cannot publish {where}: the set in force cannot be read whole, and none of it may be lost:"
        f" {error.strerror or error} (publish the whole set again, or roll it back)",
    )
