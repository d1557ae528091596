"""The page `/ui` in headless Chromium: from the click on Publish in one window until another one shows the content.

    python benchmarks/page.py [--rounds 50] [--json FILE]

Both times are of the browser's own clock (`performance.timeOrigin + performance.now()`): the click, as its event says,
and the first frame after the text was changed. And what the page costs a reader at rest that nobody looks at.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _options import arguments
from _rows import Row, report, resident
from _servers import free_port

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support import browser

CLICKED = """
addEventListener("click", event => {
  if (event.target.id === "publish") window.clicked = performance.timeOrigin + event.timeStamp;
}, true)
"""
SHOWN = """
window.shown = {};
new MutationObserver(() => {
  const number = /"number": (\\d+)/.exec(document.querySelector("#code").textContent)?.[1];
  if (number && !(number in shown)) {
    shown[number] = 0;
    requestAnimationFrame(() => { shown[number] = performance.timeOrigin + performance.now() });
  }
}).observe(document.querySelector("#code"), {childList: true, subtree: true})
"""
READY = "document.querySelector('#connection').dataset.state === 'good' && document.querySelector('#code').checkVisibility()"
SETTLE = 3.0
"""Seconds after which a reader has given back what its start needed."""


def start(command: str, path: Path, port: int, *flags: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "sidecar", command, "--path", str(path), "--port", str(port)),
            *("--host", "127.0.0.1", "--drain-delay", "0", "--log-level", "error", *flags),
        ]
    )


async def seen(writer: str, reader: str, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds until another page of the writer, and that of the reader, show each publish."""
    found: dict[str, list[float]] = {"writer": [], "reader": []}
    with tempfile.TemporaryDirectory() as directory:
        async with browser.running(Path(directory)) as running:
            author = await running.person()
            others = {"writer": await running.person(), "reader": await running.person()}
            await author.open(writer)
            await others["writer"].open(writer)
            await others["reader"].open(reader)
            for page in (author, *others.values()):
                await page.until(READY)
            await author.run(CLICKED)
            for page in others.values():
                await page.run(SHOWN)
            for number in range(rounds):
                await author.run("document.querySelector('#edit').click()")
                await author.run("document.querySelector('#text').select()")
                await author.type(f'{{"number": {number}}}\n')
                await author.run("document.querySelector('#publish').click()")
                await author.until(
                    f"{READY} && document.querySelector('#code').innerText.includes('{number}')"
                )
                clicked = await author.run("window.clicked")
                for name, page in others.items():
                    found[name].append(await page.until(f"shown[{number}]") - clicked)
    return found


def memory(path: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Return the MiB of readers at rest, with the page and without."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for sizes, flags in zip(found, ((), ("--no-ui",)), strict=True):
            process = start("read", path, free_port(), *flags)
            time.sleep(SETTLE)
            sizes.append(resident(process.pid))
            process.terminate()
            process.wait()
    return found


def main() -> None:
    options = arguments(__doc__, rounds=50, readers=5).parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "settings.json")
        path.write_text('{"number": -1}\n')
        ports = {"write": free_port(), "read": free_port()}
        servers = [start(command, path, port) for command, port in ports.items()]
        time.sleep(SETTLE)
        urls = [f"http://127.0.0.1:{port}/ui" for port in ports.values()]
        found = asyncio.run(seen(urls[0], urls[1], options.rounds))
        for server in servers:
            server.terminate()
            server.wait()
        with_page, without = memory(path, options.readers)
    rows = []
    for name, times in found.items():
        times.sort()
        what = f"page: published in one window, shown in another ({name})"
        rows += [
            Row(f"{what}: p50", statistics.median(times), "ms", 200, low=times[0], high=times[-1]),
            Row(f"{what}: p99", times[int(len(times) * 0.99)], "ms"),
        ]
    rows.append(
        Row(
            "page: memory of a reader at rest, above one without",
            statistics.median(with_page) - statistics.median(without),
            "MiB",
            0.3,
        )
    )
    report(rows, options.json)


if __name__ == "__main__":
    main()
