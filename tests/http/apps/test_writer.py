"""The writer, row by row of its table, and everything that must leave the old content alone."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import re
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

import sidecar
from sidecar import _errors
from sidecar.fs import atomic
from sidecar.http.apps import write_health, write_request
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import WRITER, writer_app
from sidecar.http.semantics import representation
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.validation.gate import Gate
from support import Eventually, after
from support.httpkit import Client, MakeClient, Serve, problem, tag, talk


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The path of the file; its directory is not there yet."""
    return tmp_path / "shared" / "config"


def left_overs(config: Path) -> list[str]:
    return [name for name in os.listdir(config.parent) if name.startswith("..tmp")]


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 64 << 10):
        yield body[start : start + (64 << 10)]


async def raw_get(one: Client, target: bytes, method: bytes = b"GET") -> tuple[int, bytes]:
    """Ask for exactly this target; return status and body."""
    request = method + b" " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head, _, body = (await talk(one.server.port or 0, request)).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


# The start


def test_an_empty_path_is_refused() -> None:
    """What an unset variable leaves must not make the working directory the volume."""
    with pytest.raises(_errors.ConfigError, match="'' is no path"):
        writer_app("")


async def test_at_the_start_there_is_a_directory_with_an_empty_file(
    client: MakeClient, config: Path
) -> None:
    """So the first read is the empty text, as in the article."""
    await client(writer_app(config))
    assert config.read_bytes() == b""
    assert config.parent.stat().st_mode & 0o777 == 0o755


async def test_content_that_is_there_survives_a_restart(client: MakeClient, config: Path) -> None:
    """The article's writer began with an empty file each time."""
    config.parent.mkdir()
    config.write_text("123")
    await client(writer_app(config))
    assert config.read_text() == "123"


@pytest.mark.root
async def test_a_single_file_mount_ends_the_start(client: MakeClient, tmp_path: Path) -> None:
    """No time mends a `subPath`: the container must fail where somebody looks, with the reason."""
    for name in ("source", "config"):
        (tmp_path / name).write_text("1")
    subprocess.run(["mount", "--bind", tmp_path / "source", tmp_path / "config"], check=True)
    try:
        with pytest.raises(_errors.VolumeUnavailable, match="subPath"):
            await client(writer_app(tmp_path / "config"))
    finally:
        subprocess.run(["umount", tmp_path / "config"], check=True)


# GET /?content=


async def test_a_text_in_the_query_is_published(client: MakeClient, config: Path) -> None:
    """`200`, JSON `"ok"`, the ETag that the reader will serve, and nothing for a cache."""
    one = await client(writer_app(config))
    answer = await one.get("/?content=123")
    assert (answer.status, await answer.text()) == (200, '"ok"')
    assert answer.headers["ETag"] == tag("123")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert config.read_text() == "123"


@pytest.mark.parametrize(
    ("query", "content"),
    [
        (b"content=", b""),
        (b"content", b""),
        (b"content=a+b%2Bc%20d", b"a b+c d"),
        (b"content=%C3%A9%0A%00", b"\xc3\xa9\n\0"),
        (b"content=a;b=c", b"a;b=c"),
        (b"content=a=b%26c", b"a=b&c"),
        (b"content=1&content=2", b"1"),
        (b"x=%zz&content=1", b"1"),
        (b"c%6Fntent=1", b"1"),
        (b"content=%EF%BB%BFbom", b"\xef\xbb\xbfbom"),
        (b"content=" + b"x" * 5000, b"x" * 5000),
    ],
)
async def test_the_query_is_decoded_as_the_article_decodes_it(
    client: MakeClient, config: Path, query: bytes, content: bytes
) -> None:
    """`+` is a space, `%XX` a byte, the first of several counts, and nothing else happens to it."""
    one = await client(writer_app(config))
    assert await raw_get(one, b"/?" + query) == (200, b'"ok"')
    assert config.read_bytes() == content


@pytest.mark.parametrize("target", [b"/", b"/?", b"/?Content=1", b"/?dry_run=1"])
async def test_without_content_nothing_changes(
    client: MakeClient, config: Path, target: bytes
) -> None:
    """`400`: in the article this wiped the file."""
    one = await client(writer_app(config))
    await one.get("/?content=123")
    status, body = await raw_get(one, target)
    assert (status, b"/problems/bad-request" in body) == (400, True)
    assert config.read_text() == "123"


@pytest.mark.parametrize("value", [b"%ff", b"%zz", b"%", b"a%2", b"%E9t%E9"])
async def test_what_is_no_text_is_refused_instead_of_mangled(
    client: MakeClient, config: Path, value: bytes
) -> None:
    """Bytes that are not UTF-8, and escapes that are none: 400, and the old content stays."""
    one = await client(writer_app(config))
    await one.get("/?content=123")
    status, _ = await raw_get(one, b"/?content=" + value)
    assert (status, config.read_text()) == (400, "123")


