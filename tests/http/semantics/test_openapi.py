"""The description and the routes say the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from support.httpkit import MakeClient

APPS: dict[str, Callable[..., web.Application]] = {"reader": reader_app, "writer": writer_app}


def routes(app: web.Application) -> dict[str, set[str]]:
    """The paths of an application and their methods, as they are routed."""
    found: dict[str, set[str]] = {}
    for route in app.router.routes():
        assert route.resource is not None
        found.setdefault(route.resource.canonical, set()).add(route.method.lower())
    return found


async def described(client: MakeClient, app: web.Application) -> dict[str, Any]:
    return dict(await (await (await client(app)).get("/openapi.json")).json())


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("ui", [True, False])
async def test_every_route_is_described_and_no_other(
    client: MakeClient, tmp_path: Path, name: str, ui: bool
) -> None:
    """So neither can be changed without the other."""
    app = APPS[name](tmp_path / "config", ui=ui)
    document = await described(client, app)
    assert {path: set(methods) for path, methods in document["paths"].items()} == routes(app)


@pytest.mark.parametrize("name", APPS)
async def test_the_description_is_openapi(client: MakeClient, tmp_path: Path, name: str) -> None:
    """The parts that version 3.1 requires, and references that lead somewhere."""
    document = await described(client, APPS[name](tmp_path / "config"))
    assert document["openapi"].startswith("3.1.")
    assert document["info"].keys() >= {"title", "version"}
    problem = document["components"]["schemas"]["Problem"]
    assert problem["required"] == ["type", "title", "status", "detail"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            assert operation["responses"].keys() >= {"default"}
            assert all(
                one["description"] for one in operation["responses"].values() if "$ref" not in one
            )
            named = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
    for reference in references(document):
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [one for inner in value.values() for one in references(inner)]
    if isinstance(value, list):
        return [one for inner in value for one in references(inner)]
    return []


@pytest.mark.parametrize("name", APPS)
async def test_a_token_is_part_of_the_description(
    client: MakeClient, tmp_path: Path, name: str
) -> None:
    """All but the probes need one, where one is configured; else nothing does."""
    from sidecar.http.apps import api_descriptions

    with_token = getattr(api_descriptions, name)(token=True)
    without = await described(client, APPS[name](tmp_path / "config"))
    assert with_token["security"] == [{"token": []}]
    assert with_token["paths"]["/livez"]["get"]["security"] == []
    assert "security" not in with_token["paths"]["/"]["get"]
    assert "security" not in without
