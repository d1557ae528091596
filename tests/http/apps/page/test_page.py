"""The page `/ui` without a browser: its files, who may have them, the history, the events of the writer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import sidecar
from sidecar.http.apps.page import assets, history, live
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.volume.content.snapshot import Content
from sidecar.volume.watch import watch
from support.eventsource import Event, Parser
from support.httpkit import Client, MakeClient, place, problem, tag

STATIC = Path(assets.__file__).with_name("static")
FILES = sorted(path for path in STATIC.iterdir())
APPS: dict[str, Callable[..., web.Application]] = {"reader": reader_app, "writer": writer_app}
Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return place(tmp_path / "shared" / "config", "one")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("secret")
    return path


# The files of the page


@pytest.mark.parametrize("app", APPS)
async def test_the_page_and_its_files_are_served(
    client: MakeClient, config: Path, app: str
) -> None:
    """As they are in the package, with a type, a tag that a browser can ask with, and the policy."""
    http = await client(APPS[app](config))
    for path in FILES:
        answer = await http.get(f"/ui/{path.name}")
        assert (answer.status, await answer.read()) == (200, path.read_bytes())
        assert answer.headers["Content-Type"].split(";")[0] in {
            "text/html", "text/javascript", "text/css", "image/svg+xml",
        }  # fmt: skip
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        again = await http.get(
            f"/ui/{path.name}", headers={"If-None-Match": answer.headers["ETag"]}
        )
        assert again.status == 304
    page = await http.get("/ui")
    assert await page.read() == (STATIC / assets.CONTENT_PAGE).read_bytes()
    slash = await http.get("/ui/", allow_redirects=False)
    assert (slash.status, slash.headers["Location"]) == (308, "../ui")


async def test_the_policy_lets_nothing_in(client: MakeClient, config: Path) -> None:
    """Nothing from elsewhere, nothing inline, no frame around it, no string that becomes a script."""
    answer = await (await client(reader_app(config))).get("/ui")
    policy = dict(
        one.strip().partition(" ")[::2]
        for one in answer.headers["Content-Security-Policy"].split(";")
    )
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("frame-ancestors") == "'none'"
    assert policy.pop("base-uri") == "'none'"
    assert policy.pop("form-action") == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy.pop("trusted-types") == "'none'"
    assert set(policy) == {"script-src", "style-src", "img-src", "connect-src"}
    assert set(policy.values()) == {"'self'"}


class Loaded(HTMLParser):
    """What a page loads, and what is inline in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [str(given[name]) for name in ("src", "href") if name in given]
        inline = tag == "style" or (tag == "script" and "src" not in given)
        handlers = [name for name in given if name == "style" or name.startswith("on")]
        self.inline += [tag] * inline + handlers


@pytest.mark.parametrize(
    "page", [path for path in FILES if path.suffix == ".html"], ids=lambda path: path.name
)
def test_a_page_loads_only_files_of_the_package(page: Path) -> None:
    """Each one that it names is there; nothing is inline, which the policy would forbid."""
    loaded = Loaded(page)
    names = [one.removeprefix("ui/") for one in loaded.addresses if not one.startswith("#")]
    assert [name for name in names if not (STATIC / name).is_file()] == []
    assert loaded.inline == []


@pytest.mark.parametrize(
    "script", [path for path in FILES if path.suffix in {".js", ".css"}], ids=lambda path: path.name
)
def test_a_script_makes_text_and_never_markup(script: Path) -> None:
    """What is not even there cannot be reached by a content: no parser of HTML, no evaluation, no other address."""
    text = script.read_text()
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|https?://|@import|url\("
    assert re.findall(forbidden, text) == []
    for name in re.findall(r'from "\./([\w.]+)"', text):
        assert (STATIC / name).is_file()


@pytest.mark.parametrize(
    "name", ["nothing.js", "__init__.py", "assets.py", "..%2Fassets.py", "%2e%2e%2fassets.py", "a%00.js", "x%2Fpage.css"]
)  # fmt: skip
async def test_nothing_else_of_the_package_is_served(
    client: MakeClient, config: Path, name: str
) -> None:
    """A name of a client leads to no other file."""
    await problem(await (await client(reader_app(config))).get(f"/ui/{name}"), 404, "not-found")


