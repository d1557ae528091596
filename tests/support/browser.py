"""A real browser: headless Chromium, driven by the DevTools protocol over a websocket."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

_PATIENCE = 30.0
"""Seconds for anything that a page does; far more than it takes."""
KEYS = {
    "Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), "Space": (32, " "),
    "ArrowDown": (40, ""), "ArrowUp": (38, ""), "End": (35, ""), "Home": (36, ""), "a": (65, "a"),
}  # fmt: skip
SHIFT, CTRL = 8, 2

WAIT = """new Promise(done => {
  const look = () => { let found; try { found = (EXPRESSION) } catch { found = null }
    if (found) done(found); else setTimeout(look, 5) };
  look();
})"""


def program() -> str | None:
    """Where Chromium is, None if it is not installed."""
    return shutil.which("chromium")


@asynccontextmanager
async def running(directory: Path, *flags: str) -> AsyncIterator[Browser]:
    """A browser until the end of the block, with its profile in `directory`."""
    found = program()
    assert found is not None
    process = await asyncio.create_subprocess_exec(
        *(found, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars"),
        *(f"--user-data-dir={directory}/profile", "--remote-debugging-port=0", *flags),
        "about:blank",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": str(directory)},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            address = await _address(process)
        drain = asyncio.create_task(_discard(process))
        async with ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
            browser = Browser(socket)
            receiving = asyncio.create_task(browser.receive())
            try:
                yield browser
            finally:
                receiving.cancel()
                await asyncio.wait({receiving})
        drain.cancel()
        await asyncio.wait({drain})
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    said = []
    while line := (await process.stderr.readline()).decode():
        said.append(line)
        if line.startswith("DevTools listening on "):
            return line.removeprefix("DevTools listening on ").strip()
    raise AssertionError(f"the browser has ended: {''.join(said)}")


async def _discard(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while await process.stderr.read(1 << 16):
        pass


class Browser:
    """The browser, and the connection to it."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def receive(self) -> None:
        """Hand out answers and events until cancelled."""
        async for message in self._socket:
            assert message.type is WSMsgType.TEXT
            said = json.loads(message.data)
            if "id" in said:
                waiting = self._waiting.pop(said["id"])
                if not waiting.done():  # nobody waits any more
                    waiting.set_result(said)
            elif said.get("sessionId") in self._pages:
                self._pages[said["sessionId"]].event(said["method"], said["params"])

    async def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Call a method of the protocol; its result."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        async with asyncio.timeout(_PATIENCE):
            said = await answer
        assert "error" not in said, (method, said["error"])
        return said["result"]

    async def person(self, **looks: Any) -> Page:
        """A window of somebody: nothing is shared with those of others. `looks` as for `Page.look`."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = await self.call(
            "Target.createTarget", url="about:blank", browserContextId=context, newWindow=True
        )
        session = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = Page(self, session["sessionId"], context)
        self._pages[session["sessionId"]] = page
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.call(f"{domain}.enable")
        await page.look(**looks)
        return page


class Page:
    """One page, and what it has asked for and complained of."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.requests: list[str] = []
        self.complaints: list[str] = []
        """Uncaught errors, errors on the console, violations of the policy."""
        self.dialogs: list[str] = []
        self.on_request: Callable[[str], None] | None = None

    def event(self, method: str, params: dict[str, Any]) -> None:
        """Note an event of the protocol."""
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["source"] != "network":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                self.complaints.append(json.dumps(params["args"]))
            case "Page.javascriptDialogOpening":
                self.dialogs.append(params["message"])
                self._accepting = asyncio.create_task(
                    self.call("Page.handleJavaScriptDialog", accept=True)
                )

    async def call(self, method: str, **params: Any) -> Any:
        return await self._browser.call(method, self._session, **params)

    async def look(
        self, *, width: int = 1280, height: int = 900, dark: bool = False, scale: float = 1
    ) -> None:
        """Change the size of the window and the scheme of colours."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme, motion])

    async def close(self) -> None:
        """Close the window, without a question. What it has asked for stays known."""
        await self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def run(self, expression: str) -> Any:
        """Evaluate JavaScript; a promise is awaited."""
        said = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in said, (expression, said["exceptionDetails"])
        return said["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is truthy, on whatever document is there; its value."""
        async with asyncio.timeout(_PATIENCE):
            while True:
                try:
                    return await self.run(WAIT.replace("EXPRESSION", expression))
                except AssertionError as error:  # the document has gone while it was looked at
                    if "navigat" not in str(error) and "context" not in str(error):
                        raise

    async def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key and release it."""
        code, text = KEYS[key]
        common: dict[str, Any] = {
            "key": " " if key == "Space" else key,
            "code": f"Key{key.upper()}" if len(key) == 1 else key,
            "windowsVirtualKeyCode": code,
            "modifiers": modifiers,
        }
        if text and not modifiers & CTRL:
            common["text"] = text
        if (key, modifiers) == ("a", CTRL):
            common["commands"] = ["selectAll"]
        await self.call("Input.dispatchKeyEvent", type="keyDown", **common)
        common.pop("text", None)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def type(self, text: str) -> None:
        """Insert a text where the focus is."""
        await self.call("Input.insertText", text=text)

    async def tab_to(self, selector: str, *, limit: int = 60) -> None:
        """Press Tab until an element has the focus."""
        for _ in range(limit):
            if await self.run(f"!!document.activeElement?.matches({json.dumps(selector)})"):
                return
            await self.press("Tab")
        raise AssertionError(f"the Tab key does not lead to {selector}")

    async def screenshot(self, path: Path, *, whole: bool = False, quality: int = 80) -> None:
        kind = path.suffix.removeprefix(".")
        said = await self.call(
            "Page.captureScreenshot",
            format=kind,
            captureBeyondViewport=whole,
            **({} if kind == "png" else {"quality": quality}),
        )
        path.write_bytes(base64.b64decode(said["data"]))


def text_of(selector: str) -> str:
    """JavaScript for the text of an element."""
    return f"document.querySelector({json.dumps(selector)}).innerText"


__all__: Sequence[str] = ("CTRL", "SHIFT", "Browser", "Page", "program", "running", "text_of")
