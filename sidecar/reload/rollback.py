"""Publish the last confirmed version again, and remember across restarts what was confirmed and what was refused."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from sidecar import _errors
from sidecar.fs import atomic, flock, openat
from sidecar.process import arguments, executor
from sidecar.volume.content.snapshot import Snapshot
from sidecar.volume.volume import Volume

_log = logging.getLogger(__name__)

_STATE = "..reload"
"""The name of the state beside a content; names that begin with `..` are invisible to readers."""
_STATE_MODE = 0o644
_STATE_BYTES = 64 << 10
_REASON_CHARS = 2000
_LOCK_TIMEOUT = 5.0
_NOT_OURS = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a volume that this container may not write to, as that of a ConfigMap."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that the application did not take, why, and when (Unix time)."""

    version: str
    reason: str
    refused_at: float


def _is_followed(state: str, path: str, *, is_set: bool) -> bool:
    """Whether readers of a path see a state file as part of its content."""
    state, path = os.path.realpath(state), os.path.realpath(path)
    if not is_set:
        return state == path
    below = state.removeprefix(f"{path}/")
    return below != state and not any(part.startswith("..") for part in below.split("/"))


class Rollback:
    """The last version that the application has taken, and the last one that it has refused.

    The contents of the confirmed version are kept in memory; after a restart they come from the history of the volume,
    whose limits decide how long they are there. It is published as any writer publishes: under the lock of the directory,
    within the budget, and only as long as the refused version is still there.

    Args:
        path: the file, or the directory for a set.
        state_file: where to remember both versions; by default beside the content, under a name that readers ignore.
        options: of `sidecar.Volume`.
    """

    def __init__(
        self,
        path: str,
        state_file: str | os.PathLike[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = path
        directory, name = os.path.split(path)
        self._as_file = Volume(directory or os.curdir, **(options or {}))
        self._as_set = Volume(path, **(options or {}))
        if state_file is not None:
            arguments.check_path("state_file", state_file)
        is_set = not name or os.path.isdir(path)
        beside = (
            os.path.join(path, f"{_STATE}.json")
            if is_set
            else os.path.join(directory, f"{_STATE}-{name}.json")
        )
        self._state = beside if state_file is None else os.fspath(state_file)
        if _is_followed(self._state, path, is_set=is_set):
            raise _errors.ConfigError(
                f"state_file is {self._state}, which belongs to what is followed ({path}): each save would be a new version"
                " (give it another directory, or a name that begins with ..)"
            )
        self._kept: Snapshot[None] | None = None
        self._saved: bytes | None = None
        self.confirmed: str | None = None
        """The version that the application has taken last."""
        self.refusal: Refusal | None = None
        """The version that it has refused last; None after another one was tried."""
        self.is_possible = True
        """False once it is known that the confirmed version cannot be published: then no version is given up for it."""

    async def load(self) -> None:
        """Read what an earlier process has remembered. What cannot be read is logged, and forgotten."""
        try:
            state = await executor.run_in_thread(_read_state, self._state)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.warning(
                "%s cannot be used (%s): what was confirmed before is not known",
                self._state,
                error,
                extra={"event": "reload.state_lost"},
            )
            return
        self.confirmed, self.refusal = state

    def must_leave(self, version: str) -> bool:
        """Whether the application has refused this version, no other one has come since, and there is one to go back to."""
        refused = self.refusal is not None and self.refusal.version == version
        return refused and self.has_other_than(version)

    def has_other_than(self, version: str) -> bool:
        """Whether there is a confirmed version to go back to from this one."""
        return self.is_possible and self.confirmed is not None and self.confirmed != version

    async def confirm(self, snapshot: Snapshot[None]) -> None:
        """Remember that the application has taken a version. Another one than the confirmed one ends a refusal."""
        if snapshot.version != self.confirmed:
            self.refusal = None
        self._kept, self.confirmed, self.is_possible = snapshot, snapshot.version, True
        await self._save()

    async def refuse(self, version: str, reason: str) -> None:
        """Remember that the application has not taken a version: it is not tried again until another one comes."""
        self.refusal = Refusal(version, reason[:_REASON_CHARS], time.time())
        await self._save()

    async def publish(self, refused: Snapshot[None]) -> str:
        """Publish the confirmed version in place of the refused one, and return it.

        Raises:
            VersionConflict: something else was published meanwhile.
            PublishError, ReadError: it is not possible now, or not at all: then `is_possible` is False from now on.
            UnknownVersion: the same, since it is not in the history any more.
            PublishUncertain: it is visible, but perhaps not durable.
        """
        if self.confirmed is None:
            raise RuntimeError("there is no confirmed version to publish")
        name = refused.name
        volume = self._as_set if name is None else self._as_file
        try:
            if self._kept is None or not await self._publish_kept(volume, self._kept, refused):
                await volume.rollback(self.confirmed, name=name, if_match=refused.etag)
        except _errors.VersionConflict as error:
            if error.current is None and name is None:
                self.is_possible = False
                raise _errors.PublishError(
                    f"cannot roll back {self._path}: it is no published set but a directory of loose files"
                    " (let its writer publish them as a set, or follow a single file)"
                ) from error
            raise
        except _errors.UnknownVersion:
            self.is_possible = False
            raise
        except _errors.VolumeUnavailable as error:
            self.is_possible = error.errno not in _NOT_OURS
            raise
        return self.confirmed

    @staticmethod
    async def _publish_kept(volume: Volume, kept: Snapshot[None], refused: Snapshot[None]) -> bool:
        """Publish the contents in memory; False if a large one was rewritten on the disk meanwhile."""
        try:
            if refused.name is None:
                await volume.publish(kept.contents(), if_match=refused.etag)
            else:
                await volume.put(refused.name, kept.content(), if_match=refused.etag)
        except _errors.ContentAltered:
            return False
        return True

    async def _save(self) -> None:
        refusal = None if self.refusal is None else asdict(self.refusal)
        data = orjson.dumps(
            {"confirmed": self.confirmed, "refused": refusal}, option=orjson.OPT_APPEND_NEWLINE
        )
        if data == self._saved:
            return
        try:
            await executor.finish_before_cancel(
                executor.run_in_thread(_write_state, self._state, data)
            )
        except (OSError, _errors.SidecarError) as error:
            _log.warning(
                "cannot remember in %s what was confirmed: %s (a restart forgets it; see --state-file)",
                self._state,
                error,
                extra={"event": "reload.state_lost"},
            )
        else:
            self._saved = data


def _read_state(path: str) -> tuple[str | None, Refusal | None]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state = orjson.loads(openat.read_descriptor(fd, _STATE_BYTES, path).data)
    finally:
        os.close(fd)
    confirmed, refused = state["confirmed"], state["refused"]
    if not isinstance(confirmed, str | None):
        raise TypeError("it names no version")
    if refused is None:
        return confirmed, None
    return confirmed, Refusal(
        str(refused["version"]), str(refused["reason"]), float(refused["refused_at"])
    )


def _write_state(path: str, data: bytes) -> None:
    directory, name = os.path.split(os.path.abspath(path))
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with flock.directory_lock(dir_fd, timeout=_LOCK_TIMEOUT, where=directory):
            atomic.replace_file(dir_fd, name, data, _STATE_MODE)
    finally:
        os.close(dir_fd)
