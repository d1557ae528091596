"""Serve the files of a volume: a list, and the bytes of each.

What is served lies in memory, or is opened beneath the volume; a name never leads anywhere else.

Anybody who can write to the volume decides what is in these files, and they are sent from the address of the application.
So a browser is told to take each as the type that is said, and to run nothing in it:
`X-Content-Type-Options: nosniff`, `Content-Security-Policy: sandbox`.
"""

from __future__ import annotations

import contextlib
import mimetypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Final

import orjson
from aiohttp import web

from sidecar import _errors
from sidecar.http import answers, openapi, problems, waiting
from sidecar.http import follow as following
from sidecar.http.answers import Representation
from sidecar.http.follow import Latest
from sidecar.volume import snapshot as snapshots
from sidecar.volume import store
from sidecar.volume.snapshot import MAX_SIZE, Content
from sidecar.volume.volume import Volume
from sidecar.volume.watch import WatchMode

SANDBOX: Final[Mapping[str, str]] = {"Content-Security-Policy": "sandbox"}
STALE: Final = "Sidecar-Stale"
"""The header that says why the content may be out of date; it is absent while it is not."""

_DISK_RECHECK = 1.0
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


@dataclass(frozen=True, slots=True)
class Shelf:
    """What an application serves files from, and with which headers.

    The files of the content that is followed come from memory.
    Where that is a single file, the others of its directory come from `beside`, when they are asked for.
    """

    beside: Volume | None
    headers: Mapping[str, str]


SHELF: web.AppKey[Shelf] = web.AppKey("sidecar.shelf", Shelf)


def files_app(
    path: str | os.PathLike[str],
    *,
    trusted: bool = False,
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int = MAX_SIZE,
) -> web.Application:
    """Return an application that serves the files of a directory, to be mounted with `add_subapp`.

    `GET /` is a JSON list of them, `GET /NAME` the bytes of one,
    with `ETag`, conditional requests, ranges and `Prefer: wait=SECONDS` as the reader has them.

    Browsers are told to run nothing of it, as anybody who writes to the volume could have put it there;
    `trusted=True` lifts that, for a site with scripts of its own.

    >>> app = web.Application()
    >>> _ = app.add_subapp("/site/", files_app("/shared"))
    """
    app = web.Application(middlewares=[problems.middleware])
    waiting.prepare(app)
    app[SHELF] = Shelf(None, {} if trusted else SANDBOX)
    app.cleanup_ctx.append(following.follow(path, watch=watch, recheck=recheck, max_size=max_size))
    app.add_routes(
        [web.get("", list_files), web.get("/", list_files), web.get("/{name:.+}", get_file)]
    )
    return app


async def list_files(request: web.Request) -> web.Response:
    """Answer with the list of all files: name, size, entity tag and time of each."""
    shelf, latest = request.app[SHELF], request.app[following.LATEST]

    async def make() -> Representation:
        contents = await _all_contents(shelf, latest)
        body = orjson.dumps([_entry(contents[name]) for name in sorted(contents)])
        return Representation(
            body=body,
            etag=snapshots.etag(snapshots.version_of(body)),
            modified=max((one.modified for one in contents.values()), default=0.0),
            content_type=answers.JSON,
            headers=stale_header(latest),
        )

    return await waiting.answer(request, latest.watch, make)


async def get_file(request: web.Request) -> web.Response:
    """Answer with the bytes of one file."""
    shelf, latest = request.app[SHELF], request.app[following.LATEST]
    name = request.match_info["name"]

    async def make() -> Representation:
        try:
            content = await _content(shelf, latest, store.check_name(name))
        except (_errors.NameRefused, _errors.NothingPublished, KeyError) as error:
            raise no_such_file(name) from error
        return representation(content, latest, shelf.headers)

    return await waiting.answer(request, latest.watch, make, recheck=_DISK_RECHECK)


def representation(
    content: Content, latest: Latest[None], headers: Mapping[str, str] = SANDBOX
) -> Representation:
    """Return the bytes of one file as they are sent."""
    return Representation(
        body=content.data,
        etag=content.etag,
        modified=content.modified,
        content_type=content_type(content.name, content.data),
        ranges=True,
        headers={**headers, **stale_header(latest)},
    )


def stale_header(latest: Latest[None]) -> Mapping[str, str]:
    """Return the header that says why the content may be out of date, if it may."""
    return {STALE: answers.header_text(latest.stale)} if latest.stale is not None else {}


def no_such_file(name: str) -> problems.Problem:
    """Return the one answer to every name that is not served: it does not tell why."""
    return problems.Problem(
        "no-such-file", f"there is no file {name[:255]!r} here (GET /files lists those that are)"
    )


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


def describe_files(prefix: str) -> dict[str, openapi.Object]:
    """Return the OpenAPI description of `list_files` and `get_file`."""
    entry: openapi.Object = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "size": {"type": "integer"},
            "etag": {"type": "string"},
            "modified": {"type": "string", "format": "date-time"},
        },
    }
    listing = openapi.json("The files", {"type": "array", "items": entry})
    whole = openapi.content("The bytes", "*/*", {"type": "string", "format": "binary"})
    name = openapi.path_parameter("name", "A relative path; it may hold `/`")
    read = [*openapi.CONDITIONAL, openapi.LONG_POLL]
    parts = openapi.header("Range", "`bytes=FIRST-LAST`: one range; of several none is served")
    return {
        prefix: openapi.get(
            openapi.operation(
                "All files", responses={200: listing, 304: "Not changed"}, parameters=read
            )
        ),
        f"{prefix}/{{name}}": openapi.get(
            openapi.operation(
                "One file",
                responses={200: whole, 206: "A part", 304: "Not changed", 404: "No such file"},
                parameters=[name, *read, parts],
            )
        ),
    }


async def _all_contents(shelf: Shelf, latest: Latest[None]) -> dict[str, Content]:
    snapshot = latest.snapshot
    contents = {name: snapshot.content(name) for name in snapshot}
    if shelf.beside is not None and snapshot.name is not None:
        for name in await shelf.beside.names():
            with contextlib.suppress(_errors.ReadError):  # gone meanwhile, or not fit to be read
                contents.setdefault(name, await shelf.beside.read(name))
    return contents


async def _content(shelf: Shelf, latest: Latest[None], name: str) -> Content:
    """Return one file. Raises `KeyError` or `NothingPublished` where there is none."""
    snapshot = latest.snapshot
    if name in snapshot or snapshot.name is None or shelf.beside is None:
        return snapshot.content(name)
    return await shelf.beside.read(name)


def _entry(content: Content) -> dict[str, object]:
    modified = datetime.fromtimestamp(content.modified, UTC)
    return {
        "name": content.name,
        "size": len(content.data),
        "etag": content.etag,
        "modified": modified.isoformat().replace("+00:00", "Z"),
    }


def _is_text(data: bytes) -> bool:
    if b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