async def test_head_publishes_nothing(client: MakeClient, config: Path) -> None:
    """HEAD is safe (RFC 9110 section 9.2.1): it says what GET would answer."""
    one = await client(writer_app(config))
    answer = await one.head("/?content=123")
    assert (answer.status, answer.headers["ETag"]) == (200, tag("123"))
    assert config.read_text() == ""


# PUT /files/NAME


async def test_a_body_is_published_under_its_name(client: MakeClient, config: Path) -> None:
    """`201` where it is new, `204` where it is replaced or there already; the bytes as they came."""
    one = await client(writer_app(config))
    body = bytes(range(256))
    statuses = [(await one.put("/files/a/b.bin", data=data)).status for data in (body, b"2", b"2")]
    assert statuses == [201, 204, 204]
    answer = await one.put("/files/a/b.bin", data=body)
    assert answer.headers["ETag"] == tag(body)
    assert (config.parent / "a" / "b.bin").read_bytes() == body
    read = await one.get("/files/a/b.bin")
    assert (await read.read(), read.headers["ETag"]) == (body, tag(body))


async def test_a_large_body_is_streamed(client: MakeClient, config: Path) -> None:
    """In pieces of unknown number: chunked, and never in memory as a whole."""
    one = await client(writer_app(config))

    async def body() -> AsyncIterator[bytes]:
        for number in range(64):
            yield bytes([number]) * (1 << 16)

    assert (await one.put("/files/large", data=body())).status == 201
    assert (config.parent / "large").stat().st_size == 4 << 20
    assert left_overs(config) == []


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ([("Content-Encoding", "gzip")], 415, "unsupported-coding"),
        ([("Content-Encoding", "deflate")], 415, "unsupported-coding"),
        ([("Content-Encoding", "compress")], 415, "unsupported-coding"),
        (
            [("Content-Encoding", "identity"), ("Content-Encoding", "GZIP")],
            415,
            "unsupported-coding",
        ),
        ([("Transfer-Encoding", "gzip, chunked")], 501, "unsupported-transfer"),
    ],
)
async def test_a_compressed_body_is_never_published(
    client: MakeClient,
    config: Path,
    headers: list[tuple[str, str]],
    status: int,
    kind: str,
) -> None:
    """Neither as it is, nor unpacked: nobody would notice that one which was cut short is only half of it."""
    one = await client(writer_app(config))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    if kind == "unsupported-coding":
        lines += "Transfer-Encoding: chunked\r\n"
    packed = gzip.compress(b"123")[:-9]
    answer = await talk(
        one.server.port or 0,
        f"PUT /files/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n{len(packed):x}\r\n".encode()
        + packed
        + b"\r\n0\r\n\r\n",
    )
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert f"/problems/{kind}".encode() in answer
    assert not (config.parent / "a").exists()
    assert left_overs(config) == []


async def test_a_put_without_a_body_does_not_empty_the_file(
    client: MakeClient, config: Path
) -> None:
    """As a GET without `content` does not: who means an empty content says how long it is."""
    one = await client(writer_app(config))
    (config.parent / "a").write_text("precious")
    head = b"PUT /files/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answer = await talk(one.server.port or 0, head + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 411 ")
    assert b"/problems/length-required" in answer
    assert (config.parent / "a").read_text() == "precious"
    assert b" 204 " in await talk(one.server.port or 0, head + b"Content-Length: 0\r\n\r\n")
    assert (config.parent / "a").read_text() == ""


async def test_a_body_with_an_empty_coding_is_plain(client: MakeClient, config: Path) -> None:
    """`identity` is no coding at all."""
    one = await client(writer_app(config))
    for coding in "identity", "":
        answer = await one.put("/files/a", data=b"123", headers={"Content-Encoding": coding})
        assert (answer.status, answer.headers["ETag"]) in [(201, tag("123")), (204, tag("123"))]


async def test_a_compressed_bomb_is_refused(client: MakeClient, config: Path) -> None:
    """Before anything of it is unpacked for us."""
    one = await client(writer_app(config, max_size=1 << 20))
    bomb = gzip.compress(bytes(64 << 20))
    answer = await one.put("/files/a", data=bomb, headers={"Content-Encoding": "gzip"})
    await problem(answer, 415, "unsupported-coding")
    assert answer.headers["Accept-Encoding"] == "identity"
    assert left_overs(config) == []


async def test_a_body_above_the_limit_is_refused_before_it_is_read(
    client: MakeClient, config: Path
) -> None:
    """By its Content-Length, at once: `413`, and the connection is given up."""
    one = await client(writer_app(config, max_size=10))
    head = b"PUT /files/config HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", one.server.port)
    writer.write(head)
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in answer
    writer.close()
    await writer.wait_closed()


