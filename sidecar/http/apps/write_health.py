"""The health of writes to the volume: the result of the last attempt, for probes, responses and the log."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from sidecar import _errors
from sidecar.process import metrics
from sidecar.volume.volume import Volume

_log = logging.getLogger(__name__)

STALL_TIMEOUT = 60.0
"""Seconds after which a write counts as stalled: the kernel waits for a storage that is gone."""
PREPARE_INTERVAL = 5.0
"""Seconds between attempts to prepare a volume that was not writable at the start."""
MEASURE_INTERVAL = 15.0
"""Seconds between measurements of the disk usage of a volume with a budget: a common scrape interval."""
_VOLUME_ERRORS = (_errors.VolumeFull, _errors.VolumeUnavailable, _errors.PublishUncertain)


class WriteAttempt:
    """A write in progress, and when it last progressed."""

    def __init__(self, path: WriteHealth) -> None:
        self._path = path
        self.at = time.monotonic()

    def progressed(self) -> None:
        self.at = self._path.last_progress = time.monotonic()


class WriteHealth:
    """Tracks the writes to a volume.

    A full or read-only volume is reported by responses (507, 503) and in the details of the probes, but not by
    readiness: that would block reads that the volume can still serve, and the DELETE that would free space.
    A stalled write fails both liveness and readiness.

    A volume that is not writable at the start does not end the program:
    preparing it is retried every few seconds.

    Args:
        volume: the volume to write to.
        initial: files to publish at the start if they are missing.
        validation_timeout: seconds that a write may take in addition to `STALL_TIMEOUT`.
    """

    def __init__(
        self, volume: Volume, *, initial: Mapping[str, bytes], validation_timeout: float = 0.0
    ) -> None:
        self._volume = volume
        self._initial = initial
        self._stall_timeout = STALL_TIMEOUT + validation_timeout
        self._started = False
        self._problem: str | None = None
        self._attempts: set[WriteAttempt] = set()
        self.last_progress = float("-inf")
        """When any write last progressed."""

    def __repr__(self) -> str:
        return f"<WriteHealth of {self._volume.path} problem={self._problem!r}>"

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[WriteAttempt]:
        """Track the write in this block; the block reports its progress."""
        progress = self.begin()
        error: BaseException | None = None
        try:
            yield progress
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.end(progress, error)

    def begin(self) -> WriteAttempt:
        """Track a write from now on; the caller reports its result by `end`."""
        progress = WriteAttempt(self)
        self._attempts.add(progress)
        return progress

    def end(self, progress: WriteAttempt, error: BaseException | None) -> None:
        """Record the result of a write. An error that is not the volume's says nothing about the volume."""
        self._attempts.discard(progress)
        if error is None:
            progress.progressed()
            self._set(None)
        elif isinstance(error, _VOLUME_ERRORS):
            self._set(str(error))

    def live(self) -> str | None:
        """Return a stalled write, which a restart could resolve. While other writes progress, a slow one is only queued."""
        now = time.monotonic()
        silent = now - max(min((one.at for one in self._attempts), default=now), self.last_progress)
        if silent < self._stall_timeout:
            return None
        path = self._volume.path
        return f"a write to {path} has been hanging for {silent:.0f} s (is its storage gone?)"

    def started(self) -> str | None:
        """Return whether the first attempt to prepare the volume is still running, whatever its result."""
        return None if self._started else f"{self._volume.path} is still being prepared"

    def ready(self) -> str | None:
        """Return why requests cannot be answered: the start, or a stalled disk."""
        return self.started() or self.live()

    def detail(self) -> Mapping[str, object]:
        """Return the problem of the last write, for operators."""
        return {"problem": self._problem}

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Prepare the volume, with retries until that succeeds: for `cleanup_ctx`.

        Raises:
            VolumeUnavailable: the file is a mount of its own (`subPath`), which no retry can resolve.
        """
        task: asyncio.Task[None] | None = None
        try:
            await self._prepare()
        except _VOLUME_ERRORS as error:
            if error.errno == errno.EBUSY:
                raise
            task = asyncio.create_task(self._retry_prepare(), name=f"prepare {self._volume.path}")
        self._started = True
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})

    async def track_usage(self, _: web.Application) -> AsyncIterator[None]:
        """Measure the disk usage of a volume with a budget periodically, for the metrics: for `cleanup_ctx`."""
        task = asyncio.create_task(self._measure(), name=f"use of {self._volume.path}")
        stop = metrics.track_volume(self._volume)
        try:
            yield
        finally:
            stop()
            task.cancel()
            await asyncio.wait({task})

    async def _measure(self) -> None:
        while True:
            try:
                await self._volume.measure()
            except (_errors.SidecarError, OSError) as error:
                _log.debug("cannot measure %s: %s", self._volume.path, error)
            await asyncio.sleep(MEASURE_INTERVAL)

    async def _prepare(self) -> None:
        async with self.attempt():
            await self._volume.prepare(initial=self._initial)

    async def _retry_prepare(self) -> None:
        while True:
            await asyncio.sleep(PREPARE_INTERVAL)
            try:
                await self._prepare()
            except (_errors.SidecarError, OSError) as error:
                _log.debug("still not writable: %s", error)
            else:
                return

    def _set(self, problem: str | None) -> None:
        if (problem is None) is not (self._problem is None):
            if problem is None:
                _log.info(
                    "%s can be written again", self._volume.path, extra={"event": "volume.writable"}
                )
            else:
                _log.warning(
                    "%s takes no writes: %s",
                    self._volume.path,
                    problem,
                    extra={"event": "volume.unwritable"},
                )
        self._problem = problem
