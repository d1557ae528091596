"""Tokens: who gets in, and that a file which is gone opens no door."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import ClientSession

import sidecar
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.semantics import bearer_auth
from support.httpkit import MakeClient, Serve, place, problem, tag


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with one token, which is looked at often."""
    monkeypatch.setattr(bearer_auth, "RECHECK", 0.01)
    path = tmp_path / "token"
    path.write_text("secret\n")
    return path


def with_token(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


async def test_without_the_token_nobody_reads_or_writes(
    client: MakeClient, tmp_path: Path, token: Path
) -> None:
    """401 with a challenge (RFC 6750 section 3), for unknown paths as well; nothing is changed."""
    reader = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))
    writer = await client(writer_app(tmp_path / "config", token_file=token))
    for path in ("/", "/raw", "/files", "/files/config", "/metrics", "/openapi.json", "/nope"):
        answer = await reader.get(path)
        await problem(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="sidecar"'
        answer = await reader.head(path)
        assert (answer.status, answer.headers.get("ETag")) == (401, None)
    for answer in (
        await writer.get("/?content=1"),
        await writer.put("/files/config", data=b"1"),
        await writer.delete("/files/config"),
        await writer.post("/rollback", json={"to": "x"}),
    ):
        await problem(answer, 401, "unauthorized")
    assert (tmp_path / "config").read_text() == ""
    assert (await reader.get("/", headers=with_token("secret"))).status == 200
    assert (await writer.get("/?content=1", headers=with_token("secret"))).status == 200


@pytest.mark.parametrize(
    "value",
    ["Bearer wrong", "Bearer secre", "Bearer secrett", "Bearer", "Bearer ", "secret",
     "Basic secret", "Bearer secret secret", "Bearer sécret"],
)  # fmt: skip
async def test_what_is_not_the_token_is_refused(
    client: MakeClient, tmp_path: Path, token: Path, value: str
) -> None:
    """And is told to be invalid, not missing."""
    one = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))
    answer = await one.get("/", headers={"Authorization": value})
    await problem(answer, 401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


async def test_probes_need_no_token(client: MakeClient, tmp_path: Path, token: Path) -> None:
    """kubelet has none."""
    one = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))
    for path in ("/livez", "/readyz", "/startupz"):
        assert (await one.get(path)).status in {200, 503}
        assert (await one.head(path)).status in {200, 503}


async def test_a_token_can_be_replaced_while_serving(
    client: MakeClient, tmp_path: Path, token: Path
) -> None:
    """Each line is one, so the new one can be added before the old one goes."""
    one = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))

    async def until(expected: dict[str, int]) -> None:
        async with asyncio.timeout(5):
            while expected != {
                value: (await one.get("/", headers=with_token(value))).status for value in expected
            }:
                await asyncio.sleep(0.01)

    await until({"secret": 200, "newer": 401})
    token.write_text("secret\nnewer\n\n")
    await until({"secret": 200, "newer": 200})
    token.write_text("newer")
    await until({"secret": 401, "newer": 200})


async def test_the_file_is_read_again_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, and on a clock that the test turns: docs/http.md says a second."""
    now = 0.0
    monkeypatch.setattr(bearer_auth, "time", SimpleNamespace(monotonic=lambda: now))
    path = tmp_path / "token"
    path.write_text("older")
    tokens = bearer_auth.TokenFile(path)
    assert await tokens.tokens() == (b"older",)
    path.write_text("newer")
    now = 1.01
    assert await tokens.tokens() == (b"newer",)


@pytest.mark.parametrize("content", [None, "", "\n  \n"])
async def test_a_file_without_a_token_opens_no_door(
    client: MakeClient, tmp_path: Path, token: Path, content: str | None
) -> None:
    """Missing or empty, at the start or later: nobody gets in, not with an empty token either."""
    one = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))
    assert (await one.get("/", headers=with_token("secret"))).status == 200
    token.unlink()
    if content is not None:
        token.write_text(content)
    async with asyncio.timeout(5):
        while (await one.get("/", headers=with_token("secret"))).status != 401:
            await asyncio.sleep(0.01)
    for value in ("", "secret", "\n"):
        headers = {"Authorization": f"Bearer {value.strip()}"}
        await problem(await one.get("/", headers=headers), 401, "unauthorized")
    other = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))
    await problem(await other.get("/", headers=with_token("secret")), 401, "unauthorized")


@pytest.mark.parametrize("content", ["other", None])
async def test_a_long_poll_ends_with_its_token(
    served: Serve, tmp_path: Path, token: Path, content: str | None
) -> None:
    """401 within a second, whether another token has taken its place or the file has gone."""
    config = place(tmp_path / "config", "123")
    one = await served(reader_app(config, token_file=token))
    async with ClientSession() as http:
        headers = {**with_token("secret"), "If-None-Match": tag("123"), "Prefer": "wait=60"}
        waiting = asyncio.ensure_future(http.get(f"{one.url}/", headers=headers))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done
        token.write_text(content) if content else token.unlink()
        async with asyncio.timeout(10):
            await problem(await waiting, 401, "unauthorized")


async def test_an_event_stream_ends_with_its_token(
    served: Serve, tmp_path: Path, token: Path
) -> None:
    """Whole, so that a browser comes back and is refused; who has shown another token is told on."""
    config = place(tmp_path / "config", "123")
    token.write_text("secret\nother\n")
    one = await served(reader_app(config, token_file=token))
    async with (
        asyncio.timeout(20),
        ClientSession() as http,
        http.get(f"{one.url}/events", headers=with_token("secret")) as revoked,
        http.get(f"{one.url}/events", headers=with_token("other")) as kept,
    ):
        for stream in (revoked, kept):
            await stream.content.readuntil(b'data: "123"')
        token.write_text("other\n")
        assert b"456" not in await revoked.content.read()
        await sidecar.publish_file(config, "456")
        await kept.content.readuntil(b'data: "456"')


@pytest.mark.parametrize("path", ["/", "/raw", "/files", "/files/config", "/events", "/metrics"])
async def test_head_needs_the_token_as_get_does(
    client: MakeClient, tmp_path: Path, token: Path, path: str
) -> None:
    """Its answer says how long the content is, and which."""
    place(tmp_path / "config", "123")
    one = await client(reader_app(tmp_path / "config", token_file=token))
    refused = await one.head(path)
    assert (refused.status, "ETag" in refused.headers) == (401, False)
    assert (await one.head(path, headers=with_token("secret"))).status == 200