async def test_a_body_that_grows_above_the_limit_is_refused(
    client: MakeClient, config: Path
) -> None:
    """Without a Content-Length: as soon as it is too much, and nothing is left of it."""
    one = await client(writer_app(config, max_size=1000))
    await one.get("/?content=old")

    async def body() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    found = await problem(await one.put("/files/config", data=body()), 413, "content-too-large")
    assert str(config) in found["detail"]
    assert (config.read_text(), left_overs(config)) == ("old", [])


async def test_a_body_that_breaks_off_is_never_published(client: MakeClient, config: Path) -> None:
    """The client dies in the middle: the old content stays, and no left-overs."""
    one = await client(writer_app(config))
    await one.get("/?content=old")
    _, writer = await asyncio.open_connection("127.0.0.1", one.server.port)
    writer.write(b"PUT /files/config HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
    await writer.drain()
    async with asyncio.timeout(5):
        while not left_overs(config):
            await asyncio.sleep(0.01)
        writer.close()
        while left_overs(config):
            await asyncio.sleep(0.01)
    assert config.read_text() == "old"


async def test_a_body_that_never_comes_is_not_waited_for(
    client: MakeClient, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`408` after a pause of `BODY_TIMEOUT` seconds."""
    monkeypatch.setattr(write_request, "BODY_TIMEOUT", 0.1)
    one = await client(writer_app(config))
    request = b"PUT /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123"
    reader, writer = await asyncio.open_connection("127.0.0.1", one.server.port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_asks_first_is_told_before_it_sends(
    client: MakeClient, config: Path
) -> None:
    """`Expect: 100-continue` (RFC 9110 section 10.1.1): refused without a body, or invited to send it."""
    one = await client(writer_app(config, max_size=10))
    head = (
        b"PUT /files/%s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    )
    for name, size, status in ((b"a", 1000, b"413"), (b"..a", 3, b"400"), (b"a", 3, b"100")):
        reader, writer = await asyncio.open_connection("127.0.0.1", one.server.port)
        writer.write(head % (name, size))
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 " + status)
            if status == b"100":
                writer.write(b"123")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
        writer.close()
        await writer.wait_closed()
    assert (config.parent / "a").read_text() == "123"


async def test_a_failure_after_the_invitation_is_answered_too(
    client: MakeClient, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`100 Continue` is no answer: what goes wrong after it has a status of its own."""
    one = await client(writer_app(config))

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("nobody thought of it")

    monkeypatch.setattr(one.app[WRITER].volume, "put", fail)
    request = (
        b"PUT /files/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n123"
    )
    answer = await talk(one.server.port or 0, request)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 ")
    assert b'"/problems/internal-error"' in answer


async def test_an_expectation_that_nobody_knows_is_417(client: MakeClient, config: Path) -> None:
    """RFC 9110 section 10.1.1."""
    one = await client(writer_app(config))
    answer = await one.put("/files/a", data=b"1", headers={"Expect": "tea"})
    await problem(answer, 417, "expectation-failed")


async def test_a_part_of_a_content_cannot_be_published(client: MakeClient, config: Path) -> None:
    """Content-Range with PUT is refused (RFC 9110 section 14.5), or half a file would replace the whole."""
    one = await client(writer_app(config))
    headers = {"Content-Range": "bytes 0-2/10"}
    await problem(await one.put("/files/config", data=b"123", headers=headers), 400, "bad-request")


@pytest.mark.parametrize(
    "name",
    ["..data", "..data/x", "../x", "%2e%2e/x", "%2e%2e%2fx", "a/../../x", "%2Fetc%2Fx", "a" * 300,
     "a%00b", "a%0ab", "a//b", "a/", "./a", "%ff", "%C3", "%zz", "100%"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET"])
async def test_a_name_that_must_not_lie_on_a_volume_is_refused(
    client: MakeClient, config: Path, name: str, method: str
) -> None:
    """`400`, whatever is done with it, and nothing is made anywhere."""
    one = await client(writer_app(config))
    before = sorted(config.parent.parent.rglob("*"))
    status, body = await raw_get(one, f"/files/{name}".encode(), method.encode())
    assert (status, b'"/problems/bad-name"' in body) == (400, True)
    assert sorted(config.parent.parent.rglob("*")) == before


@pytest.mark.parametrize("query", ["", "?dry_run=1"])
@pytest.mark.parametrize("name", ["config/below", "directory"])
async def test_a_name_that_is_taken_is_no_fault_of_the_volume(
    client: MakeClient, config: Path, name: str, query: str
) -> None:
    """`409`, and ready all the same: no client may take a writer out of service by a name."""
    one = await client(writer_app(config))
    await one.get("/?content=kept")
    (config.parent / "directory").mkdir()
    answer = await one.put(f"/files/{name}{query}", data=b"x")
    found = await problem(answer, 409, "name-taken")
    assert str(config.parent / name) in found["detail"]
    assert (await one.get("/readyz")).status == 200
    assert config.read_text() == "kept"


# Conditions


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-Match": tag("old")}, 204),
        ({"If-Match": f'"x", {tag("old")}'}, 204),
        ({"If-Match": "*"}, 204),
        ({"If-Match": '"x"'}, 412),
        ({"If-Match": f"W/{tag('old')}"}, 412),
        ({"If-Match": "unquoted"}, 400),
        ({"If-None-Match": "*"}, 412),
        ({"If-None-Match": tag("old")}, 412),
        ({"If-None-Match": f"W/{tag('old')}"}, 412),
        ({"If-None-Match": '"x"'}, 204),
        ({"If-None-Match": "unquoted"}, 400),
        ({"If-Unmodified-Since": representation.http_date(1)}, 412),
        ({"If-Unmodified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}, 204),
        ({"If-Unmodified-Since": "soon"}, 204),
    ],
)
async def test_a_condition_keeps_writers_apart(
    client: MakeClient, config: Path, headers: dict[str, str], status: int
) -> None:
    """RFC 9110 section 13.1; a failed one says what is there now, and the old content stays."""
    one = await client(writer_app(config))
    await one.get("/?content=old")
    answer = await one.put("/files/config", data=b"new", headers=headers)
    assert answer.status == status
    assert config.read_text() == ("new" if status == 204 else "old")
    if status == 412:
        assert str(config) in (await problem(answer, 412, "version-conflict"))["detail"]
    if status == 412:
        found = await problem(answer, 412, "version-conflict")
        assert found["current"] == answer.headers["ETag"] == tag("old")


async def test_of_several_writers_one_wins(client: MakeClient, config: Path) -> None:
    """Ten that have read the same version, at once: one 204, nine 412, nothing lost."""
    one = await client(writer_app(config))
    await one.get("/?content=old")

    async def write(number: int) -> int:
        headers = {"If-Match": tag("old")}
        return (await one.put("/files/config", data=f"{number}", headers=headers)).status

    statuses = await asyncio.gather(*(write(number) for number in range(10)))
    assert sorted(statuses) == [204] + [412] * 9
    assert config.read_text() == str(statuses.index(204))


async def test_only_one_writer_creates(client: MakeClient, config: Path) -> None:
    """`If-None-Match: *`: the first gets 201, the others 412 with what is there."""
    one = await client(writer_app(config))
    headers = {"If-None-Match": "*"}
    answers_ = [await one.put("/files/new", data=data, headers=headers) for data in (b"1", b"2")]
    assert [one.status for one in answers_] == [201, 412]
    assert answers_[1].headers["ETag"] == tag("1")


async def test_a_condition_on_what_is_missing_fails_without_a_tag(
    client: MakeClient, config: Path
) -> None:
    """There is no current version to tell."""
    one = await client(writer_app(config))
    answer = await one.put("/files/new", data=b"1", headers={"If-Match": "*"})
    assert (await problem(answer, 412, "version-conflict"))["current"] is None
    assert "ETag" not in answer.headers


async def test_a_date_is_no_condition_where_there_is_nothing(
    client: MakeClient, config: Path
) -> None:
    """It has no date that could be compared (RFC 9110 section 13.1.4)."""
    one = await client(writer_app(config))
    headers = {"If-Unmodified-Since": representation.http_date(1)}
    assert (await one.put("/files/new", data=b"1", headers=headers)).status == 201


# DELETE, versions, rollback


async def test_a_file_can_be_deleted(client: MakeClient, config: Path) -> None:
    """`204`; `404` where it is not; `412` where somebody else was first."""
    one = await client(writer_app(config))
    await one.put("/files/a", data=b"1")
    refused = await one.delete("/files/a", headers={"If-Match": '"x"'})
    found = await problem(refused, 412, "version-conflict")
    assert f"cannot delete {config.parent / 'a'}" in found["detail"]
    assert (await one.delete("/files/a", headers={"If-Match": tag("1")})).status == 204
    await problem(await one.delete("/files/a"), 404, "no-such-file")
    assert not (config.parent / "a").exists()


async def test_a_file_is_purged_from_the_history(client: MakeClient, config: Path) -> None:
    """`?purge=1`, also of what was deleted before: a secret is readable nowhere after that (issue 10, point 8)."""
    one = await client(writer_app(config))
    for name in "ab":
        await one.put(f"/files/{name}", data=b"secret")
    assert (await one.delete("/files/a?purge=1")).status == 204
    assert (await one.delete("/files/b")).status == 204
    assert (await one.delete("/files/b?purge=1")).status == 204
    assert not list((config.parent / "..versions").glob("file-[ab]*"))
    await problem(await one.delete("/files/b?purge=1"), 404, "no-such-file")


async def test_a_write_beyond_the_budget_is_told_and_a_delete_is_possible(
    client: MakeClient, config: Path
) -> None:
    """`507` before kubelet would evict, on every way in; what is used is a metric (issue 13, point 3)."""
    one = await client(writer_app(config, volume_budget=4 << 20))
    assert (await one.put("/files/a", data=io.BytesIO(bytes(3 << 20)))).status == 201
    for body in (io.BytesIO(bytes(2 << 20)), chunks(bytes(2 << 20))):
        found = await problem(await one.put("/files/b", data=body), 507, "volume-full")
        assert "budget of 4Mi" in found["detail"]
    metrics = await (await one.get("/metrics")).text()
    assert "sidecar_volume_budget_bytes 4.194304e+06" in metrics
    (used,) = re.findall(r"^sidecar_volume_used_bytes (\S+)$", metrics, re.MULTILINE)
    assert 3 << 20 <= float(used) <= 4 << 20
    assert (await one.delete("/files/a?purge=1")).status == 204
    assert (await one.put("/files/b", data=io.BytesIO(bytes(2 << 20)))).status == 201


async def test_a_condition_without_meaning_is_refused(client: MakeClient, config: Path) -> None:
    """To ignore it would delete what the client wanted to keep."""
    one = await client(writer_app(config))
    await one.put("/files/a", data=b"1")
    await problem(await one.delete("/files/a", headers={"If-None-Match": "*"}), 400, "bad-request")
    assert (config.parent / "a").exists()


async def test_history_is_listed_and_can_be_published_again(
    client: MakeClient, config: Path
) -> None:
    """Newest first, with the one in force; rollback is a publish of old bytes, with `200` and the state."""
    one = await client(writer_app(config))
    for content in "123":
        await one.get(f"/?content={content}")
    listed = await (await one.get("/versions")).json()
    assert [entry["etag"] for entry in listed][:3] == [tag("3"), tag("2"), tag("1")]
    assert [entry["current"] for entry in listed][:3] == [True, False, False]
    assert listed[0]["size"] == 1
    assert listed[0]["published"].endswith("Z")
    answer = await one.post("/rollback", json={"to": tag("1")})
    state = await answer.json()
    assert (answer.status, answer.headers["ETag"]) == (200, tag("1"))
    assert (state["etag"], state["changed"], state["name"]) == (tag("1"), True, "config")
    assert config.read_text() == "1"


async def test_each_file_has_its_own_history(client: MakeClient, config: Path) -> None:
    """`?name=`, and `name` in the body of a rollback."""
    one = await client(writer_app(config))
    for content in (b"1", b"2"):
        await one.put("/files/other", data=content)
    listed = await (await one.get("/versions?name=other")).json()
    assert [entry["etag"] for entry in listed] == [tag("2"), tag("1")]
    answer = await one.post("/rollback", json={"to": tag("1"), "name": "other"})
    assert (answer.status, (config.parent / "other").read_text()) == (200, "1")
    await problem(await one.get("/versions?name=..data"), 400, "bad-name")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b'{"to": "\\"0123\\""}', 404, "unknown-version"),
        (b"", 400, "bad-request"),
        (b"[", 400, "bad-request"),
        (b"[]", 400, "bad-request"),
        (b"{}", 400, "bad-request"),
        (b'{"to": 1}', 400, "bad-request"),
        (b'{"to": "x", "nam": "config"}', 400, "bad-request"),
        (b'{"to": "x", "name": "..data"}', 400, "bad-name"),
        (b"x" * (1 << 20), 413, "content-too-large"),
    ],
)
async def test_a_rollback_that_cannot_be_changes_nothing(
    client: MakeClient, config: Path, body: bytes, status: int, kind: str
) -> None:
    """Unknown versions and bodies that are none of ours."""
    one = await client(writer_app(config))
    await one.get("/?content=old")
    await problem(await one.post("/rollback", data=body), status, kind)
    assert config.read_text() == "old"


async def test_a_rollback_can_be_conditional(client: MakeClient, config: Path) -> None:
    """`If-Match`, as with every write."""
    one = await client(writer_app(config))
    for content in "12":
        await one.get(f"/?content={content}")
    refused = await one.post("/rollback", json={"to": tag("1")}, headers={"If-Match": '"x"'})
    await problem(refused, 412, "version-conflict")
    assert config.read_text() == "2"


# Dry run


async def test_a_dry_run_answers_as_it_would_and_changes_nothing(
    client: MakeClient, config: Path
) -> None:
    """On every write, with the same status codes, marked by a header."""
    one = await client(writer_app(config, gate=Gate(format="json"), max_size=100))
    await one.get("/?content=1")
    await one.get("/?content=2")
    before = sorted((p, p.read_bytes()) for p in config.parent.rglob("*") if p.is_file())
    asked = [
        await one.get("/?content=3&dry_run=1"),
        await one.put("/files/config?dry_run=1", data=b"4"),
        await one.put("/files/new?dry_run=true", data=b"5"),
        await one.delete("/files/config?dry_run"),
        await one.post("/rollback?dry_run=1", json={"to": tag("1")}),
    ]
    assert [answer.status for answer in asked] == [200, 204, 201, 204, 200]
    assert [answer.headers["Sidecar-Dry-Run"] for answer in asked] == ["1"] * 5
    refused = [
        await one.get("/?content={&dry_run=1"),
        await one.put("/files/config?dry_run=1", data=b"6", headers={"If-Match": '"x"'}),
        await one.delete("/files/nothing?dry_run=1"),
        await one.post("/rollback?dry_run=1", json={"to": '"x"'}),
        await one.put("/files/config?dry_run=1", data=b"7" * 1000),
        await one.put("/files/config?dry_run=maybe", data=b"8"),
    ]
    assert [answer.status for answer in refused] == [422, 412, 404, 404, 413, 400]
    after = sorted((p, p.read_bytes()) for p in config.parent.rglob("*") if p.is_file())
    assert after == before


# The gate and the disk


async def test_a_refused_content_says_why_and_changes_nothing(
    client: MakeClient, config: Path
) -> None:
    """`422` with each reason."""
    one = await client(writer_app(config, gate=Gate(format="json")))
    await one.put("/files/config", data=b'{"a": 1}')
    found = await problem(await one.put("/files/config", data=b'{"a": '), 422, "content-refused")
    assert len(found["reasons"]) == 1
    assert "line 1" in found["reasons"][0]
    assert str(config) in found["detail"]
    await problem(await one.get("/?content=nope"), 422, "content-refused")
    assert config.read_text() == '{"a": 1}'


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (_errors.VolumeFull(28, "cannot publish it: full"), 507, "volume-full"),
        (_errors.VolumeUnavailable(30, "cannot publish it: read-only"), 503, "volume-unavailable"),
        (_errors.PublishError("cannot publish it"), 500, "not-published"),
        (_errors.PublishUncertain("perhaps not durable", version_of(b"1")), 500, "perhaps-not-durable"),
        (RuntimeError("secret"), 500, "internal-error"),
    ],
)  # fmt: skip
async def test_each_failure_has_its_own_problem(
    client: MakeClient,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    kind: str,
) -> None:
    """And none of them shows the inside."""
    one = await client(writer_app(config))

    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(one.app[WRITER].volume, "put", fail)
    for answer in (await one.get("/?content=1"), await one.put("/files/config", data=b"1")):
        found = await problem(answer, status, kind)
        assert "secret" not in str(found)
        assert "Errno" not in found["detail"]
        if kind == "perhaps-not-durable":
            assert answer.headers["ETag"] == found["etag"] == tag("1")


