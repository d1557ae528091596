"""Uploads: large content that is received in chunks and written directly to the disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar import _errors
from sidecar.fs import atomic, open_file, oserrors
from sidecar.process import executor
from sidecar.volume.content import payload
from sidecar.volume.content.snapshot import VERSION_DIGITS, Content
from sidecar.volume.publish import store
from sidecar.volume.publish.models import Operation

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Bytes that an upload buffers before it writes them; the memory that a stalled upload uses.
_WRITE_BUFFER_BYTES = 1 << 16
#: Bytes between two syncs: limits how long the final sync, under the lock, blocks other writers.
_SYNC_INTERVAL_BYTES = 64 << 20


class Upload:
    """A content that is being received: `write` it, then pass it to `Volume.put`. Created by `Volume.stage`.

    >>> async def hold(upload: Upload, chunk: bytes) -> str:
    ...     await upload.write(chunk)
    ...     return f"{upload.size} bytes, version {upload.version}"
    """

    def __init__(
        self,
        where: store.Store,
        directory: str,
        name: str | None,
        limit: int,
        *,
        dry_run: bool = False,
    ) -> None:
        self._store = where
        self._dry_run = dry_run
        self.in_memory = False
        """Whether this dry run is kept in memory: the directory is missing, or old versions would have to be removed."""
        self._where = directory if name is None else os.path.join(directory, name)
        self._staged: atomic.TempFile | None = None
        self._directory = directory
        self._limit = limit
        self._digest = hashlib.sha256()
        self._pending = bytearray()
        self._size = 0
        self._synced = 0
        self._budgeted_as = ""
        self.handed_over = False
        """Whether it was passed to `Volume.put`, which counts the result."""
        self._file: Any = None

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self._size

    @property
    def version(self) -> str:
        """The version of what was received so far."""
        return self.digest[:VERSION_DIGITS]

    @property
    def digest(self) -> str:
        """The SHA-256 of what was received so far, in hex digits."""
        digest = self._digest.copy()
        digest.update(self._pending)
        return digest.hexdigest()

    @property
    def path(self) -> Path:
        """The path of the received bytes, for validation."""
        staged = self._open_file()
        if self.in_memory:
            return Path(f"/proc/{os.getpid()}/fd/{staged.fd}")
        return Path(self._directory, staged.name)

    async def copy(self, content: Content) -> None:
        """Append a content that was read from a volume. Raises `ContentAltered`, and as `write`."""
        if isinstance(content.held, bytes):
            await self.write(content.held)
            return
        file = await executor.run_in_thread(content.held.open)
        for start in range(0, file.size, open_file.READ_CHUNK_BYTES):
            await self.write(
                await executor.run_in_thread(file.read, start, open_file.READ_CHUNK_BYTES)
            )

    async def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes. The buffer may be modified afterwards.

        Raises:
            TypeError: `chunk` is not bytes.
            PublishError: the upload has ended: it was published or discarded.
            ContentTooLarge: the limit is exceeded; nothing will be published.
            VolumeFull, VolumeUnavailable: the volume cannot store the bytes.
        """
        if not isinstance(chunk, bytes):
            chunk = memoryview(chunk).cast("B")
        self._open_file()
        self._size += len(chunk)
        if self._size > self._limit:
            raise payload.too_large(self._where, self._limit)
        if len(chunk) >= _WRITE_BUFFER_BYTES:
            await self.flush()
            await self._append(memoryview(chunk))
            return
        self._pending += chunk
        if len(self._pending) >= _WRITE_BUFFER_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write the buffered bytes to the file."""
        if self._pending:
            data, self._pending = self._pending, bytearray()
            await self._append(memoryview(data))

    async def _append(self, data: memoryview) -> None:
        staged = self._open_file()
        with oserrors.map_publish_errors(f"publish {self._where}"):
            if not (self.in_memory or self._store.grow(self._budgeted_as, len(data))):
                await self._admit(len(data))
            staged = self._open_file()
            if self._file is None:
                self._file = _streaming(staged.fd, self._digest)
            remaining = data
            while remaining:
                remaining = remaining[await self._write_some(remaining) :]
        staged = self._open_file()
        staged.size += len(data)
        if staged.size - self._synced >= _SYNC_INTERVAL_BYTES:
            await self.settle()

    async def settle(self) -> None:
        """Sync the received bytes if they are many and must be durable, so that this does not happen under the lock.

        Raises:
            VolumeFull, VolumeUnavailable: the bytes are lost, and the upload has ended.
        """
        staged = self._open_file()
        if (
            not self._store.durable
            or self.in_memory
            or staged.size - self._synced < open_file.LARGE_FILE_BYTES
        ):
            return
        with oserrors.map_publish_errors(f"publish {self._where}"):
            try:
                await executor.finish_before_cancel(
                    executor.run_in_thread(atomic.sync_data, staged.fd)
                )
            except OSError:
                staged.discard()  # a failed sync is never repeated
                raise
        self._synced = staged.size

    async def _write_some(self, view: memoryview) -> int:
        """Write as much as possible; on a full volume, remove old versions and retry."""
        try:
            return int(await executor.finish_before_cancel(self._file.write(view)))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if self._dry_run and not self.in_memory:
                if not await executor.run_queued(self._store.could_admit, len(view), self._where):
                    raise
                await self._go_into_memory()
            elif self._dry_run or not await executor.run_queued(
                self._store.purge_history, len(view)
            ):
                raise
        return int(await executor.finish_before_cancel(self._file.write(view)))

    async def _admit(self, size: int) -> None:
        """Reserve space in the budget; a dry run continues in memory if space could be freed."""
        if not self._dry_run:
            admit = self._store.admit_upload
            await executor.run_queued(admit, self._budgeted_as, size, self._where)
        elif await executor.run_queued(self._store.could_admit, size, self._where):
            await self._go_into_memory()

    async def _go_into_memory(self) -> None:
        """Move the received bytes to memory, and keep further ones there; `max_size` is the limit."""
        staged = self._open_file()
        if self._file is not None:
            await executor.finish_before_cancel(self._file.close())
        self._staged = await executor.run_in_thread(_MemoryUpload.of, staged)
        await executor.run_in_thread(staged.discard)
        self._store.end_upload(self._budgeted_as)
        self._file = _streaming(self._staged.fd, self._digest)
        self.in_memory = True

    def take(self) -> tuple[atomic.TempFile, str]:
        """Return the flushed file and its version.

        Raises:
            PublishError: the upload is incomplete, or was already published.
        """
        staged = self._open_file()
        if staged.size != self._size:
            raise _errors.PublishError(
                f"cannot publish {self._where}: {staged.size} of the {self._size} bytes"
                " of the content were received (send it again)"
            )
        return staged, self.version

    async def content(self, name: str) -> Content:
        """Return the received bytes as a `Content` to copy, for a set.

        Raises:
            PublishError: the upload is incomplete, or was already published.
        """
        await self.flush()
        staged, version = self.take()
        return await executor.run_in_thread(
            payload.as_content, staged.fd, version, name, self._where
        )

    def open(self, operation: Operation) -> None:
        """Create the temporary file. Blocking."""
        self._staged = self._store.stage(operation)
        if self._staged is None:
            self._staged, self.in_memory = _MemoryUpload(), True
        self._budgeted_as = self._staged.name

    async def end(self) -> None:
        """Discard the upload if it was not published."""
        try:
            if self._file is not None:
                await executor.finish_before_cancel(self._file.close())
        finally:
            if self._staged is not None:
                try:
                    await executor.run_in_thread(self._staged.discard)
                finally:
                    self._staged.discard()  # the call in the thread may never have started if cancelled
                    self._store.end_upload(self._budgeted_as)

    def _open_file(self) -> atomic.TempFile:
        if self._staged is None or self._staged.fd < 0:
            raise _errors.PublishError(
                f"cannot publish {self._where}: this upload has ended (begin another one)"
            )
        return self._staged


class _MemoryUpload(atomic.TempFile):
    """The bytes of a dry run, in memory instead of a temporary file; they can be validated, but not published."""

    def __init__(self) -> None:
        self.name = ""
        self.size = 0
        self._fd = os.memfd_create("sidecar-trial")
        self._path_fd = self._dir_fd = -1
        self._short_lived = True

    @classmethod
    def of(cls, staged: atomic.TempFile) -> _MemoryUpload:
        """Return a copy of a temporary file in memory."""
        memory = cls()
        memory.size = staged.size
        size, offset = os.fstat(staged.fd).st_size, 0
        while offset < size and (sent := os.sendfile(memory.fd, staged.fd, offset, size - offset)):
            offset += sent
        return memory


class _Hashed(io.FileIO):
    """A file that updates a digest with each write, in the same thread while the data is in the CPU cache."""

    def __init__(self, fd: int, digest: hashlib._Hash) -> None:
        super().__init__(fd, "wb")
        self._digest = digest

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data)
        written = super().write(view) or 0
        self._digest.update(view[:written])
        return written


def _streaming(fd: int, digest: hashlib._Hash) -> Any:
    """Return an asynchronous file object for a descriptor."""
    # Imported here because programs that only read do not need it.
    from aiofiles.threadpool import wrap

    # A duplicate descriptor: a late write must not hit a reused descriptor number.
    return wrap(_Hashed(os.dup(fd), digest), executor=executor.IO_POOL)
