"""The versions of a content, and what differs between one of them and the current content."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final

from aiohttp import web

from sidecar import _errors
from sidecar.http import problems
from sidecar.http.semantics import representation
from sidecar.process import executor
from sidecar.volume.content.metadata import Metadata
from sidecar.volume.content.snapshot import Content

if TYPE_CHECKING:
    from sidecar.volume.publish.history import Version
    from sidecar.volume.volume import Volume

MAX_TEXT_BYTES: Final = 256 << 10
"""Largest file, in bytes, whose text is part of a comparison."""
MAX_TEXT_BYTES_OF_ALL: Final = 2 << 20
"""Most bytes of text in one comparison; further files are listed without their text."""
MAX_COMPARED_BYTES: Final = 16 << 20
"""Largest version, in bytes, that is compared: it is read as a whole."""
MAX_FILES: Final = 200
"""Most files in one comparison; `omitted` counts the others."""

OpenVolume = Callable[[web.Request, str | None], Awaitable["Volume"]]
"""Returns the volume of a request for the file of this name (None: for the set). Raises `Problem` for one that is not served."""


def version_entry(version: Version) -> dict[str, object]:
    """Return a version as an item of a JSON list."""
    metadata = version.metadata or Metadata()
    return {
        "etag": version.etag,
        "published": representation.rfc3339(version.published),
        "size": version.size,
        "files": version.files,
        "current": version.current,
        "published_by": metadata.published_by,
        "content_type": metadata.content_type,
        "request_id": metadata.request_id,
        "traceparent": metadata.traceparent,
    }


def history_routes(open_volume: OpenVolume) -> list[web.RouteDef]:
    """Return `/ui/versions`, the list of versions, and `/ui/versions/ETAG`, one of them beside the current content.

    Both take `?name=NAME`: the versions of this file, or, if it is part of a set, those of the set.
    """
    one_at_a_time = asyncio.Lock()  # each may read as much as a whole version

    async def versions(request: web.Request) -> web.Response:
        name = request.query.get("name")
        async with one_at_a_time:
            found = await _versions(await open_volume(request, name), name)
        return representation.json_answer([version_entry(one) for one in found])

    async def comparison(request: web.Request) -> web.Response:
        name = request.query.get("name")
        version = request.match_info["etag"].strip('"')
        async with one_at_a_time:
            volume = await open_volume(request, name)
            _check_sizes(version, await _versions(volume, name))
            before, is_set = await volume.read_version(version, name=name)
            after = await _current(volume, None if is_set else name)
            found = await executor.run_in_thread(compare, before, after)
        return representation.json_answer(found)

    return [web.get("/ui/versions", versions), web.get("/ui/versions/{etag}", comparison)]


def compare(before: Mapping[str, Content], after: Mapping[str, Content]) -> dict[str, object]:
    """Return the files that differ, each with its text in both: `before` is the older content. Blocking."""
    names = sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or before[name].version != after[name].version
    )
    left = MAX_TEXT_BYTES_OF_ALL
    files = []
    for name in names[:MAX_FILES]:
        pair = [side.get(name) for side in (before, after)]
        size = sum(one.size for one in pair if one is not None)
        shown = size <= left and all(one is None or one.size <= MAX_TEXT_BYTES for one in pair)
        left -= size if shown else 0
        files.append(
            {
                "name": name,
                "before": _side(pair[0], shown=shown),
                "after": _side(pair[1], shown=shown),
            }
        )
    return {"files": files, "omitted": len(names) - len(files)}


async def _versions(volume: Volume, name: str | None) -> list[Version]:
    try:
        return await volume.versions(name)
    except _errors.NothingPublished:
        return []


def _check_sizes(version: str, versions: Collection[Version]) -> None:
    """Raise `Problem` 413 if this version, or the current one, is too large to be compared."""
    compared = [one.size for one in versions if one.current or one.version == version]
    if max(compared, default=0) > MAX_COMPARED_BYTES:
        raise problems.Problem(
            "content-too-large",
            f"a version of more than {MAX_COMPARED_BYTES >> 20} MiB is not compared;"
            " it can be published again by POST /rollback",
        )


def _side(content: Content | None, *, shown: bool) -> dict[str, object] | None:
    if content is None:
        return None
    return {
        "size": content.size,
        "etag": content.etag,
        "text": _text(content) if shown else None,
    }


def _text(content: Content) -> str | None:
    """Return the text, None if it is not UTF-8 or cannot be read any more."""
    try:
        return content.data.decode()
    except (UnicodeDecodeError, OSError):
        return None


async def _current(volume: Volume, name: str | None) -> Mapping[str, Content]:
    """Return the current content: one file, or all of the set. Empty if there is none."""
    try:
        if name is not None:
            return {name: await volume.read(name)}
        snapshot = await volume.snapshot()
    except _errors.NothingPublished:
        return {}
    names: Collection[str] = snapshot
    return {one: snapshot.content(one) for one in names}
