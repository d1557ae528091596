"""Serve the files of a volume: a list, and the bytes of each.

Contents come from memory, or are opened beneath the volume; a name never leads outside of it.
Files of more than 1 MiB are sent from the disk.

Anyone who can write to the volume controls these files, and they are served from the origin of the application.
So browsers are told not to sniff the type and not to run scripts:
`X-Content-Type-Options: nosniff`, `Content-Security-Policy: sandbox`.
"""

from __future__ import annotations

import codecs
import contextlib
import mimetypes
import os
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
from sidecar.volume.content.metadata import Metadata, is_media_type
from sidecar.volume.content.snapshot import MAX_SIZE, Content, etag, version_of
from sidecar.volume.publish import models
from sidecar.volume.publish.models import FileInfo
from sidecar.volume.watch.watch import WatchMode

SANDBOX_HEADERS: Final[Mapping[str, str]] = {"Content-Security-Policy": "sandbox"}
STALE_HEADER: Final = "Sidecar-Stale"
"""The header with the reason why the content may be out of date; absent if it is current."""

PUBLISHED_AT_HEADER: Final = "Sidecar-Published-At"
PUBLISHED_BY_HEADER: Final = "Sidecar-Published-By"
REQUEST_ID_HEADER: Final = "Sidecar-Request-Id"
SIGNATURE_HEADER: Final = "Sidecar-Signature"
"""The header with the signature of a file, in the request that publishes it and in responses with it."""

#: Media types that say nothing of the bytes, though clients send them: `curl --data-binary`, HTTP libraries.
_UNSPECIFIC_TYPES: Final = ("application/octet-stream", "application/x-www-form-urlencoded")
#: A browser reads header fields in the parts of these.
_COMPOSITE_TYPES: Final = ("multipart/", "message/")

NAME: Final = r"{name:[\s\S]+}"
"""The part of a route that matches any name; names are validated here and not by a pattern."""

_INDEX = "index.html"
_VARY_ACCEPT: Final[Mapping[str, str]] = {"Vary": "Accept"}
_DISK_RECHECK_SECONDS = 0.25
_SAMPLE_BYTES = 64 << 10
_TYPE_CACHE: weakref.WeakKeyDictionary[OpenFile, str] = weakref.WeakKeyDictionary()
_TYPES = mimetypes.MimeTypes(filenames=())
_EXTRA_TYPES: Final = {
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
_COMPRESSED_TYPES: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
}


class DirectoryReader(Protocol):
    """A directory whose files are read on request and not watched; a `Volume` is one."""

    async def entries(self) -> list[FileInfo]: ...

    async def read(self, name: str) -> Content: ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """The files that an application serves, and their headers.

    Files of the followed content come from memory, or, large ones, from the disk.
    If the content is a single file, the other files of its directory come from `beside`, on request.
    """

    beside: DirectoryReader | None
    headers: Mapping[str, str]
    dotfiles: bool = True

    def serves(self, name: str) -> bool:
        """Whether a name is served: dot files only with `dotfiles`."""
        return self.dotfiles or (not name.startswith(".") and "/." not in name)


FILE_SOURCE: web.AppKey[FileSource] = web.AppKey("sidecar.file_source", FileSource)


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

    `GET /NAME` returns the bytes of a file, with `ETag`, conditional requests, ranges and `Prefer: wait=SECONDS`
    as in the reader. A directory responds with its `index.html`, at a URL that ends with `/`.
    `GET /` is a JSON list of all files if there is no `index.html`, or if `Accept: application/json` asks for it.

    Names with a part that begins with a dot (`.git/config`, `.env`) are neither served nor listed
    without `dotfiles=True`.
    Browsers are told to run no scripts, as anyone who writes to the volume could have put them there;
    `trusted=True` lifts that, for a site with scripts of its own.

    Raises:
        ConfigError: an argument is invalid.

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
    """Respond with a file, with the `index.html` of a directory, or at the root with a list."""
    name, snapshot = (
        request.match_info.get("name", ""),
        request.app[follow.LATEST].watch.snapshot,
    )
    names: Collection[str] = () if snapshot is None else snapshot
    if name and not name.endswith("/"):
        is_directory = name not in names and f"{name}/{_INDEX}" in names
        return (
            _redirect_to_directory(request) if is_directory else await _answer_file(request, name)
        )
    if name:
        return await _answer_file(request, name + _INDEX)
    if _INDEX not in names or _wants_json(request):
        return await list_files(request, _VARY_ACCEPT)
    if not request.path.endswith("/"):
        return _redirect_to_directory(request)
    return await _answer_file(request, _INDEX, _VARY_ACCEPT)


