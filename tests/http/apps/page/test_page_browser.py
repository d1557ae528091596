"""The page `/ui` in real headless Chromium: what people see and do, by mouse and by keyboard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession

import sidecar
from sidecar.cli.impl import collect_page, probe_server
from sidecar.cli.impl.collect import probed
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.logs.collector import Collector
from sidecar.logs.input.tail import tail
from sidecar.logs.pipelines import Plan, Topology
from sidecar.testing import MemorySink
from support import browser
from support.browser import CTRL, Page, text_of
from support.httpkit import Served, place, start_serving

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

NAME = "settings.json"
FIRST = '{\n  "name": "checkout",\n  "replicas": 3\n}\n'
SECOND = FIRST.replace("3", "5")
SHOWN = "document.querySelector('#code .line') && document.querySelector('#checks li') && document.querySelector('#connection').dataset.state === 'good'"
"""The page is complete, and listens."""

CONTRAST = """(() => {
  const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a] };
  const over = ([r, g, b, a], under) => [r, g, b].map((one, at) => one * a + under[at] * (1 - a));
  const ground = element => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      layers.unshift(parse(getComputedStyle(one).backgroundColor));
      if (one.tagName === 'DIALOG') break;  // in the top layer
    }
    return layers.reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const light = rgb => { const [r, g, b] = rgb.map(one => one / 255).map(one => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b };
  const ratio = (color, under) => { const [a, b] = [light(over(parse(color), under)), light(under)]; return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) };
  const found = [];
  const look = (element, style, what) => {
    const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
    const least = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
    const measured = ratio(style.color, ground(element));
    found.push([measured, least, what.trim().slice(0, 40), element.className || element.id || element.tagName]);
  };
  const walker = document.createTreeWalker(document.querySelector('dialog[open]') || document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.checkVisibility({visibilityProperty: true, opacityProperty: true}) || element.closest(':disabled, noscript')) continue;
    look(element, style, walker.currentNode.data);
  }
  for (const line of document.querySelectorAll('#code .line')) look(line, getComputedStyle(line, '::before'), 'the number of a line');
  for (const input of document.querySelectorAll('input, textarea')) if (input.checkVisibility()) {
    look(input, getComputedStyle(input), 'an input');
    if (input.placeholder) look(input, getComputedStyle(input, '::placeholder'), 'a placeholder');
  }
  return {texts: found.length, poor: found.filter(([measured, least]) => measured < least)};
})()"""
"""The contrast of every text that is visible, by WCAG 2.2, success criterion 1.4.3, from computed styles."""


@dataclass
class World:
    """A browser, and all that runs for the tests of this module."""

    browser: browser.Browser
    running: list[Served] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    ports: set[str] = field(default_factory=set)

    async def serve(self, app: object) -> Served:
        served = await start_serving(app)  # type: ignore[arg-type]
        self.running.append(served)
        self.ports.add(served.url)
        return served

    async def window(self, url: str, until: str = SHOWN, **looks: object) -> Page:
        """Somebody's window with a page, once an expression holds in it."""
        page = await self.browser.person(**looks)
        self.pages.append(page)
        await page.open(url)
        await page.until(until)
        return page


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    if browser.program() is None:
        pytest.skip("needs chromium")
    async with browser.running(tmp_path_factory.mktemp("page")) as running:
        made = World(running)
        yield made
    await asyncio.gather(*(one.stop() for one in made.running))


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _close_windows(world: World) -> AsyncIterator[None]:
    """Each test has the machine for its own windows."""
    before = len(world.pages)
    yield
    await asyncio.gather(*(page.close() for page in world.pages[before:]))


@dataclass
class Site:
    """A writer and a reader of one file."""

    file: Path
    writer: str
    reader: str

    async def put(self, text: str) -> None:
        async with ClientSession() as http:
            answer = await http.put(self.writer.replace("/ui", f"/files/{NAME}"), data=text)
            assert answer.status in (201, 204)


@pytest_asyncio.fixture(loop_scope="module")
async def site(world: World, tmp_path: Path) -> Site:
    file = place(tmp_path / "shared" / NAME, FIRST)
    writer = await world.serve(writer_app(file, gate={"type": "object"}))
    reader = await world.serve(reader_app(file))
    made = Site(file, f"{writer.url}/ui", f"{reader.url}/ui")
    await made.put(SECOND)
    return made


def click(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)}).click()"


def shows(selector: str, text: str) -> str:
    """An expression: an element is visible and holds a text."""
    element = f"document.querySelector({json.dumps(selector)})"
    return f"{element}?.checkVisibility() && {element}.innerText.includes({json.dumps(text)})"


async def edit(page: Page, text: str) -> None:
    """Open the form, and replace the text."""
    await page.run(click("#edit"))
    await page.run("document.querySelector('#text').select()")
    await page.type(text)


