"""A volume without an event loop: each method blocks until the asynchronous one is done."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack, overload

from sidecar.process import arguments
from sidecar.sync.background import run
from sidecar.sync.watching import Watch
from sidecar.volume import volume as volumes
from sidecar.volume.content.snapshot import MAX_SIZE, Content, Snapshot, T
from sidecar.volume.publish import models, upload
from sidecar.volume.publish.history import Version
from sidecar.volume.publish.models import Publication
from sidecar.volume.validation import gate as gates
from sidecar.volume.volume import Durability
from sidecar.volume.watch.options import VolumeOptions, of_volume


def publish_file(
    path: str | os.PathLike[str],
    content: volumes.PublishSource,
    *,
    mode: int = volumes.FILE_MODE,
    group: int | None = None,
    keep: int = volumes.KEEP_VERSIONS,
    durability: Durability = "full",
    if_match: str | Collection[str] | None = None,
    if_none_match: str | Collection[str] | None = None,
) -> Publication:
    """Publish one file, whole and durable, and return its version; see `sidecar.publish_file`.

    Raises:
        ConfigError, TypeError, PublishError, PublishUncertain: as that does.

    >>> import tempfile
    >>> from sidecar import sync
    >>> with tempfile.TemporaryDirectory() as shared:
    ...     sync.publish_file(f"{shared}/config", "debug: true").changed
    True
    """
    return run(
        volumes.publish_file(
            path,
            content,
            mode=mode,
            group=group,
            keep=keep,
            durability=durability,
            if_match=if_match,
            if_none_match=if_none_match,
        )
    )


class Upload:
    """A content that is being received: `write` it, then give it to `Volume.put`. Made by `Volume.stage`.

    >>> def receive(volume: Volume, chunks: list[bytes]) -> None:
    ...     with volume.stage("large.bin") as upload:
    ...         for chunk in chunks:
    ...             upload.write(chunk)
    ...         volume.put("large.bin", upload)
    """

    def __init__(self, inner: upload.Upload) -> None:
        self._inner = inner

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self._inner.size

    @property
    def version(self) -> str:
        """The version of what was received so far."""
        return self._inner.version

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes. Raises `ContentTooLarge`, `VolumeFull`, `VolumeUnavailable`."""
        run(self._inner.write(chunk))


