"""Look at one path again and again, and know which directories have to be watched for it.

Blocking, for one thread. The directory is held open between two looks,
so its inode cannot become another directory's, and a path that means another directory by now is noticed.
No link is followed out of the volume.
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
from sidecar.volume.content import listing, loader
from sidecar.volume.content.filters import EVERYTHING, Filter
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.watch.coverage import Coverage


@dataclass(frozen=True)
class WatchPlan:
    """What has to be watched at present; it changes when the path comes to mean something else."""

    directory: tuple[int, int] | None
    """Device and inode of the directory that holds the content, None while there is none."""
    names: frozenset[bytes] | None
    """The names in it that matter, None for all of them."""
    ways: frozenset[tuple[str, str]]
    """Directories above it, and in each the entry that leads on: a link, the directory itself, or what is missing."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Entries whose events tell of a file that is known by another name."""
    steps: tuple[tuple[int, int, str], ...] = ()
    """Where a link leads that the path itself is: directories (device and inode), and the entry in each."""


class PathScanner:
    """Looks at one path: a file, or a directory for a set."""

    def __init__(
        self,
        path: str,
        limit: int,
        working: Callable[[], None],
        wanted: Filter = EVERYTHING,
    ) -> None:
        self.path = path
        self.coverage = Coverage()
        self._limit = limit
        self._working = working
        self._scope = listing.Scope(wanted, self.coverage)
        self._whole = os.path.abspath(path)
        self._place = os.path.split(self._whole)
        self._linked = True
        """The file may be a link: as long as nobody has looked, and after that if it is one."""
        self._decided = path.endswith("/")
        self._single = not self._decided
        self._fd = -1
        self._identity: tuple[int, int] | None = None

    def turn(self) -> WatchPlan:
        """Open the directory that the path means now, and tell what has to be watched.

        Nothing is raised: where there is no directory, `look` will say why.
        """
        with contextlib.suppress(OSError):
            self._open()
        names, aliases, steps = self._entries()
        return WatchPlan(self._identity, names, frozenset(self._ways()), aliases, steps)

    def look(
        self, before: ScanResult | None, *, thoroughly: bool, quick: bool = False
    ) -> ScanResult | None:
        """Read what is there; None if it is what `before` saw.

        `thoroughly`: do not trust signatures. `quick`: trust those of the directories, in a set.

        Raises:
            NothingPublished: there is nothing.
            ReadError: what is there is not fit to be read.
        """
        try:
            if self._fd < 0:
                with openat.read_errors(self.path):
                    self._open()
            return self._look(before, thoroughly=thoroughly, quick=quick)
        except _errors.ReadError as error:
            if error.errno == errno.ESTALE:
                self.close()  # NFS has forgotten the directory that is held open
            raise

    def look_again(
        self, before: ScanResult, names: Collection[str], folders: Collection[str]
    ) -> ScanResult | None:
        """Read of a set of loose files what has changed; None if it takes a look at everything.

        Raises:
            NothingPublished, ReadError: as `look`.
        """
        if not self.can_mend(before):
            return None
        return loader.reread(
            self._fd,
            self._whole,
            limit=self._limit,
            before=before,
            names=names,
            folders=folders,
            working=self._working,
            scope=self._scope,
        )

    def can_mend(self, before: ScanResult) -> bool:
        """Whether a look at what has changed is enough: at loose files, in the directory where they were found."""
        mark = before.mark
        loose = before.snapshot.name is None and mark.generation is None and not self._single
        return loose and self._fd >= 0 and mark.directory == self._identity

    def changed_folders(self, before: ScanResult, *, top: bool) -> set[str]:
        """Return the directories of a set in which something came, went or was replaced since `before`.

        `top` asks the topmost one alone.
        """
        with openat.read_errors(self.path):
            return loader.changed_folders(self._fd, before, [""] if top else None)

    def is_open_for_writing(self, name: str, signature: openat.StatSignature) -> bool | None:
        """Return whether anybody writes to a file that was found in that state, None if nobody can tell.

        False: nobody does, and it is still in that state, or our history has it as it was published.
        """
        with contextlib.suppress(OSError):
            fd = openat.open_beneath(self._fd, name)
            try:
                if openat.StatSignature.of(os.fstat(fd)) != signature:
                    return None
                if select.is_remote(mounts.filesystem(fd)):
                    return None
                writing = leases.is_open_for_writing(fd)
                # What was read is what is there now, if it has not changed in between.
                same = openat.StatSignature.of(os.fstat(fd)) == signature
                return writing if writing or same else None
            finally:
                openat.close(fd)
        return None

    def has_published(self, name: str, signature: openat.StatSignature, version: str) -> bool:
        """Whether the history holds this very file under that version: then it was whole when it became visible."""
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
    def targets(self, outlook: WatchPlan) -> Iterator[list[base.WatchTarget]]:
        """Open the directories to watch, until the block ends."""
        with contextlib.ExitStack() as opened:
            found: list[base.WatchTarget] = []
            for above, name in sorted(outlook.ways):
                with contextlib.suppress(OSError):  # it is missing too, and has a gap above it
                    fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    opened.callback(openat.close, fd)
                    found.append(
                        base.WatchTarget(fd, above, frozenset({os.fsencode(name)}), way=True)
                    )
            if self._fd >= 0:
                found.append(base.WatchTarget(self._fd, self._directory(), outlook.names))
                if outlook.steps:
                    found += self._behind_the_link(opened)
            yield found

    def _behind_the_link(self, opened: contextlib.ExitStack) -> list[base.WatchTarget]:
        name = self._place[1]
        found: list[base.WatchTarget] = []
        for step in opened.enter_context(links.steps(self._fd, name)):
            fd = step.open()
            opened.callback(openat.close, fd)
            path = os.path.realpath(f"/proc/self/fd/{fd}")
            wanted = frozenset({os.fsencode(step.entry)})
            found.append(base.WatchTarget(fd, path, wanted, alias=os.fsencode(name)))
        return found

    def filesystem(self) -> str:
        """Return the type of the file system that is looked at."""
        if self._fd >= 0:
            return mounts.filesystem(self._fd)
        return mounts.mount_point(self._directory())[1]

    def close(self) -> None:
        """Give the descriptor back; the next look opens again."""
        if self._fd >= 0:
            openat.close(self._fd)
        self._fd, self._identity = -1, None

    def _look(
        self, before: ScanResult | None, *, thoroughly: bool, quick: bool
    ) -> ScanResult | None:
        if before is not None and (before.snapshot.name is not None) is not self._single:
            before = None
        if before is not None and not thoroughly:
            same = before.mark.directory == self._identity
            if same and loader.is_unchanged(self._fd, before, quick=quick, scope=self._scope):
                return None
        found = self._load(before)
        self._decided = True
        return found

    def _load(self, before: ScanResult | None) -> ScanResult:
        if self._single:
            return loader.read_file(
                self._fd,
                *self._place,
                limit=self._limit,
                before=before,
                linked=self._linked,
                working=self._working,
            )
        self.coverage.begin_pass()
        found = loader.read_directory(
            self._fd,
            self._whole,
            limit=self._limit,
            before=before,
            working=self._working,
            scope=self._scope,
        )
        self.coverage.end_pass()
        return found

    def _directory(self) -> str:
        return self._place[0] if self._single else self._whole

    def _open(self) -> None:
        """See to it that the descriptor is that of the directory which the path means now."""
        if not self._decided:
            # Until something good has been read, what lies there decides.
            single = not os.path.isdir(self._whole)
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
            self._fd = self._opened(directory)
            status = os.fstat(self._fd)
            self._identity = (status.st_dev, status.st_ino)

    def _opened(self, directory: str) -> int:
        if self._single:
            try:
                return openat.open_directory(directory)
            except PermissionError:
                # It may be passed through, and not be listed: enough for one file, too little for events.
                return openat.open_directory(directory, os.O_PATH)
        # The last component may be a link, as git-sync's: followed, but not out of its directory.
        above = openat.open_directory(os.path.dirname(directory))
        try:
            own = os.path.basename(directory) or "."
            return openat.open_beneath(above, own, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            openat.close(above)

    def _entries(
        self,
    ) -> tuple[frozenset[bytes] | None, dict[str, str], tuple[tuple[int, int, str], ...]]:
        """Return the names that matter in the directory, which of them stand for others, and where a link leads."""
        if not self._single or self._fd < 0:
            return None, {}, ()
        name = self._place[1]
        link = layout.link_target(self._fd, name)
        self._linked = link is not None
        if link is None or link.startswith(layout.DATA + "/"):
            return frozenset((os.fsencode(name), os.fsencode(layout.DATA))), {layout.DATA: name}, ()
        with links.steps(self._fd, name) as found:
            places = tuple(step.place for step in found)
        return frozenset((os.fsencode(name),)), {}, places

    def _ways(self) -> list[tuple[str, str]]:
        """Return what leads to the directory and can be exchanged: links, the directory itself, or the first gap."""
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
