"""Scan one path repeatedly, and determine the directories that must be watched for it.

Blocking; for use by one thread. The directory stays open between scans,
so its inode number cannot be reused, and a path that refers to another directory is detected.
Links that lead out of the volume are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from sidecar import _errors
from sidecar.fs import dirs, layout, leases, links, mounts, openat
from sidecar.fs.notify import base, select
from sidecar.volume.content import listing, loader, source_state
from sidecar.volume.content.filters import EVERYTHING, Filter
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.validation import signatures
from sidecar.volume.validation.signatures import SignedList
from sidecar.volume.watch.coverage import Coverage


@dataclass(frozen=True)
class WatchPlan:
    """The directories and names to watch; it changes when the path resolves differently."""

    directory: tuple[int, int] | None
    """Device and inode of the directory that holds the content, None if it is missing."""
    names: frozenset[bytes] | None
    """The relevant names in it, None for all."""
    path_links: frozenset[tuple[str, str]]
    """Parent directories, each with the entry on the path: a link, the directory itself, or a missing component."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Entries whose events are reported for another name."""
    steps: tuple[tuple[int, int, str], ...] = ()
    """If the path itself is a link, the directories (device and inode) and entries that it leads through."""


class PathScanner:
    """Scans one path: a single file or a directory."""

    def __init__(
        self,
        path: str,
        limit: int,
        on_progress: Callable[[], None],
        wanted: Filter = EVERYTHING,
    ) -> None:
        self.path = path
        self.coverage = Coverage()
        self._limit = limit
        self._on_progress = on_progress
        self._scope = listing.Scope(wanted, self.coverage)
        self._absolute_path = os.path.abspath(path)
        self._split_path = os.path.split(self._absolute_path)
        self._may_be_link = True
        """Whether the file is a link, or may be one because it has not been inspected yet."""
        self._kind_known = path.endswith("/")
        self._single = not self._kind_known
        self._fd = -1
        self._identity: tuple[int, int] | None = None

    def resolve(self) -> WatchPlan:
        """Open the directory that the path refers to now, and return what must be watched.

        Never raises: if there is no directory, `scan` reports why.
        """
        with contextlib.suppress(OSError):
            self._open()
        names, aliases, steps = self._watched_names()
        return WatchPlan(self._identity, names, frozenset(self._path_links()), aliases, steps)

    def scan(
        self, before: ScanResult | None, *, thoroughly: bool, quick: bool = False
    ) -> ScanResult | None:
        """Read the content; return None if it has not changed since `before`.

        `thoroughly` reads files even if their signatures are unchanged.
        `quick` compares only the signatures of directories.

        Raises:
            NothingPublished: there is no content.
            ReadError: the content cannot be read.
        """
        try:
            if self._fd < 0:
                with openat.read_errors(self.path):
                    self._open()
            return self._scan(before, thoroughly=thoroughly, quick=quick)
        except _errors.ReadError as error:
            if error.errno == errno.ESTALE:
                self.close()  # the NFS handle of the open directory is stale
            raise

    def rescan(
        self, before: ScanResult, names: Collection[str], folders: Collection[str]
    ) -> ScanResult | None:
        """Read only the changed loose files; return None if a full scan is needed.

        Raises:
            NothingPublished, ReadError: as `scan`.
        """
        if not self.can_rescan(before):
            return None
        return loader.reread(
            self._fd,
            self._absolute_path,
            limit=self._limit,
            before=before,
            names=names,
            folders=folders,
            on_progress=self._on_progress,
            scope=self._scope,
        )

    def can_rescan(self, before: ScanResult) -> bool:
        """Whether `rescan` is possible: `before` holds loose files of the same open directory."""
        states = before.states
        loose = before.snapshot.name is None and states.generation is None and not self._single
        return loose and self._fd >= 0 and states.directory == self._identity

    def changed_folders(self, before: ScanResult, *, top: bool) -> set[str]:
        """Return the directories in which an entry was added, removed or replaced since `before`.

        With `top`, only the top directory is checked.
        """
        with openat.read_errors(self.path):
            return loader.changed_folders(self._fd, before, [""] if top else None)

    def is_open_for_writing(self, name: str, signature: openat.StatSignature) -> bool | None:
        """Return whether a process has the file open for writing; None if that is unknown or the file has changed.

        False means that no process can write to it, and that it still has the given signature.
        """
        with contextlib.suppress(OSError):
            fd = openat.open_beneath(self._fd, name)
            try:
                if openat.StatSignature.of(os.fstat(fd)) != signature:
                    return None
                if select.is_remote(mounts.filesystem(fd)):
                    return None
                writing = leases.is_open_for_writing(fd)
                # The answer applies to the bytes that were read only if the signature is still the same.
                same = openat.StatSignature.of(os.fstat(fd)) == signature
                return writing if writing or same else None
            finally:
                openat.close(fd)
        return None

    def is_archived(self, name: str, signature: openat.StatSignature, version: str) -> bool:
        """Whether the history holds this inode under that version: then the file was complete when published."""
        if self._fd < 0:
            return False
        suffix = f"-{version}"
        with (
            contextlib.suppress(OSError),
            dirs.open_subdir(self._fd, layout.history_of(name)) as fd,
        ):
            for entry in os.listdir(fd):
                if entry.endswith(suffix):
                    status = os.stat(entry, dir_fd=fd, follow_symlinks=False)
                    if (status.st_dev, status.st_ino) == signature.identity:
                        return True
        return False

    @contextmanager
    def watch_targets(self, plan: WatchPlan) -> Iterator[list[base.WatchTarget]]:
        """Open the directories to watch and yield the targets; the directories are closed at the end of the block."""
        with contextlib.ExitStack() as opened:
            found: list[base.WatchTarget] = []
            for above, name in sorted(plan.path_links):
                with contextlib.suppress(
                    OSError
                ):  # missing as well; the missing component above it is watched
                    fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    opened.callback(openat.close, fd)
                    found.append(
                        base.WatchTarget(
                            fd, above, frozenset({os.fsencode(name)}), is_path_link=True
                        )
                    )
            if self._fd >= 0:
                found.append(base.WatchTarget(self._fd, self._directory(), plan.names))
                if plan.steps:
                    found += self._link_targets(opened)
            yield found

    def _link_targets(self, opened: contextlib.ExitStack) -> list[base.WatchTarget]:
        name = self._split_path[1]
        found: list[base.WatchTarget] = []
        for step in opened.enter_context(links.steps(self._fd, name)):
            fd = step.open()
            opened.callback(openat.close, fd)
            path = os.path.realpath(f"/proc/self/fd/{fd}")
            wanted = frozenset({os.fsencode(step.entry)})
            found.append(base.WatchTarget(fd, path, wanted, alias=os.fsencode(name)))
        return found

    def source_problem(self) -> str | None:
        """Return what the publisher says of a source that is stale, None if it says nothing."""
        return source_state.read(self._fd).stale if self._fd >= 0 else None

    def signed_list(self, generation: str | None) -> SignedList | None:
        """Return the list of digests beside a file that was read from this generation, and its signatures.

        None: the generation has been replaced.
        """
        if self._fd < 0:
            return None
        found = signatures.read_list(self._fd, generation or ".")
        return found if layout.active_generation(self._fd) in (generation, None) else None

    def filesystem(self) -> str:
        """Return the type of the file system that holds the content."""
        if self._fd >= 0:
            return mounts.filesystem(self._fd)
        return mounts.mount_point(self._directory())[1]

    def close(self) -> None:
        """Close the directory; the next scan opens it again."""
        if self._fd >= 0:
            openat.close(self._fd)
        self._fd, self._identity = -1, None

    def _scan(
        self, before: ScanResult | None, *, thoroughly: bool, quick: bool
    ) -> ScanResult | None:
        if before is not None and (before.snapshot.name is not None) is not self._single:
            before = None
        if before is not None and not thoroughly:
            same = before.states.directory == self._identity
            if same and loader.is_unchanged(self._fd, before, quick=quick, scope=self._scope):
                return None
        found = self._read(before)
        self._kind_known = True
        return found

    def _read(self, before: ScanResult | None) -> ScanResult:
        if self._single:
            return loader.read_file(
                self._fd,
                *self._split_path,
                limit=self._limit,
                before=before,
                linked=self._may_be_link,
                on_progress=self._on_progress,
            )
        self.coverage.begin_pass()
        found = loader.read_directory(
            self._fd,
            self._absolute_path,
            limit=self._limit,
            before=before,
            on_progress=self._on_progress,
            scope=self._scope,
        )
        self.coverage.end_pass()
        return found

    def _directory(self) -> str:
        return self._split_path[0] if self._single else self._absolute_path

    def _open(self) -> None:
        """Open the directory that the path refers to now, unless it is already open."""
        if not self._kind_known:
            # Until the first successful read, the type of the path decides between file and directory.
            single = not os.path.isdir(self._absolute_path)
            if single is not self._single:
                self._single = single
                self.close()
        directory = self._directory()
        try:
            status = os.stat(directory)
        except OSError:
            self.close()
            raise
        if self._identity != (status.st_dev, status.st_ino):
            self.close()
            self._fd = self._open_directory(directory)
            status = os.fstat(self._fd)
            self._identity = (status.st_dev, status.st_ino)

    def _open_directory(self, directory: str) -> int:
        if self._single:
            try:
                return openat.open_directory(directory)
            except PermissionError:
                # Search permission without read permission is enough to read one file, but not for events.
                return openat.open_directory(directory, os.O_PATH)
        # The last component may be a link, as with git-sync: follow it, but not out of its directory.
        above = openat.open_directory(os.path.dirname(directory))
        try:
            own = os.path.basename(directory) or "."
            return openat.open_beneath(above, own, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            openat.close(above)

    def _watched_names(
        self,
    ) -> tuple[frozenset[bytes] | None, dict[str, str], tuple[tuple[int, int, str], ...]]:
        """Return the relevant names in the directory, their aliases, and the directories that a link leads through."""
        if not self._single or self._fd < 0:
            return None, {}, ()
        name = self._split_path[1]
        link = layout.link_target(self._fd, name)
        self._may_be_link = link is not None
        if link is None or link.startswith(layout.DATA + "/"):
            return frozenset((os.fsencode(name), os.fsencode(layout.DATA))), {layout.DATA: name}, ()
        with links.steps(self._fd, name) as found:
            positions = tuple(step.position for step in found)
        return frozenset((os.fsencode(name),)), {}, positions

    def _path_links(self) -> list[tuple[str, str]]:
        """Return the replaceable entries on the path: links, the directory itself, or the first missing component."""
        directory = self._directory()
        found = [os.path.split(directory)]
        path = "/"
        for part in directory.split("/")[1:]:
            here, path = path, os.path.join(path, part)
            try:
                link = stat.S_ISLNK(os.lstat(path).st_mode)
            except OSError:
                return [*found, (here, part)]
            if link:
                found.append((here, part))
        return found
