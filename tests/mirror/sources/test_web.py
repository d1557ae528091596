"""A file or an archive from a web server, and what servers answer when they are unwell."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mirror.conftest import StartMirror
from sidecar import _errors
from sidecar.mirror.sources import factory
from sidecar.mirror.sources.web import WebSource
from sidecar.mirror.states import SourceUnavailable
from sidecar.volume.volume import Volume
from support import Eventually

Handler = Callable[[web.Request], web.StreamResponse]


class Site:
    """A web server whose answer a test chooses."""

    def __init__(self) -> None:
        self.content, self.etag = b"1", '"1"'
        self.requests: list[web.Request] = []
        self.handler: Handler | None = None
        app = web.Application()
        app.router.add_get("/{name}", self._get)
        self.server = TestServer(app)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.handler is not None:
            return self.handler(request)
        if self.etag and request.headers.get("If-None-Match") == self.etag:
            return web.Response(status=304, headers={"ETag": self.etag})
        return web.Response(body=self.content, headers={"ETag": self.etag} if self.etag else {})

    def url(self, name: str) -> str:
        return str(self.server.make_url(f"/{name}"))


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    await made.server.start_server()
    yield made
    await made.server.close()


def archive(**files: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("./link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return made.getvalue()


def sparse_archive() -> bytes:
    """A tar archive whose file has a hole of a megabyte (GNU tar manual, Sparse Formats, 0.1)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"GNU.sparse.size": str(1 << 20), "GNU.sparse.map": "0,0"}
        tar.addfile(member)
    return made.getvalue()


def half_archive() -> bytes:
    """A tar archive that ends after its first file, as if it were the only one."""
    return gzip.decompress(archive(a="1", b="2"))[:1024]


def read(volume: Volume, name: str) -> bytes | None:
    path = Path(volume.path) / name
    return path.read_bytes() if path.exists() else None


async def test_a_file_is_sent_again_only_when_it_has_changed(
    site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """RFC 9110, 13.1.2: the entity tag of the last answer is the condition of the next request."""
    start_mirror(WebSource(site.url("app.json"), interval=0.01))
    await eventually(lambda: len(site.requests) >= 3)
    assert [one.headers.get("If-None-Match") for one in site.requests[:3]] == [None, '"1"', '"1"']
    assert read(volume, "app.json") == b"1"
    site.content, site.etag = b"2", '"2"'
    await eventually(lambda: read(volume, "app.json") == b"2")


async def test_a_server_without_entity_tags_is_understood(
    site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """The content itself says whether it has changed."""
    site.etag = ""
    running = start_mirror(WebSource(site.url("app.json"), interval=0.01))
    await eventually(lambda: len(site.requests) >= 3 and running.is_complete)
    before = running.version
    site.content = b"2"
    await eventually(lambda: read(volume, "app.json") == b"2")
    await eventually(lambda: running.version != before)


async def test_an_archive_is_a_set_without_its_links(
    site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A link in an archive leads to where its author wanted; only files are taken."""
    site.content = archive(**{"a": "1", "dir/b": "2"})
    running = start_mirror(WebSource(site.url("set.tar.gz"), interval=60.0))
    await eventually(lambda: running.is_complete)
    assert dict(await volume.snapshot()) == {"a": b"1", "dir/b": b"2"}


def plain(status: int, text: str = "", **headers: str) -> Handler:
    return lambda request: web.Response(status=status, text=text, headers=headers)


def cut_off(request: web.Request) -> web.Response:
    """Announce more than is sent."""
    response = web.Response(body=b"half", headers={"Content-Length": "1000"})
    response.force_close()
    return response


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        pytest.param(plain(503, "away"), "it answered 503: away", id="503"),
        pytest.param(plain(404), "it answered 404", id="404"),
        pytest.param(plain(401, "who?"), "it answered 401: who?", id="401"),
        pytest.param(plain(302, Location="/other"), "it answered 302", id="redirect"),
        pytest.param(plain(304), "it answered 304 to no condition", id="304 to nothing"),
        pytest.param(lambda request: web.Response(body=b"x" * 30_000), "larger than 20000 bytes", id="large"),
        pytest.param(lambda request: web.Response(body=b"<html>"), "no tar archive", id="HTML with 200"),
        pytest.param(lambda request: web.Response(body=gzip.compress(bytes(100_000))), "when unpacked", id="bomb"),
        pytest.param(lambda request: web.Response(body=sparse_archive()), "larger than 20000 bytes", id="hole"),
        pytest.param(lambda request: web.Response(body=half_archive()), "its end is missing", id="half an archive"),
        pytest.param(plain(200, "x", **{"Repr-Digest": "sha-256=:AAAA:"}), "Repr-Digest", id="digest"),
    ],
)  # fmt: skip
async def test_a_server_that_is_unwell_takes_nothing_away(
    site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually,
    handler: Handler, said: str,
) -> None:  # fmt: skip
    """k8s-sidecar replaces the good file by an empty one when a `.url` answers 5xx."""
    await volume.publish({"a": "1"})
    site.handler = handler
    running = start_mirror(WebSource(site.url("set.tar"), interval=0.01, max_bytes=20_000))
    await eventually(lambda: running.problem is not None)
    assert said in (running.problem or "")
    assert read(volume, "a") == b"1"
    site.handler, site.content = None, archive(a="2")
    await eventually(lambda: read(volume, "a") == b"2")


@pytest.mark.parametrize("drip", [False, True], ids=["cut off", "dripping"])
async def test_a_body_that_does_not_arrive_whole_is_not_taken(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually, *, drip: bool
) -> None:
    """Half a file is no file; a byte now and then is no answer in time."""
    connections: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
            while drip:
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await volume.publish({"app": "1"})
    running = start_mirror(WebSource(f"http://127.0.0.1:{port}/app", interval=0.01, timeout=0.2))
    await eventually(lambda: running.problem is not None)
    assert read(volume, "app") == b"1"
    server.close()
    for connection in filter(None, connections):
        connection.cancel()
        with suppress(asyncio.CancelledError):
            await connection


async def test_a_token_that_is_rotated_is_read_anew(
    site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually, tmp_path: Path
) -> None:
    """For each request; and the secret is in no message."""
    token = tmp_path / "token"
    token.write_text("first")
    site.handler = lambda request: (
        web.Response(body=b"1")
        if request.headers.get("Authorization") == "Bearer second"
        else web.Response(status=401, text="no")
    )
    running = start_mirror(WebSource(site.url("app"), interval=0.01, token_file=token))
    await eventually(lambda: running.problem is not None)
    assert "first" not in (running.problem or "")
    token.write_text("second")
    await eventually(lambda: read(volume, "app") == b"1")


async def test_a_server_that_asks_for_a_pause_gets_it(
    site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """RFC 9110, 10.2.3."""
    site.handler = plain(429, "slow down", **{"Retry-After": "7"})
    asked: list[float | None] = []

    def pause(attempt: int, error: SourceUnavailable | None) -> float:
        asked.append(None if error is None else error.retry_after)
        return 0.0

    start_mirror(WebSource(site.url("app"), interval=0.01), pause=pause)
    await eventually(lambda: 7.0 in asked)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://host/file", "is no source"),
        ("https://host/", "names no file"),
        ("https://user:secret@host/file#nonsense=1", "there is no 'nonsense'"),
        ("https://host/file#interval=never", "interval"),
        ("https://host/file#ca_file=/missing", "ca_file"),
    ],
)
def test_a_wrong_address_is_refused_without_its_secret(address: str, said: str) -> None:
    with pytest.raises(_errors.ConfigError) as caught:
        factory.make_source(address)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
