"""What `/openapi.json` says of the reader and of the writer.

A test compares it with their routes, so neither can be changed without the other.
"""

from __future__ import annotations

from sidecar.http.apps.page import assets
from sidecar.http.semantics import representation
from sidecar.http.semantics.openapi import (
    Json,
    Object,
    content,
    document,
    get,
    header,
    json,
    operation,
    path_parameter,
    query,
)

_EVENTS: Object = {"type": "string"}
_BINARY: Object = {"type": "string", "format": "binary"}
_TAG: Object = {"type": "string", "description": "An entity tag, with its quotes"}
_TIME: Object = {"type": "string", "format": "date-time"}
_COUNT: Object = {"type": "integer"}
_FLAG: Object = {"type": "boolean"}
_NAME: Object = {"type": ["string", "null"]}
_TEXT: Object = {
    "oneOf": [
        {"type": "string"},
        {"type": "object", "additionalProperties": {"type": "string"}},
    ]
}
_ENTRY: Object = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "size": _COUNT, "etag": _TAG, "modified": _TIME},
}
_VERSION: Object = {
    "type": "object",
    "properties": {
        "etag": _TAG,
        "published": _TIME,
        "size": _COUNT,
        "files": _COUNT,
        "current": _FLAG,
        "published_by": _NAME,
        "content_type": _NAME,
        "request_id": _NAME,
        "traceparent": _NAME,
    },
}
_STATE: Object = {
    "type": "object",
    "properties": {
        "name": _NAME,
        "etag": _TAG,
        "changed": _FLAG,
        "size": _COUNT,
        "modified": _TIME,
    },
}
_ROLLBACK: Object = {
    "type": "object",
    "required": ["to"],
    "properties": {"to": _TAG, "name": {"type": "string"}},
    "additionalProperties": False,
}
_CHECKS: Object = {
    "type": "object",
    "properties": {
        "status": {"const": "ok"},
        "checks": {"type": "object", "additionalProperties": {"type": "string"}},
        "details": {"type": "object"},
    },
}

_FILE_NAME: Json = path_parameter("name", "A relative path; it may hold `/`")
_RANGE: Json = header("Range", "`bytes=FIRST-LAST`: one range; of several none is served")
_CONDITIONAL: list[Json] = [
    header("If-None-Match", "Entity tags that are known; 304 if one of them is in force"),
    header("If-Modified-Since", "A date; 304 if nothing has changed since"),
    header("If-Match", "Entity tags, one of which must be in force; else 412"),
    header(
        "Prefer",
        "`wait=SECONDS`: answer once there is a content that If-None-Match does not name,"
        f" after that time as it is; at most {representation.WAIT_LIMIT:g}",
    ),
]
_DRY_RUN: Json = query("dry_run", "`1`: answer as it would be, and change nothing")
_PURGE: Json = query(
    "purge", "`1`: forget its older contents, too, and also those of a file that is gone"
)
_CONFIRMED: Json = header(
    "Prefer", "`wait=SECONDS`: answer once the reader serves the content, if a reader is configured"
)
_IF_MATCH: Json = header("If-Match", "Entity tags, one of which must be in force; else 412")
_IF_NONE_MATCH: Json = header("If-None-Match", "`*`: only if there is nothing yet; else 412")

_REQUEST: list[Json] = [
    header("X-Request-ID", "The ID of the request, for logs and metadata; else one is made"),
    header("traceparent", "Its trace context (W3C), for the metadata"),
]
_SIGNATURE: Json = header(
    "Sidecar-Signature", "ed25519 over the line of sha256sum, in base64, for `--verify-key`"
)
_NOT_YET = "Nothing has been published yet"
_REFUSALS: dict[int, str | Object] = {
    202: "Published, and not confirmed in time",
    400: "Not understood; nothing was changed",
    409: "A directory is in the place of the file, or a file in that of a directory",
    412: "Somebody else has published first",
    413: "Too large",
    422: "Refused; `reasons` says why",
    500: "Visible, but perhaps not durable; or not published: see `type`",
    503: "The volume cannot be written",
    507: "The volume is full",
}


def reader(*, token: bool, ui: bool = True) -> Object:
    """Describe the reader. `token` says that it asks for one, `ui` that it has a page."""
    text = operation(
        "The content, as a JSON string; of a set, an object of names and texts",
        responses={
            200: json("The content", _TEXT),
            304: "Not changed",
            406: "It is not UTF-8",
            503: _NOT_YET,
        },
        parameters=_CONDITIONAL,
    )
    raw = operation(
        "The content, byte for byte",
        responses={
            200: content("The bytes", "*/*", _BINARY),
            206: "A part",
            304: "Not changed",
            404: "It is a set of files",
            416: "The range lies outside",
            503: _NOT_YET,
        },
        parameters=[*_CONDITIONAL, _RANGE],
    )
    events = operation(
        "Server-sent events: `content` with the entity tag as id and the data of `GET /`"
        " (`null` where that is no text, or more than 4 MiB), `stale` and `fresh`",
        responses={200: content("Events, until either side ends", "text/event-stream", _EVENTS)},
        parameters=[header("Last-Event-ID", "The entity tag that is known: it is not sent again")],
    )
    paths = {
        "/": get(text), "/raw": get(raw), "/events": get(events), **_files(), **_ops(),
        **(_page() if ui else {}),
    }  # fmt: skip
    return document("sidecar reader", "Serves what the writer published last.", paths, token=token)