@pytest.mark.parametrize("app", APPS)
async def test_the_page_needs_no_token_and_its_data_do(
    client: MakeClient, config: Path, token: Path, app: str
) -> None:
    """A browser cannot send one with an address; what is loaded holds no data."""
    http = await client(APPS[app](config, token_file=token))
    for path in ("/ui", "/ui/page.css", "/ui/content.js"):
        assert (await http.get(path)).status == 200
    for path in ("/ui/state", "/ui/versions?name=config", "/ui/versions/x", "/files", "/ui/events"):
        if path == "/ui/events" and app == "reader":
            continue  # it has /events
        await problem(await http.get(path), 401, "unauthorized")
    answer = await http.get("/ui/state", headers={"Authorization": "Bearer secret"})
    assert (await answer.json())["role"] == app


@pytest.mark.parametrize("app", APPS)
async def test_without_the_page_there_is_nothing(
    client: MakeClient, config: Path, app: str
) -> None:
    """`ui=False`, `--no-ui`."""
    http = await client(APPS[app](config, ui=False))
    for path in ("/ui", "/ui/", "/ui/page.css", "/ui/state", "/ui/versions", "/ui/events"):
        await problem(await http.get(path), 404, "not-found")


# The history


async def published(http: Client, name: str, *contents: bytes | str) -> None:
    for content in contents:
        assert (await http.put(f"/files/{name}", data=content)).status in (201, 204)


async def changes(http: Client, of: str, name: str | None = None) -> dict[str, Any]:
    query = {} if name is None else {"name": name}
    answer = await http.get(f"/ui/versions/{plain(of)}", params=query)
    assert answer.status == 200
    return dict(await answer.json())


async def test_both_show_the_versions_of_a_file(client: MakeClient, config: Path) -> None:
    """Newest first, and what differs from the current one."""
    writer, reader = await client(writer_app(config)), await client(reader_app(config))
    await published(writer, "config", "two", "three")
    await reader.get("/", headers={"If-None-Match": tag("one"), "Prefer": "wait=10"})
    for http in (writer, reader):
        found = await (await http.get("/ui/versions?name=config")).json()
        assert [(one["etag"], one["current"]) for one in found] == [
            (tag("three"), True), (tag("two"), False), (tag("one"), False),
        ]  # fmt: skip
        (file,) = (await changes(http, tag("two"), "config"))["files"]
        assert (file["name"], file["before"]["text"], file["after"]["text"]) == (
            "config",
            "two",
            "three",
        )
        assert (await changes(http, tag("three"), "config"))["files"] == []
        await problem(
            await http.get(f"/ui/versions/{'0' * 32}?name=config"), 404, "unknown-version"
        )


async def test_of_a_set_all_files_are_compared(client: MakeClient, tmp_path: Path) -> None:
    """New, removed and changed ones; a file has the versions of its set."""
    volume = sidecar.Volume(tmp_path / "shared")
    first = await volume.publish({"a": "1", "b": "same", "gone": "x"})
    await volume.publish({"a": "2", "b": "same", "new": "y"})
    for app in (writer_app(f"{volume.path}/"), reader_app(f"{volume.path}/")):
        http = await client(app)
        assert len(await (await http.get("/ui/versions?name=a")).json()) == 2
        for name in (None, "a"):
            files = (await changes(http, first.etag, name))["files"]
            assert [(one["name"], one["before"] and one["before"]["text"], one["after"] and one["after"]["text"]) for one in files] == [
                ("a", "1", "2"), ("gone", "x", None), ("new", None, "y"),
            ]  # fmt: skip


async def test_a_reader_shows_the_history_of_what_it_serves_alone(
    client: MakeClient, tmp_path: Path
) -> None:
    """What `--include` leaves out is not told by the page either."""
    volume = sidecar.Volume(tmp_path / "shared")
    for name in ("a.conf", "secret.key"):
        await volume.put(name, "old")
        await volume.put(name, "new")
    http = await client(reader_app(f"{volume.path}/", include=["*.conf"]))
    assert len(await (await http.get("/ui/versions?name=a.conf")).json()) == 2
    for path in (
        "/ui/versions?name=secret.key",
        f"/ui/versions/{plain(tag('old'))}?name=secret.key",
    ):
        await problem(await http.get(path), 404, "no-such-file")