async def test_a_volume_that_comes_late_is_prepared_when_it_is_there(
    client: MakeClient, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has been written meanwhile stays."""
    monkeypatch.setattr(write_health, "PREPARE_INTERVAL", 0.05)
    prepare, late, prepared = sidecar.Volume.prepare, [True], list[bool]()

    async def wait(self: sidecar.Volume, *, initial: dict[str, bytes] | None = None) -> None:
        if initial and late:
            raise _errors.VolumeUnavailable(30, "cannot prepare it: read-only file system")
        await prepare(self, initial=initial)
        prepared.append(bool(initial))

    monkeypatch.setattr(sidecar.Volume, "prepare", wait)
    one = await client(writer_app(config))
    assert (await one.get("/?content=early")).status == 200
    late.clear()
    async with asyncio.timeout(5):
        while not prepared:
            await asyncio.sleep(0.01)
    assert config.read_text() == "early"


async def test_a_write_that_hangs_fails_liveness(
    client: MakeClient, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that is gone holds the thread in the kernel: a restart on another node may mend it."""
    monkeypatch.setattr(write_health, "STALL_TIMEOUT", 0.05)
    one = await client(writer_app(config))
    hanging = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        await hanging.wait()
        raise _errors.VolumeUnavailable(5, "cannot publish it: input/output error")

    monkeypatch.setattr(one.app[WRITER].volume, "put", hang)
    asking = asyncio.create_task(one.get("/?content=1"))
    async with asyncio.timeout(5):
        while (await one.get("/livez")).status == 200:
            await asyncio.sleep(0.01)
    assert "hanging" in (await problem(await one.get("/livez"), 503, "not-live"))["detail"]
    hanging.set()
    await asking
    assert (await one.get("/livez")).status == 200


# Confirmation by the reader


async def test_a_write_can_wait_until_the_reader_has_it(client: MakeClient, config: Path) -> None:
    """`Prefer: wait` with `--confirm`: answered once the reader serves it, with the time that took."""
    reader = await client(reader_app(config))
    one = await client(writer_app(config, confirm=str(reader.make_url("/"))))
    for content in "123":
        answer = await one.get(f"/?content={content}", headers={"Prefer": "wait=10"})
        assert (answer.status, await answer.json()) == (200, "ok")
        assert answer.headers["Preference-Applied"] == "wait=10"
        assert answer.headers["Server-Timing"].startswith("confirm;dur=")
        assert await (await reader.get("/")).json() == content
    answer = await one.put("/files/other", data=b"1", headers={"Prefer": "wait=10"})
    assert (answer.status, "Server-Timing" in answer.headers) == (201, True)
    answer = await one.post("/rollback", json={"to": tag("1")}, headers={"Prefer": "wait=10"})
    assert (answer.status, await (await reader.get("/")).json()) == (200, "1")


@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        (b"5\r\nhello\r\n", b"zz\r\n"),
        (b"5\r\nhello\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        # The end of the chunk and the fault come in one piece: who reads is woken for the first, and must learn of the second.
        (b"5\r\nhello\r", b"\n0\r\n\rx\r\n"),
    ],
)
async def test_a_broken_chunk_in_the_middle_of_a_body_is_told_at_once(
    served: Serve, tmp_path: Path, eventually: Eventually, begun: bytes, rest: bytes
) -> None:
    """Nothing of it can be read any more, so there is nothing to wait for; nothing of it stays."""
    one = await served(writer_app(tmp_path / "config"))
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    head = b"PUT /files/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head + begun)
    await eventually(lambda: any(name.startswith("..tmp-") for name in os.listdir(tmp_path)))
    writer.write(rest)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the body of the request cannot be read: " in answer
    assert answer.count(b"application/problem+json") == 1
    assert sorted(os.listdir(tmp_path)) == ["..versions", "config"]


