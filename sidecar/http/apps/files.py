"""Serve the files of a volume: a list, and the bytes of each.

What is served lies in memory, or is opened beneath the volume; a name never leads anywhere else.
Files of more than 1 MiB are sent from the disk.

Anybody who can write to the volume decides what is in these files, and they are sent from the address of the application.
So a browser is told to take each as the type that is said, and to run nothing in it:
`X-Content-Type-Options: nosniff`, `Content-Security-Policy: sandbox`.
"""

from __future__ import annotations

import codecs
import contextlib
import mimetypes
import os
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final, Protocol

import orjson
from aiohttp import web

from sidecar import _errors
from sidecar.fs.open_file import OpenFile
from sidecar.http import problems
from sidecar.http.apps import follow
from sidecar.http.apps.follow import Latest
from sidecar.http.semantics.representation import JSON, Body, Representation, header_text, rfc3339
from sidecar.http.server.sendfile import FileRange
from sidecar.http.subscribe import long_poll
from sidecar.process import executor
from sidecar.volume.content.snapshot import MAX_SIZE, Content, etag, version_of
from sidecar.volume.publish import models
from sidecar.volume.publish.models import FileInfo
from sidecar.volume.watch.watch import WatchMode

SANDBOX_HEADERS: Final[Mapping[str, str]] = {"Content-Security-Policy": "sandbox"}
STALE_HEADER: Final = "Sidecar-Stale"
"""The header that says why the content may be out of date; it is absent while it is not."""

NAME: Final = r"{name:[\s\S]+}"
"""The part of a route that takes any name, for it to be judged here and not by a pattern."""

_INDEX = "index.html"
_CHOSEN: Final[Mapping[str, str]] = {"Vary": "Accept"}
_DISK_RECHECK = 0.25
_SAMPLE = 64 << 10
_KINDS: weakref.WeakKeyDictionary[OpenFile, str] = weakref.WeakKeyDictionary()
_TYPES = mimetypes.MimeTypes(filenames=())
_MORE_TYPES: Final = {
    ".yaml": "application/yaml",  # RFC 9512
    ".yml": "application/yaml",
    ".toml": "application/toml",
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
    ".md": "text/markdown",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".wasm": "application/wasm",
}
_TEXT_SUFFIXES: Final = {".conf", ".cfg", ".ini", ".env", ".log", ".properties", ".list"}
_CODED: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
}


class DirectoryReader(Protocol):
    """A directory whose files are not followed, and read when they are asked for; a `Volume` is one."""

    async def entries(self) -> list[FileInfo]: ...

    async def read(self, name: str) -> Content: ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """What an application serves files from, and with which headers.

    The files of the content that is followed come from memory, or, large ones, from the disk.
    Where that is a single file, the others of its directory come from `beside`, when they are asked for.
    """

    beside: DirectoryReader | None
    headers: Mapping[str, str]
    dotfiles: bool = True

    def serves(self, name: str) -> bool:
        """Whether a name is served: those with a part that begins with a dot only where that is wanted."""
        return self.dotfiles or (not name.startswith(".") and "/." not in name)


FILE_SOURCE: web.AppKey[FileSource] = web.AppKey("sidecar.shelf", FileSource)


def files_app(
    path: str | os.PathLike[str],
    *,
    trusted: bool = False,
    dotfiles: bool = False,
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int | str = MAX_SIZE,
) -> web.Application:
    """Return an application that serves the files of a directory, to be mounted with `add_subapp`.

    `GET /NAME` is the bytes of one, with `ETag`, conditional requests, ranges and `Prefer: wait=SECONDS`
    as the reader has them. A directory answers with its `index.html`, at an address that ends with `/`.
    `GET /` is a JSON list of all files where there is no `index.html`, or if `Accept: application/json` asks for it.

    Names with a part that begins with a dot (`.git/config`, `.env`) are neither served nor listed;
    `dotfiles=True` lifts that.
    Browsers are told to run nothing of it, as anybody who writes to the volume could have put it there;
    `trusted=True` lifts that, for a site with scripts of its own.

    Raises:
        ConfigError: an argument makes no sense.

    >>> from aiohttp import web
    >>> app = web.Application()
    >>> _ = app.add_subapp("/site/", files_app("/shared"))
    """
    app = web.Application(middlewares=[problems.middleware])
    long_poll.setup(app)
    app[FILE_SOURCE] = FileSource(None, {} if trusted else SANDBOX_HEADERS, dotfiles)
    app.cleanup_ctx.append(follow.follow(path, watch=watch, recheck=recheck, max_size=max_size))
    app.add_routes(
        [web.get("", _get_page), web.get("/", _get_page), web.get(f"/{NAME}", _get_page)]
    )
    return app


