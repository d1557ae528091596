"""The site: it builds without a warning, has every page, and its tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from support import browser
from support.pages import ROOT, read_blocks, read_commands

pytestmark = pytest.mark.timeout(300)  # the site takes 12 s of CPU, and the first test builds it
sys.path.insert(0, str(ROOT / "tools"))
reference = import_module("reference")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds: MkDocs fails at a link or an anchor that leads nowhere, and at a page without a place."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", directory],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return directory


@pytest.mark.slow
def test_each_page_is_on_the_site(site: Path) -> None:
    """Those of docs/, and those that the repository has beside it."""
    outside = (
        "CHANGELOG",
        "CONTRIBUTING",
        "RELEASING",
        "SECURITY",
        "UPGRADING",
        "chart",
        "examples/writer",
    )
    pages = [
        path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")
    ]
    names = [*outside, *(str(page) for page in pages)]
    addresses = [re.sub(r"(^|/)(index|README)$", r"\1", name) for name in names]

    assert [one for one in addresses if not (site / one / "index.html").is_file()] == []


@pytest.mark.slow
def test_each_public_name_has_its_place_on_the_page_of_names(site: Path) -> None:
    """From its docstring; an anchor each, so that it can be linked to."""
    page = (site / "reference/api/index.html").read_text()
    modules = (
        "sidecar",
        "sidecar.sync",
        "sidecar.logs",
        "sidecar.reload",
        "sidecar.mirror",
        "sidecar.testing",
    )
    names = [
        f"{module}.{name}"
        for module in modules
        for name in import_module(module).__all__
        if not name.startswith("_")
    ]

    assert [one for one in names if f'id="{one}"' not in page] == []
    assert "&gt;&gt;&gt; " not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)


@pytest.mark.slow
def test_the_page_of_log_events_has_those_of_the_code(site: Path) -> None:
    """One line for each message, with its level; the table is made when the site is built."""
    page = (site / "reference/log-events/index.html").read_text()

    assert "SIGTERM" not in page  # a name that is put in
    assert "<code>listening on …</code></td>\n<td>INFO</td>" in page
    assert len(re.findall(r"<tr>\n<td><code>", page)) > 100


@pytest.mark.slow
def test_pictures_are_drawn_when_the_site_is_built(site: Path) -> None:
    """Material would load Mermaid from another server, and show the source of a picture where there is none."""
    page = (site / "architecture/index.html").read_text()
    source = (ROOT / "docs/architecture.md").read_text()

    assert page.count('<div class="picture"><svg ') == source.count("```mermaid") > 0
    assert 'class="mermaid"' not in page
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.slow
@pytest.mark.skipif(browser.program() is None, reason="needs chromium")
async def test_the_button_copies_commands_without_prompts_and_output(
    site: Path, tmp_path: Path
) -> None:
    """Pasted into a shell, a `$` or a printed line would be an error."""
    page = ROOT / "docs/tutorial/1-file.md"
    (number, block) = next(
        (number, one) for number, one in enumerate(read_blocks(page)) if "$ cat" in one.text
    )
    app = web.Application()
    app.add_routes([web.static("/", site)])
    async with TestServer(app) as server, browser.running(tmp_path) as chromium:
        window = await chromium.person()
        await window.open(str(server.make_url("/tutorial/1-file/index.html")))
        button = f"document.querySelectorAll('.md-code__button')[{number}]"
        await window.until(button)
        await window.run("document.addEventListener('copy', () => { copied = copiedText() });")
        await window.run("copiedText = () => document.activeElement.value ?? `${getSelection()}`")
        await window.run(f"{button}.focus()")
        await window.press("Enter")
        copied = await window.until("copied")

    lines = [line for line in copied.split("\n") if line]
    assert lines == [command for command, _ in read_commands(block.text)]
    assert len(read_commands(block.text)) == 3


@pytest.mark.slow
def test_no_page_needs_another_server(site: Path) -> None:
    """No fonts, scripts or counters from elsewhere: who reads the documentation is nobody's business."""
    found = {
        address
        for page in site.rglob("*.html")
        for address in re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text()
        )
    }

    assert {one for one in found if not one.startswith("https://sidecar.example/")} == set()


def test_the_page_of_metrics_has_those_of_the_code() -> None:
    """Each with its type and its labels; `python tools/reference.py` writes their meanings anew as well."""
    text = reference.METRICS.read_text()

    def described(page: str) -> set[str]:
        return set(re.findall(r"^\| `sidecar_\w+` \|[^|]*\|[^|]*\|", page, re.MULTILINE))

    assert described(text) == described(reference.metrics_page(text))
    assert len(described(text)) > 30


def test_each_metric_in_the_prose_exists() -> None:
    """A name that is pasted into a rule and does not exist never fires."""
    known = {name for name, *_ in reference.families()}
    known |= {f"{name}{end}" for name in known for end in ("_bucket", "_count", "_sum")}
    named = {
        (path.name, name)
        for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        if path.name != "architecture.md"  # names of modules in its pictures
        for name in re.findall(r"\bsidecar_[a-z]+(?:_[a-z]+)+\b", path.read_text())
        if name.split("_")[1] in reference.GROUPS
    }

    assert {(page, name) for page, name in named if name not in known} == set()
