"""Watch further directories besides the content directory: nested directories, and those that links lead to.

A listing reports each directory before reading it, so no change is missed in between.
Earlier changes have sent no event, and are detected without events.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from sidecar.fs import links, mounts, openat
from sidecar.fs.notify import base, select


class Coverage:
    """Adds the directories of a listing to the current notifier."""

    def __init__(self) -> None:
        self._notifier: base.Notifier = base.PollNotifier()
        self._followed: dict[str, object] = {}
        self._seen: set[str] = set()
        self.failure: OSError | None = None
        """Why a listed directory is not watched; None if all are, or none needs to be."""
        self.unsupported = False
        """Whether a directory is not watched because the notifier does not support nested directories."""

    def attach(self, notifier: base.Notifier) -> None:
        """Start again with a notifier that follows nothing yet."""
        self._notifier = notifier
        self._followed.clear()
        self.failure, self.unsupported = None, False

    def enter(self, fd: int, name: str, device: int) -> None:
        """Watch a nested directory that is about to be listed; `device` is the device of the content directory."""
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        key = name + "/"
        self._seen.add(key)
        if self._followed.get(key) == identity or not self._can_follow():
            return
        try:
            if status.st_dev != device:
                _check_filesystem(fd, name)
            self.forget([key])
            self._notifier.follow(base.WatchTarget(fd, "", None, prefix=os.fsencode(key), key=key))
            self._followed[key] = identity
        except OSError as error:
            self.failure = error

    def resolve(self, dir_fd: int, name: str) -> None:
        """Watch all directories that the link `name`, relative to the content directory, leads through."""
        self._seen.add(name)
        if not self._can_follow():
            return
        with links.steps(dir_fd, name) as steps:
            positions = tuple(step.position for step in steps)
            if self._followed.get(name) == positions:
                return
            self.forget([name])
            try:
                for step in steps:
                    self._follow_step(step, name)
            except OSError as error:
                self.failure = error
            self._followed[name] = positions

    def forget(self, keys: Iterable[str]) -> None:
        """Stop watching removed names: links, and directories with a trailing `/`."""
        for key in keys:
            if self._followed.pop(key, None) is not None:
                self._notifier.unfollow(key)

    def mark_unfollowed(self, keys: Iterable[str]) -> None:
        """Record that the notifier stopped following these keys because their directories are gone."""
        for key in keys:
            self._followed.pop(key, None)

    def begin_pass(self) -> None:
        """Start a full listing."""
        self._seen.clear()

    def end_pass(self) -> None:
        """End a full listing: stop watching everything that it did not contain."""
        self.forget([key for key in self._followed if key not in self._seen])

    def _can_follow(self) -> bool:
        self.unsupported = self.unsupported or not self._notifier.supports_nested
        return self._notifier.supports_nested and self.failure is None

    def _follow_step(self, step: links.Step, name: str) -> None:
        names = frozenset({os.fsencode(step.entry)})
        fd = step.open()
        try:
            target = base.WatchTarget(fd, "", names, alias=os.fsencode(name), key=name)
            self._notifier.follow(target)
        finally:
            openat.close(fd)


def _check_filesystem(fd: int, name: str) -> None:
    """Raise `OSError` (`ENOTSUP`) if the directory is on a file system that sends no events."""
    kind = mounts.filesystem(fd)
    if select.is_remote(kind):
        raise OSError(errno.ENOTSUP, f"{name} lies on {kind}, which sends no events")
