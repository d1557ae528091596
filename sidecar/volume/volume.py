"""Publish to a directory that containers share: one file, or a set of files that belong together.

When a publish returns, the content is visible and durable, unless `durability="none"` gives the latter up.
When it raises, it did not happen (`PublishError`),
or it is visible and perhaps not durable (`PublishUncertain`); it is never half of it.
When it is cancelled, it is withdrawn if its content is not visible yet, else it is finished first;
`Volume.published` is the last publication that happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeVar, Unpack, get_args, overload

from sidecar import _errors
from sidecar.process import arguments, executor, metrics
from sidecar.process.logging import CLIENT
from sidecar.volume import change_log
from sidecar.volume.content import local_file, payload
from sidecar.volume.content import snapshot as snapshots
from sidecar.volume.content.snapshot import MAX_SIZE, Content, Snapshot, T, to_bytes
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
from sidecar.volume.watch import options as watch_options
from sidecar.volume.watch import watch as watches

R = TypeVar("R")

too_large = payload.too_large

PublishSource = bytes | str | os.PathLike[str] | Content | Upload
"""What can be published; a path is that of a file whose bytes are meant."""

Durability = Literal["full", "none"]
DURABILITIES: Final[tuple[str, ...]] = get_args(Durability)

FILE_MODE = 0o644
KEEP_VERSIONS = 10
KEEP_BYTES = 256 << 20
KEEP_DELETED_FILES = 10
GRACE_SECONDS = 30.0
_EXPIRY_DELAY = 0.1
#: Looked up once: this is counted for each of thousands a second.
_PUBLISHED, _UNCHANGED, _DELETED = map(
    metrics.PUBLISH_TOTAL.labels, ("published", "unchanged", "deleted")
)


_VOLUMES: weakref.WeakSet[Volume] = weakref.WeakSet()


def _after_fork() -> None:
    for volume in list(_VOLUMES):
        volume._reset_after_fork()  # noqa: SLF001 (of this module)


os.register_at_fork(after_in_child=_after_fork)


class Volume:
    """A directory that containers share.

    `put` publishes one file; `publish` a whole set, in the layout of Kubernetes' own volumes,
    whose files readers see change together. Once a set is in force, `put` and `delete` publish it anew.

    Several writers, in several containers, may publish to the same directory of one node.
    A volume may be used in several event loops, and in processes that are forked later.
    Nothing is touched before the first publish, or `prepare`, creates the directory (mode 0755).

    Args:
        path: the directory.
        mode: permissions of the files, whatever the umask. The same content with another mode or group is published anew.
        group: their group by number, as with `fsGroup`; None leaves it to the directory.
        keep: contents of a file or of the set that stay in the history, the present one included;
            on a full volume they give way.
        keep_bytes: bytes that older contents may take together, of all files; the oldest give way.
        keep_deleted: deleted files of which older contents stay; those that were published longest ago give way.
        volume_budget: bytes on the disk that the directory may take: contents, history and temporary files,
            hard links once, those of other publishers included. Beyond it the history gives way, then `VolumeFull`
            is raised; `delete` works all the same. None: whatever the volume takes.
        grace: seconds that a replaced set stays where it was, for readers in the middle of it.
        max_size: bytes that one content may have, also as a text: `"64Mi"`.
        gate: what examines each content before it is published: a `Gate`, a JSON Schema as a mapping,
            or a function that gets the `Content` and raises, or returns False, to refuse it; also a coroutine function.
        durability: `full`: what a publish has returned for survives a power cut.
            `none` spares both syncs of the disk: readers still see the old content or the new one, whole,
            and a killed process loses nothing, but after a power cut, or a crash of the kernel,
            an older content may be there, or on some file systems an empty or torn one.

    Raises:
        ConfigError: an argument makes no sense; the message says what is allowed.

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
        durability: Durability = "full",
    ) -> None:
        self._path = arguments.check_path("path", path)
        self._max_size = arguments.check_size("max_size", max_size)
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
        )
        self._store = store.Store(settings)
        self._gate = gates.make_gate(gate)
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
        """The directory, as it was given."""
        return self._path

    @property
    def published(self) -> Publication | None:
        """The last publication by this object: it tells after a cancelled publish whether that happened."""
        return self._published

    @property
    def budget(self) -> int | None:
        """The bytes on the disk that it may take, None without a bound."""
        return self._store.budget

    @property
    def used(self) -> int | None:
        """The bytes on the disk that it takes, as they are known to this object; None without a budget."""
        return self._store.used

    async def measure(self) -> int | None:
        """Count what it takes on the disk, and return `used`. Raises `VolumeUnavailable`."""
        await executor.finish_before_cancel(executor.run_queued(self._store.measure))
        return self.used

    async def prepare(self, *, initial: Mapping[str, bytes | str] | None = None) -> None:
        """Create the directory, remove what killed writers left, and publish `initial` files that are missing.

        Content that is there stays. The first publish does this by itself, without initial files.

        Raises:
            VolumeUnavailable: no permission, read-only, or a file that is a mount of its own (`subPath`).
        """
        if initial is not None:
            arguments.check_mapping("initial", initial)
        files = {name: to_bytes(content) for name, content in (initial or {}).items()}
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
        dry_run: bool = False,
    ) -> Publication:
        """Publish a whole set: readers see all of these files change at once, and no others remain in it.

        The set is durable when this returns. A set that is in force already is left alone.
        A file (`os.PathLike`), an `Upload`, or a `Content` that was read from a volume
        is copied piece by piece where it is large.
        `if_match` and `if_none_match` compare with the entity tag of the set in force; a version is understood, too.

        Raises:
            TypeError: something is no content, or no name. Nothing was done.
            NothingPublished, ReadError: a file that is to be published is missing, or cannot be read.
            ContentRefused: the gate refused a file.
            ContentAltered: a large `Content` is not what it was.
            VersionConflict: a condition does not hold.
            VolumeFull, VolumeUnavailable: the operating system refused.
            PublishUncertain: visible, perhaps not durable.
        """
        arguments.check_mapping("publish", files)
        for name, content in files.items():
            models.check_text(name)
            _check_content(content)
        operation = _operation(if_match, if_none_match, dry_run)

        async def work() -> Publication:
            models.check_names(files)
            contents = {name: await self._load(name, given) for name, given in files.items()}
            self._check_size(self._path, sum(map(payload.size, contents.values())))
            for name, data in contents.items():
                await self._validate(name, data, dry_run=dry_run)
            return await self._run_step(self._store.publish, contents, operation=operation)

        return await self._with_metrics(work, self._path, dry_run=dry_run)

    async def put(
        self,
        name: str,
        content: PublishSource,
        *,
        if_match: str | Collection[str] | None = None,
        if_none_match: str | Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish one file: readers see the old content or the new one, and the new one is durable.

        `content` is `bytes`, a `str` for UTF-8, the path (`os.PathLike`) of a file whose bytes are meant,
        an `Upload` that was streamed with `stage`, or a `Content` that was read from a volume;
        large files are copied piece by piece.
        What could be changed meanwhile (`bytearray`, `memoryview`) is refused: take `bytes(…)` of it.

        Raises:
            TypeError: it is no content, or `name` no `str`. Nothing was done.
            NothingPublished, ReadError: a file that is to be published is missing, or cannot be read.
            ContentAltered: a large `Content` is not what it was; nothing was published.
            NameRefused, ContentRefused, ContentTooLarge, VersionConflict, VolumeFull, VolumeUnavailable:
                nothing was published.
            PublishUncertain: visible, perhaps not durable.
        """
        models.check_text(name)
        _check_content(content)
        operation = _operation(if_match, if_none_match, dry_run)

        async def work() -> Publication:
            models.check_name(name)
            if isinstance(content, Upload):
                content.handed_over = True
                await self._validate_upload(name, content)
                await content.settle()
                staged = content.take()
                operation.needs_reclaim = content.in_memory
                return await self._run_step(self._store.put, name, staged, operation=operation)
            data = await self._load(name, content)
            self._check_size(os.path.join(self._path, name), payload.size(data))
            await self._validate(name, data, dry_run=dry_run)
            if dry_run or operation.conditions or isinstance(data, Content):
                return await self._put_single(name, data, operation)
            return await self._loop_commits().put(name, data)

        return await self._with_metrics(work, self._display_path(name), dry_run=dry_run)

    def put_with_callback(
        self, name: str, content: bytes, callback: Callable[[Outcome], None]
    ) -> PendingWrite | None:
        """Publish one file as `put` does, and `callback` what became of it, instead of letting a task wait for that.

        For a server that answers many at a time; `name` is one that `put` takes.
        None where more is to be done than to write: the volume is not prepared, or the gate wants to see the content.
        Then nothing has begun, and nothing is told: use `put`.
        """
        unseen = self._gate is None or self._gate.passes(len(content))
        if not (self._prepared and unseen and len(content) <= self._max_size):
            return None
        started, where = time.perf_counter(), os.path.join(self._path, name)
        client = CLIENT.get()

        def ended(outcome: Outcome) -> None:
            CLIENT.set(client)  # others may wait for the same publish
            _count_result(outcome, where, started)
            callback(outcome)

        return self._loop_commits().submit(name, content, ended)

    def cancel(self, write: PendingWrite) -> None:
        """Give up what `put_with_callback` has begun, as if its caller were cancelled; it is told how that ended."""
        self._loop_commits().cancel(write)

    def _loop_commits(self) -> group_commit.GroupCommit:
        """Return the contents that wait in the running loop: each loop tells its own callers."""
        loop = asyncio.get_running_loop()
        if self._commits is None or loop is not self._loop:
            self._loop = loop
            self._commits = self._commits_by_loop.setdefault(
                loop, group_commit.GroupCommit(self._put_single, self._put_inline)
            )
        return self._commits

    def _reset_after_fork(self) -> None:
        """Forget what is under way: in a process that was forked, nothing is."""
        self._commits_by_loop = weakref.WeakKeyDictionary()
        self._commits = self._loop = None
        self._expiry_loop: asyncio.AbstractEventLoop | None = None
        self._busy = False
        self._store.reset_after_fork()

    async def _put_single(
        self, name: str, data: bytes | Content, operation: Operation | None = None
    ) -> Publication:
        operation = operation or Operation()
        operation.defer_removal = True
        done = await self._run_step(self._store.put, name, data, operation=operation)
        self._schedule_expiry()
        return done

    def _put_inline(self, name: str, data: bytes) -> Publication | None:
        done = self._store.put_inline(name, data) if self._prepared else None
        if done is not None:
            self._published = done
            self._schedule_expiry()
        return done

    def _schedule_expiry(self) -> None:
        """Remove what has left the history once nothing has been published for a moment, if there is anything."""
        self._busy = True
        loop = asyncio.get_running_loop()
        if self._store.expired and self._expiry_loop is not loop:
            self._expiry_loop = loop
            loop.call_later(_EXPIRY_DELAY, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do so in a thread: to unlink a file takes long while it is on its way to the disk."""
        busy, self._busy, self._expiry_loop = self._busy, False, None
        with contextlib.suppress(RuntimeError):  # the program ends
            executor.IO_POOL.submit(self._store.expire, busy=busy)
        if busy:
            self._expiry_loop = loop
            loop.call_later(_EXPIRY_DELAY, self._expire, loop)

    async def delete(
        self,
        name: str,
        *,
        if_match: str | Collection[str] | None = None,
        dry_run: bool = False,
        purge: bool = False,
    ) -> Publication | None:
        """Remove one file; return the set that is left, None for a loose file.

        What it held stays in the history, to be rolled back to, as long as `keep_deleted` permits.
        With `purge` nothing of it stays: all its older contents are removed, too, and of a set each older generation
        that has a file of that name, those in their grace period included. It also purges a file that is gone already.

        Raises:
            FileMissing: there is no such file, and with `purge` no history of it.
            VersionConflict, VolumeUnavailable: nothing was removed.
        """
        models.check_text(name)
        operation = _operation(if_match, None, dry_run)
        operation.purge = arguments.check_flag("purge", purge)
        where = self._display_path(name)
        try:
            done = await self._run_step(self._store.delete, name, operation=operation)
        except BaseException as error:
            count_failure(error, where, dry_run=dry_run)
            raise
        if not dry_run:
            _DELETED.inc()
            change_log.note("deleted", where, "with its history" if purge else "its history stays")
        return done

    @asynccontextmanager
    async def stage(
        self,
        name: str | None = None,
        *,
        limit: int | str | None = None,
        dry_run: bool = False,
    ) -> AsyncIterator[Upload]:
        """Receive a large content piece by piece, straight to the disk: `put` publishes it, else it is dropped.

        One that ends by an exception before `put` counts as a publish that has failed, unless it is a trial (`dry_run`).
        `name` is for messages, where it is known already; `limit` in bytes (or `"1Gi"`) defaults to the volume's
        `max_size`, and is never more than that.

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
        try:
            operation = Operation(dry_run=dry_run)
            opening = executor.run_queued(upload.open, operation)
            await executor.finish_before_cancel(opening, operation.cancel)
            yield upload
        except BaseException as error:
            if not upload.handed_over:
                count_failure(error, self._display_path(name), dry_run=dry_run)
            raise
        finally:
            await upload.end()

    async def read(self, name: str) -> Content:
        """Return one file as it is now; a large one is held open and not in memory: see `Content`.

        Raises:
            NameRefused: no file can have that name.
            NothingPublished: there is no such file.
            ReadError: it leaves the volume, is no regular file, or is too large.
        """
        return await executor.run_in_thread(self._store.read, name)

    async def names(self) -> dict[str, int]:
        """Return the names of the files, with their sizes in bytes."""
        return await executor.run_in_thread(self._store.names)

    async def entries(self) -> list[FileInfo]:
        """Return the files with version, size and time, sorted by name; those that cannot be read are left out.

        Raises:
            NothingPublished: the directory is missing.
        """
        return await executor.run_in_thread(self._store.entries)

    async def snapshot(self) -> Snapshot[None]:
        """Return all files as they are at this moment.

        Raises:
            NothingPublished: there are none.
            ReadError: the directory cannot be read.
        """
        return await executor.run_in_thread(self._store.snapshot)

    async def versions(self, name: str | None = None) -> list[history.Version]:
        """Return the history of a loose file, or of the set, newest first, the present content included."""
        return await executor.run_in_thread(self._store.versions, name)

    async def rollback(
        self,
        version: str,
        *,
        name: str | None = None,
        if_match: str | Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Publication:
        """Publish an older content again. `version` may be an entity tag.

        Raises:
            UnknownVersion: the history does not hold it, or it was altered since.
            ContentRefused: the gate, as it is by now, refuses it.
            VersionConflict, VolumeFull, VolumeUnavailable, PublishUncertain: as `put`.
        """
        arguments.check_instance("version", version, str, "a version or an entity tag, a str")
        requested = version.strip('"')
        operation = _operation(if_match, None, dry_run)

        async def work() -> Publication:
            archived, is_set = await executor.run_in_thread(
                self._store.load_version, requested, name
            )
            files = {file: await self._load(file, content) for file, content in archived.items()}
            for file, data in files.items():
                await self._validate(file, data, dry_run=dry_run)
            if is_set:
                return await self._run_step(self._store.publish, files, operation=operation)
            ((file, data),) = files.items()
            return await self._run_step(self._store.put, file, data, operation=operation)

        try:
            return await self._with_metrics(
                work, self._display_path(name), dry_run=dry_run, done="rolled back"
            )
        except _errors.ContentAltered as error:
            raise _errors.UnknownVersion(
                f"cannot roll {self._path} back to {snapshots.etag(requested)}: what was kept of it is altered"
                " (publish the old content from its source)"
            ) from error

    async def check_writable(self) -> None:
        """Try what a publish needs, and leave nothing behind. Raises `PublishError` if one would fail now."""
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
        """Follow the volume: `async for snapshot in volume.watch()`; see `sidecar.watch` for the arguments.

        `max_size` None is that of the volume.

        Raises:
            ConfigError: an argument makes no sense.
        """
        return watches.Watch(
            self._path if self._path.endswith("/") else self._path + "/",
            schema=schema,
            stop_event=stop_event,
            **watch_options.of_volume(options, self._max_size),
        )

    async def _prepare_once(self, *, dry_run: bool) -> None:
        """Prepare it before the first change; a trial makes nothing."""
        if not (self._prepared or dry_run):
            await self.prepare()

    def _check_size(self, where: str, size: int) -> None:
        if size > self._max_size:
            raise too_large(where, self._max_size)

    async def _load(self, name: str, content: PublishSource) -> bytes | Content:
        """Return the bytes of what is small or in memory, and what is large as it is."""
        if isinstance(content, Content):
            return content.held if isinstance(content.held, bytes) else content
        if isinstance(content, Upload):
            content.handed_over = True
            return await content.content(name)
        if isinstance(content, os.PathLike):
            where = os.path.join(self._path, name)
            return await executor.run_in_thread(
                local_file.read, os.fspath(content), name, self._max_size, where
            )
        return to_bytes(content)

    async def _validate(self, name: str, data: bytes | Content, *, dry_run: bool) -> None:
        """Ask the gate about a content; a large one, or where a command wants to see a file, is staged for it."""
        if self._gate is None:
            return
        if isinstance(data, bytes) and not self._gate.needs_file:
            where = os.path.join(self._path, name)
            await self._gate.examine(name, None, len(data), data, where=where)
            return
        async with self.stage(name, dry_run=dry_run) as upload:
            upload.handed_over = True  # it is a part of what counts by itself
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
        """Return the path of a file, or of the whole, as messages say it."""
        return self._path if name is None else os.path.join(self._path, name)

    async def _with_metrics(
        self, work: Callable[[], Any], where: str, *, dry_run: bool, done: str = "published"
    ) -> Publication:
        """Do the work, count how it ended, and say so in the log."""
        started, before = time.perf_counter(), self._published
        try:
            await self._prepare_once(dry_run=dry_run)
            published: Publication = await work()
        except asyncio.CancelledError as error:
            if self._published is not before and self._published is not None and not dry_run:
                _count_result(
                    self._published, where, started, done
                )  # it was too late to withdraw it
            else:
                count_failure(error, where, dry_run=dry_run)
            raise
        except BaseException as error:
            count_failure(error, where, dry_run=dry_run)
            raise
        if not dry_run:
            _count_result(published, where, started, done)
        return published

    async def _run_step(self, function: Callable[..., R], *args: Any, operation: Operation) -> R:
        """Run one blocking step to its end, even if cancelled: withdrawn in time, or finished."""
        await self._prepare_once(dry_run=operation.dry_run)

        def step() -> R:
            operation.raise_if_cancelled()
            done = function(*args, operation)
            # In the thread: however the event loop ends, what happened is known.
            if isinstance(done, Publication) and not operation.dry_run:
                self._published = done
            return done

        try:
            return await executor.run_queued_cancellable(step, operation.cancel)
        except _errors.VolumeUnavailable as error:
            if error.errno == errno.ENOENT:
                self._prepared = False  # the directory is gone: the next publish makes it again
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
) -> Publication:
    """Publish one file, whole and durable, and return its version; see `Volume.put`.

    The directory is created where it is missing. `content` is what `Volume.put` takes.

    Raises:
        ConfigError: an argument makes no sense.
        TypeError: `content` is none.
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
    return await volume.put(name, content, if_match=if_match, if_none_match=if_none_match)


def _operation(
    if_match: str | Collection[str] | None,
    if_none_match: str | Collection[str] | None,
    dry_run: bool,
) -> Operation:
    arguments.check_flag("dry_run", dry_run)
    if if_match is None and if_none_match is None:
        return Operation(dry_run=dry_run)
    return Operation(
        Preconditions(
            arguments.check_etags("if_match", if_match),
            arguments.check_etags("if_none_match", if_none_match),
        ),
        dry_run,
    )


def _check_content(content: object) -> None:
    """Refuse what is no content, before anything happens."""
    if isinstance(content, bytes | str | Content | Upload | os.PathLike):
        return
    more = " (take bytes(…) of it)" if isinstance(content, bytearray | memoryview) else ""
    raise TypeError(
        "a content is bytes, str, os.PathLike (a file to publish), Upload or Content,"
        f" not {type(content).__name__}{more}"
    )


def _count_result(outcome: Outcome, where: str, started: float, done: str = "published") -> None:
    """Count a publish that has ended, and the time that it has taken if it went well."""
    if not isinstance(outcome, Publication):
        count_failure(outcome, where)
        return
    (_PUBLISHED if outcome.changed else _UNCHANGED).inc()
    metrics.PUBLISH_SECONDS.observe(time.perf_counter() - started)
    if outcome.changed:
        change_log.note(done, where, f"{outcome.size} bytes, version {outcome.version}")


def count_failure(
    error: BaseException, where: str, *, dry_run: bool = False, once: bool = False
) -> None:
    """Count a publish or a delete that has failed, and say why in the log.

    With `once` not again where somebody has counted it on its way up. All who wait for one publish get the same error,
    and each of them counts.
    """
    if not isinstance(error, _errors.SidecarError):
        if not dry_run:
            gone = isinstance(error, asyncio.CancelledError | ConnectionError)
            metrics.PUBLISH_TOTAL.labels("cancelled" if gone else "failed").inc()
        return
    if not dry_run and not (once and error.counted):
        result = _result(error)
        metrics.PUBLISH_TOTAL.labels(result).inc()
        level = logging.WARNING if result in ("failed", "uncertain") else logging.INFO
        change_log.note(result, where, change_log.one_line(str(error)), level=level)
    error.counted = True


def _result(error: _errors.SidecarError) -> str:
    match error:
        case _errors.PublishUncertain():
            return "uncertain"
        case _errors.VersionConflict():
            return "conflict"
        case _errors.ContentRefused() | _errors.NameRefused():
            return "refused"
        case _errors.FileMissing() | _errors.UnknownVersion():
            return "missing"
        case _:
            return "failed"
