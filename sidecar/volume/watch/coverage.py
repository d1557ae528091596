"""Which directories beside the one of the content are watched: nested ones, and those that links lead to.

A listing tells of each directory before it reads what is in it, so nothing falls between the two;
what was there before has sent no event, and is judged without.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from sidecar.fs import links, mounts, openat
from sidecar.fs.notify import base, select


class Coverage:
    """Follows what listings go through, with the hints of the moment."""

    def __init__(self) -> None:
        self._notifier: base.Notifier = base.PollNotifier()
        self._followed: dict[str, object] = {}
        self._seen: set[str] = set()
        self.failure: OSError | None = None
        """Why something of what was listed is not watched; None if all of it is, or none need be."""
        self.unsupported = False
        """Something is not watched, because the source of hints cannot."""

    def attach(self, notifier: base.Notifier) -> None:
        """Begin anew, with hints that follow nothing yet."""
        self._notifier = notifier
        self._followed.clear()
        self.failure, self.unsupported = None, False

    def enter(self, fd: int, name: str, device: int) -> None:
        """Watch a nested directory that is about to be listed; `device` is that of the directory of the content."""
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
        """Watch what the link `name`, relative to the directory of the content, leads to and through."""
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
        """Watch what is not there any more no longer: names of links, and of directories with a `/` at their end."""
        for key in keys:
            if self._followed.pop(key, None) is not None:
                self._notifier.unfollow(key)

    def mark_unfollowed(self, keys: Iterable[str]) -> None:
        """Take note that the source has stopped following these: it does, where a directory is gone."""
        for key in keys:
            self._followed.pop(key, None)

    def begin_pass(self) -> None:
        """Begin a listing of everything."""
        self._seen.clear()

    def end_pass(self) -> None:
        """End it: what it has not come across is forgotten."""
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
    """Refuse a directory that is another mount, where that sends no events."""
    kind = mounts.filesystem(fd)
    if select.is_remote(kind):
        raise OSError(errno.ENOTSUP, f"{name} lies on {kind}, which sends no events")
