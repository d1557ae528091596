"""Log a failure once per path and reason: scans repeat each second, and fail for the same reason."""

from __future__ import annotations

import errno
import logging
import os

from sidecar import _errors
from sidecar.fs import oserrors

_MAX_PATHS = 1000
"""Number of paths at which deleted ones are dropped: names with a timestamp are created without end."""


class LogOnce:
    """The paths for which the last attempt failed, each with the reason."""

    def __init__(self, log: logging.Logger, attempt: str = "read") -> None:
        self._log, self._attempt = log, attempt
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def log(self, path: str, error: Exception) -> None:
        """Log why a file or directory cannot be used, unless the same reason was logged for it."""
        reason = _describe(error)
        if self.reasons.get(path) == reason:
            return
        if len(self.reasons) >= _MAX_PATHS:
            self.reasons = {p: r for p, r in self.reasons.items() if os.path.lexists(p)}
        self.reasons[path] = reason
        self._log.warning(
            "cannot %s %s: %s; trying again later",
            self._attempt,
            path,
            reason,
            extra={"event": "logs.file_unreadable"},
        )

    def clear(self, path: str) -> None:
        """Record that the last attempt succeeded."""
        self.reasons.pop(path, None)


def _describe(error: Exception) -> str:
    if not isinstance(error, OSError) or isinstance(error, _errors.SidecarError):
        return str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        by_pod = ", as fsGroup is" if oserrors.in_pod() else ""
        return (
            f"permission denied for user {os.geteuid()} and group {os.getegid()} (its mode must let them read,"
            f" as 0644 of a file and 0755 of a directory do, or its group be one of theirs{by_pod})"
        )
    return os.strerror(error.errno or 0).lower()
