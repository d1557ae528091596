"""How long requests take, in the metrics: each once, by method and route, whoever answers it."""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path

from aiohttp import ClientSession, web

import sidecar
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.process import metrics
from support.httpkit import Serve, place, tag, talk

DURATION = metrics.HTTP_REQUEST_DURATION_SECONDS


def count(*labels: str) -> int:
    metrics.exposition()
    return DURATION.count(*labels)


async def send(port: int, request: bytes, times: int) -> list[bytes]:
    """Send a request some times on one connection, each after the answer to the last; return the statuses."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses = []
    async with asyncio.timeout(20):
        for _ in range(times):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(size)
            statuses.append(head.split()[1])
    writer.close()
    await writer.wait_closed()
    return statuses


async def test_each_answer_counts_once_also_from_the_cache(served: Serve, tmp_path: Path) -> None:
    """The first ones come from the handler, and all further ones without it."""
    one = await served(reader_app(place(tmp_path / "config", "123")))
    before = count("GET", "/")
    assert set(await send(one.port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 50)) == {b"200"}
    assert count("GET", "/") == before + 50


async def test_a_write_is_measured_also_on_the_fast_path(served: Serve, tmp_path: Path) -> None:
    """It waits for the disk: its time is measured, and not taken for none."""
    one = await served(writer_app(tmp_path / "config"))
    before, total = count("GET", "/"), DURATION._series[("GET", "/")].sum
    taken = asyncio.get_running_loop().time()
    for number in range(20):
        await send(one.port, f"GET /?content={number} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 1)
    taken = asyncio.get_running_loop().time() - taken
    assert count("GET", "/") == before + 20
    assert total + 20 * 1e-6 < DURATION._series[("GET", "/")].sum < total + taken


async def test_a_request_that_waits_for_a_change_does_not_count(
    served: Serve, tmp_path: Path
) -> None:
    """Its time says how often something is published: neither the first ones, nor those of a waitlist."""
    config = place(tmp_path / "config", "1")
    one = await served(reader_app(config))
    async with asyncio.timeout(20), ClientSession() as http:
        headers = {"If-None-Match": tag("1"), "Prefer": "wait=60"}
        waiting = []
        for number in range(4):
            waiting.append(asyncio.ensure_future(http.get(f"{one.url}/", headers=headers)))
            while metrics.SUBSCRIBERS._value.get() < number + 1:
                await asyncio.sleep(0.01)
        before = count("GET", "/")
        await sidecar.publish_file(config, "2")
        assert [(await answer).status for answer in waiting] == [200] * 4
        assert count("GET", "/") == before
        # One that need not wait counts.
        assert (await http.get(f"{one.url}/", headers=headers)).status == 200
        assert count("GET", "/") == before + 1


async def test_no_client_makes_a_series_of_its_own(served: Serve, tmp_path: Path) -> None:
    """Paths, names of files and methods come from clients, and are not labels."""
    place(tmp_path / "config", "123")
    one = await served(reader_app(tmp_path / "config"))
    known = set(DURATION._series)
    for line in (b"GET /nope/1", b"GET /nope/2", b"BREW /", b"GET /files/config", b"GET /files/x"):
        await talk(one.port, line + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    await talk(one.port, b"GET / HTTP/9.9\r\n\r\n")
    await talk(one.port, b"nonsense\r\n\r\n")
    assert set(DURATION._series) - known <= {
        ("GET", "other"), ("other", "other"), ("GET", "/files/{name}"), ("other", "/"),
    }  # fmt: skip
    assert count("GET", "/files/{name}") >= 2
    assert count("other", "other") >= 1


async def test_pipelined_requests_are_measured_from_the_answer_before(
    served: Serve, tmp_path: Path
) -> None:
    """Otherwise the wait for a slow one would count for all that stand behind it."""

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return web.Response()

    async def quick(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/slow", slow), web.get("/quick", quick)])
    one = await served(app)
    last = b"GET /quick HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    await talk(one.port, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + last)
    slow_sum, quick_sum = (DURATION._series[("GET", path)].sum for path in ("/slow", "/quick"))
    assert slow_sum >= 0.049
    assert 0 < quick_sum < slow_sum


def test_the_build_is_told() -> None:
    """For a dashboard that shows which version runs where."""
    text = metrics.exposition()[0].decode()
    labels = f'python="{platform.python_version()}",version="{sidecar.__version__}"'
    assert f"sidecar_build_info{{{labels}}} 1.0" in text
