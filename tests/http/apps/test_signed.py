"""Signed contents over HTTP: what a writer takes, and what a reader serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from sidecar import Volume
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.process import metrics
from support.httpkit import Client, MakeClient, Serve, problem, tag
from support.signing import Signer, key_file


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def keys(tmp_path: Path, signer: Signer) -> Path:
    return key_file(tmp_path / "keys.pem", signer)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "config"


@pytest.fixture
async def writer(client: MakeClient, config: Path, keys: Path) -> Client:
    return await client(writer_app(config, verify_key=keys))


def header(signature: str) -> dict[str, str]:
    return {"Sidecar-Signature": signature}


async def test_a_signed_body_is_published_and_served_with_its_signature(
    writer: Client, client: MakeClient, config: Path, keys: Path, signer: Signer
) -> None:
    """From the header of the PUT to that of the reader, who has verified it; any client can do so again."""
    signature = signer.sign_file("config", "1")
    done = await writer.put("/files/config", data=b"1", headers=header(signature))
    assert (done.status, done.headers["ETag"]) == (201, tag("1"))
    reader = await client(reader_app(config, verify_key=keys, recheck=0.1))
    for one, path in ((reader, "/files/config"), (reader, "/raw"), (writer, "/files/config")):
        found = await one.get(path)
        assert (await found.read(), found.headers["Sidecar-Signature"]) == (b"1", signature)
    assert await (await reader.get("/")).json() == "1"


async def test_what_is_not_signed_is_refused_with_the_reason(
    writer: Client, config: Path, signer: Signer
) -> None:
    """422, also for a dry run; nothing is there afterwards, not even the empty file of a start."""

    for given, why in (
        ({}, "it is not signed"),
        (header(""), "the signature cannot be used: it is empty"),
        (header("AAAA"), "not base64 of 64 bytes"),
        (header(Signer().sign_file("config", "1")), "no trusted key"),
        (header(signer.sign_file("config", "2")), "no trusted key"),
        (header(signer.sign_file("other", "1")), "no trusted key"),
    ):
        for query in ("", "?dry_run=1"):
            answer = await writer.put(f"/files/config{query}", data=b"1", headers=given)
            found = await problem(answer, 422, "content-refused")
            assert why in found["reasons"][0]
    assert [one.name for one in config.parent.iterdir()] == ["..lock"]


async def test_a_body_without_a_signature_is_refused_before_it_is_sent(
    writer: Client, config: Path
) -> None:
    """An upload of gigabytes ends before it begins: the client waits for `100 Continue`."""
    sent = []

    async def body() -> AsyncIterator[bytes]:
        sent.append(1)
        yield b"1"

    answer = await writer.put("/files/config", data=body(), expect100=True)
    await problem(answer, 422, "content-refused")
    assert not sent


async def test_the_text_of_a_query_cannot_be_signed(writer: Client, signer: Signer) -> None:
    """Refused with what to do instead, as GET, HEAD and dry run; a signature beside it changes nothing."""
    signed = header(signer.sign_file("config", "1"))
    for _ in range(4):  # of which the fast path would answer the later ones
        answer = await writer.get("/?content=1", headers=signed)
        found = await problem(answer, 422, "content-refused")
        assert "use PUT /files/NAME with Sidecar-Signature" in found["reasons"][0]
    assert (await writer.head("/?content=1")).status == 422
    assert (await writer.get("/?content=1&dry_run=1")).status == 422


async def test_a_rollback_is_verified_by_the_present_keys(
    writer: Client, config: Path, keys: Path, signer: Signer
) -> None:
    """What was planted in the history, or was signed by a retired key, stays there."""
    new = Signer()
    key_file(keys, signer, new)
    for text, by in (("1", signer), ("2", new)):
        signed = header(by.sign_file("config", text))
        assert (await writer.put("/files/config", data=text, headers=signed)).status < 300
    planted = await Volume(config.parent).put("config", "planted")
    assert (await writer.post("/rollback", json={"to": tag("1")})).status == 200
    key_file(keys, new)
    for etag, why in ((tag("1"), "no trusted key"), (planted.etag, "it is not signed")):
        for query in ("", "?dry_run=1"):
            answer = await writer.post(f"/rollback{query}", json={"to": etag})
            assert why in (await problem(answer, 422, "content-refused"))["reasons"][0]
    assert (await writer.post("/rollback", json={"to": tag("2")})).status == 200
    assert (await writer.delete("/files/config")).status == 204


async def test_the_writer_serves_nothing_that_is_not_signed(
    writer: Client, config: Path, signer: Signer
) -> None:
    """As a file that must not be read: 404, and why."""
    signed = header(signer.sign_file("config", "1"))
    await writer.put("/files/config", data=b"1", headers=signed)
    await Volume(config.parent).put("config", "planted")
    found = await problem(await writer.get("/files/config"), 404, "unfit-to-read")
    assert "it is not signed" in found["detail"]
    before = await writer.get(f"/ui/versions/{tag('planted')}?name=config")
    assert before.status == 404


async def test_a_reader_serves_the_last_signed_content_from_the_fast_path(
    served: Serve, config: Path, keys: Path, signer: Signer
) -> None:
    """Whatever is asked, and however often; the reason is in each response, in the events and in the metrics."""
    publisher = Volume(config.parent)
    await publisher.publish(signer.signed({"config": "1"}))
    before = metrics.CONTENT_UNSIGNED_TOTAL._value.get()
    reader = await served(reader_app(config, verify_key=keys, recheck=0.1))
    async with ClientSession(reader.url) as session:

        async def ask(path: str) -> tuple[str, str]:
            async with session.get(path) as answer:
                return await answer.text(), answer.headers.get("Sidecar-Stale", "")

        for _ in range(4):
            assert await ask("/") == ('"1"', "")
        await publisher.put("config", "planted")

        while "config is not what SHA256SUMS says" not in (await ask("/"))[1]:
            await asyncio.sleep(0.02)
        for path in ("/", "/raw", "/files/config") * 4:
            text, reason = await ask(path)
            assert text.strip('"') == "1"
            assert "is not what SHA256SUMS says" in reason
        async with session.get("/metrics") as answer:
            assert "sidecar_content_stale 1.0" in await answer.text()
        # Another file of the directory is verified for each request.
        async with session.get("/files/SHA256SUMS") as answer:
            assert answer.status == 404
        await publisher.publish(signer.signed({"config": "2"}))
        while await ask("/") != ('"2"', ""):
            await asyncio.sleep(0.02)
    assert metrics.CONTENT_UNSIGNED_TOTAL._value.get() == before + 1


async def test_a_reader_that_starts_on_an_unsigned_content_has_none(
    client: MakeClient, config: Path, keys: Path
) -> None:
    """503 with the reason: nothing good is known. `--missing` is not signed either, and is our own."""
    await Volume(config.parent).put("config", "planted")
    reader = await client(reader_app(config, verify_key=keys))
    found = await problem(await reader.get("/"), 503, "nothing-published")
    assert "it is not signed" in found["detail"]
    assert (await reader.get("/readyz")).status == 200
    assert (await (await client(reader_app(config, verify_key=keys, missing="ok"))).get("/")).status == 200  # fmt: skip
