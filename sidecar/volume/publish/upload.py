"""A content that is being received, piece by piece, straight to the disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar import _errors
from sidecar.fs import atomic, open_file, oserrors
from sidecar.fs.openat import StatSignature
from sidecar.process import executor
from sidecar.volume.content import payload
from sidecar.volume.content.snapshot import VERSION_DIGITS, Content
from sidecar.volume.publish import store
from sidecar.volume.publish.models import Operation

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Bytes that an upload gathers before it writes them. Whoever stalls holds so many, times all uploads under way.
_WRITE_BUFFER_BYTES = 1 << 16
#: Bytes that may wait in the page cache: at the end no other writer waits for more than these.
_SYNC_INTERVAL_BYTES = 64 << 20


class Upload:
    """A content that is being received: `write` it, then give it to `Volume.put`. Made by `Volume.stage`.

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
        """Whether it is only tried, and cannot be written: the directory is missing, or old contents must give way first."""
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
        """Whether it was given to `Volume.put`, which counts how that ends."""
        self._file: Any = None

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self._size

    @property
    def version(self) -> str:
        """The version of what was received so far."""
        digest = self._digest.copy()
        digest.update(self._pending)
        return digest.hexdigest()[:VERSION_DIGITS]

    @property
    def path(self) -> Path:
        """Where the bytes lie while they are examined."""
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
        """Append bytes; what they lie in may be changed after that.

        Raises:
            TypeError: they are no bytes.
            PublishError: it has ended: it was published, or dropped.
            ContentTooLarge: they are more than the limit; nothing will be published.
            VolumeFull, VolumeUnavailable: the volume cannot take them.
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
        """Hand what was received to the operating system."""
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
        """Bring what was received to the disk, if it is much and is to be durable: no lock is held for as long as that takes.

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
        """Write what fits; on a full volume older versions give way to a content that is coming in."""
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
        """Make room in the budget; a trial goes on in memory instead, if there could be some."""
        if not self._dry_run:
            admit = self._store.admit_upload
            await executor.run_queued(admit, self._budgeted_as, size, self._where)
        elif await executor.run_queued(self._store.could_admit, size, self._where):
            await self._go_into_memory()

    async def _go_into_memory(self) -> None:
        """Hold what was received, and what is still to come, in memory: `max_size` bounds it."""
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
            PublishError: it was not received whole, or it was published already.
        """
        staged = self._open_file()
        if staged.size != self._size:
            raise _errors.PublishError(
                f"cannot publish {self._where}: {staged.size} of the {self._size} bytes"
                " of the content were received (send it again)"
            )
        return staged, self.version

    async def content(self, name: str) -> Content:
        """Return what was received as a content that is to be copied, for a set.

        Raises:
            PublishError: it was not received whole, or it was published already.
        """
        await self.flush()
        staged, version = self.take()
        return await executor.run_in_thread(_as_content, staged.fd, version, name, self._where)

    def open(self, operation: Operation) -> None:
        """Make the temporary file. Blocking."""
        self._staged = self._store.stage(operation)
        if self._staged is None:
            self._staged, self.in_memory = _MemoryUpload(), True
        self._budgeted_as = self._staged.name

    async def end(self) -> None:
        """Remove what was not published, whatever happens."""
        try:
            if self._file is not None:
                await executor.finish_before_cancel(self._file.close())
        finally:
            if self._staged is not None:
                try:
                    await executor.run_in_thread(self._staged.discard)
                finally:
                    self._staged.discard()  # a cancelled hop may never have begun
                    self._store.end_upload(self._budgeted_as)

    def _open_file(self) -> atomic.TempFile:
        if self._staged is None or self._staged.fd < 0:
            raise _errors.PublishError(
                f"cannot publish {self._where}: this upload has ended (begin another one)"
            )
        return self._staged


class _MemoryUpload(atomic.TempFile):
    """What a trial has received, in memory in place of a temporary file; it can be examined, and not be published."""

    def __init__(self) -> None:
        self.name = ""
        self.size = 0
        self._fd = os.memfd_create("sidecar-trial")
        self._path_fd = self._dir_fd = -1
        self._short_lived = True

    @classmethod
    def of(cls, staged: atomic.TempFile) -> _MemoryUpload:
        """Return one that has received what a file has."""
        memory = cls()
        memory.size = staged.size
        size, offset = os.fstat(staged.fd).st_size, 0
        while offset < size and (sent := os.sendfile(memory.fd, staged.fd, offset, size - offset)):
            offset += sent
        return memory


def _as_content(fd: int, version: str, name: str, where: str) -> Content:
    # A descriptor of its own: the upload is closed at its end, whoever still reads.
    descriptor = os.dup(fd)
    file = open_file.OpenFile(descriptor, StatSignature.of(os.fstat(descriptor)), where)
    return Content(name, file, version, file.signature.mtime_ns / 1e9)


class _Hashed(io.FileIO):
    """A file that goes on with a digest of what is written to it: in the same thread, while it is in the processor's cache."""

    def __init__(self, fd: int, digest: hashlib._Hash) -> None:
        super().__init__(fd, "wb")
        self._digest = digest

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data)
        written = super().write(view) or 0
        self._digest.update(view[:written])
        return written


def _streaming(fd: int, digest: hashlib._Hash) -> Any:
    """Return the file behind a descriptor with methods to await."""
    # Imported here: a program that only reads never needs it.
    from aiofiles.threadpool import wrap

    # A descriptor of its own: nothing that still writes can meet the number of another file.
    return wrap(_Hashed(os.dup(fd), digest), executor=executor.IO_POOL)
