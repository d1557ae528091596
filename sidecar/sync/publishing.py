"""Volumes without an event loop: each method blocks until the asynchronous one is done."""

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
from sidecar.volume.content.metadata import Metadata
from sidecar.volume.content.snapshot import MAX_SIZE, Content, Snapshot, T
from sidecar.volume.publish import models, upload
from sidecar.volume.publish.history import Version
from sidecar.volume.publish.models import Publication
from sidecar.volume.validation import gate as gates
from sidecar.volume.validation.signatures import KeyFiles
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
    metadata: Metadata | None = None,
) -> Publication:
    """Publish one file atomically and durably, and return its publication; see `sidecar.publish_file`.

    Raises:
        ConfigError, TypeError, PublishError, PublishUncertain: as `sidecar.publish_file`.

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
            metadata=metadata,
        )
    )


class Upload:
    """A content that is being received: `write` it, then pass it to `Volume.put`. Created by `Volume.stage`.

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
        verify_key: KeyFiles = (),
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
            verify_key=verify_key,
            durability=durability,
        )
        self._max_size = max_size
        self._verify_key = verify_key

    def __repr__(self) -> str:
        return f"<sync.{repr(self._inner)[1:]}"

    @property
    def path(self) -> str:
        """The directory as passed to the constructor."""
        return self._inner.path

    @property
    def published(self) -> Publication | None:
        """The last publication by this object; after an interrupted publish it shows whether that one completed."""
        return self._inner.published

    def prepare(self, *, initial: Mapping[str, bytes | str] | None = None) -> None:
        """Create the directory, remove leftovers of killed writers, and publish the `initial` files that are missing."""
        run(self._inner.prepare(initial=initial))

    def publish(
        self,
        files: Mapping[str, volumes.PublishSource | Upload],
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish a whole set: readers see all files change at once, and files that are not in `files` disappear."""
        arguments.check_mapping("publish", files)
        sources = {name: _unwrap(content) for name, content in files.items()}
        return run(
            self._inner.publish(
                sources,
                if_match=if_match,
                if_none_match=if_none_match,
                metadata=metadata,
                dry_run=dry_run,
            )
        )

    def update(
        self,
        changes: Mapping[str, volumes.PublishSource | Upload | None],
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish changes of a set: readers see all of them at once, and files that are not in `changes` stay."""
        arguments.check_mapping("update", changes)
        sources = {
            name: None if content is None else _unwrap(content) for name, content in changes.items()
        }
        return run(
            self._inner.update(
                sources,
                if_match=if_match,
                if_none_match=if_none_match,
                metadata=metadata,
                dry_run=dry_run,
            )
        )

    def validate(self, name: str, content: volumes.PublishSource | Upload) -> None:
        """Have the gate validate a content, as `put` does before it publishes; nothing is published."""
        run(self._inner.validate(name, _unwrap(content)))

    def put(
        self,
        name: str,
        content: volumes.PublishSource | Upload,
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish one file: readers see either the old or the new content. It is durable when this returns."""
        return run(
            self._inner.put(
                name,
                _unwrap(content),
                if_match=if_match,
                if_none_match=if_none_match,
                metadata=metadata,
                dry_run=dry_run,
            )
        )

    def delete(
        self,
        name: str,
        *,
        if_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
        purge: bool = False,
    ) -> Publication | None:
        """Delete one file; return the publication of the remaining set, None for a loose file."""
        return run(
            self._inner.delete(
                name, if_match=if_match, metadata=metadata, dry_run=dry_run, purge=purge
            )
        )

    @contextmanager
    def stage(
        self,
        name: str | None = None,
        *,
        limit: int | str | None = None,
        dry_run: bool = False,
    ) -> Iterator[Upload]:
        """Receive large content in chunks, written directly to the disk; discarded unless `put` publishes it.

        With `dry_run`, failures are not counted. Pass the same `dry_run` to `put`.
        """
        staging = self._inner.stage(name, limit=limit, dry_run=dry_run)
        inner = run(staging.__aenter__())
        try:
            yield Upload(inner)
        except BaseException as error:
            # It does not suppress the exception, but counts a failed publish and discards the upload.
            run(staging.__aexit__(type(error), error, error.__traceback__))
            raise
        run(staging.__aexit__(None, None, None))

    def read(self, name: str) -> Content:
        """Return one file as it is now. A large file is kept open instead of in memory."""
        return run(self._inner.read(name))

    def names(self) -> dict[str, int]:
        """Return the file names and their sizes in bytes."""
        return run(self._inner.names())

    def entries(self) -> list[models.FileInfo]:
        """Return the files with version, size and time, sorted by name."""
        return run(self._inner.entries())

    def snapshot(self) -> Snapshot[None]:
        """Return all files as they are now."""
        return run(self._inner.snapshot())

    def versions(self, name: str | None = None) -> list[Version]:
        """Return the versions of a loose file, or of the set, newest first, including the current one."""
        return run(self._inner.versions(name))

    def rollback(
        self,
        version: str,
        *,
        name: str | None = None,
        if_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish an older version again. `version` may be an entity tag."""
        return run(
            self._inner.rollback(
                version, name=name, if_match=if_match, metadata=metadata, dry_run=dry_run
            )
        )

    def check_writable(self) -> None:
        """Test whether a publish would work now, without leaving anything behind. Raises `PublishError` if not."""
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

        `max_size` None means that of the volume.

        Raises:
            ConfigError: an argument is invalid.
        """
        return Watch(
            self.path if self.path.endswith("/") else self.path + "/",
            schema=schema,
            stop_event=stop_event,
            **of_volume(options, self._max_size, self._verify_key),
        )


def _unwrap(content: volumes.PublishSource | Upload) -> volumes.PublishSource:
    return content._inner if isinstance(content, Upload) else content  # noqa: SLF001 (of this module)
