"""Building blocks of an OpenAPI 3.1 description, as plain data.

The descriptions are in `apps/api_descriptions`. https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from sidecar._version import __version__
from sidecar.http import problems
from sidecar.http.semantics import representation

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Object: TypeAlias = "dict[str, Json]"


def document(title: str, description: str, paths: Mapping[str, Object], *, token: bool) -> Object:
    """Return the complete description. `token` says that a bearer token is required."""
    components: Object = {
        "schemas": {"Problem": _problem_schema()},
        "responses": {"Problem": _problem_response()},
    }
    whole: Object = {
        "openapi": "3.1.1",
        "info": {"title": title, "description": description, "version": __version__},
        # Relative to this document, so that it is valid behind a prefix.
        "servers": [{"url": "."}],
        "paths": {path: _add_problem_response(operations) for path, operations in paths.items()},
        "components": components,
    }
    if token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"token": []}]
    return whole


def get(described: Object) -> Object:
    """Return the read operations of a path: GET, and HEAD, the same without a body."""
    return {"get": described, "head": {**described, "summary": f"{described['summary']} (headers)"}}


def operation(
    summary: str,
    *,
    responses: Mapping[int, str | Object],
    parameters: list[Json] | None = None,
    body: Object | None = None,
    open_to_all: bool = False,
) -> Object:
    """Return an operation; a response may be just its description."""
    described: Object = {
        "summary": summary,
        "responses": {
            str(status): {"description": said} if isinstance(said, str) else said
            for status, said in responses.items()
        },
    }
    if parameters:
        described["parameters"] = parameters
    if body:
        described["requestBody"] = body
    if open_to_all:
        described["security"] = []
    return described


def header(name: str, description: str) -> Object:
    """Return a request header as a parameter."""
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def query(name: str, description: str, schema: Object | None = None) -> Object:
    """Return a query parameter."""
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": schema or {"type": "string"},
    }


def path_parameter(name: str, description: str) -> Object:
    """Return a parameter in the path."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string"},
    }


def content(description: str, media: str, schema: Object) -> Object:
    """Return a response with a body."""
    return {"description": description, "content": {media: {"schema": schema}}}


def json(description: str, schema: Object) -> Object:
    """Return a response with a JSON body."""
    return content(description, representation.JSON.partition(";")[0], schema)


def _add_problem_response(operations: Object) -> Object:
    """Add the response that every operation has: a problem."""
    fallback: Json = {"$ref": "#/components/responses/Problem"}
    for one in operations.values():
        if isinstance(one, dict) and isinstance(responses := one.get("responses"), dict):
            responses.setdefault("default", fallback)
    return operations


def _problem_schema() -> Object:
    types: list[Json] = [f"/problems/{kind}" for kind in problems.PROBLEM_TYPES]
    return {
        "type": "object",
        "description": "A problem as RFC 9457 has it",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri-reference", "examples": types},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What was attempted, and what to change"},
            "reasons": {"type": "array", "items": {"type": "string"}},
            "current": {"type": ["string", "null"], "description": "The entity tag in force"},
            "etag": {"type": "string"},
            "instance": {"type": "string", "format": "uri-reference"},
        },
    }


def _problem_response() -> Object:
    schema: Object = {"$ref": "#/components/schemas/Problem"}
    return content("What went wrong", problems.CONTENT_TYPE, schema)