async def _get_page(request: web.Request) -> web.Response:
    """Answer with a file, with the `index.html` of a directory, or at the top with a list."""
    name, snapshot = (
        request.match_info.get("name", ""),
        request.app[follow.LATEST].watch.snapshot,
    )
    names: Collection[str] = () if snapshot is None else snapshot
    if name and not name.endswith("/"):
        is_directory = name not in names and f"{name}/{_INDEX}" in names
        return _to_directory(request) if is_directory else await _answer_file(request, name)
    if name:
        return await _answer_file(request, name + _INDEX)
    if _INDEX not in names or _wants_json(request):
        return await list_files(request, _CHOSEN)
    if not request.path.endswith("/"):
        return _to_directory(request)
    return await _answer_file(request, _INDEX, _CHOSEN)


def _to_directory(request: web.Request) -> web.Response:
    """Send a browser to the address of the directory: only from there relative links lead to its files."""
    where = request.rel_url.raw_path.rpartition("/")[2] + "/"
    query = request.rel_url.raw_query_string
    headers = {"Location": f"{where}?{query}" if query else where, "Cache-Control": "no-cache"}
    return web.Response(status=307, headers=headers)


def _wants_json(request: web.Request) -> bool:
    accepted = request.headers.get("Accept", "")
    return "application/json" in accepted and "text/html" not in accepted


async def list_files(
    request: web.Request, headers: Mapping[str, str] = MappingProxyType({})
) -> web.Response:
    """Answer with the list of all files: name, size, entity tag and time of each."""
    shelf, latest = request.app[FILE_SOURCE], request.app[follow.LATEST]

    async def make() -> Representation:
        return listing(await _entries(shelf, latest), {**headers, **stale_header(latest)})

    return await long_poll.respond(request, latest.watch, make, recheck=_DISK_RECHECK)


async def get_file(request: web.Request) -> web.Response:
    """Answer with the bytes of the file that the address names."""
    return await _answer_file(request, request.match_info["name"])


async def _answer_file(
    request: web.Request, name: str, headers: Mapping[str, str] = MappingProxyType({})
) -> web.Response:
    shelf, latest = request.app[FILE_SOURCE], request.app[follow.LATEST]

    async def make() -> Representation:
        if not shelf.serves(name):
            raise no_such_file(name)
        try:
            content = await _content(shelf, latest, models.check_name(name))
        except (_errors.NameRefused, _errors.NothingPublished, KeyError) as error:
            raise no_such_file(name) from error
        return await representation(content, {**shelf.headers, **headers, **stale_header(latest)})

    def in_memory() -> bool:
        snapshot = latest.watch.snapshot
        return snapshot is not None and name in snapshot

    return await long_poll.respond(
        request, latest.watch, make, recheck=_DISK_RECHECK, in_memory=in_memory
    )


async def representation(
    content: Content, headers: Mapping[str, str] = SANDBOX_HEADERS
) -> Representation:
    """Return the bytes of one file as they are sent: from memory, or from the disk where it is large.

    Raises:
        ContentAltered: a large file is not what it was.
    """
    held = content.held
    body: bytes | Body
    if isinstance(held, bytes):
        body, kind = held, content_type(content.name, held)
    else:
        body = FileBody(
            held if isinstance(held, OpenFile) else await executor.run_in_thread(held.open)
        )
        kind = await _type_of_large(content.name, body.file)
    return Representation(
        body=body,
        etag=content.etag,
        modified=content.modified,
        content_type=kind,
        ranges=True,
        headers=headers,
    )