def writer(*, token: bool, ui: bool = True) -> Object:
    """Describe the writer. `token` says that it asks for one, `ui` that it has a page."""
    publish = operation(
        "Publish a text to the file",
        responses={200: json("Published", {"const": "ok"}), **_REFUSALS},
        parameters=[
            query("content", "The text"), _DRY_RUN, _CONFIRMED, _IF_MATCH, _IF_NONE_MATCH, *_REQUEST,
        ],
    )  # fmt: skip
    put = operation(
        "Publish a file; `Content-Type` is that which it is served with, else it is guessed",
        responses={201: "Created", 204: "Replaced, or there already", **_REFUSALS},
        parameters=[
            _FILE_NAME, _SIGNATURE, _DRY_RUN, _CONFIRMED, _IF_MATCH, _IF_NONE_MATCH, *_REQUEST,
        ],
        body=_body("*/*", _BINARY),
    )  # fmt: skip
    delete = operation(
        "Remove a file",
        responses={204: "Removed", 404: "There is no such file", 412: _REFUSALS[412]},
        parameters=[_FILE_NAME, _PURGE, _DRY_RUN, _IF_MATCH, *_REQUEST],
    )
    versions = operation(
        "What was published before, newest first",
        responses={200: json("The history", {"type": "array", "items": _VERSION})},
        parameters=[query("name", "The file; else the one of this writer, or the set")],
    )
    rollback = operation(
        "Publish an older content again",
        responses={
            200: json("The new state", _STATE),
            404: "The history does not hold it",
            **_REFUSALS,
        },
        parameters=[_DRY_RUN, _CONFIRMED, _IF_MATCH, *_REQUEST],
        body=_body("application/json", _ROLLBACK),
    )
    read = _files()
    paths: dict[str, Object] = {
        "/": {"get": publish, "head": {**publish, "summary": "What GET would answer, not done"}},
        "/files": read["/files"],
        "/files/{name}": {**read["/files/{name}"], "put": put, "delete": delete},
        "/versions": get(versions),
        "/rollback": {"post": rollback},
        **_ops(),
    }
    if ui:
        events = operation(
            "Server-sent events, as those of the reader, with `null` for data",
            responses={200: content("Events", "text/event-stream", _EVENTS)},
        )
        paths |= {**_page(), "/ui/events": get(events)}
    return document(
        "sidecar writer", "Publishes what comes, whole and durable.", paths, token=token
    )


def _files() -> dict[str, Object]:
    listing = operation(
        "All files",
        responses={
            200: json("The files", {"type": "array", "items": _ENTRY}),
            304: "Not changed",
        },
        parameters=_CONDITIONAL,
    )
    one = operation(
        "One file",
        responses={
            200: content("The bytes", "*/*", _BINARY),
            206: "A part",
            304: "Not changed",
            404: "There is no such file",
            416: "The range lies outside",
        },
        parameters=[_FILE_NAME, *_CONDITIONAL, _RANGE],
    )
    return {"/files": get(listing), "/files/{name}": get(one)}


def _page() -> dict[str, Object]:
    name = query("name", "A file; else the set. A file of a set has the versions of the set")
    versions = operation(
        "What was published before, newest first",
        responses={200: json("The history", {"type": "array", "items": _VERSION})},
        parameters=[name],
    )
    comparison = operation(
        "The files of a version that differ from the current ones, with both texts",
        responses={
            200: json("The difference", {"type": "object"}),
            404: "The history does not hold it",
        },
        parameters=[path_parameter("etag", "The entity tag of the version"), name],
    )
    return {
        **assets.descriptions("A page for people: the content, its history, its changes"),
        "/ui/versions": get(versions),
        "/ui/versions/{etag}": get(comparison),
    }


def _ops() -> dict[str, Object]:
    probes = {
        "/livez": "Is it alive?",
        "/readyz": "Is it ready?",
        "/startupz": "Has it started?",
    }
    answer: dict[int, str | Object] = {200: json("Yes", _CHECKS), 503: "No; `checks` says why"}
    metrics = content("Prometheus' text format", "text/plain", {"type": "string"})
    return {
        **{
            path: get(operation(question, responses=answer, open_to_all=True))
            for path, question in probes.items()
        },
        "/metrics": get(operation("What this process counts", responses={200: metrics})),
        "/openapi.json": get(
            operation("This description", responses={200: json("OpenAPI 3.1", {"type": "object"})})
        ),
    }


def _body(media: str, schema: Object) -> Object:
    return {"required": True, "content": {media: {"schema": schema}}}
