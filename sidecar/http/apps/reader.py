"""The reader: serves the published content over HTTP.

    GET /              the content as a JSON string; of a set, a JSON object of names and texts
    GET /raw           its bytes
    GET /files         a list of all files of the volume
    GET /files/NAME    the bytes of one file
    GET /events        server-sent events, one per change

Every response has the content's strong `ETag`, the same that the writer returned for it.
The last valid content is served for ever; `Sidecar-Stale` tells that the volume no longer holds it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from sidecar import _errors
from sidecar.fs import mounts
from sidecar.http import ops, problems
from sidecar.http.apps import api_descriptions, files, follow, json_body
from sidecar.http.apps.page import assets, history
from sidecar.http.semantics import bearer_auth, cors, cross_origin, representation
from sidecar.http.semantics.representation import Representation
from sidecar.http.subscribe import long_poll, pending
from sidecar.http.subscribe.sse import EventHub
from sidecar.process import arguments, executor
from sidecar.volume.content import snapshot
from sidecar.volume.content.filters import EDITORS
from sidecar.volume.content.snapshot import MAX_SIZE, Content, Snapshot
from sidecar.volume.validation.signatures import KeyFiles
from sidecar.volume.watch.watch import WatchMode

if TYPE_CHECKING:
    from sidecar.volume.publish.models import FileInfo
    from sidecar.volume.volume import Volume

_MAX_LOOP_JSON_BYTES = 1 << 20
"""Largest content, in bytes, that is encoded on the event loop: about a millisecond."""
_MAX_EVENT_BYTES = 4 << 20
"""Largest content, in bytes, that an event includes: subscribers fetch a larger one."""


def reader_app(
    path: str | os.PathLike[str],
    *,
    missing: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    read_token_file: str | os.PathLike[str] | None = None,
    allowed_hosts: Collection[str] = (),
    cors_origin: Collection[str] = (),
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int | str = MAX_SIZE,
    include: Collection[str] = (),
    exclude: Collection[str] = EDITORS,
    quiet: float | None = None,
    verify_key: KeyFiles = (),
    ui: bool = True,
) -> web.Application:
    """Return the reader of a file or a directory as an aiohttp application.

    It refuses to start on a file that is a mount of its own (`subPath`): a replacement would never be seen there.

    Args:
        path: the file, or the directory for a set. With a file, the other files of its directory
            are served under `/files`, unless that directory is the root of the file system.
        missing: the text to respond with before the first publish, instead of 503.
        token_file: a file with the bearer tokens that may read, one per line, `TOKEN` or `NAME: TOKEN`;
            or a directory with a file for each name, as a mounted Secret. Probes need none.
        read_token_file: a further file or directory of tokens. A reader does not distinguish them; the writer does.
        allowed_hosts: host names that requests may use, against DNS rebinding; empty for any.
            `.example.com` includes all subdomains; addresses and `localhost` are always allowed, and probes are exempt.
        cors_origin: origins whose pages may read contents, files and events in a browser, as `https://app.example.com`.
        watch: the notifier, as for `sidecar.watch`.
        recheck: seconds between scans without an event.
        max_size: largest content in bytes; files of more than 1 MiB stay on the disk and are sent from there.
        include: patterns of the loose files of a directory that count, as for `sidecar.watch`; none means all.
        exclude: patterns of those that do not.
        quiet: seconds without changes after which a directory of loose files is shown.
        verify_key: files with ed25519 public keys: only content that one of them has signed is served,
            as for `sidecar.watch`.
        ui: serve `/ui`, a page that shows the content, its history and its changes.

    Raises:
        ConfigError: an argument is invalid.
        ReadError: at the start of the application: the file is a mount of its own.

    >>> from aiohttp import web
    >>> app = web.Application()
    >>> _ = app.add_subapp("/config/", reader_app("/shared/config", missing="ok"))
    """
    max_bytes = arguments.check_size("max_size", max_size)
    if missing is not None:
        arguments.check_instance("missing", missing, str, "a text, or None")
    tokens = bearer_auth.from_arguments(token_file, read_token_file, writes=False)
    protection = cross_origin.CrossOriginProtection(allowed_hosts=allowed_hosts)
    app = web.Application(
        middlewares=[
            problems.middleware,
            protection.middleware(),
            *([tokens.middleware()] if tokens else []),
        ]
    )
    long_poll.setup(app)
    app[READER] = Reader(_placeholder_content(missing))
    app[files.FILE_SOURCE] = files.FileSource(
        _open_parent_directory(arguments.check_path("path", path), max_bytes, verify_key),
        files.SANDBOX_HEADERS,
    )
    if tokens is not None:
        app.cleanup_ctx.append(tokens.follow)
    app.on_startup.append(partial(_reject_file_mount, os.fspath(path)))
    app.cleanup_ctx.append(
        follow.follow(
            path,
            watch=watch,
            recheck=recheck,
            max_size=max_bytes,
            include=include,
            exclude=exclude,
            quiet=quiet,
            verify_key=verify_key,
        )
    )
    cors.Cors(cors_origin).share(
        app,
        [
            web.get("/", _get_content),
            web.get("/raw", _get_raw),
            web.get("/events", _get_events),
            web.get("/files", files.list_files),
            web.get(f"/files/{files.NAME}", files.get_file),
        ],
    )
    app.add_routes(ops.ops_routes(lambda: api_descriptions.reader(token=tokens is not None, ui=ui)))
    if ui:
        _add_page(app, os.fspath(path), max_bytes, verify_key)
    return app


def _add_page(app: web.Application, path: str, max_size: int, verify_key: KeyFiles) -> None:
    own = _Directory(os.path.abspath(path), max_size, verify_key)

    async def open_volume(request: web.Request, name: str | None) -> Volume:
        """Return the directory of the content; raise `Problem` 404 for a file that `/files` does not serve."""
        snapshot = request.app[follow.LATEST].snapshot
        beside = request.app[files.FILE_SOURCE].beside
        if snapshot.name is not None and isinstance(beside, _Directory):
            return await beside.volume()
        if snapshot.name is not None or (name is not None and name not in snapshot):
            raise files.no_such_file(name or "")
        return await own.volume()

    async def describe() -> dict[str, object]:
        snapshot = app[follow.LATEST].watch.snapshot
        name = None if snapshot is None else snapshot.name
        return {"role": "reader", "path": path, "name": name, "events": "events"}

    app.add_routes(
        [
            *assets.page_routes(assets.CONTENT_PAGE, describe),
            *history.history_routes(open_volume),
        ]
    )


@dataclass
class Reader:
    """State shared by the handlers of one reader."""

    placeholder: Content | None
    """The content to serve before the first publish."""
    json_cache: tuple[Snapshot[None] | Content, bytes | json_body.JsonStream | str] | None = None
    """The JSON of the last content served, encoded once per version.
    For a large content a stream of known size, or the reason why there is no JSON.
    """
    measure_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a large content is measured: once, for all requests."""
    event_hub: EventHub | None = None
    """The event hub, created by the first subscriber."""


