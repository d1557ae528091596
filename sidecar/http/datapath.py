"""Does the volume take what is written? What the last attempt says, for the probes of the writer."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from sidecar import _errors
from sidecar.volume.volume import Volume

_log = logging.getLogger(__name__)

STUCK = 60.0
"""Seconds after which a write is held to be stuck: the kernel waits for a storage that is gone."""
PROBE_EVERY = 5.0
"""Seconds between attempts to write, while the last one has failed."""
_PROBE = bytes(64 << 10)
_VOLUME_ERRORS = (_errors.VolumeFull, _errors.VolumeUnavailable, _errors.PublishUncertain)


class Progress:
    """The moment in which a write has last got on."""

    def __init__(self, path: DataPath) -> None:
        self._path = path
        self.at = time.monotonic()

    def made(self) -> None:
        self.at = self._path.got_on = time.monotonic()


class DataPath:
    """The way from a request to the disk, as the attempts to go it have found it.

    Ready is what the last attempt said: full, read-only or broken turns it off.
    A content for which there is no room says that of itself alone, as long as there is room for an ordinary one:
    one client with a giant must not turn away all others.
    While it is off a small file is staged and dropped now and then; the first that succeeds turns it on again.
    Nothing is tried while all is well.

    A volume that cannot be written at the start is no reason to end:
    reads of the volume are still answered, writes say what is wrong, and it heals when the volume does.

    Args:
        volume: what is written to.
        initial: files to publish at the start where they are missing.
        patience: seconds that a write may take beyond `STUCK`.
    """

    def __init__(
        self, volume: Volume, *, initial: Mapping[str, bytes], patience: float = 0.0
    ) -> None:
        self._volume = volume
        self._initial = initial
        self._patience = STUCK + patience
        self._prepared = False
        self._problem: str | None = None
        self._failed = asyncio.Event()
        self._attempts: set[Progress] = set()
        self.got_on = float("-inf")
        """When any write has last got on."""

    def __repr__(self) -> str:
        return f"<DataPath to {self._volume.path} problem={self._problem!r}>"

    @asynccontextmanager
    async def attempt(self, *, of_any_size: bool = False) -> AsyncIterator[Progress]:
        """Note how the write inside goes; it tells of the progress that it makes.

        One `of_any_size` for which there is no room says nothing before an ordinary one has been tried, too.
        """
        progress = self.begin()
        error: BaseException | None = None
        try:
            yield progress
        except _errors.VolumeFull as raised:
            error = raised
            if of_any_size and await self._takes_others():
                error = None
            raise
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.end(progress, error)

    def begin(self) -> Progress:
        """Note that a write has begun; the caller says by `end` how it went."""
        progress = Progress(self)
        self._attempts.add(progress)
        return progress

    def end(self, progress: Progress, error: BaseException | None) -> None:
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

    def ready(self) -> str | None:
        """Say why nothing can be published now."""
        return self._problem

    def started(self) -> str | None:
        """Say why the volume is not prepared yet."""
        return None if self._prepared else self._problem or "the volume is not prepared yet"

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Prepare the volume, and try again while the last attempt has failed: for `cleanup_ctx`.

        Raises:
            VolumeUnavailable: the file is a mount of its own (`subPath`), and no time will mend that.
        """
        try:
            await self._prepare()
        except _errors.VolumeUnavailable as error:
            if error.errno == errno.EBUSY:
                raise
        except _errors.VolumeFull:
            _log.debug("the volume is full at the start")
        task = asyncio.create_task(self._probe(), name=f"probe of {self._volume.path}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _prepare(self) -> None:
        async with self.attempt():
            await self._volume.prepare(initial=self._initial)
        self._prepared = True

    async def _probe(self) -> None:
        while True:
            await self._failed.wait()
            await asyncio.sleep(PROBE_EVERY)
            try:
                await self._try()
            except (_errors.SidecarError, OSError) as error:
                _log.debug("still not writable: %s", error)

    async def _try(self) -> None:
        if not self._prepared:
            await self._prepare()
        async with self.attempt():
            await self._stage_some()

    async def _takes_others(self) -> bool:
        """Whether there is room for an ordinary content, where there was none for another."""
        if not self._prepared:
            return False
        try:
            await self._stage_some()
        except (_errors.SidecarError, OSError):
            return False
        return True

    async def _stage_some(self) -> None:
        async with self._volume.stage() as upload:
            await upload.write(_PROBE)
            await upload.flush()

    def _set(self, problem: str | None) -> None:
        if problem is self._problem is None and not self._failed.is_set():
            return  # as after nearly every write
        if (problem is None) is not (self._problem is None):
            if problem is None:
                _log.info("%s can be written again", self._volume.path)
            else:
                _log.warning("not ready: %s", problem)
        self._problem = problem
        if problem is not None:
            self._failed.set()
        elif self._prepared:
            self._failed.clear()
