"""Open log files within the limit of descriptors, and log once which cannot be opened."""

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
    """Opens files that a scan has found."""

    discovery: Discovery
    close_idle: Callable[[], bool]
    """Closes least recently used files; returns whether there were any."""
    max_fds: int = 4096
    """Number of descriptors from which on idle files are closed, to keep some free for sinks, checkpoint and probes."""
    errors: LogOnce = field(default_factory=lambda: LogOnce(_log))

    def open(self, path: str) -> Opened | None:
        """Open a file. If that fails, log the reason once and return None."""
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
        """Open files one by one and return the first that fits. Files in `in_use` are skipped."""
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
        # open(2) returns the lowest free number, so at least this many descriptors are in use.
        if fd >= self.max_fds:
            self.close_idle()
        return fd


def file_key(path: str) -> Key | None:
    """Return device and inode of a regular file, else None."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None
