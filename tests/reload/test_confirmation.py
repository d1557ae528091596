"""A confirmation is what the application itself says of its version."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sidecar.reload import ActionFailed, Change
from sidecar.reload.confirmation import Confirmation

CHANGE = Change("/x", "e3b0c44298fc1c149afbf4c8996fb924", ("a",))


@pytest.mark.parametrize(
    ("answer", "confirmed"),
    [
        ({"headers": {"ETag": CHANGE.etag}}, True),
        ({"headers": {"ETag": f"W/{CHANGE.etag}"}}, True),
        ({"text": f'{{"config": "{CHANGE.version}"}}'}, True),
        ({"text": "x" * 60_000 + CHANGE.version}, True),
        ({"text": "x" * 70_000 + CHANGE.version}, False),
        ({"headers": {"ETag": '"other"'}, "text": "other"}, False),
        ({"headers": {"ETag": CHANGE.etag}, "status": 503}, False),
    ],
)
async def test_it_has_the_version_as_its_tag_or_in_its_body(answer, confirmed: bool) -> None:
    """An answer that is no success confirms nothing."""

    async def active(_: web.Request) -> web.Response:
        return web.Response(**answer)

    app = web.Application()
    app.add_routes([web.get("/", active)])
    async with TestServer(app) as server:
        url = str(server.make_url("/"))
        if confirmed:
            await Confirmation(url, timeout=50.0).run(CHANGE)
        else:
            with pytest.raises(ActionFailed, match="did not report version"):
                await Confirmation(url, timeout=0.2).run(CHANGE)


async def test_it_is_asked_until_the_application_has_it() -> None:
    """A reload takes its time."""
    asked = []

    async def active(_: web.Request) -> web.Response:
        asked.append(1)
        return web.Response(text=CHANGE.version if len(asked) == 3 else "old")

    app = web.Application()
    app.add_routes([web.get("/", active)])
    async with TestServer(app) as server:
        await Confirmation(str(server.make_url("/")), timeout=50.0).run(CHANGE)
    assert len(asked) == 3