async def test_writes_that_wait_for_a_slow_disk_keep_nothing_else_waiting(
    client: MakeClient, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a thread in the queue for the directory: a scrape, a token, a read needs one, too."""
    one = await client(writer_app(config))
    await one.get("/?content=1")
    synced = threading.Event()
    monkeypatch.setattr(atomic, "sync_file", lambda _: synced.wait(10))
    puts = [asyncio.create_task(one.put(f"/files/{number}", data="x")) for number in range(40)]
    await asyncio.wait(puts, timeout=0.2)
    async with asyncio.timeout(5):
        for address in ("/metrics", "/files", "/files/config"):
            assert (await one.get(address)).status == 200
    assert not any(put.done() for put in puts)
    synced.set()
    assert {(await put).status for put in puts} == {201}


async def test_a_write_that_waits_for_its_turn_is_not_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand uploads to a slow disk: a restart would mend nothing, and all of them would be lost."""
    now = 0.0
    monkeypatch.setattr(write_health, "time", SimpleNamespace(monotonic=lambda: now))
    path = write_health.WriteHealth(sidecar.Volume(tmp_path), initial={})
    waiting = path.begin()
    for _ in range(5):
        async with path.attempt() as other:
            now += 40.0
            other.progressed()
            assert path.live() is None
    now += 59.0
    assert path.live() is None
    now += 2.0
    assert "has been hanging for 61 s" in str(path.live())
    path.end(waiting, None)
    assert path.live() is None


async def test_a_delete_can_wait_until_the_reader_has_it_no_more(
    client: MakeClient, tmp_path: Path
) -> None:
    """`DELETE` is a write as any other (issue 10, point 12); in time or not, it says which."""
    reader = await client(reader_app(f"{tmp_path}/"))
    one = await client(writer_app(f"{tmp_path}/", confirm=str(reader.make_url("/"))))
    for name in "ab":
        await one.put(f"/files/{name}", data=b"1", headers={"Prefer": "wait=10"})
    answer = await one.delete("/files/a", headers={"Prefer": "wait=10"})
    assert (answer.status, answer.headers["Preference-Applied"]) == (204, "wait=10")
    assert (await reader.get("/files/a")).status == 404
    nobody = await client(writer_app(f"{tmp_path}/", confirm="http://127.0.0.1:9"))
    assert (await nobody.delete("/files/b", headers={"Prefer": "wait=0.1"})).status == 202


async def test_any_server_with_etags_can_confirm(client: MakeClient, config: Path) -> None:
    """One that knows no long-poll is asked again, with what it said last, until it has the content."""
    asked: list[str | None] = []

    async def behind(request: web.Request) -> web.Response:
        asked.append(request.headers.get("If-None-Match"))
        return web.Response(headers={"ETag": tag("old") if len(asked) < 4 else f"W/{tag('new')}"})

    stub = web.Application()
    stub.add_routes([web.get("/content", behind)])
    other = await client(stub)
    one = await client(writer_app(config, confirm=str(other.make_url("/content"))))
    answer = await one.get("/?content=new", headers={"Prefer": "wait=10"})
    assert (answer.status, asked) == (200, [None, tag("old"), tag("old"), tag("old")])


async def test_the_reader_is_not_followed_to_another_address(
    client: MakeClient, config: Path
) -> None:
    """A redirect would be shown the token, and a tag from elsewhere is not what the reader serves."""
    asked: list[str] = []

    async def moved(request: web.Request) -> web.Response:
        asked.append(request.path)
        tags = {"ETag": tag("1")} if request.path == "/elsewhere" else {}
        return web.Response(status=307, headers={"Location": "/elsewhere", **tags})

    stub = web.Application()
    stub.add_routes([web.get("/{path:.*}", moved)])
    other = await client(stub)
    one = await client(writer_app(config, confirm=str(other.make_url("/content"))))
    answer = await one.get("/?content=1", headers={"Prefer": "wait=0.1"})
    assert (answer.status, set(asked)) == (202, {"/content"})


async def test_a_reader_that_is_late_makes_202(client: MakeClient, config: Path) -> None:
    """Published, durable, and not confirmed in time: nobody listens at that port."""
    one = await client(writer_app(config, confirm="http://127.0.0.1:9"))
    most_of_it = after(0.19)
    answer = await one.get("/?content=1", headers={"Prefer": "wait=0.2"})
    assert (answer.status, await answer.json()) == (202, "ok")
    assert answer.headers["Preference-Applied"] == "wait=0.2"
    assert "Server-Timing" not in answer.headers
    assert most_of_it.is_set()
    answer = await one.put("/files/config", data=b"2", headers={"Prefer": "wait=0.1"})
    assert (answer.status, answer.headers["ETag"], config.read_text()) == (202, tag("2"), "2")


async def test_without_a_reader_to_ask_nobody_waits(client: MakeClient, config: Path) -> None:
    """The preference is ignored, and not said to be applied."""
    one = await client(writer_app(config))
    answer = await one.get("/?content=1", headers={"Prefer": "wait=10"})
    assert (answer.status, "Preference-Applied" in answer.headers) == (200, False)


async def test_the_reader_is_shown_the_token(
    client: MakeClient, config: Path, tmp_path: Path
) -> None:
    """Where both ask for one, it is the same."""
    token = tmp_path / "token"
    token.write_text("secret\n")
    reader = await client(reader_app(config, token_file=token))
    confirm = str(reader.make_url("/"))
    one = await client(writer_app(config, confirm=confirm, token_file=token))
    headers = {"Prefer": "wait=10", "Authorization": "Bearer secret"}
    assert (await one.get("/?content=1", headers=headers)).status == 200


# A directory, a prefix


async def test_a_directory_has_files_and_no_content_of_its_own(
    client: MakeClient, tmp_path: Path
) -> None:
    """`GET /?content=` has no file to go to: 400; within a set PUT publishes the set anew."""
    volume = sidecar.Volume(tmp_path)
    await volume.publish({"a": "1", "b": "2"})
    one = await client(writer_app(tmp_path))
    await problem(await one.get("/?content=1"), 400, "bad-request")
    assert (await one.put("/files/b", data=b"3")).status == 204
    assert dict(await volume.snapshot()) == {"a": b"1", "b": b"3"}
    versions = await (await one.get("/versions")).json()
    assert [entry["files"] for entry in versions] == [2, 2]
    answer = await one.post("/rollback", json={"to": versions[1]["etag"]})
    assert (answer.status, dict(await volume.snapshot())) == (200, {"a": b"1", "b": b"2"})


async def test_what_was_written_can_be_read_back(client: MakeClient, config: Path) -> None:
    """`GET /files` and `GET /files/NAME`, with the conditions and ranges of the reader."""
    one = await client(writer_app(config))
    await one.get("/?content=123")
    (entry,) = await (await one.get("/files")).json()
    assert (entry["name"], entry["size"], entry["etag"]) == ("config", 3, tag("123"))
    answer = await one.get("/files/config", headers={"Range": "bytes=1-"})
    assert (answer.status, await answer.text()) == (206, "23")
    assert answer.headers["Content-Security-Policy"] == "sandbox"
    await problem(await one.get("/files/nothing"), 404, "no-such-file")


async def test_the_writer_works_beneath_a_prefix(client: MakeClient, config: Path) -> None:
    """As a sub-application of a user's own, errors included."""
    app = web.Application()
    app.add_subapp("/config/", writer_app(config))
    one = await client(app)
    assert await (await one.get("/config/?content=1")).json() == "ok"
    assert (await one.put("/config/files/a", data=b"1")).status == 201
    await problem(await one.get("/config/"), 400, "bad-request")
    await problem(await one.post("/config/"), 405, "method-not-allowed")
