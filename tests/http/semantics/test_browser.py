"""Real pages in a real browser (headless Chromium): only those of the service itself make it write."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession, web

from sidecar.http.apps.writer import writer_app
from sidecar.process import metrics
from support.httpkit import Serve

Browse = Callable[[str], Awaitable[None]]
"""`await browse(url)`: open a page, until it asks for `/done`."""

ATTACKS = """
<!doctype html><meta charset=utf-8><body><script>
const bases = BASES, waiting = [];
const settled = element => new Promise(done => { element.onload = element.onerror = done });
function add(tag, attributes) {
  const element = document.createElement(tag);
  waiting.push(settled(element));
  Object.assign(element, attributes);
  document.body.append(element);
  return element;
}
function submit(base, attributes, fields, sandbox) {
  const name = "frame" + document.querySelectorAll("iframe").length;
  const frame = document.createElement("iframe");
  frame.name = name;
  document.body.append(frame);
  waiting.push(settled(frame));
  const form = document.createElement("form");
  Object.assign(form, {target: name, ...attributes});
  for (const [key, value] of Object.entries(fields)) {
    const input = document.createElement("input");
    Object.assign(input, {name: key, value});
    form.append(input);
  }
  document.body.append(form);
  form.submit();
}
for (const base of bases) {
  const get = what => base + "/?content=" + what;
  add("img", {src: get("image")});
  add("img", {referrerPolicy: "no-referrer", src: get("hidden-image")});
  add("script", {src: get("script")});
  add("link", {rel: "stylesheet", href: get("style")});
  add("link", {rel: "prefetch", href: get("prefetch")});
  add("iframe", {src: get("frame")});
  add("iframe", {sandbox: "allow-scripts", srcdoc: `<script>fetch("${get("sandbox")}", {mode: "no-cors"})</` + "script>"});
  submit(base, {action: base + "/", method: "GET"}, {content: "form"});
  submit(base, {action: base + "/rollback", method: "POST", enctype: "text/plain"}, {'{"to": "TAG", "name': '": "config"}'});
  waiting.push(fetch(get("fetch"), {mode: "no-cors"}));
  waiting.push(fetch(get("hidden-fetch"), {mode: "no-cors", referrerPolicy: "no-referrer"}));
  waiting.push(fetch(base + "/rollback", {mode: "no-cors", method: "POST", body: '{"to": "TAG"}'}));
  waiting.push(fetch(base + "/files/config", {method: "PUT", body: "put"}));
  waiting.push(fetch(base + "/files/config", {method: "DELETE"}));
  navigator.sendBeacon(base + "/rollback", '{"to": "TAG"}');
}
Promise.allSettled(waiting).then(() => fetch("/done"));
</script>
"""

OWN = """
<!doctype html><meta charset=utf-8><body><script>
const put = body => fetch("/config/files/config", {method: "PUT", body});
fetch("/config/?content=from-a-get").then(() => put("from-a-put")).then(() => fetch("/done"));
</script>
"""


@pytest_asyncio.fixture
async def browse(tmp_path: Path) -> AsyncIterator[Browse]:
    """A browser for which all names under `.test` are this machine."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs chromium")
    started: list[asyncio.subprocess.Process] = []

    async def open_page(url: str) -> None:
        started.append(
            await asyncio.create_subprocess_exec(
                *(program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-dev-shm-usage", "--disable-background-networking"),
                *(f"--user-data-dir={tmp_path}/browser", "--remote-debugging-port=0"),
                *("--host-resolver-rules=MAP *.test 127.0.0.1", url),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env={**os.environ, "HOME": str(tmp_path)},
                start_new_session=True,
            )
        )

    yield open_page
    for one in started:
        os.killpg(one.pid, signal.SIGKILL)
        await one.wait()


class Site:
    """A site with one page, and whether its page has done all that it does."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.done = asyncio.Event()
        self.app = web.Application()
        self.app.add_routes([web.get("/", self._show), web.get("/done", self._end)])

    async def _show(self, _: web.Request) -> web.Response:
        return web.Response(text=self.page, content_type="text/html")

    async def _end(self, _: web.Request) -> web.Response:
        self.done.set()
        return web.Response()


def refused() -> float:
    metrics.exposition()  # hands in what was counted elsewhere
    return metrics.HTTP_REQUESTS_TOTAL.labels("403")._value.get()


def attacks(bases: Sequence[str], tag: str) -> Site:
    return Site(ATTACKS.replace("BASES", repr(list(bases))).replace("TAG", tag.strip('"')))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["127.0.0.1", "evil.test"])
async def test_no_page_of_another_origin_can_change_a_content(
    browse: Browse, served: Serve, tmp_path: Path, name: str
) -> None:
    """Another port, another name; where browsers say for which page they ask, and over plain http, where they do not."""
    config = tmp_path / "config"
    writer = await served(writer_app(config))
    async with ClientSession() as http:
        first = await http.get(f"{writer.url}/?content=first")
        await http.get(f"{writer.url}/?content=kept")
    site = attacks(
        [f"http://{host}:{writer.port}" for host in ("127.0.0.1", "localhost", "writer.test")],
        first.headers["ETag"],
    )
    other, before = await served(site.app), refused()
    await browse(f"http://{name}:{other.port}/")
    async with asyncio.timeout(45):
        await site.done.wait()
    assert config.read_text() == "kept"
    assert refused() - before >= 36  # they have arrived


@pytest.mark.slow
async def test_a_page_of_the_service_itself_can(
    browse: Browse, served: Serve, tmp_path: Path
) -> None:
    """By any name: over plain http `Origin` and `Referer` name the host that was asked."""
    site = Site(OWN)
    site.app.add_subapp("/config/", writer_app(tmp_path / "config"))
    one = await served(site.app)
    await browse(f"http://own.test:{one.port}/")
    async with asyncio.timeout(45):
        await site.done.wait()
    assert (tmp_path / "config").read_text() == "from-a-put"
    assert [
        version.read_text() for version in (tmp_path / "..versions").rglob("*") if version.is_file()
    ]


@pytest.mark.slow
async def test_an_address_that_is_typed_publishes(
    browse: Browse, served: Serve, tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    """What people try first, as the article has it."""
    config = tmp_path / "config"
    one = await served(writer_app(config))
    await browse(f"http://typed.test:{one.port}/?content=typed")
    await eventually(lambda: config.read_text() == "typed", timeout=45)