def _redirect_to_directory(request: web.Request) -> web.Response:
    """Redirect to the URL with a slash: relative links resolve only from there."""
    location = request.rel_url.raw_path.rpartition("/")[2] + "/"
    query = request.rel_url.raw_query_string
    headers = {
        "Location": f"{location}?{query}" if query else location,
        "Cache-Control": "no-cache",
    }
    return web.Response(status=307, headers=headers)


def _wants_json(request: web.Request) -> bool:
    accepted = request.headers.get("Accept", "")
    return "application/json" in accepted and "text/html" not in accepted


async def list_files(
    request: web.Request, headers: Mapping[str, str] = MappingProxyType({})
) -> web.Response:
    """Respond with the list of all files: name, size, entity tag and modification time."""
    source, latest = request.app[FILE_SOURCE], request.app[follow.LATEST]

    async def make() -> Representation:
        return listing(await _entries(source, latest), {**headers, **stale_header(latest)})

    return await long_poll.respond(request, latest.watch, make, recheck=_DISK_RECHECK_SECONDS)


async def get_file(request: web.Request) -> web.Response:
    """Respond with the bytes of the file in the URL."""
    return await _answer_file(request, request.match_info["name"])


async def _answer_file(
    request: web.Request, name: str, headers: Mapping[str, str] = MappingProxyType({})
) -> web.Response:
    source, latest = request.app[FILE_SOURCE], request.app[follow.LATEST]

    async def make() -> Representation:
        if not source.serves(name):
            raise no_such_file(name)
        try:
            content = await _content(source, latest, models.check_name(name))
        except (_errors.NameRefused, _errors.NothingPublished, KeyError) as error:
            raise no_such_file(name) from error
        return await representation(content, {**source.headers, **headers, **stale_header(latest)})

    def in_memory() -> bool:
        snapshot = latest.watch.snapshot
        return snapshot is not None and name in snapshot

    return await long_poll.respond(
        request, latest.watch, make, recheck=_DISK_RECHECK_SECONDS, in_memory=in_memory
    )


async def representation(
    content: Content, headers: Mapping[str, str] = SANDBOX_HEADERS
) -> Representation:
    """Return the representation of a file: from memory, or from the disk if it is large.

    Raises:
        ContentAltered: a large file has changed.
    """
    held = content.held
    known = None if content.metadata is None else content.metadata.content_type
    if known is not None and not is_served_type(known):
        known = None
    body: bytes | Body
    if isinstance(held, bytes):
        body, kind = held, known or content_type(content.name, held)
    else:
        body = FileBody(
            held if isinstance(held, OpenFile) else await executor.run_in_thread(held.open)
        )
        kind = known or await _type_of_large(content.name, body.file)
    return Representation(
        body=body,
        etag=content.etag,
        modified=content.modified,
        content_type=kind,
        ranges=True,
        headers={**headers, **metadata_headers(content.metadata)},
    )


def metadata_headers(metadata: Metadata | None) -> dict[str, str]:
    """Return the headers that tell who published a content, when, and by which request."""
    if metadata is None:
        return {}
    found: dict[str, str] = {}
    if metadata.published_at is not None:
        found[PUBLISHED_AT_HEADER] = rfc3339(metadata.published_at)
    if metadata.published_by is not None:
        found[PUBLISHED_BY_HEADER] = header_text(metadata.published_by)
    if metadata.request_id is not None:
        found[REQUEST_ID_HEADER] = metadata.request_id
    if metadata.signature is not None:
        found[SIGNATURE_HEADER] = metadata.signature
    return found


def is_served_type(media_type: str) -> bool:
    """Return whether a media type from a client or a volume is stored and served; if not, the type is guessed.

    >>> is_served_type("text/css"), is_served_type("multipart/form-data; boundary=x"), is_served_type("?")
    (True, False, False)
    """
    essence = media_type.partition(";")[0].strip().lower()
    return (
        is_media_type(media_type)
        and essence not in _UNSPECIFIC_TYPES
        and not essence.startswith(_COMPOSITE_TYPES)
    )


