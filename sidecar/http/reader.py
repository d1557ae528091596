"""The reader: what the writer published last, over HTTP.

    GET /              the content as a JSON string; of a set, a JSON object of names and texts
    GET /raw           its bytes
    GET /files         all files of the volume
    GET /files/NAME    one of them
    GET /events        each change, as it happens

Every answer has the content's strong `ETag`, the same that the writer gave for it.
The last good content is served for ever; `Sidecar-Stale` says so when the volume does not hold it any more.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from sidecar import _errors
from sidecar.disk import atomic
from sidecar.http import answers, bearer, descriptions, files, ops, problems, waiting
from sidecar.http import follow as following
from sidecar.http.answers import Representation
from sidecar.http.stream import Stream
from sidecar.runtime import threads
from sidecar.volume import snapshot as snapshots
from sidecar.volume.snapshot import MAX_SIZE, Content, Snapshot
from sidecar.volume.watch import WatchMode

if TYPE_CHECKING:
    from sidecar.volume.terms import Entry
    from sidecar.volume.volume import Volume

_SMALL = 1 << 20
"""Bytes up to which a content becomes JSON on the event loop: a millisecond or so."""


def reader_app(
    path: str | os.PathLike[str],
    *,
    missing: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int = MAX_SIZE,
) -> web.Application:
    """Return the reader of a file or a directory as an aiohttp application.

    It does not start on a file that is a mount of its own (`subPath`): what replaces that is never seen there.

    Args:
        path: the file, or the directory for a set. With a file, the others of its directory
            can be had under `/files`, unless that directory is the root of the file system.
        missing: the text to answer with as long as nothing has been published, instead of 503.
        token_file: a file with the bearer tokens that may read, one a line; probes need none.
        watch: where hints come from, as for `sidecar.watch`.
        recheck: seconds between looks without a hint.
        max_size: bytes that may be held in memory.

    >>> app = web.Application()
    >>> _ = app.add_subapp("/config/", reader_app("/shared/config", missing="ok"))
    """
    tokens = bearer.TokenFile(token_file) if token_file is not None else None
    app = web.Application(
        middlewares=[problems.middleware, *([tokens.middleware()] if tokens else [])]
    )
    waiting.prepare(app)
    app[READER] = Reader(_stand_in(missing))
    app[files.SHELF] = files.Shelf(_beside(os.fspath(path), max_size), files.SANDBOX)
    if tokens is not None:
        app.cleanup_ctx.append(tokens.follow)
    app.on_startup.append(partial(_refuse_single_mount, os.fspath(path)))
    app.cleanup_ctx.append(
        following.follow(
            path, required=missing is None, watch=watch, recheck=recheck, max_size=max_size
        )
    )
    app.add_routes(
        [
            web.get("/", _get_content),
            web.get("/raw", _get_raw),
            web.get("/events", _get_events),
            web.get("/files", files.list_files),
            web.get(f"/files/{files.NAME}", files.get_file),
            *ops.ops_routes(lambda: descriptions.reader(token=tokens is not None)),
        ]
    )
    return app


@dataclass
class Reader:
    """What the handlers of one reader share."""

    stand_in: Content | None
    """What is served as long as nothing has been published."""
    image: tuple[Snapshot[None] | Content, bytes] | None = None
    """The JSON of the content that was served last: it is made once for each version."""
    stream: Stream | None = None
    """Those who listen to changes, once there has been one."""


READER: web.AppKey[Reader] = web.AppKey("sidecar.reader", Reader)


async def _refuse_single_mount(path: str, _: web.Application) -> None:
    """Raise where the container should rather fail than serve an old content for ever."""
    if await threads.in_thread(atomic.is_single_file_mount, path):
        raise _errors.ReadError(
            errno.EBUSY,
            f"cannot follow {path}: the file is a mount of its own (subPath), which never shows"
            " what replaces it (mount the directory instead)",
        )


async def _get_content(request: web.Request) -> web.Response:
    reader, latest = request.app[READER], request.app[following.LATEST]

    async def make() -> Representation:
        found = _found(reader, latest)
        return Representation(
            body=await _json_of(reader, found),
            etag=found.etag,
            modified=found.modified,
            content_type=answers.JSON,
            headers=files.stale_header(latest),
        )

    return await waiting.answer(request, latest.watch, make, in_memory=lambda: True)


async def _get_events(request: web.Request) -> web.StreamResponse:
    reader = request.app[READER]
    if reader.stream is None:
        reader.stream = Stream(
            _Told(reader, request.app[following.LATEST]), request.app[waiting.WAITS]
        )
    return await reader.stream.answer(request)


class _Told:
    """The content of a reader, as its event stream tells of it."""

    def __init__(self, reader: Reader, latest: following.Latest[None]) -> None:
        self._reader = reader
        self._latest = latest

    @property
    def stale(self) -> str | None:
        return self._latest.stale

    async def image(self) -> tuple[str, bytes] | None:
        try:
            found = _found(self._reader, self._latest)
        except following.NothingYet:
            return None
        try:
            return found.etag, await _json_of(self._reader, found)
        except problems.Problem:  # it is no text
            return found.etag, b"null"

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._latest.watch.subscribe(callback)


async def _json_of(reader: Reader, found: Snapshot[None] | Content) -> bytes:
    """Return the content as JSON, made once for each version."""
    if reader.image is None or reader.image[0] is not found:
        size = found.size if isinstance(found, Snapshot) else 0
        body = _as_json(found) if size <= _SMALL else await threads.in_thread(_as_json, found)
        reader.image = (found, body)
        return body
    return reader.image[1]


async def _get_raw(request: web.Request) -> web.Response:
    reader, latest = request.app[READER], request.app[following.LATEST]

    async def make() -> Representation:
        found = _found(reader, latest)
        headers = {**files.SANDBOX, **files.stale_header(latest)}
        if isinstance(found, Content):
            return files.representation(found, headers)
        if found.name is None:
            raise problems.Problem(
                "no-such-file",
                f"{latest.watch.path} is a directory: GET /files lists its files, GET /files/NAME has one",
            )
        return files.representation(found.content(), headers)

    return await waiting.answer(request, latest.watch, make, in_memory=lambda: True)


def _found(reader: Reader, latest: following.Latest[None]) -> Snapshot[None] | Content:
    """Return what is to be served; raises `Problem` 503 if there is nothing."""
    if latest.watch.snapshot is None and reader.stand_in is not None:
        return reader.stand_in
    return latest.snapshot


def _as_json(found: Snapshot[None] | Content) -> bytes:
    """Return a content as JSON text; raises `Problem` 406 where it is no text."""
    if isinstance(found, Content):
        return orjson.dumps(_text(found))
    if found.name is not None:
        return orjson.dumps(_text(found.content()))
    return orjson.dumps({name: _text(found.content(name)) for name in found})


def _text(content: Content) -> str:
    try:
        return content.data.decode()
    except UnicodeDecodeError as error:
        raise problems.Problem(
            "not-text",
            f"{content.name} is not UTF-8 (offset {error.start}), so there is no JSON string for it;"
            " GET /raw or /files/NAME has the bytes",
        ) from error


def _stand_in(missing: str | None) -> Content | None:
    if missing is None:
        return None
    data = missing.encode()
    return Content("missing.txt", data, snapshots.version_of(data), time.time())


class _Beside:
    """The directory around a file: what can read it can publish as well, and is imported when it is needed."""

    def __init__(self, directory: str, max_size: int) -> None:
        self._directory = directory
        self._max_size = max_size
        self._opened: Volume | None = None

    async def entries(self) -> list[Entry]:
        return await (await self._volume()).entries()

    async def read(self, name: str) -> Content:
        return await (await self._volume()).read(name)

    async def _volume(self) -> Volume:
        if self._opened is None:
            self._opened = await threads.in_thread(self._open)
        return self._opened

    def _open(self) -> Volume:
        from sidecar.volume.volume import Volume

        return Volume(self._directory, max_size=self._max_size)


def _beside(path: str, max_size: int) -> _Beside | None:
    """Return the directory around a file; whether the path is one is known once it has been read."""
    directory = os.path.dirname(os.path.abspath(path))
    if path.endswith("/") or directory == "/":
        return None  # to serve a file that lies in / must not mean to serve the machine
    return _Beside(directory, max_size)