async def test_without_a_content_there_is_no_history(client: MakeClient, tmp_path: Path) -> None:
    """A reader that waits for its first content says so; a writer of an empty directory has none."""
    reader = await client(reader_app(tmp_path / "later" / "config"))
    await problem(await reader.get("/ui/versions?name=config"), 503, "nothing-published")
    assert (await (await reader.get("/ui/state")).json())["name"] is None
    writer = await client(writer_app(f"{tmp_path}/empty/"))
    assert await (await writer.get("/ui/versions?name=config")).json() == []


async def test_what_is_too_large_is_not_read_for_a_comparison(
    client: MakeClient, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an older version nor the current one: a reader has memory for its content, and no more."""
    monkeypatch.setattr(history, "MAX_COMPARED_BYTES", 5)
    http = await client(writer_app(config))
    await published(http, "config", "longer")
    await problem(
        await http.get(f"/ui/versions/{plain(tag('one'))}?name=config"), 413, "content-too-large"
    )
    await published(http, "config", "two")
    await problem(
        await http.get(f"/ui/versions/{plain(tag('longer'))}?name=config"), 413, "content-too-large"
    )
    assert len((await changes(http, tag("one"), "config"))["files"]) == 1


def plain(etag: str) -> str:
    return etag.strip('"')


def content(name: str, data: bytes) -> Content:
    return Content(name, data, tag(data).strip('"'), 0.0)


def test_a_comparison_is_bounded() -> None:
    """Large and binary files are named with their size, many files are counted."""
    big, binary = b"x" * (history.MAX_TEXT_BYTES + 1), b"\xff\x00"
    found: Any = history.compare(
        {"big": content("big", big), "binary": content("binary", binary)},
        {"big": content("big", b""), "binary": content("binary", b"text")},
    )
    sides = {one["name"]: (one["before"]["text"], one["after"]["text"]) for one in found["files"]}
    assert sides == {"big": (None, None), "binary": (None, "text")}
    assert found["files"][0]["before"]["size"] == len(big)
    many = {
        f"{number:04}": content(f"{number:04}", b"%d" % number)
        for number in range(history.MAX_FILES + 5)
    }
    found = history.compare(many, {})
    assert (len(found["files"]), found["omitted"]) == (history.MAX_FILES, 5)
    each = history.MAX_TEXT_BYTES
    large = {f"{number}": content(f"{number}", b"%d" % number * each) for number in range(9)}
    shown = [one["before"]["text"] is not None for one in history.compare(large, {})["files"]]  # type: ignore[attr-defined]
    assert shown == [True] * (history.MAX_TEXT_BYTES_OF_ALL // each) + [False]


# The events of the writer


async def test_the_writer_tells_its_page_of_each_change(
    client: MakeClient, config: Path, eventually: Eventually
) -> None:
    """Also of those that others make on the volume; which version, and not the content."""
    http = await client(writer_app(config))
    parser, found = Parser(), list[Event]()
    async with http.get("/ui/events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"

        async def read(etag: str) -> None:
            async with asyncio.timeout(20):
                while not found or found[-1].id != etag:
                    found.extend(parser.feed(await answer.content.readany()))

        await read(tag("one"))
        await published(http, "config", "two")
        await read(tag("two"))
        place(config, "three")
        await read(tag("three"))
    assert {(one.type, one.data) for one in found} == {("content", None)}


async def test_a_writer_watches_only_while_a_page_is_open(
    client: MakeClient, config: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment after the last one the watch ends; the next page begins another."""
    used: list[sidecar.Watch[None]] = []
    shared = watch.shared

    @asynccontextmanager
    async def noted(*args: Any, **options: Any) -> AsyncIterator[sidecar.Watch[None]]:
        async with shared(*args, **options) as one:
            used.append(one)
            yield one

    monkeypatch.setattr(watch, "shared", noted)
    http = await client(writer_app(config))
    assert used == []
    for number in (1, 2):
        async with http.get("/ui/events") as answer:
            await answer.content.readany()
            assert (len(used), used[-1].in_use) == (number, True)
            monkeypatch.setattr(live, "LINGER_SECONDS", 0.0)
        await eventually(lambda: not used[-1].in_use)
        monkeypatch.setattr(live, "LINGER_SECONDS", 30.0)