@dataclass(frozen=True, slots=True)
class FileBody:
    """A file on the disk as the body of a response."""

    file: OpenFile

    @property
    def size(self) -> int:
        return self.file.size

    def check(self) -> None:
        self.file.check()

    def payload(self, part: slice) -> FileRange:
        return FileRange(self.file, part)


def listing(entries: Sequence[FileInfo], headers: Mapping[str, str]) -> Representation:
    """Return a list of files as JSON. Its entity tag is that of the list: it changes with any file, its date may not."""
    body = orjson.dumps(
        [
            {
                "name": entry.name,
                "size": entry.size,
                "etag": entry.etag,
                "modified": rfc3339(entry.modified),
            }
            for entry in entries
        ],
        option=orjson.OPT_APPEND_NEWLINE,
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
    """Return `Sidecar-Stale` if the content may be out of date."""
    return {STALE_HEADER: header_text(latest.stale)} if latest.stale is not None else {}


def no_such_file(name: str) -> problems.Problem:
    """Return the response to every name that is not served; it does not reveal the reason."""
    return problems.Problem(
        "no-such-file", f"there is no file {name[:255]!r} here (GET /files lists those that are)"
    )


async def _type_of_large(name: str, file: OpenFile) -> str:
    """Return `content_type` of a large file: its beginning is read once."""
    kind = _TYPE_CACHE.get(file)
    if kind is None:
        # One byte more than the sample, so that it is not taken for the whole file.
        beginning = await executor.run_in_thread(file.read, 0, _SAMPLE_BYTES + 1)
        kind = _TYPE_CACHE[file] = content_type(name, beginning)
    return kind


def content_type(name: str, data: bytes) -> str:
    """Guess the media type of a file from its name; without a known suffix, from whether it is text.

    >>> content_type("index.html", b"<p>"), content_type("config", b"x"), content_type("a.tar.gz", b"")
    ('text/html; charset=utf-8', 'text/plain; charset=utf-8', 'application/gzip')
    """
    suffix = PurePosixPath(name).suffix.lower()
    guessed, coding = _TYPES.guess_type(PurePosixPath(name).name)
    if coding is not None:
        return _COMPRESSED_TYPES.get(coding, "application/octet-stream")
    kind = _EXTRA_TYPES.get(suffix) or ("text/plain" if suffix in _TEXT_SUFFIXES else guessed)
    if kind is not None and not kind.startswith("text/"):
        return kind
    if not _is_text(data):
        return kind or "application/octet-stream"
    return f"{kind or 'text/plain'}; charset=utf-8"


async def _entries(source: FileSource, latest: Latest[None]) -> list[FileInfo]:
    snapshot = latest.snapshot
    contents = [snapshot.content(name) for name in snapshot]
    files_by_name = {
        one.name: FileInfo(one.name, one.version, one.size, one.modified) for one in contents
    }
    if source.beside is not None and snapshot.name is not None:
        # The last valid content stays in the list even if its directory is gone.
        with contextlib.suppress(_errors.ReadError):
            for entry in await source.beside.entries():
                files_by_name.setdefault(entry.name, entry)
    return [files_by_name[name] for name in sorted(files_by_name) if source.serves(name)]


async def _content(source: FileSource, latest: Latest[None], name: str) -> Content:
    """Return one file. Raises `KeyError` or `NothingPublished` if there is none."""
    snapshot = latest.snapshot
    if name in snapshot or snapshot.name is None or source.beside is None:
        content = snapshot.content(name)
        if snapshot.name is None and snapshot.metadata is not None:
            content = replace(content, metadata=snapshot.metadata_of(name))
        return content
    return await source.beside.read(name)


def _is_text(data: bytes) -> bool:
    """Return whether the first bytes are UTF-8 text: a good guess for any size."""
    beginning = data[:_SAMPLE_BYTES]
    if b"\0" in beginning:
        return False
    try:
        # Not final unless the data is complete: the sample may end within a character.
        codecs.utf_8_decode(beginning, "strict", len(data) <= _SAMPLE_BYTES)
    except UnicodeDecodeError:
        return False
    return True