READER: web.AppKey[Reader] = web.AppKey("sidecar.reader", Reader)


async def _reject_file_mount(path: str, _: web.Application) -> None:
    """Raise if the path is a file mount: failing is better than serving an old content for ever."""
    if await executor.run_in_thread(mounts.is_file_mount, path):
        raise _errors.ReadError(
            errno.EBUSY,
            f"cannot follow {path}: the file is a mount of its own (subPath), which never shows"
            " what replaces it (mount the directory instead)",
        )


async def _get_content(request: web.Request) -> web.Response:
    reader, latest = request.app[READER], request.app[follow.LATEST]

    async def make() -> Representation:
        content = _current(reader, latest)
        is_set = isinstance(content, Snapshot) and content.name is None
        return Representation(
            body=await _json_of(reader, content),
            etag=content.etag,
            modified=content.modified,
            content_type=representation.JSON,
            dated=not is_set,
            headers={**files.metadata_headers(content.metadata), **files.stale_header(latest)},
        )

    return await long_poll.respond(request, latest.watch, make, in_memory=lambda: True)


async def _get_events(request: web.Request) -> web.StreamResponse:
    reader = request.app[READER]
    if reader.event_hub is None:
        reader.event_hub = EventHub(
            _SseSource(reader, request.app[follow.LATEST]), request.app[pending.PENDING]
        )
    return await reader.event_hub.answer(request)