class Volume:
    """A directory that containers share, as `sidecar.Volume`, with the same arguments, methods, guarantees and errors.

    >>> import tempfile
    >>> from sidecar import sync
    >>> with tempfile.TemporaryDirectory() as shared:
    ...     volume = sync.Volume(shared)
    ...     _ = volume.publish({"index.html": "<h1>Hello</h1>", "at.txt": "noon"})
    ...     volume.snapshot().text("at.txt")
    'noon'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mode: int = volumes.FILE_MODE,
        group: int | None = None,
        keep: int = volumes.KEEP_VERSIONS,
        keep_bytes: int | str = volumes.KEEP_BYTES,
        keep_deleted: int = volumes.KEEP_DELETED_FILES,
        volume_budget: int | str | None = None,
        grace: float = volumes.GRACE_SECONDS,
        max_size: int | str = MAX_SIZE,
        gate: gates.Gate | Mapping[str, Any] | gates.Validate | None = None,
        durability: Durability = "full",
    ) -> None:
        self._inner = volumes.Volume(
            path,
            mode=mode,
            group=group,
            keep=keep,
            keep_bytes=keep_bytes,
            keep_deleted=keep_deleted,
            volume_budget=volume_budget,
            grace=grace,
            max_size=max_size,
            gate=gate,
            durability=durability,
        )
        self._max_size = max_size

    def __repr__(self) -> str:
        return f"<sync.{repr(self._inner)[1:]}"

    @property
    def path(self) -> str:
        """The directory, as it was given."""
        return self._inner.path

    @property
    def published(self) -> Publication | None:
        """The last publication by this object: it tells after an interrupted publish whether that happened."""
        return self._inner.published

    def prepare(self, *, initial: Mapping[str, bytes | str] | None = None) -> None:
        """Create the directory, remove what killed writers left, and publish `initial` files that are missing."""
        run(self._inner.prepare(initial=initial))

    def publish(
        self,
        files: Mapping[str, volumes.PublishSource | Upload],
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish a whole set: readers see all of these files change at once, and no others remain in it."""
        arguments.check_mapping("publish", files)
        sources = {name: _unwrap(content) for name, content in files.items()}
        return run(
            self._inner.publish(
                sources, if_match=if_match, if_none_match=if_none_match, dry_run=dry_run
            )
        )

    def put(
        self,
        name: str,
        content: volumes.PublishSource | Upload,
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish one file: readers see the old content or the new one, and the new one is durable."""
        return run(
            self._inner.put(
                name,
                _unwrap(content),
                if_match=if_match,
                if_none_match=if_none_match,
                dry_run=dry_run,
            )
        )

    def delete(
        self,
        name: str,
        *,
        if_match: str | Collection[str] | None = None,
        dry_run: bool = False,
        purge: bool = False,
    ) -> Publication | None:
        """Remove one file; return the set that is left, None for a loose file."""
        return run(self._inner.delete(name, if_match=if_match, dry_run=dry_run, purge=purge))

    @contextmanager
    def stage(
        self,
        name: str | None = None,
        *,
        limit: int | str | None = None,
        dry_run: bool = False,
    ) -> Iterator[Upload]:
        """Receive a large content piece by piece, straight to the disk: `put` publishes it, else it is dropped.

        With `dry_run` it is a trial: what fails counts as no publish. Give `put` the same.
        """
        staging = self._inner.stage(name, limit=limit, dry_run=dry_run)
        inner = run(staging.__aenter__())
        try:
            yield Upload(inner)
        except BaseException as error:
            # It does not swallow it: it counts a publish that has failed, and drops what was received.
            run(staging.__aexit__(type(error), error, error.__traceback__))
            raise
        run(staging.__aexit__(None, None, None))

    def read(self, name: str) -> Content:
        """Return one file as it is now; a large one is held open and not in memory."""
        return run(self._inner.read(name))

    def names(self) -> dict[str, int]:
        """Return the names of the files, with their sizes in bytes."""
        return run(self._inner.names())

    def entries(self) -> list[models.FileInfo]:
        """Return the files with version, size and time, sorted by name."""
        return run(self._inner.entries())

    def snapshot(self) -> Snapshot[None]:
        """Return all files as they are at this moment."""
        return run(self._inner.snapshot())

    def versions(self, name: str | None = None) -> list[Version]:
        """Return the history of a loose file, or of the set, newest first, the present content included."""
        return run(self._inner.versions(name))

    def rollback(
        self,
        version: str,
        *,
        name: str | None = None,
        if_match: str | Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish an older content again. `version` may be an entity tag."""
        return run(self._inner.rollback(version, name=name, if_match=if_match, dry_run=dry_run))

    def check_writable(self) -> None:
        """Try what a publish needs, and leave nothing behind. Raises `PublishError` if one would fail now."""
        run(self._inner.check_writable())

    @overload
    def watch(
        self,
        *,
        schema: None = None,
        stop_event: threading.Event | None = None,
        **options: Unpack[VolumeOptions],
    ) -> Watch[None]: ...
    @overload
    def watch(
        self,
        *,
        schema: Callable[[Snapshot[Any]], T],
        stop_event: threading.Event | None = None,
        **options: Unpack[VolumeOptions],
    ) -> Watch[T]: ...
    def watch(
        self,
        *,
        schema: Callable[[Snapshot[Any]], Any] | None = None,
        stop_event: threading.Event | None = None,
        **options: Unpack[VolumeOptions],
    ) -> Watch[Any]:
        """Keep the volume up to date in the background; see `sidecar.sync.watch` for the arguments.

        `max_size` None is that of the volume.

        Raises:
            ConfigError: an argument makes no sense.
        """
        return Watch(
            self.path if self.path.endswith("/") else self.path + "/",
            schema=schema,
            stop_event=stop_event,
            **of_volume(options, self._max_size),
        )


def _unwrap(content: volumes.PublishSource | Upload) -> volumes.PublishSource:
    return content._inner if isinstance(content, Upload) else content  # noqa: SLF001 (of this module)
