"""Does the volume take what is written? What the last attempt says, for probes, for people and for the log."""

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
"""Seconds after which a write is held to be stuck: the kernel waits for a storage that is gone."""
PREPARE_EVERY = 5.0
"""Seconds between attempts to prepare a volume that could not be written at the start."""
MEASURE_EVERY = 15.0
"""Seconds between two counts of what a volume with a budget takes: as often as most scrape."""
_VOLUME_ERRORS = (_errors.VolumeFull, _errors.VolumeUnavailable, _errors.PublishUncertain)


class WriteAttempt:
    """The moment in which a write has last got on."""

    def __init__(self, path: WriteHealth) -> None:
        self._path = path
        self.at = time.monotonic()

    def made(self) -> None:
        self.at = self._path.got_on = time.monotonic()


class WriteHealth:
    """The way from a request to the disk, as the attempts to go it have found it.

    A full or read-only volume is told by the answers (507, 503) and in the details of the probes, and never by
    readiness: that would keep out the reads that the volume can still answer, and the DELETE that would make room.
    What fails both liveness and readiness is a write that hangs.

    A volume that cannot be written at the start is no reason to end:
    it is prepared as soon as it takes writes, which is tried every few seconds.

    Args:
        volume: what is written to.
        initial: files to publish at the start where they are missing.
        patience: seconds that a write may take beyond `STALL_TIMEOUT`.
    """

    def __init__(
        self, volume: Volume, *, initial: Mapping[str, bytes], patience: float = 0.0
    ) -> None:
        self._volume = volume
        self._initial = initial
        self._patience = STALL_TIMEOUT + patience
        self._started = False
        self._problem: str | None = None
        self._attempts: set[WriteAttempt] = set()
        self.got_on = float("-inf")
        """When any write has last got on."""

    def __repr__(self) -> str:
        return f"<DataPath to {self._volume.path} problem={self._problem!r}>"

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[WriteAttempt]:
        """Note how the write inside goes; it tells of the progress that it makes."""
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
        """Note that a write has begun; the caller says by `end` how it went."""
        progress = WriteAttempt(self)
        self._attempts.add(progress)
        return progress

    def end(self, progress: WriteAttempt, error: BaseException | None) -> None:
        """Note how a write went. An error that is not the volume's says nothing about the volume."""
        self._attempts.discard(progress)
        if error is None:
            progress.made()
            self._set(None)
        elif isinstance(error, _VOLUME_ERRORS):
            self._set(str(error))

    def live(self) -> str | None:
        """Say what is stuck: what a restart could mend. While others get on, a write only waits for its turn."""
        now = time.monotonic()
        silent = now - max(min((one.at for one in self._attempts), default=now), self.got_on)
        if silent < self._patience:
            return None
        path = self._volume.path
        return f"a write to {path} has been hanging for {silent:.0f} s (is its storage gone?)"

    def started(self) -> str | None:
        """Say that the first attempt to prepare the volume is not over yet, however it will end."""
        return None if self._started else f"{self._volume.path} is still being prepared"

    def ready(self) -> str | None:
        """Say why a request could not be answered: the start, or a disk that hangs."""
        return self.started() or self.live()

    def detail(self) -> Mapping[str, object]:
        """Say for people what the last write met."""
        return {"problem": self._problem}

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Prepare the volume, and try again until that has succeeded: for `cleanup_ctx`.

        Raises:
            VolumeUnavailable: the file is a mount of its own (`subPath`), and no time will mend that.
        """
        task: asyncio.Task[None] | None = None
        try:
            await self._prepare()
        except _VOLUME_ERRORS as error:
            if error.errno == errno.EBUSY:
                raise
            task = asyncio.create_task(self._try_again(), name=f"prepare {self._volume.path}")
        self._started = True
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})

    async def follow_use(self, _: web.Application) -> AsyncIterator[None]:
        """Measure now and then what the volume takes, for the metrics, where it has a budget: for `cleanup_ctx`."""
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
            await asyncio.sleep(MEASURE_EVERY)

    async def _prepare(self) -> None:
        async with self.attempt():
            await self._volume.prepare(initial=self._initial)

    async def _try_again(self) -> None:
        while True:
            await asyncio.sleep(PREPARE_EVERY)
            try:
                await self._prepare()
            except (_errors.SidecarError, OSError) as error:
                _log.debug("still not writable: %s", error)
            else:
                return

    def _set(self, problem: str | None) -> None:
        if (problem is None) is not (self._problem is None):
            if problem is None:
                _log.info("%s can be written again", self._volume.path)
            else:
                _log.warning("%s takes no writes: %s", self._volume.path, problem)
        self._problem = problem
