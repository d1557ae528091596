"""Open log files, keep descriptors free for all others, and say once which cannot be read."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field

from sidecar import _errors
from sidecar.logs.input.discovery import Discovery, Key
from sidecar.logs.input.file_content import Content, open_content
from sidecar.logs.input.log_once import LogOnce

_log = logging.getLogger(__name__)

Opened = tuple[Content, os.stat_result]


@dataclass(slots=True)
class Opener:
    """Opens what a scan has found."""

    discovery: Discovery
    close_idle: Callable[[], bool]
    """Closes some files that were not needed for long; returns whether there were any."""
    max_fds: int = 4096
    """The first descriptor that log files leave to others: to sinks, the checkpoint, probes."""
    errors: LogOnce = field(default_factory=lambda: LogOnce(_log))

    def open(self, path: str) -> Opened | None:
        """Open a file, or say once why it cannot be."""
        try:
            fd = self._open_fd(path)
        except (OSError, _errors.ReadError) as error:
            if not isinstance(error, FileNotFoundError):
                self.errors.log(path, error)
            return None
        try:
            opened = open_content(fd), os.fstat(fd)
        except (OSError, _errors.ReadError) as error:
            os.close(fd)
            self.errors.log(path, error)
            return None
        self.errors.clear(path)
        return opened

    def find_first(
        self, fits: Callable[[Content], bool], paths: Iterable[str], in_use: Container[Key]
    ) -> tuple[Content, Key, str] | None:
        """Open files one after the other until one fits. Those that are taken are not asked."""
        for path in paths:
            key = file_key(path)
            if key is None or key in in_use or (opened := self.open(path)) is None:
                continue
            content, status = opened
            key = (status.st_dev, status.st_ino)
            if key not in in_use and fits(content):
                return content, key, path
            content.close()
        return None

    def _open_fd(self, path: str) -> int:
        try:
            fd = self.discovery.open(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self.close_idle():
                raise
            return self.discovery.open(path)
        # The kernel gives the lowest number that is free (open(2)): so many descriptors are in use.
        if fd >= self.max_fds:
            self.close_idle()
        return fd


def file_key(path: str) -> Key | None:
    """Return device and inode of a regular file, None for anything else."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None
