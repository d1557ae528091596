"""Publish to a directory that containers share: one file, or a set of files that belong together.

When a publish returns, the content is visible, and durable unless `durability="none"`.
When a publish raises, either nothing was published (`PublishError`),
or the content is visible but perhaps not durable (`PublishUncertain`). Content is never published partially.
A cancelled publish is rolled back if its content is not visible yet; otherwise it completes first.
`Volume.published` is the last completed publication.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Literal, TypeVar, Unpack, get_args, overload

from sidecar import _errors
from sidecar.fs import oserrors
from sidecar.process import arguments, executor, request_context, tracing
from sidecar.volume import outcomes
from sidecar.volume.content import local_file, payload
from sidecar.volume.content import snapshot as snapshots
from sidecar.volume.content.metadata import Metadata, described_by, is_publisher_name
from sidecar.volume.content.snapshot import MAX_SIZE, Content, Snapshot, T, to_bytes
from sidecar.volume.content.source_state import SourceState
from sidecar.volume.publish import group_commit, history, models, store
from sidecar.volume.publish.group_commit import Outcome, PendingWrite
from sidecar.volume.publish.models import (
    FileInfo,
    Operation,
    Preconditions,
    Publication,
    VolumeConfig,
)
from sidecar.volume.publish.upload import Upload
from sidecar.volume.validation import gate as gates
from sidecar.volume.validation import signature_filter, signatures
from sidecar.volume.watch import options as watch_options
from sidecar.volume.watch import watch as watches

R = TypeVar("R")

too_large = payload.too_large

PublishSource = bytes | str | os.PathLike[str] | Content | Upload
"""The types of content that can be published; a path means the bytes of that file."""

Durability = Literal["full", "none"]
DURABILITIES: Final[tuple[str, ...]] = get_args(Durability)

FILE_MODE = 0o644
KEEP_VERSIONS = 10
KEEP_BYTES = 256 << 20
KEEP_DELETED_FILES = 10
GRACE_SECONDS = 30.0
_EXPIRY_DELAY = 0.1


_VOLUMES: weakref.WeakSet[Volume] = weakref.WeakSet()


def _after_fork() -> None:
    for volume in list(_VOLUMES):
        volume._reset_after_fork()  # noqa: SLF001 (of this module)


os.register_at_fork(after_in_child=_after_fork)


class Volume:
    """A directory that containers share.

    `put` publishes one file. `publish` publishes a whole set in the layout of Kubernetes volumes,
    so that readers see all files change together. Once a set is active, `put` and `delete` publish a new generation.

    Several writers in several containers of one node may publish to the same directory.
    A volume may be used from several event loops, and in processes that are forked later.
    Nothing is changed on the disk until the first publish, or `prepare`, creates the directory (mode 0755).

    Args:
        path: the directory.
        mode: permissions of the files, independent of the umask. The same content with another mode or group
            is published again.
        group: numeric group of the files, as with `fsGroup`; None leaves it to the directory.
        keep: versions of a file or of the set in the history, including the current one;
            on a full volume older versions are removed first.
        keep_bytes: bytes of older versions of all files together; the oldest are removed first.
        keep_deleted: deleted files whose versions are kept; those published longest ago are removed first.
        volume_budget: disk space in bytes that the directory may use: contents, history and temporary files,
            including those of other publishers, each hard-linked file counted once. Above it, versions are removed
            from the history, then `VolumeFull` is raised; `delete` always works. None: no limit.
        grace: seconds for which a replaced generation stays in place for readers that are still using it.
        max_size: maximum bytes of one content, also as a string: `"64Mi"`.
        gate: validates each content before it is published: a `Gate`, a JSON Schema as a mapping,
            or a function (or coroutine function) that gets the `Content` and raises or returns False to reject it.
        verify_key: the path of a file with ed25519 public keys (PEM), or several: only what one of them has signed
            is published and read (extra `sign`). The files are reloaded when they change.
        durability: `full`: published content survives a power failure.
            `none` skips both syncs. Readers still see either the old or the new content, complete,
            and killing the process loses nothing. After a power failure or a kernel crash,
            older content may be there, or on some file systems empty or incomplete content.

    Raises:
        ConfigError: an argument is invalid; the message says what is allowed.

    >>> import asyncio, tempfile
    >>> async def main() -> None:
    ...     with tempfile.TemporaryDirectory() as shared:
    ...         volume = Volume(shared)
    ...         await volume.publish({"index.html": "<h1>Hello</h1>", "at.txt": "noon"})
    ...         print((await volume.snapshot()).text("at.txt"))
    >>> asyncio.run(main())
    noon
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mode: int = FILE_MODE,
        group: int | None = None,
        keep: int = KEEP_VERSIONS,
        keep_bytes: int | str = KEEP_BYTES,
        keep_deleted: int = KEEP_DELETED_FILES,
        volume_budget: int | str | None = None,
        grace: float = GRACE_SECONDS,
        max_size: int | str = MAX_SIZE,
        gate: gates.Gate | Mapping[str, Any] | gates.Validate | None = None,
        verify_key: signatures.KeyFiles = (),
        durability: Durability = "full",
    ) -> None:
        self._path = arguments.check_path("path", path)
        self._max_size = arguments.check_size("max_size", max_size)
        self._verify_key = verify_key
        self._verifier = signatures.make_verifier("verify_key", verify_key)
        settings = VolumeConfig(
            os.path.abspath(self._path),
            arguments.check_mode("mode", mode),
            arguments.check_group("group", group),
            arguments.check_integer("keep", keep),
            arguments.check_seconds("grace", grace),
            self._max_size,
            arguments.check_choice("durability", durability, DURABILITIES) == "full",
            arguments.check_size("keep_bytes", keep_bytes),
            arguments.check_integer("keep_deleted", keep_deleted),
            None if volume_budget is None else arguments.check_size("volume_budget", volume_budget),
            None if self._verifier is None else partial(self._verifier.check_set, self._path),
        )
        self._store = store.Store(settings)
        self._gate = gates.make_gate(gate)
        self._publisher = _pod_name()
        self._prepared = False
        self._published: Publication | None = None
        self._commits: group_commit.GroupCommit | None = None
        self._commits_by_loop: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, group_commit.GroupCommit
        ]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reset_after_fork()
        _VOLUMES.add(self)

    def __repr__(self) -> str:
        version = self._published.version[:8] if self._published is not None else None
        return f"<Volume {self._path} version={version}>"

    @property
    def path(self) -> str:
        """The directory as passed to the constructor."""
        return self._path

    @property
    def published(self) -> Publication | None:
        """The last publication by this object; after a cancelled publish it shows whether that one completed."""
        return self._published

    @property
    def budget(self) -> int | None:
        """The disk space in bytes that the directory may use, None without a limit."""
        return self._store.budget

    @property
    def used(self) -> int | None:
        """The disk space in bytes that the directory uses, as far as this object knows; None without a budget."""
        return self._store.used

    async def measure(self) -> int | None:
        """Measure the disk space that the directory uses, and return `used`. Raises `VolumeUnavailable`."""
        await executor.finish_before_cancel(executor.run_queued(self._store.measure))
        return self.used

    async def prepare(self, *, initial: Mapping[str, bytes | str] | None = None) -> None:
        """Create the directory, remove leftovers of killed writers, and publish the `initial` files that are missing.

        Existing content is kept. The first publish does this automatically, without initial files.
        With `verify_key` there are none: nobody has signed them.

        Raises:
            VolumeUnavailable: no permission, a read-only file system, or a file that is a mount point (`subPath`).
        """
        if initial is not None:
            arguments.check_mapping("initial", initial)
        files = {name: to_bytes(content) for name, content in (initial or {}).items()}
        if self._verifier is not None:
            files = {}  # nobody has signed them
        operation = Operation()
        await executor.finish_before_cancel(
            executor.run_queued(self._store.prepare, files, operation), operation.cancel
        )
        self._prepared = True

    async def publish(
        self,
        files: Mapping[str, PublishSource],
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish a whole set: readers see all files change at once, and files that are not in `files` disappear.

        The set is durable when this returns. If the same set is already active, nothing changes.
        A large file (`os.PathLike`), `Upload`, or `Content` read from a volume is copied in chunks.
        `metadata` is that of the set, without `content_type`; see `Metadata`.
        `if_match` and `if_none_match` are compared with the entity tag of the active set; versions are accepted, too.

        Raises:
            TypeError: a content or a name has the wrong type. Nothing was done.
            NothingPublished, ReadError: a file to publish is missing or cannot be read.
            ContentRefused: the gate rejected a file.
            ContentAltered: a large `Content` has changed since it was read.
            VersionConflict: a precondition failed.
            VolumeFull, VolumeUnavailable: an error of the operating system.
            PublishUncertain: the set is visible, but perhaps not durable.
        """
        arguments.check_mapping("publish", files)
        for name, content in files.items():
            models.check_text(name)
            _check_content(content)
        operation = self._operation(if_match, if_none_match, dry_run, _of_set(metadata))

        async def work() -> Publication:
            models.check_names(files)
            contents = {name: await self._load(name, source) for name, source in files.items()}
            self._check_size(self._path, sum(map(payload.size, contents.values())))
            if self._verifier is not None:
                await executor.run_in_thread(self._verifier.check_set, self._path, contents)
            for name, data in contents.items():
                await self._validate(name, data, dry_run=dry_run)
            return await self._run_step(self._store.publish, contents, operation=operation)

        return await self._with_metrics(work, self._attempt("publish", None, operation), operation)

    async def update(
        self,
        changes: Mapping[str, PublishSource | None],
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish changes of a set: readers see all of them at once, and files that are not in `changes` stay.

        None removes a file; one that is missing already is no error. The cost depends on the changes, not on the set.
        A directory without a set gets one, of the given files alone; loose files in it are then hidden, as by `publish`. Arguments, guarantees and errors are otherwise those of `publish`.

        >>> import asyncio, tempfile
        >>> async def main() -> None:
        ...     with tempfile.TemporaryDirectory() as shared:
        ...         volume = Volume(shared)
        ...         await volume.publish({"a": "1", "b": "2"})
        ...         await volume.update({"b": "changed", "c": "3", "a": None})
        ...         print(sorted(await volume.snapshot()))
        >>> asyncio.run(main())
        ['b', 'c']
        """
        arguments.check_mapping("update", changes)
        for name, content in changes.items():
            models.check_text(name)
            if content is not None:
                _check_content(content)
        operation = self._operation(if_match, if_none_match, dry_run, _of_set(metadata))

        async def work() -> Publication:
            contents = {
                name: None if source is None else await self._load(name, source)
                for name, source in changes.items()
            }
            given = {name: data for name, data in contents.items() if data is not None}
            models.check_names(given)
            self._check_size(self._path, sum(map(payload.size, given.values())))
            for name, data in given.items():
                await self._validate(name, data, dry_run=dry_run)
            return await self._run_step(self._store.update, contents, operation=operation)

        return await self._with_metrics(work, self._attempt("publish", None, operation), operation)

    async def validate(self, name: str, content: PublishSource) -> None:
        """Have the gate validate a content, as `put` does before it publishes; nothing is published.

        Raises:
            TypeError, NameRefused, ContentTooLarge, ContentRefused, ReadError: as `put`.
        """
        models.check_text(name)
        _check_content(content)
        models.check_name(name)
        data = await self._load(name, content)
        self._check_size(os.path.join(self._path, name), payload.size(data))
        await self._validate(name, data, dry_run=True)

    async def put(
        self,
        name: str,
        content: PublishSource,
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish one file: readers see either the old or the new content. It is durable when this returns.

        `content` is `bytes`, a `str` (encoded as UTF-8), the path (`os.PathLike`) of a file to publish,
        an `Upload` from `stage`, or a `Content` read from a volume. Large files are copied in chunks.
        Mutable buffers (`bytearray`, `memoryview`) are rejected: convert them with `bytes(…)`.
        `metadata` is stored with the content and becomes visible with it; see `Metadata`. Publishing what is already
        there keeps the old metadata, unless it has another type or signature. A `Content` read from a volume keeps its own.

        Raises:
            TypeError: `content` or `name` has the wrong type. Nothing was done.
            NothingPublished, ReadError: a file to publish is missing or cannot be read.
            ContentAltered: a large `Content` has changed since it was read; nothing was published.
            NameRefused, ContentRefused, ContentTooLarge, VersionConflict, VolumeFull, VolumeUnavailable:
                nothing was published.
            PublishUncertain: the content is visible, but perhaps not durable.
        """
        models.check_text(name)
        _check_content(content)
        operation = self._operation(if_match, if_none_match, dry_run, metadata)

        async def work() -> Publication:
            models.check_name(name)
            if isinstance(content, Upload):
                content.handed_over = True
                await self._check_signature(name, content, operation)
                await self._validate_upload(name, content)
                await content.settle()
                staged = content.take()
                operation.needs_reclaim = content.in_memory
                return await self._run_step(self._store.put, name, staged, operation=operation)
            data = await self._load(name, content)
            self._check_size(os.path.join(self._path, name), payload.size(data))
            if isinstance(data, Content) and data.metadata is not None:
                operation.metadata = described_by(operation.metadata, data.metadata)
            await self._check_signature(name, data, operation)
            await self._validate(name, data, dry_run=dry_run)
            if dry_run or operation.conditions or isinstance(data, Content) or self._verifier:
                return await self._put_single(name, data, operation=operation)
            given = metadata if tracing.traceparent() is None else operation.metadata
            return await self._loop_commits().put(name, data, given)

        return await self._with_metrics(work, self._attempt("publish", name, operation), operation)

    def put_with_callback(
        self,
        name: str,
        content: bytes,
        callback: Callable[[Outcome], None],
        metadata: Metadata | None = None,
    ) -> PendingWrite | None:
        """Publish one file as `put` does, and pass the result to `callback` instead of awaiting it.

        For servers with many concurrent writes. `name` must be valid for `put`.
        Returns None, without starting anything, if more than a write is needed: the volume is not prepared,
        or the gate must validate the content. Then use `put`.
        """
        unseen = self._gate is None or self._gate.passes(len(content))
        unseen = unseen and self._verifier is None
        if not (self._prepared and unseen and len(content) <= self._max_size):
            return None
        attempt = self._attempt("publish", name, metadata)
        request = request_context.CURRENT.get()

        def ended(outcome: Outcome) -> None:
            request_context.CURRENT.set(request)  # the batch may contain writes of other clients
            attempt.end(outcome)
            callback(outcome)

        return self._loop_commits().submit(name, content, ended, metadata)

    def cancel(self, write: PendingWrite) -> None:
        """Cancel a write of `put_with_callback`; its callback still gets the result."""
        self._loop_commits().cancel(write)

    def _loop_commits(self) -> group_commit.GroupCommit:
        """Return the group commit of the running event loop; each loop notifies its own callers."""
        loop = asyncio.get_running_loop()
        if self._commits is None or loop is not self._loop:
            self._loop = loop
            self._commits = self._commits_by_loop.setdefault(
                loop, group_commit.GroupCommit(self._put_single, self._put_inline)
            )
        return self._commits

    def _reset_after_fork(self) -> None:
        """Discard pending work after a fork: it runs only in the parent process."""
        self._commits_by_loop = weakref.WeakKeyDictionary()
        self._commits = self._loop = None
        self._expiry_loop: asyncio.AbstractEventLoop | None = None
        self._busy = False
        self._store.reset_after_fork()

    async def _put_single(
        self,
        name: str,
        data: bytes | Content,
        metadata: Metadata | None = None,
        operation: Operation | None = None,
    ) -> Publication:
        operation = operation or Operation(metadata=self._complete(metadata))
        operation.defer_removal = True
        done = await self._run_step(self._store.put, name, data, operation=operation)
        self._schedule_expiry()
        return done

    def _put_inline(self, name: str, data: bytes, metadata: Metadata | None) -> Publication | None:
        if not self._prepared:
            return None
        done = self._store.put_inline(name, data, self._complete(metadata))
        if done is not None:
            self._published = done
            self._schedule_expiry()
        return done

    def _schedule_expiry(self) -> None:
        """Remove expired versions and close the directory, once no publish has happened for `_EXPIRY_DELAY`."""
        self._busy = True
        loop = asyncio.get_running_loop()
        if self._expiry_loop is not loop and self._store.needs_expiry:
            self._expiry_loop = loop
            loop.call_later(_EXPIRY_DELAY, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Remove expired versions in a thread: unlink(2) is slow while the file is being written back."""
        busy, self._busy, self._expiry_loop = self._busy, False, None
        with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
            executor.IO_POOL.submit(self._store.expire, busy=busy)
        if busy:
            self._expiry_loop = loop
            loop.call_later(_EXPIRY_DELAY, self._expire, loop)

    async def delete(
        self,
        name: str,
        *,
        if_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
        purge: bool = False,
    ) -> Publication | None:
        """Delete one file; return the publication of the remaining set, None for a loose file.

        Its versions stay in the history for rollback, as far as `keep_deleted` permits.
        With `purge`, all its versions are removed, too, and so is each older generation of the set
        that contains a file of that name, including those in their grace period.
        `purge` also works for a file that is already deleted.

        Raises:
            FileMissing: there is no such file, and with `purge` no history of it either.
            VersionConflict, VolumeUnavailable: nothing was removed.
        """
        models.check_text(name)
        operation = self._operation(if_match, None, dry_run, metadata)
        operation.purge = arguments.check_flag("purge", purge)
        attempt = self._attempt("purge" if purge else "delete", name, operation)
        with attempt.span() as span:
            if span is not None:
                _carry_trace(operation)
            try:
                done = await self._run_step(self._store.delete, name, operation=operation)
            except BaseException as error:
                attempt.end(error)
                outcomes.describe_outcome(span, error)
                raise
            outcomes.describe_outcome(span, done)
        attempt.end_delete(*operation.replaced)
        return done

    @asynccontextmanager
    async def stage(
        self,
        name: str | None = None,
        *,
        limit: int | str | None = None,
        dry_run: bool = False,
    ) -> AsyncIterator[Upload]:
        """Receive large content in chunks, written directly to the disk; discarded unless `put` publishes it.

        An exception before `put` counts as a failed publish, except for a dry run.
        `name` is used in messages only. `limit` in bytes (or `"1Gi"`) defaults to `max_size` of the volume,
        and cannot exceed it.

        >>> async def receive(volume: Volume, chunks: list[bytes]) -> None:
        ...     async with volume.stage("large.bin") as upload:
        ...         for chunk in chunks:
        ...             await upload.write(chunk)
        ...         await volume.put("large.bin", upload)
        """
        if name is not None:
            models.check_text(name)
        arguments.check_flag("dry_run", dry_run)
        most = self._max_size
        if limit is not None:
            most = min(most, arguments.check_size("limit", limit))
        await self._prepare_once(dry_run=dry_run)
        upload = Upload(self._store, self._path, name, most, dry_run=dry_run)
        operation = Operation(dry_run=dry_run)
        try:
            opening = executor.run_queued(upload.open, operation)
            await executor.finish_before_cancel(opening, operation.cancel)
            yield upload
        except BaseException as error:
            if not upload.handed_over:
                self._attempt("publish", name, operation).end(error)
            raise
        finally:
            await upload.end()

    async def read(self, name: str) -> Content:
        """Return one file as it is now. A large file is kept open instead of in memory: see `Content`.

        Raises:
            NameRefused: the name is invalid.
            NothingPublished: there is no such file.
            ReadError: the file is outside the volume, not a regular file, or too large.
        """
        return await executor.run_in_thread(self._read_signed, name)

    async def names(self) -> dict[str, int]:
        """Return the file names and their sizes in bytes."""
        return await executor.run_in_thread(self._store.names)

    async def entries(self) -> list[FileInfo]:
        """Return the files with version, size and time, sorted by name; unreadable files are omitted.

        Raises:
            NothingPublished: the directory is missing.
        """
        return await executor.run_in_thread(self._store.entries)

    async def snapshot(self) -> Snapshot[None]:
        """Return all files as they are now.

        Raises:
            NothingPublished: there are no files.
            ReadError: the directory cannot be read.
        """
        return await executor.run_in_thread(self._signed_snapshot)

    async def unverified_snapshot(self) -> Snapshot[None]:
        """Return all files as they are now, also what `verify_key` does not permit: for a publisher that replaces them.

        Raises:
            NothingPublished, ReadError: as `snapshot`.
        """
        return await executor.run_in_thread(self._store.snapshot)

    async def versions(self, name: str | None = None) -> list[history.Version]:
        """Return the versions of a loose file, or of the set, newest first, including the current one."""
        return await executor.run_in_thread(self._store.versions, name)

    async def read_version(
        self, version: str, *, name: str | None = None
    ) -> tuple[Mapping[str, Content], bool]:
        """Return the files of an older version of `name`, or of the set, and whether it is a set.

        `version` may be an entity tag. A file that is part of a set has the versions of the set.

        Raises:
            UnknownVersion: the history does not contain it, or it was modified since.
        """
        arguments.check_instance("version", version, str, "a version or an entity tag, a str")
        found = await executor.run_in_thread(self._store.load_version, version.strip('"'), name)
        if self._verifier is None:
            return found.files, found.is_set
        files = await executor.run_in_thread(
            self._verified_archived, self._verifier, found.files, found.is_set
        )
        return files, found.is_set

    async def rollback(
        self,
        version: str,
        *,
        name: str | None = None,
        if_match: str | Collection[str] | None = None,
        metadata: Metadata | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish an older version again. `version` may be an entity tag.

        Raises:
            UnknownVersion: the history does not contain it, or it was modified since.
            ContentRefused: the current gate rejects it.
            VersionConflict, VolumeFull, VolumeUnavailable, PublishUncertain: as `put`.
        """
        arguments.check_instance("version", version, str, "a version or an entity tag, a str")
        requested = version.strip('"')
        operation = self._operation(if_match, None, dry_run, metadata)

        async def work() -> Publication:
            archived, is_set, old = await executor.run_in_thread(
                self._store.load_version, requested, name
            )
            if old is not None:
                operation.metadata = described_by(operation.metadata, old)
            files = {file: await self._load(file, content) for file, content in archived.items()}
            if is_set and self._verifier is not None:
                await executor.run_in_thread(self._verifier.check_set, self._path, files)
            for file, data in files.items():
                if not is_set:
                    await self._check_signature(file, data, operation)
                await self._validate(file, data, dry_run=dry_run)
            if is_set:
                return await self._run_step(self._store.publish, files, operation=operation)
            ((file, data),) = files.items()
            return await self._run_step(self._store.put, file, data, operation=operation)

        try:
            attempt = self._attempt("rollback", name, operation)
            return await self._with_metrics(work, attempt, operation)
        except _errors.ContentAltered as error:
            raise _errors.UnknownVersion(
                f"cannot roll {self._path} back to {snapshots.etag(requested)}: what was kept of it is altered"
                " (publish the old content from its source)"
            ) from error

    async def mark_source(self, reasons: Mapping[str, str]) -> None:
        """Tell readers why the sources of the content are stale, by their names; none: they are not.

        For publishers that copy a content from elsewhere, when a source becomes stale and when it is fresh again.

        Raises:
            PublishError: the volume cannot be written.
        """
        arguments.check_mapping("mark_source", reasons)
        await self._prepare_once(dry_run=False)
        state = SourceState(dict(reasons), time.time())
        await executor.run_queued(self._store.mark_source, state)

    async def check_writable(self) -> None:
        """Test whether a publish would work now, without leaving anything behind. Raises `PublishError` if not."""
        await executor.run_queued(self._store.check_writable)

    @overload
    def watch(
        self,
        *,
        schema: None = None,
        stop_event: asyncio.Event | None = None,
        **options: Unpack[watch_options.VolumeOptions],
    ) -> watches.Watch[None]: ...
    @overload
    def watch(
        self,
        *,
        schema: Callable[[Snapshot[Any]], T],
        stop_event: asyncio.Event | None = None,
        **options: Unpack[watch_options.VolumeOptions],
    ) -> watches.Watch[T]: ...
    def watch(
        self,
        *,
        schema: Callable[[Snapshot[Any]], Any] | None = None,
        stop_event: asyncio.Event | None = None,
        **options: Unpack[watch_options.VolumeOptions],
    ) -> watches.Watch[Any]:
        """Watch the volume: `async for snapshot in volume.watch()`; see `sidecar.watch` for the arguments.

        `max_size` None means that of the volume.

        Raises:
            ConfigError: an argument is invalid.
        """
        return watches.Watch(
            self._path if self._path.endswith("/") else self._path + "/",
            schema=schema,
            stop_event=stop_event,
            **watch_options.of_volume(options, self._max_size, self._verify_key),
        )

    async def _prepare_once(self, *, dry_run: bool) -> None:
        """Prepare the volume before the first change; a dry run creates nothing."""
        if not (self._prepared or dry_run):
            await self.prepare()

    def _operation(
        self,
        if_match: str | Collection[str] | None,
        if_none_match: str | Collection[str] | None,
        dry_run: bool,
        metadata: Metadata | None,
    ) -> Operation:
        arguments.check_flag("dry_run", dry_run)
        if metadata is not None:
            arguments.check_instance("metadata", metadata, Metadata, "a Metadata")
        conditions = Preconditions()
        if not (if_match is None and if_none_match is None):
            conditions = Preconditions(
                arguments.check_etags("if_match", if_match),
                arguments.check_etags("if_none_match", if_none_match),
            )
        return Operation(conditions, dry_run, metadata=self._complete(metadata))

    def _complete(self, metadata: Metadata | None) -> Metadata | None:
        """Add who publishes, and when. None if nothing is known but the time, which the file itself has."""
        if metadata is None:
            if self._publisher is None:
                return None
            metadata = Metadata()
        return metadata.completed(self._publisher, time.time())

    def _check_size(self, where: str, size: int) -> None:
        if size > self._max_size:
            raise too_large(where, self._max_size)

    async def _load(self, name: str, content: PublishSource) -> bytes | Content:
        """Return the content as bytes, or as a `Content` if it is large or has a type or a signature of its own."""
        if isinstance(content, Content):
            described = content.metadata is not None and content.metadata.describes_content()
            return content.held if isinstance(content.held, bytes) and not described else content
        if isinstance(content, Upload):
            content.handed_over = True
            return await content.content(name)
        if isinstance(content, os.PathLike):
            where = os.path.join(self._path, name)
            return await executor.run_in_thread(
                local_file.read, os.fspath(content), name, self._max_size, where
            )
        return to_bytes(content)

    @property
    def verifies(self) -> bool:
        """Whether only what a key of `verify_key` has signed is published and read."""
        return self._verifier is not None

    async def check_signature(self, name: str, signature: str | None) -> None:
        """Raise `ContentRefused` if a file with this signature cannot be published, whatever its content."""
        reason = None if self._verifier is None else signatures.why_unusable(signature)
        if reason is not None and not await executor.run_in_thread(self._store.has_set):
            raise signatures.refused(self._display_path(name), reason)

    async def _check_signature(
        self, name: str, data: bytes | Content | Upload, operation: Operation
    ) -> None:
        """Check a file before it is published by itself; in a set, the whole set is checked when it is complete.

        Raises:
            ContentRefused: it is not signed, and there is no set.
        """
        verifier = self._verifier
        if verifier is None:
            return
        if isinstance(data, Upload):
            digest = data.digest
        else:
            digest = await executor.run_in_thread(signatures.digest_of, data)
        signature = None if operation.metadata is None else operation.metadata.signature
        operation.unsigned = await executor.run_in_thread(
            verifier.why_not_publish, name, digest, signature
        )
        if operation.unsigned is not None and not await executor.run_in_thread(self._store.has_set):
            raise signatures.refused(self._display_path(name), operation.unsigned)

    def _read_signed(self, name: str) -> Content:
        """Read one file that is signed: by itself, or in the list of the directory. Blocking."""
        if self._verifier is None:
            return self._store.read(name)
        content, beside = self._store.read_with_list(name)
        where = os.path.join(self._path, name)
        return signature_filter.verified_file(self._verifier, content, beside, where)

    def _verified_archived(
        self, verifier: signatures.Verifier, files: Mapping[str, Content], is_set: bool
    ) -> Mapping[str, Content]:
        """Return the verified bytes of an older version. Raises `UnknownVersion` if it is not signed. Blocking."""
        found: Snapshot[None] = Snapshot(files, single=not is_set, value=None)
        try:
            return signature_filter.verified_snapshot(
                verifier, found, self._path, is_set=is_set
            ).contents()
        except _errors.ReadError as error:
            raise _errors.UnknownVersion(str(error)) from error

    def _signed_snapshot(self) -> Snapshot[None]:
        if self._verifier is None:
            return self._store.snapshot()
        found, is_set = self._store.scan()
        return signature_filter.verified_snapshot(self._verifier, found, self._path, is_set=is_set)

    async def _validate(self, name: str, data: bytes | Content, *, dry_run: bool) -> None:
        """Validate a content with the gate; stage it as a file if it is large or a command validates files."""
        if self._gate is None:
            return
        if isinstance(data, bytes) and not self._gate.needs_file:
            where = os.path.join(self._path, name)
            await self._gate.examine(name, None, len(data), data, where=where)
            return
        async with self.stage(name, dry_run=dry_run) as upload:
            upload.handed_over = True  # part of a publish that is counted by itself
            if isinstance(data, bytes):
                await upload.write(data)
                await self._validate_upload(name, upload, data)
            else:
                await upload.copy(data)
                await self._validate_upload(name, upload)

    async def _validate_upload(self, name: str, upload: Upload, data: bytes | None = None) -> None:
        await upload.flush()
        if self._gate is not None:
            where = os.path.join(self._path, name)
            await self._gate.examine(name, upload.path, upload.size, data, where=where)

    def _display_path(self, name: str | None) -> str:
        """Return the path of a file, or of the volume, for messages."""
        return self._path if name is None else os.path.join(self._path, name)

    def _attempt(
        self, event: outcomes.Event, name: str | None, by: Operation | Metadata | None
    ) -> outcomes.Attempt:
        """Return an attempt to change a file, or the set, to be counted and logged."""
        metadata, dry_run = (by.metadata, by.dry_run) if isinstance(by, Operation) else (by, False)
        user = self._publisher if metadata is None else metadata.published_by or self._publisher
        return outcomes.Attempt(event, self._display_path(name), user, dry_run=dry_run)

    async def _with_metrics(
        self, work: Callable[[], Any], attempt: outcomes.Attempt, operation: Operation
    ) -> Publication:
        """Run `work`, count its result and log it, and have a span for it, whose context is stored with the content."""
        before = self._published
        with attempt.span() as span:
            if span is not None:
                _carry_trace(operation)
            try:
                await self._prepare_once(dry_run=attempt.dry_run)
                published: Publication = await work()
            except BaseException as error:
                late = isinstance(error, asyncio.CancelledError) and self._published is not before
                # If it is too late to cancel, it was published.
                outcome: Outcome = (
                    self._published if late and self._published is not None else error
                )
                attempt.end(outcome)
                outcomes.describe_outcome(span, outcome)
                raise
            attempt.end(published)
            outcomes.describe_outcome(span, published)
        return published

    async def _run_step(self, function: Callable[..., R], *args: Any, operation: Operation) -> R:
        """Run one blocking step. If cancelled, either roll it back in time or let it finish."""
        await self._prepare_once(dry_run=operation.dry_run)

        def step() -> R:
            operation.raise_if_cancelled()
            done = function(*args, operation)
            # Set in the thread, so that the result is recorded even if the event loop stops.
            if isinstance(done, Publication) and not operation.dry_run:
                self._published = done
            return done

        try:
            return await executor.run_queued_cancellable(step, operation.cancel)
        except _errors.VolumeUnavailable as error:
            if error.errno == errno.ENOENT:
                self._prepared = False  # the directory is gone; the next publish creates it again
            raise


async def publish_file(
    path: str | os.PathLike[str],
    content: PublishSource,
    *,
    mode: int = FILE_MODE,
    group: int | None = None,
    keep: int = KEEP_VERSIONS,
    durability: Durability = "full",
    if_match: str | Collection[str] | None = None,
    if_none_match: str | Collection[str] | None = None,
    metadata: Metadata | None = None,
) -> Publication:
    """Publish one file atomically and durably, and return its publication; see `Volume.put`.

    A missing directory is created. `content` is as for `Volume.put`.

    Raises:
        ConfigError: an argument is invalid.
        TypeError: `content` has the wrong type.
        PublishError, PublishUncertain: as `Volume.put`.

    >>> import asyncio, tempfile
    >>> with tempfile.TemporaryDirectory() as shared:
    ...     asyncio.run(publish_file(f"{shared}/config", "debug: true")).changed
    True
    """
    directory, name = os.path.split(arguments.check_path("path", path))
    volume = Volume(
        directory or os.curdir, mode=mode, group=group, keep=keep, durability=durability
    )
    return await volume.put(
        name, content, if_match=if_match, if_none_match=if_none_match, metadata=metadata
    )


def _pod_name() -> str | None:
    """Return the name of the Pod that this process runs in, None outside of one."""
    name = os.environ.get("POD_NAME") or (oserrors.in_pod() and os.environ.get("HOSTNAME"))
    return name if name and is_publisher_name(name) else None


def _carry_trace(operation: Operation) -> None:
    """Have the context of the current span stored with the content."""
    given = operation.metadata or Metadata(published_at=time.time())
    context = tracing.traceparent() or given.traceparent
    operation.metadata = dataclasses.replace(given, traceparent=context)


def _of_set(metadata: Metadata | None) -> Metadata | None:
    """Return the metadata of a set. Raises `ConfigError` if it has the type of a file."""
    if isinstance(metadata, Metadata) and metadata.content_type is not None:
        raise arguments.argument_error(
            "metadata", metadata, "one without content_type: a set has none, its files have"
        )
    return metadata


def _check_content(content: object) -> None:
    """Raise `TypeError` for anything but content, before anything is done."""
    if isinstance(content, bytes | str | Content | Upload | os.PathLike):
        return
    more = " (take bytes(…) of it)" if isinstance(content, bytearray | memoryview) else ""
    raise TypeError(
        "a content is bytes, str, os.PathLike (a file to publish), Upload or Content,"
        f" not {type(content).__name__}{more}"
    )
