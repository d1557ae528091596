"""Watch directories by inotify: which files were written, and in which directories names have changed.

Events only reduce latency. Where there are none (network file systems, limits reached),
`polling` is true and scans are more frequent instead.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from sidecar.fs import mounts
from sidecar.fs.notify import select
from sidecar.fs.notify.inotify import Inotify

_log = logging.getLogger(__name__)
_WRITTEN = Inotify.MODIFY | Inotify.CLOSE_WRITE
_GONE = Inotify.IGNORED | Inotify.DELETE_SELF | Inotify.MOVE_SELF


@dataclass(slots=True)
class DirEvents:
    """The events since the last call."""

    written: set[str] = field(default_factory=set)
    """Paths of files."""
    changed: set[str] = field(default_factory=set)
    """Paths of directories in which names were added or removed."""
    overflow: bool = False


class DirectoryWatcher:
    """Watches directories. No method waits."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._watched: dict[str, int] = {}
        self._paths: dict[int, dict[str, None]] = {}
        """Paths by watch: several if links lead to one directory, since the kernel has one watch for it."""
        self._silent: set[str] = set()
        """Directories without events."""
        try:
            self._inotify = Inotify()
        except OSError as error:
            _log.warning(
                "no change events (%s): polling instead", error, extra={"event": "logs.polling"}
            )

    @property
    def fd(self) -> int | None:
        """A descriptor that is readable while events are pending; None without inotify."""
        return self._inotify.fd if self._inotify is not None else None

    @property
    def polling(self) -> bool:
        """Whether some directories have no events."""
        return self._inotify is None or bool(self._silent)

    def watch(self, directories: Sequence[str]) -> None:
        """Watch exactly these directories."""
        if self._inotify is None or self._watched.keys() | self._silent == set(directories):
            return
        for path in self._watched.keys() - set(directories):
            self._drop(path)
        self._silent &= set(directories)
        for path in directories:
            if path not in self._watched:
                self._add(self._inotify, path)

    def drain(self) -> DirEvents:
        """Return what has been events since the last call."""
        events = DirEvents()
        if self._inotify is None:
            return events
        for event in self._inotify.drain():
            if event.mask & Inotify.OVERFLOW:
                events.overflow = True
            paths = list(self._paths.get(event.watch, ()))
            if event.mask & _WRITTEN and event.name:
                name = os.fsdecode(event.name)
                events.written.update(os.path.join(path, name) for path in paths)
                continue
            events.changed.update(paths)
            if event.mask & _GONE:
                for path in paths:
                    self._drop(path)
        return events

    def close(self) -> None:
        """Close the inotify descriptor."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def _add(self, inotify: Inotify, path: str) -> None:
        try:
            if select.is_remote(mounts.mount_point(os.path.realpath(path))[1]):
                self._silent.add(path)
                return
            number = inotify.add(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                if path not in self._silent:
                    _log.warning(
                        "no change events for %s (%s): polling instead",
                        path,
                        error,
                        extra={"event": "logs.polling"},
                    )
                self._silent.add(path)
            return
        self._silent.discard(path)
        self._watched[path] = number
        self._paths.setdefault(number, {})[path] = None

    def _drop(self, path: str) -> None:
        number = self._watched.pop(path, None)
        if number is None:
            return
        others = self._paths[number]
        del others[path]
        if not others:
            del self._paths[number]
            if self._inotify is not None:
                self._inotify.remove(number)