async def test_a_publish_is_seen_in_every_other_window(world: World, site: Site) -> None:
    """In that of the reader and of the writer, without a reload, with the changed line marked and told."""
    author, colleague, visitor = [
        await world.window(url) for url in (site.writer, site.writer, site.reader)
    ]
    assert "5" in await colleague.run(text_of("#code"))
    await edit(author, SECOND.replace("5", "8"))
    await author.run(click("#publish"))
    for page in (author, colleague, visitor):
        await page.until(shows("#code", '"replicas": 8'))
        await page.until(shows("#history .current", await page.run(text_of("#version"))))
    assert site.file.read_text() == SECOND.replace("5", "8")
    published = (await sidecar.Volume(site.file.parent).read(NAME)).metadata
    assert published is not None
    assert published.content_type is None, "the type of a file is not that of a text box"
    for page in (colleague, visitor):
        assert (
            await page.run("document.querySelector('#code .fresh').innerText") == '  "replicas": 8'
        )
        assert [one for one in page.requests if one.endswith("/ui")] == [
            one for one in page.requests if one.endswith("/ui")
        ][:1]
    assert await visitor.run("document.querySelector('#edit').checkVisibility()") is False


async def test_who_published_is_shown(world: World, site: Site) -> None:
    """Beside the time and in the history, in both windows; a name is text, whatever it looks like, and cut short if it is long."""
    name = "<b onclick=alert(1)>deploy-bot</b> " + "x" * 200
    volume = sidecar.Volume(site.file.parent)
    await volume.put(NAME, FIRST, metadata=sidecar.Metadata(published_by=name, request_id="r-1"))
    for url in (site.writer, site.reader):
        page = await world.window(url)
        await page.until(shows("#published .by", f"by {name}"))
        await page.until(shows("#history .current .by", f"by {name}"))
        title = "document.querySelector('#history .current .by').title"
        assert await page.run(title) == f"Published by {name}, request r-1"
        assert await page.run("document.documentElement.scrollWidth <= innerWidth") is True
        others = "[...document.querySelectorAll('#history li:not(.current) .by')].map(one => one.innerText)"
        assert not [text for text in await page.run(others) if "by" in text.split()]


async def test_what_the_gate_refuses_is_said_in_place(world: World, site: Site) -> None:
    """Nothing is published, the text stays, a button leads to the line; mended, it goes through."""
    page = await world.window(site.writer)
    broken = FIRST.replace('"checkout",', '"checkout"')
    await edit(page, broken)
    for button in ("#check", "#publish"):
        await page.run(click(button))
        await page.until(shows("#editor-problem", "line 3"))
        assert site.file.read_text() == SECOND
        assert await page.run("document.querySelector('#text').value") == broken
        assert (
            await page.run("document.querySelector('#text').getAttribute('aria-invalid')") == "true"
        )
        await page.run("document.querySelector('#editor-problem').hidden = true")
    await page.run(click("#editor-problem button"))
    assert (
        await page.run(
            "((t) => t.value.slice(0, t.selectionStart).split('\\n').length)(document.querySelector('#text'))"
        )
        == 3
    )
    await page.run("document.querySelector('#text').select()")
    await page.type(FIRST)
    await page.run(click("#check"))
    await page.until(shows("#editor-good", "accepted"))
    assert site.file.read_text() == SECOND
    await page.run(click("#publish"))
    await page.until(shows("#code", '"replicas": 3'))
    assert site.file.read_text() == FIRST


@pytest.mark.parametrize("listens", [True, False])
async def test_two_people_cannot_overwrite_each_other(
    world: World, site: Site, listens: bool
) -> None:
    """It is told while one types, and at the latest when one publishes: what the other wrote stays until one has seen it."""
    page = await world.window("about:blank", "true")
    if not listens:
        await page.call("Network.setBlockedURLs", urls=["*/ui/events"])
    await page.open(site.writer)
    await page.until("document.querySelector('#code .line')?.checkVisibility()")
    mine, theirs = SECOND.replace("checkout", "mine"), SECOND.replace("checkout", "theirs")
    await edit(page, mine)
    await site.put(theirs)
    if not listens:
        await page.run(click("#publish"))
    await page.until(shows("#conflict-diff", "theirs"))
    assert site.file.read_text() == theirs
    assert await page.run("document.querySelector('#text').value") == mine
    await page.run(click("#mine"))
    await page.run(click("#publish"))
    await page.until(shows("#code", "mine"))
    assert site.file.read_text() == mine


