"""`files_app` as a web site: what a directory answers, and which names are nobody's business."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import sidecar

Client = TestClient[web.Request, web.Application]

FILES = {
    "index.html": "<h1>top</h1>", "docs/index.html": "<h1>docs</h1>", "docs/a.txt": "a", "plain/b.txt": "b",
    ".env": "PASSWORD=x", ".git/config": "[core]", "docs/.draft/index.html": "x", ".well-known/x": "y",
}  # fmt: skip


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.fixture
async def site(shared: Path) -> AsyncIterator[Client]:
    app = web.Application()
    app.add_subapp("/site/", sidecar.files_app(shared))
    app.add_subapp("/all/", sidecar.files_app(shared, dotfiles=True))
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "text"),
    [("/site/", "top"), ("/site/index.html", "top"), ("/site/docs/", "docs"), ("/site/docs/index.html", "docs")],
)  # fmt: skip
async def test_a_directory_answers_with_its_index(site: Client, path: str, text: str) -> None:
    """As every web server does; with the entity tag of that file."""
    answer = await site.get(path)
    assert (answer.status, await answer.text()) == (200, f"<h1>{text}</h1>")
    again = await site.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status == 304


@pytest.mark.parametrize(("path", "where"), [("/site?x=1", "site/?x=1"), ("/site/docs", "docs/")])
async def test_the_address_of_a_directory_ends_with_a_slash(
    site: Client, path: str, where: str
) -> None:
    """Only from there relative links lead to its files; relative itself, as a proxy may have cut the path."""
    answer = await site.get(path, allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (307, where)
    assert (await site.get(path)).status == 200


@pytest.mark.parametrize("path", ["/site/plain", "/site/plain/", "/site/nothing/", "/site//docs/"])
async def test_a_directory_without_an_index_is_not_found(site: Client, path: str) -> None:
    """What lies in it is not told."""
    assert (await site.get(path, allow_redirects=False)).status == 404


async def test_the_list_is_there_for_programs_that_ask_for_json(site: Client, shared: Path) -> None:
    """With an index, by `Accept: application/json`; without one for everybody."""
    listed = await site.get("/site/", headers={"Accept": "application/json"})
    assert listed.headers["Vary"] == "Accept"
    names = [entry["name"] for entry in await listed.json()]
    assert names == ["docs/a.txt", "docs/index.html", "index.html", "plain/b.txt"]
    browser = await site.get("/site/", headers={"Accept": "text/html,application/json;q=0.9"})
    assert browser.headers["Vary"] == "Accept"
    assert browser.content_type == "text/html"


HIDDEN = [".env", ".git/config", "docs/.draft/", "docs/.draft/index.html", ".well-known/x"]


@pytest.mark.parametrize("name", HIDDEN)
async def test_dotfiles_are_not_served_unless_that_is_asked_for(site: Client, name: str) -> None:
    """`.git`, `.env`: a scanner asks for those first. They are not there, for whoever asks."""
    there, hidden = await site.get(f"/all/{name}"), await site.get(f"/site/{name}")
    assert (there.status, hidden.status) == (200, 404)
    absent = await site.get("/site/absent")
    assert list(await hidden.json()) == list(await absent.json())


async def test_an_index_that_appears_is_answered_from_then_on(shared: Path, site: Client) -> None:
    """Over `sidecar.serve`, too, which remembers answers: until the next change and no longer."""
    volume = sidecar.Volume(shared)
    await volume.put("index.html", "<h1>new</h1>")
    async with asyncio.timeout(20):
        while "new" not in await (await site.get("/site/")).text():
            await asyncio.sleep(0.01)
