"""Write lines to a rotating file, each exactly once.

The checkpoint contains the length of the output file together with the positions of the source.
At the next start the file is truncated to that length, before lines are written again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from sidecar import _errors
from sidecar.fs import atomic, dirs, flock, oserrors
from sidecar.logs.records import MAX_BLOCK_RECORDS, Batch
from sidecar.logs.sinks import schemas
from sidecar.logs.sinks.base import BaseSink, Batching, Receipt, SinkUnavailable
from sidecar.logs.sinks.line_output import encode_batch
from sidecar.process import arguments
from sidecar.process.executor import run_in_thread

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)
_RETRYABLE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit for the size of files, or let it rotate by max_bytes",
}
_MAX_IOVECS = 512  # below IOV_MAX
_MAX_WRITE_BYTES = 512 << 10
"""Bytes of one system call. Above 1 MiB ext4 uses huge pages for its cache: writing took twice as long where those
have to be cleared or allocated first, as in a virtual machine."""


@dataclass(frozen=True, slots=True)
class _FileLength:
    """The length of a file that is identified by device and inode."""

    device: int
    inode: int
    size: int

    @classmethod
    def of(cls, raw: Any) -> _FileLength | None:
        """Return the position in `resume`, None if it is not one of this sink."""
        try:
            return cls(int(raw["device"]), int(raw["inode"]), int(raw["size"]))
        except (TypeError, KeyError, ValueError, OverflowError):
            return None


class FileSink(BaseSink):
    """Appends each line to a file: unchanged, or as a JSON object if a stage has changed it.

    With a checkpoint each line is written exactly once, even if the collector is killed.
    Only the sink may write the file: data that other processes append may be truncated at the next start.
    If another program renames it (logrotate), the sink continues in a new file.
    While the volume is full, the sink waits; no line is lost or written partially.
    A failed sync ends the collection: lines since the last checkpoint are written again at the next start.

    Args:
        path: the file. A missing directory is created.
        json: write every line as a JSON object.
        schema, prefix: the structure of such an object; see `sidecar.logs.sinks.schemas`.
        max_bytes: size at which the file is rotated; None: never.
        keep: number of rotated files to keep, as `PATH.1` (the newest), `PATH.2`, …
        mode: permissions of new files, whatever the umask.

    >>> FileSink("/shared/all.log", max_bytes=64 << 20, keep=3).name
    'file:///shared/all.log'
    """

    takes_blocks = True
    batching = Batching(max_bytes=2 << 20)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        json: bool = False,
        max_bytes: int | str | None = None,
        keep: int = 5,
        mode: int = 0o644,
        name: str | None = None,
        schema: str = "plain",
        prefix: str | None = None,
    ) -> None:
        limit = None if max_bytes is None else arguments.check_size("max_bytes", max_bytes, least=1)
        self.path = os.path.abspath(arguments.check_path("path", path))
        if os.path.isdir(self.path) or os.fspath(path).endswith("/"):
            raise _errors.ConfigError(
                f"cannot write to {os.fspath(path)}: it is a directory (name a file in it)"
            )
        self.name = name or f"file://{self.path}"
        self.own_files = (self.path,)
        self._schema = schemas.named(schema, prefix)
        if json:
            self.batching = replace(self.batching, max_lines=MAX_BLOCK_RECORDS)
        self._json, self._max = json, limit
        self._keep, self._mode = (
            arguments.check_integer("keep", keep),
            arguments.check_mode("mode", mode),
        )
        self._fd = -1
        self._size = 0
        self._synced = True
        self._sync_error: str | None = None
        # `flush` and `write` are called by different tasks, and so run in different threads.
        self._turn = threading.Lock()

    async def open(self, resume: Any) -> dict[str, int]:
        """Open the file, and truncate it to the length in the checkpoint.

        Raises:
            SidecarError: another collector has the file open, or it cannot be opened.
        """
        try:
            return await run_in_thread(self._open, _FileLength.of(resume))
        except OSError as error:
            raise _errors.SidecarError(
                f"cannot write to {self.path}: {oserrors.hint(error)}"
            ) from error

    async def write(self, batch: Batch) -> Receipt:
        pieces = encode_batch(batch, json=self._json, schema=self._schema)
        return Receipt(resume=await run_in_thread(self._run_locked, self._append, pieces))

    async def flush(self) -> None:
        await run_in_thread(self._run_locked, self._sync)

    async def close(self) -> None:
        await run_in_thread(self._run_locked, self._close)

    # -- blocking

    def _run_locked(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._turn:
            return function(*args, **kwargs)

    def _open(self, resume: _FileLength | None) -> dict[str, int]:
        dirs.make_directory(os.path.dirname(self.path))
        if resume is not None:
            self._truncate_to(resume)
        self._create_file()
        return self._position()

    def _position(self) -> dict[str, int]:
        status = os.fstat(self._fd)
        return {"device": status.st_dev, "inode": status.st_ino, "size": self._size}

    def _create_file(self) -> None:
        flags = (
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
        try:
            fd = os.open(self.path, flags | os.O_EXCL, self._mode)
        except FileExistsError:
            fd = os.open(self.path, flags)
        else:
            # The umask has removed bits. Volumes without modes keep their own.
            with contextlib.suppress(PermissionError):
                os.fchmod(fd, self._mode)
        if not flock.try_lock(fd):
            os.close(fd)
            raise _errors.SidecarError(
                f"cannot write to {self.path}: another collector does (give each its own file)"
            )
        self._fd, self._size = fd, os.fstat(fd).st_size

    def _truncate_to(self, known: _FileLength) -> None:
        """Truncate what was written after the position in the checkpoint."""
        generations = [self.path, *(self._numbered(n) for n in range(1, self._keep + 2))]
        for index, path in enumerate(generations):
            with contextlib.suppress(OSError):
                status = os.stat(path, follow_symlinks=False)
                if (status.st_dev, status.st_ino) != (known.device, known.inode):
                    continue
                if status.st_size > known.size:
                    os.truncate(path, known.size)
                    _log.info("cut %d repeated bytes off %s", status.st_size - known.size, path)
                if index and self._max is not None:
                    # The file was rotated since. Newer files only contain lines that are written again.
                    for younger in generations[:index]:
                        with contextlib.suppress(FileNotFoundError):  # killed between two renames
                            os.unlink(younger)
                    atomic.rename(path, self.path)
                return

    def _append(self, pieces: Sequence[bytes]) -> dict[str, int]:
        self._follow_path()
        if self._max is not None and self._size and self._size + sum(map(len, pieces)) > self._max:
            self._rotate()
        before = self._size
        try:
            for part in _group_for_writev(pieces):
                self._size += _write_all(self._fd, part)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, before)
            self._size = before
            if error.errno not in _RETRYABLE_ERRNOS:
                raise
            raise SinkUnavailable(
                f"cannot write to {self.path}: {os.strerror(error.errno or 0).lower()}"
                f" ({_REMEDIES.get(error.errno, 'look after its volume')}; lines wait meanwhile)"
            ) from error
        self._synced = False
        return self._position()

    def _follow_path(self) -> None:
        """Open a new file if another program has renamed or removed the present one."""
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            self._close()
            self._create_file()
        elif ours.st_size != self._size:
            self._size = ours.st_size  # truncated in place

    def _rotate(self) -> None:
        self._close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._numbered(self._keep + 1))
        # One more file is kept until the next rotation: a restart may have to continue in it.
        for number in range(self._keep, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                atomic.rename(self._numbered(number), self._numbered(number + 1))
        atomic.rename(self.path, self._numbered(1))
        self._create_file()

    def _sync(self) -> None:
        """Sync the file. A failed sync is not retried: fsync(2) may report success although data is lost.

        Raises:
            SidecarError: it has failed. After the next start the lines are written and synced again.
        """
        if self._fd >= 0 and not self._synced and self._sync_error is None:
            try:
                atomic.sync_data(self._fd)
            except OSError as error:
                self._sync_error = os.strerror(error.errno or 0).lower()
            else:
                self._synced = True
        if self._sync_error is not None:
            raise _errors.SidecarError(
                f"cannot make {self.path} durable: {self._sync_error} (look after its volume;"
                " what was written since the last checkpoint is written again at the next start)"
            )

    def _close(self) -> None:
        if self._fd >= 0:
            try:
                self._sync()
            finally:
                fd, self._fd = self._fd, -1
                os.close(fd)

    def _numbered(self, number: int) -> str:
        return f"{self.path}.{number}"


def _group_for_writev(pieces: Sequence[bytes]) -> Iterator[list[memoryview]]:
    """Group the pieces for writev(2)."""
    part, size = list[memoryview](), 0
    for piece in pieces:
        if part and (size + len(piece) > _MAX_WRITE_BYTES or len(part) == _MAX_IOVECS):
            yield part
            part, size = [], 0
        if piece:
            part.append(memoryview(piece))
            size += len(piece)
    yield part


def _write_all(fd: int, pieces: list[memoryview]) -> int:
    total = 0
    while pieces:
        written = os.writev(fd, pieces)
        total += written
        while pieces and written >= len(pieces[0]):
            written -= len(pieces.pop(0))
        if written:
            pieces[0] = pieces[0][written:]
    return total