async def test_a_rollback_shows_the_difference_first(world: World, site: Site) -> None:
    """Nothing happens before it was seen; what somebody publishes meanwhile is not rolled back."""
    page, other = await world.window(site.writer), await world.window(site.reader)
    await page.run(click("#history button"))
    await page.until(shows("#differences ins", '"replicas": 3'))
    assert '"replicas": 5' in await page.run(text_of("#differences del"))
    assert site.file.read_text() == SECOND
    await site.put(SECOND.replace("5", "6"))
    await page.run(click("#rollback"))
    await page.until(shows("#comparison-problem", "nothing was rolled back"))
    await page.until(shows("#differences del", '"replicas": 6'))
    assert site.file.read_text() == SECOND.replace("5", "6")
    await page.until("!document.querySelector('#rollback').disabled")
    await page.run(click("#rollback"))
    for one in (page, other):
        await one.until(shows("#code", '"replicas": 3'))
    assert site.file.read_text() == FIRST
    await other.run(click("#history button"))
    await other.until(shows("#differences", "replicas"))
    assert await other.run("document.querySelector('#rollback').checkVisibility()") is False


async def test_the_keyboard_is_enough(world: World, site: Site) -> None:
    """Edit, publish, compare, roll back; who has the focus can be seen at each step."""
    page = await world.window(site.writer)

    async def go(selector: str) -> None:
        await page.tab_to(selector)
        outline = await page.run("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", selector

    await go("#edit")
    await page.press("Enter")
    await page.until("document.activeElement.id === 'text'")
    await page.press("a", CTRL)
    await page.type(SECOND.replace("5", "9"))
    await page.press("Enter", CTRL)
    await page.until(shows("#code", '"replicas": 9'))
    await page.until("document.querySelectorAll('#history button').length === 2")
    await go("#history button")
    await page.press("Enter")
    await page.until(shows("#differences", "replicas"))
    await page.until("!document.querySelector('#rollback').disabled")
    await site.put(SECOND.replace("5", "10"))  # the list is another one meanwhile
    await page.until("document.querySelectorAll('#history button').length === 3")
    await page.press("Escape")
    await page.until("!document.querySelector('#comparison').open")
    await page.until("document.activeElement.matches('#history button')")
    await page.press("Space")
    await page.until("!document.querySelector('#rollback').disabled")
    await go("#rollback")
    await page.press("Enter")
    await page.until(shows("#code", '"replicas": 5'))
    assert site.file.read_text() == SECOND


async def test_a_content_runs_nowhere(world: World, tmp_path: Path) -> None:
    """Neither in the text, nor in a name, a difference, an error or the reason of a probe."""
    attack = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>\n<svg onload='window.ran = 3'>"
    name = "<img src=x onerror='window.ran = 4'>.json"
    directory = tmp_path / "shared"
    for one in ("a.txt", name):
        place(directory / one, "{}")
    writer = await world.serve(
        writer_app(f"{directory}/", gate=lambda content: "safe" not in content.name)
    )
    reader = await world.serve(reader_app(f"{directory}/"))
    async with ClientSession() as http:
        (await http.put(f"{writer.url}/files/a.txt", data=attack)).raise_for_status()
    for served in (writer, reader):
        page = await world.window(f"{served.url}/ui")
        for listed in (name, "a.txt"):
            await page.run(
                f"[...document.querySelectorAll('#file-list button')].find(one => one.dataset.name === {json.dumps(listed)}).click()"
            )
            await page.until(
                f"document.querySelector('#name').textContent === {json.dumps(listed)}"
            )
        assert (
            await page.until(
                "document.querySelector('#code').innerText.includes('<script>') && document.querySelector('#code').innerText"
            )
            == attack
        )
        await page.until("document.querySelector('#history button')")
        await page.run(click("#history button"))
        await page.until(shows("#differences", "<script>"))
        assert await page.run("document.querySelectorAll('script').length") == 1
        assert await page.run("document.querySelectorAll('svg, img:not(.brand img)').length") == 0
        assert await page.run("window.ran") is None


async def test_a_token_is_asked_for_and_kept_for_one_tab(world: World, tmp_path: Path) -> None:
    """A wrong one is told; the right one is sent with every request, the events among them, and survives a reload."""
    file = place(tmp_path / "shared" / NAME, FIRST)
    (tmp_path / "token").write_text("right")
    writer = await world.serve(writer_app(file, token_file=tmp_path / "token"))
    asked = "document.querySelector('#token').checkVisibility() && document.activeElement.id === 'token-value'"
    page = await world.window(f"{writer.url}/ui", asked)
    assert await page.run("document.querySelector('#main').checkVisibility()") is False
    for value in ("wrong", "right"):
        await page.type(value)
        await page.press("Enter")
        if value == "wrong":
            await page.until(shows("#token-problem", "not accepted"))
    await page.until(SHOWN)
    await edit(page, SECOND)
    await page.run(click("#publish"))
    await page.until(shows("#code", '"replicas": 5'))
    await page.open(f"{writer.url}/ui")
    await page.until(SHOWN)
    await world.window(f"{writer.url}/ui", asked)
    (tmp_path / "token").write_text("another")
    await page.until(asked)  # the stream ends with its token


@pytest_asyncio.fixture(loop_scope="module")
async def collection(world: World, tmp_path: Path) -> AsyncIterator[str]:
    """The page of a collection with one sink that takes lines, and one that does not."""
    for number in range(3):
        (tmp_path / f"app-{number}.log").write_text("a line\n" * 100 * (number + 1))
    away = MemorySink("away")
    away.fail("connection refused")
    collector = Collector(tail(str(tmp_path / "*.log")), [], [MemorySink(), away])
    topology = Topology(Plan({"": collector}, drain_timeout=0.0))
    running = asyncio.create_task(topology.run())
    described = probed(topology)._replace(page=partial(collect_page.describe, topology))
    page = probe_server.make_app(described)
    yield f"{(await world.serve(page)).url}/ui"
    running.cancel()
    await asyncio.wait({running})


async def test_a_collection_shows_files_lag_and_sinks(world: World, collection: str) -> None:
    """Which file is how far behind for whom, and which sink takes nothing, and why."""
    page = await world.window(
        collection,
        "document.querySelector('tbody tr') && " + shows("#pipelines", "connection refused"),
    )
    text = await page.run(text_of("#main"))
    assert all(f"app-{number}.log" in text for number in range(3))
    assert "away: 2.1 KiB" in text  # 300 lines of 7 bytes
    assert "Takes lines" in text
    assert text.index("app-2.log") < text.index("app-0.log")  # the largest lag first


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_every_text_can_be_read(
    world: World, site: Site, collection: str, dark: bool
) -> None:
    """The contrast that WCAG asks of level AA, measured from what the browser has computed."""
    page = await world.window(site.writer, dark=dark)
    measured = {"content": await page.run(CONTRAST)}
    await edit(page, SECOND.replace(",", ""))
    await page.run("document.querySelector('#changes').open = true")
    await page.run(click("#publish"))
    await page.until(shows("#editor-problem", "line"))
    measured["refused"] = await page.run(CONTRAST)
    await page.run("document.querySelector('#text').select()")
    await page.type(FIRST.replace("checkout", "mine"))
    await page.run(click("#check"))
    await page.until(shows("#editor-good", "accepted"))
    await site.put(SECOND.replace("5", "7"))
    await page.until(shows("#conflict-diff", "7"))
    measured["conflict"] = await page.run(CONTRAST)
    await page.run(click("#history button"))
    await page.until("!document.querySelector('#rollback').disabled")
    measured["comparison"] = await page.run(CONTRAST)
    site.file.unlink()
    reader = await world.window(site.reader, dark=dark)
    await reader.until(shows("#stale", "out of date"))
    measured["stale"] = await reader.run(CONTRAST)
    logs = await world.window(collection, "document.querySelector('tbody tr')", dark=dark)
    measured["collection"] = await logs.run(CONTRAST)
    assert {name: one["poor"] for name, one in measured.items()} == {name: [] for name in measured}
    assert min(one["texts"] for one in measured.values()) > 10


async def test_a_phone_needs_no_scrolling_to_the_side(
    world: World, site: Site, collection: str
) -> None:
    """At 360 pixels, in each state; what can be pressed is 24 pixels high at least (WCAG 2.2, 2.5.8)."""
    # Not `innerWidth`: a phone zooms out until what is too wide fits.
    narrow = "document.scrollingElement.scrollWidth <= screen.width"
    low = "[...document.querySelectorAll('button')].filter(one => one.checkVisibility() && one.getBoundingClientRect().height < 24).length"
    page = await world.window(site.writer, width=360, height=740)
    assert await page.run(narrow)
    await page.run(click("#history button"))
    await page.until("!document.querySelector('#rollback').disabled")
    assert await page.run(narrow)
    assert await page.run(low) == 0
    await page.run(click("#close-comparison"))
    await edit(page, "x" * 500)
    await page.run(click("#publish"))
    await page.until(shows("#editor-problem", "line"))
    assert await page.run(narrow)
    assert await page.run(low) == 0
    logs = await world.window(
        collection, "document.querySelector('tbody tr')", width=360, height=740
    )
    assert await logs.run(narrow)


async def test_a_page_asks_nobody_else_and_has_nothing_to_complain_of(world: World) -> None:
    """Of all that the tests above have opened: the last one of this module."""
    if not world.pages:
        pytest.skip("needs the other tests of this module")
    origins = (*world.ports, "about:", "data:", "blob:")
    assert [
        url for page in world.pages for url in page.requests if not url.startswith(origins)
    ] == []
    assert [said for page in world.pages for said in page.complaints] == []
    assert sum(len(page.requests) for page in world.pages) > 100
