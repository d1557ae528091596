"""One log line for each new version that is seen, at most one a second for each path."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sidecar.volume.snapshot import Snapshot

logger = logging.getLogger(__name__)

_INTERVAL = 1.0


class VersionLog:
    """Tells the versions of one path: the first at once, those that follow within a second together."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pending: Snapshot[Any] | None = None
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, snapshot: Snapshot[Any]) -> None:
        """Log a version, or note it for the line at the end of the second. In the event loop."""
        self._pending = snapshot
        self._count += 1
        if self._timer is None:
            self._write()
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._end_second)

    def flush(self) -> None:
        """Log what waits for the end of the second, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._write()

    def _end_second(self) -> None:
        self._timer = None
        if self._count:
            self._write()
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._end_second)

    def _write(self) -> None:
        found, count = self._pending, self._count
        self._pending, self._count = None, 0
        if found is None:
            return
        before = f", the newest of {count} within a second" if count > 1 else ""
        files = "" if found.name is not None else f" in {len(found)} files"
        logger.info(
            "%s: new version %s, %d bytes%s%s", self._path, found.version, found.size, files, before
        )
