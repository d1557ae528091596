"""Which pages of other origins may read what a reader serves: none by default, and those that are named exactly."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import ClientSession

from sidecar import ConfigError
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.server.fastpath import counters
from support.httpkit import MakeClient, Serve, place, problem

APP = "https://app.example.com"
FOREIGN = [
    "https://evil.example", "https://app.example.com.evil.example", "http://app.example.com", "https://app.example.com:8443",
    "https://APP.example.com", "null", "*", "", "https://app.example.com/", f"{APP}, {APP}",
]  # fmt: skip
SHARED = ("/", "/raw", "/files", "/files/config")
PREFLIGHT = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "prefer"}


async def test_without_an_origin_there_is_no_cors(client: MakeClient, tmp_path: Path) -> None:
    """No header of it, and a preflight is refused; the same in a writer, which has none."""
    config = place(tmp_path / "config", "123")
    for app in (reader_app(config), writer_app(config)):
        one = await client(app)
        for path in ("/files", "/files/config"):
            answer = await one.get(path, headers={"Origin": APP})
            assert not [name for name in answer.headers if name.startswith("Access-Control")]
            answer = await one.options(path, headers={"Origin": APP, **PREFLIGHT})
            await problem(answer, 405, "method-not-allowed")
            assert not [name for name in answer.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("path", SHARED)
async def test_pages_of_a_named_origin_read_responses(
    client: MakeClient, tmp_path: Path, path: str
) -> None:
    """Also of 304 and of errors: a page that cannot read the 503 cannot tell why. Every response varies by Origin."""
    config = place(tmp_path / "config", "123")
    one = await client(reader_app(config, cors_origin=[f"{APP}:443", "http://localhost:3000"]))
    for origin in (APP, "http://localhost:3000"):
        answer = await one.get(path, headers={"Origin": origin})
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"ETag", "Sidecar-Signature"} <= set(exposed)
        assert "Access-Control-Allow-Credentials" not in answer.headers
        headers = {"Origin": origin, "If-None-Match": answer.headers["ETag"]}
        answer = await one.get(path, headers=headers)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (304, origin)
        assert answer.headers["Vary"] == "Origin"
    plain = await one.get(path)
    assert "Access-Control-Allow-Origin" not in plain.headers
    assert plain.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", FOREIGN)
async def test_pages_of_other_origins_read_nothing(
    client: MakeClient, tmp_path: Path, origin: str
) -> None:
    """Neither those that look alike, nor a frame in a sandbox; nor where there are two origins."""
    config = place(tmp_path / "config", "123")
    one = await client(reader_app(config, cors_origin=[APP]))
    for path in SHARED:
        answer = await one.get(path, headers={"Origin": origin})
        assert (answer.status, answer.headers["Vary"]) == (200, "Origin")
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
        answer = await one.options(path, headers={"Origin": origin, **PREFLIGHT})
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
    twice = await one.get("/", headers=[("Origin", APP), ("Origin", APP)])
    assert "Access-Control-Allow-Origin" not in twice.headers


async def test_a_preflight_needs_no_token_and_the_request_does(
    client: MakeClient, tmp_path: Path
) -> None:
    """A browser sends preflights without `Authorization`; and the 401 can be read."""
    (tmp_path / "token").write_text("secret")
    config = place(tmp_path / "config", "123")
    one = await client(reader_app(config, cors_origin=[APP], token_file=tmp_path / "token"))
    answer = await one.options("/", headers={"Origin": APP, **PREFLIGHT})
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == APP
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, HEAD"
    # W3C Trace Context section 3.1: a page whose requests are traced sends these two.
    assert {"Authorization", "traceparent", "tracestate"} <= set(
        answer.headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert answer.headers["Access-Control-Max-Age"] == "600"
    assert answer.headers["Vary"] == "Origin, Access-Control-Request-Method"
    refused = await one.get("/", headers={"Origin": APP})
    await problem(refused, 401, "unauthorized")
    assert refused.headers["Access-Control-Allow-Origin"] == APP
    headers = {"Origin": APP, "Authorization": "Bearer secret"}
    assert (await one.get("/", headers=headers)).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/ui", "/ui/state", "/livez"])
async def test_what_is_not_content_is_not_shared(
    client: MakeClient, tmp_path: Path, path: str
) -> None:
    """The page, its history and the metrics are for the own origin."""
    one = await client(reader_app(place(tmp_path / "config", "123"), cors_origin=[APP]))
    answer = await one.get(path, headers={"Origin": APP})
    assert not [name for name in answer.headers if name.startswith("Access-Control")]
    await problem(
        await one.options(path, headers={"Origin": APP, **PREFLIGHT}), 405, "method-not-allowed"
    )


async def test_events_are_shared(served: Serve, tmp_path: Path) -> None:
    """Their head leaves before the handler has returned."""
    one = await served(reader_app(place(tmp_path / "config", "123"), cors_origin=[APP]))
    async with (
        asyncio.timeout(20),
        ClientSession() as http,
        http.get(f"{one.url}/events", headers={"Origin": APP}) as events,
    ):
        assert events.headers["Access-Control-Allow-Origin"] == APP
        await events.content.readuntil(b'data: "123"')


async def test_the_cache_answers_each_origin_with_its_own(served: Serve, tmp_path: Path) -> None:
    """The fast path stays in use, and its answers are those of the same origin."""
    one = await served(reader_app(place(tmp_path / "config", "123"), cors_origin=[APP]))
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    cached = sum(counter.value for counter in counters._COUNTS.values())
    async with asyncio.timeout(20):
        for _ in range(10):
            for origin in (APP, "https://evil.example", None):
                line = "" if origin is None else f"Origin: {origin}\r\n"
                writer.write(f"GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(5)
                assert (f"access-control-allow-origin: {APP}\r\n" in head) is (origin == APP)
                assert "\r\nvary: origin\r\n" in head
    writer.close()
    await writer.wait_closed()
    assert sum(counter.value for counter in counters._COUNTS.values()) >= cached + 3 * 7


@pytest.mark.parametrize(
    "origin", ["*", "null", "app.example.com", "https://a.example/x", "https://u@a.example"]
)
def test_what_is_no_origin_is_refused(tmp_path: Path, origin: str) -> None:
    """`*` would open a reader of an internal network to every page of the world."""
    with pytest.raises(ConfigError, match="no origin"):
        reader_app(tmp_path / "config", cors_origin=[origin])