@dataclass(frozen=True, slots=True)
class FileBody:
    """A file on the disk, as the body of an answer."""

    file: OpenFile

    @property
    def size(self) -> int:
        return self.file.size

    def check(self) -> None:
        self.file.check()

    def payload(self, part: slice) -> FileRange:
        return FileRange(self.file, part)


def listing(entries: Sequence[FileInfo], headers: Mapping[str, str]) -> Representation:
    """Return a list of files as JSON. Its entity tag is its own: it changes with any of them, and its date need not."""
    body = orjson.dumps(
        [
            {
                "name": entry.name,
                "size": entry.size,
                "etag": entry.etag,
                "modified": rfc3339(entry.modified),
            }
            for entry in entries
        ]
    )
    return Representation(
        body=body,
        etag=etag(version_of(body)),
        modified=max((one.modified for one in entries), default=0.0),
        content_type=JSON,
        dated=False,
        headers=headers,
    )


def stale_header(latest: Latest[None]) -> Mapping[str, str]:
    """Return the header that says why the content may be out of date, if it may."""
    return {STALE_HEADER: header_text(latest.stale)} if latest.stale is not None else {}


def no_such_file(name: str) -> problems.Problem:
    """Return the one answer to every name that is not served: it does not tell why."""
    return problems.Problem(
        "no-such-file", f"there is no file {name[:255]!r} here (GET /files lists those that are)"
    )


async def _type_of_large(name: str, file: OpenFile) -> str:
    """Return `content_type` of a file that is not in memory: its beginning is read once."""
    kind = _KINDS.get(file)
    if kind is None:
        # One byte more than what is looked at: it is not the whole.
        beginning = await executor.run_in_thread(file.read, 0, _SAMPLE + 1)
        kind = _KINDS[file] = content_type(name, beginning)
    return kind


def content_type(name: str, data: bytes) -> str:
    """Guess the type of a file by its name; without a known ending, by whether it is text.

    >>> content_type("index.html", b"<p>"), content_type("config", b"x"), content_type("a.tar.gz", b"")
    ('text/html; charset=utf-8', 'text/plain; charset=utf-8', 'application/gzip')
    """
    suffix = PurePosixPath(name).suffix.lower()
    guessed, coding = _TYPES.guess_type(PurePosixPath(name).name)
    if coding is not None:
        return _CODED.get(coding, "application/octet-stream")
    kind = _MORE_TYPES.get(suffix) or ("text/plain" if suffix in _TEXT_SUFFIXES else guessed)
    if kind is not None and not kind.startswith("text/"):
        return kind
    if not _is_text(data):
        return kind or "application/octet-stream"
    return f"{kind or 'text/plain'}; charset=utf-8"


async def _entries(shelf: FileSource, latest: Latest[None]) -> list[FileInfo]:
    snapshot = latest.snapshot
    contents = [snapshot.content(name) for name in snapshot]
    found = {one.name: FileInfo(one.name, one.version, one.size, one.modified) for one in contents}
    if shelf.beside is not None and snapshot.name is not None:
        # The last good content stays in the list even where its directory is gone.
        with contextlib.suppress(_errors.ReadError):
            for entry in await shelf.beside.entries():
                found.setdefault(entry.name, entry)
    return [found[name] for name in sorted(found) if shelf.serves(name)]


async def _content(shelf: FileSource, latest: Latest[None], name: str) -> Content:
    """Return one file. Raises `KeyError` or `NothingPublished` where there is none."""
    snapshot = latest.snapshot
    if name in snapshot or snapshot.name is None or shelf.beside is None:
        return snapshot.content(name)
    return await shelf.beside.read(name)


def _is_text(data: bytes) -> bool:
    """Tell by the beginning whether it is UTF-8 text: enough for a guess, whatever the size."""
    beginning = data[:_SAMPLE]
    if b"\0" in beginning:
        return False
    try:
        # Not final unless it is the whole: the sample may end in the middle of a character.
        codecs.utf_8_decode(beginning, "strict", len(data) <= _SAMPLE)
    except UnicodeDecodeError:
        return False
    return True