class _SseSource:
    """The content of a reader as a source of events."""

    def __init__(self, reader: Reader, latest: follow.Latest[None]) -> None:
        self._reader = reader
        self._latest = latest
        self._last: tuple[Snapshot[None] | Content, bytes] | None = None

    @property
    def stale(self) -> str | None:
        return self._latest.stale

    async def snapshot_json(self) -> tuple[str, bytes] | None:
        try:
            content = _current(self._reader, self._latest)
        except follow.NotPublishedYet:
            return None
        if self._last is None or self._last[0] is not content:
            self._last = (content, await self._json(content))
        return content.etag, self._last[1]

    async def _json(self, content: Snapshot[None] | Content) -> bytes:
        """Return the JSON for an event: in memory, for any number of subscribers; `null` if it is too large or not text."""
        if content.size > _MAX_EVENT_BYTES:
            return b"null"
        try:
            if json_body.is_large(content):
                return await executor.run_in_thread(json_body.dump_json, content)
            body = await _json_of(self._reader, content)
        except (problems.Problem, _errors.ReadError):  # not text, or not readable now
            return b"null"
        return body if isinstance(body, bytes) else b"null"

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._latest.watch.subscribe(callback)


async def _json_of(
    reader: Reader, content: Snapshot[None] | Content
) -> bytes | json_body.JsonStream:
    """Return the content as JSON, encoded once per version; a large one as a stream.

    Raises:
        Problem: 406, it is not text.
        ContentAltered: a large file has changed.
    """
    if reader.json_cache is not None and reader.json_cache[0] is content:
        body = reader.json_cache[1]
    elif json_body.is_large(content):
        body = await _measure_once(reader, content)
    else:
        in_loop = content.size <= _MAX_LOOP_JSON_BYTES
        body = (
            json_body.dump_json(content)
            if in_loop
            else await executor.run_in_thread(json_body.dump_json, content)
        )
        reader.json_cache = (content, body)
    if isinstance(body, str):
        raise problems.Problem("not-text", body)
    return body


async def _measure_once(
    reader: Reader, content: Snapshot[None] | Content
) -> bytes | json_body.JsonStream | str:
    async with reader.measure_lock:
        if reader.json_cache is None or reader.json_cache[0] is not content:
            body: json_body.JsonStream | str
            try:
                body = await executor.run_in_thread(json_body.measure, content)
            except problems.Problem as problem:
                body = problem.detail
            reader.json_cache = (content, body)
        return reader.json_cache[1]


async def _get_raw(request: web.Request) -> web.Response:
    reader, latest = request.app[READER], request.app[follow.LATEST]

    async def make() -> Representation:
        content = _current(reader, latest)
        headers = {**files.SANDBOX_HEADERS, **files.stale_header(latest)}
        if isinstance(content, Content):
            return await files.representation(content, headers)
        if content.name is None:
            raise problems.Problem(
                "no-such-file",
                f"{latest.watch.path} is a directory: GET /files lists its files, GET /files/NAME has one",
            )
        return await files.representation(content.content(), headers)

    return await long_poll.respond(request, latest.watch, make, in_memory=lambda: True)


def _current(reader: Reader, latest: follow.Latest[None]) -> Snapshot[None] | Content:
    """Return the content to serve. Raises `Problem` 503 if there is none."""
    if latest.watch.snapshot is None and reader.placeholder is not None:
        return reader.placeholder
    return latest.snapshot


def _placeholder_content(missing: str | None) -> Content | None:
    if missing is None:
        return None
    data = missing.encode()
    return Content("missing.txt", data, snapshot.version_of(data), time.time())


class _Directory:
    """The directory of a followed file. `Volume` is imported on demand."""

    def __init__(self, directory: str, max_size: int, verify_key: KeyFiles) -> None:
        self._directory = directory
        self._max_size = max_size
        self._verify_key = verify_key
        self._opened: Volume | None = None

    async def entries(self) -> list[FileInfo]:
        return await (await self.volume()).entries()

    async def read(self, name: str) -> Content:
        return await (await self.volume()).read(name)

    async def volume(self) -> Volume:
        if self._opened is None:
            self._opened = await executor.run_in_thread(self._open)
        return self._opened

    def _open(self) -> Volume:
        from sidecar.volume.volume import Volume

        return Volume(self._directory, max_size=self._max_size, verify_key=self._verify_key)


def _open_parent_directory(
    path: str, max_size: int, verify_key: KeyFiles = ()
) -> _Directory | None:
    """Return the directory of a file; whether the path is a file is known once it has been read."""
    directory = os.path.dirname(os.path.abspath(path))
    if path.endswith("/") or directory == "/":
        return None  # serving a file in / must not serve the whole file system
    return _Directory(directory, max_size, verify_key)
