"""Large contents over HTTP: from the disk, in any part, never a mixture, and for slow clients as well."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sidecar
from sidecar.fs import open_file
from sidecar.fs.openat import StatSignature
from sidecar.http import problems
from sidecar.http.apps import json_body
from sidecar.http.apps import reader as readers
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.semantics import representation
from sidecar.http.server import sendfile
from sidecar.volume.content.snapshot import Content, Snapshot
from support import Eventually, Process, StartProcess
from support.eventsource import EventSource
from support.httpkit import MakeClient, Serve, Served, place, problem, tag
from support.watching import descriptors

SIZE = 5_000_001
DATA = os.urandom(SIZE)
#: More than all buffers between two programs of one machine hold.
HUGE = 24 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A large file whose writer is long gone."""
    (tmp_path / "shared").mkdir()
    return place(tmp_path / "shared" / "large.bin", DATA)


class Slow:
    """A client that takes what it wants when it wants, and holds little meanwhile."""

    def __init__(self, port: int, request: str = "GET /raw HTTP/1.1\r\nHost: a\r\n\r\n") -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(request.encode())

    async def take(self, count: int) -> bytes:
        """Return so many bytes, fewer if there are no more; raises if the connection is cut."""
        return await asyncio.to_thread(self._take, count)

    def _take(self, count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count and (data := self.socket.recv(min(count - len(taken), 1 << 16))):
            taken += data
        return bytes(taken)

    async def head(self) -> bytes:
        found = b""
        while not found.endswith(b"\r\n\r\n"):
            found += await self.take(1)
        return found


@asynccontextmanager
async def dawdling(one: Served, *request: str) -> AsyncIterator[Slow]:
    """Begin a download, and take only its head."""
    slow = await asyncio.to_thread(Slow, one.port, *request)
    try:
        assert b" 200 OK" in (await slow.head()).partition(b"\r\n")[0]
        yield slow
    finally:
        slow.socket.close()


EDGES = (
    0,
    1,
    sendfile._TAIL_BYTES,
    sendfile._MIN_SENDFILE_BYTES,
    sendfile._COPY_CHUNK,
    sendfile._SENDFILE_CHUNK,
    SIZE,
)
RANGES = sorted(
    {
        f"bytes={first}-{last}"
        for one in EDGES
        for first in (max(0, one - 1), one, one + 1)
        for last in (
            first,
            first + sendfile._MIN_SENDFILE_BYTES,
            first + sendfile._SENDFILE_CHUNK + 1,
            SIZE - 1,
            SIZE,
        )
    }
    | {"bytes=0-", "bytes=-1", f"bytes=-{SIZE}", f"bytes=-{SIZE + 1}", f"bytes={SIZE}-", "bytes=-0"}
)


async def test_any_part_is_the_same_from_the_disk_as_from_memory(served: Serve, path: Path) -> None:
    """Status, headers and every byte, at the borders of all pieces, on one connection that stays open."""
    one = await served(reader_app(path))
    in_memory = representation.Representation(
        DATA, tag(DATA), path.stat().st_mtime, "a/b", ranges=True
    )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for wanted in RANGES:
            async with session.get(f"{one.url}/raw", headers={"Range": wanted}) as answer:
                body = await answer.read()
            request = aiohttp.test_utils.make_mocked_request("GET", "/", {"Range": wanted})
            expected, outside = None, None
            try:
                expected = representation._range(request, in_memory)
            except problems.Problem as error:
                outside = error
            if outside is not None:
                assert (answer.status, body) == (416, outside.body), wanted
                assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
                continue
            part = DATA if expected is None else DATA[expected]
            assert (answer.status, len(body)) == (200 if expected is None else 206, len(part)), (
                wanted
            )
            assert body == part, wanted
            assert (answer.headers["ETag"], answer.content_length) == (tag(DATA), len(part))


async def test_a_connection_goes_on_after_a_large_answer(served: Serve, path: Path) -> None:
    """Also for requests that were sent in advance: each answer is complete, in order, and nothing is in between."""
    one = await served(reader_app(path))
    async with dawdling(one, "GET /raw HTTP/1.1\r\nHost: a\r\n\r\n" * 2) as slow:
        assert await slow.take(SIZE) == DATA
        assert b"200 OK" in await slow.head()
        assert await slow.take(SIZE) == DATA
        slow.socket.sendall(
            b"HEAD /raw HTTP/1.1\r\nHost: a\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        assert f"Content-Length: {SIZE}\r\n".encode() in await slow.head()
        assert b"200 OK" in await slow.head()


async def test_clients_that_go_away_leave_nothing_behind(
    served: Serve, path: Path, eventually: Eventually
) -> None:
    """No descriptor, no log line, and the file is given back."""
    place(path, bytes(HUGE))
    one = await served(reader_app(path))
    before = descriptors()
    for _ in range(5):
        async with dawdling(one) as slow:
            await slow.take(100_000)
        async with dawdling(one) as slow:
            slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await eventually(lambda: descriptors() == before)


async def test_slow_clients_occupy_no_thread_and_keep_nobody_waiting(
    served: Serve, path: Path
) -> None:
    """Forty of them are more than there are threads; whoever else asks is answered at once."""
    place(path, bytes(HUGE))
    one = await served(reader_app(path))
    async with aiohttp.ClientSession() as session:
        slow = [await asyncio.to_thread(Slow, one.port) for _ in range(40)]
        try:
            for each in slow:
                await each.head()
            async with asyncio.timeout(30), session.get(f"{one.url}/raw") as answer:
                assert len(await answer.read()) == HUGE
            async with asyncio.timeout(30), session.get(f"{one.url}/files") as answer:
                assert len(await answer.json()) == 1
        finally:
            for each in slow:
                each.socket.close()


async def test_a_client_that_takes_nothing_is_let_go(
    served: Serve, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a file on the disk that may have been deleted; who takes a little stays."""
    monkeypatch.setattr(sendfile, "SEND_TIMEOUT", 1.0)
    place(path, bytes(HUGE))
    one = await served(reader_app(path))
    before = descriptors()
    async with dawdling(one) as dead, dawdling(one) as slow:
        taken = 0
        while descriptors() > before + 4:
            taken += len(await slow.take(1 << 16))
            await asyncio.sleep(0.02)
        rest = HUGE - taken
        assert len(await slow.take(rest)) == rest
        with pytest.raises(ConnectionResetError):
            await dead.take(HUGE)


@pytest.mark.parametrize("how", ["replaced", "deleted"])
async def test_a_download_ends_whole_when_its_file_has_gone(
    served: Serve, path: Path, how: str, eventually: Eventually
) -> None:
    """The old content to its last byte; whoever comes later gets the new one, or the old one as stale."""
    old = os.urandom(1 << 20) * (HUGE >> 20)
    place(path, old)
    one = await served(reader_app(path, recheck=0.05))
    async with dawdling(one) as slow, aiohttp.ClientSession() as session:
        if how == "replaced":
            place(path, DATA)
        else:
            path.unlink()

        async def fetch() -> tuple[str, bool]:
            async with session.head(f"{one.url}/raw") as answer:
                return answer.headers["ETag"], "Sidecar-Stale" in answer.headers

        expected = (tag(DATA), False) if how == "replaced" else (tag(old), True)
        async with asyncio.timeout(10):
            while await fetch() != expected:
                await asyncio.sleep(0.01)
        assert await slow.take(HUGE) == old
        async with session.get(f"{one.url}/raw") as answer:
            assert await answer.read() == (DATA if how == "replaced" else old)


@pytest.mark.parametrize("how", ["rewritten", "truncated"])
@pytest.mark.parametrize("target", ["/raw", "/"])
async def test_a_rewrite_in_place_cuts_downloads_off(
    served: Serve, path: Path, how: str, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A mixture of two contents never passes for one: the client has less than it was promised, and knows it."""
    place(path, b"a" * HUGE)
    one = await served(reader_app(path))
    async with dawdling(one, f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n") as slow:
        with path.open("r+b") as file:
            if how == "truncated":
                file.truncate(10)
            file.write(b"bbbbb")
        # What is on its way already arrives; the next piece is not begun.
        assert len(await slow.take(HUGE)) < HUGE * 3 // 4
    assert "rewritten in place" in caplog.text


async def test_the_last_byte_waits_for_a_last_look(
    served: Serve, path: Path, eventually: Eventually
) -> None:
    """All but the end of it has left the server already when the file is rewritten."""
    one = await served(reader_app(path))
    checks = 0
    check = open_file.OpenFile.check

    def rewrite_before_the_end(file: open_file.OpenFile) -> None:
        nonlocal checks
        checks += 1
        check(file)

    with pytest.MonkeyPatch.context() as patch:
        unsent = sendfile._unsent

        def sent_and_then_rewritten(fd: int) -> int:
            left = unsent(fd)
            if not left:
                with path.open("r+b") as file:
                    file.write(b"new")
            return left

        patch.setattr(sendfile, "_unsent", sent_and_then_rewritten)
        patch.setattr(open_file.OpenFile, "check", rewrite_before_the_end)
        async with aiohttp.ClientSession() as session, session.get(f"{one.url}/raw") as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
    assert checks > 1


async def test_a_content_that_is_being_rewritten_is_503_for_who_does_not_have_it(
    client: MakeClient, path: Path
) -> None:
    """Who has it is told that it has; who waits gets the new one once it is whole."""
    one = await client(reader_app(path, recheck=0.05))
    for target in ("/raw", "/", "/files/large.bin"):
        if target == "/":
            place(path, b"text" * 1_000_000)
            await until_tag(one, tag(b"text" * 1_000_000))
        known = {"If-None-Match": (await one.head(target)).headers["ETag"]}
        with path.open("r+b") as file:
            file.write(b"half")
            file.flush()
            answer = await one.get(target)
            await problem(answer, 503, "content-altered")
            assert answer.headers["Retry-After"] == "1"
            assert (await one.head(target)).status == 503
            assert (await one.get(target, headers=known)).status == 304
            waiting = asyncio.create_task(one.get(target, headers={"Prefer": "wait=20"}))
            done, _ = await asyncio.wait({waiting}, timeout=0.1)
            assert not done
            file.write(b" and whole")
        async with asyncio.timeout(15):
            assert b"half and whole" in await (await waiting).read()


async def until_tag(one: aiohttp.test_utils.TestClient, etag: str) -> None:  # type: ignore[type-arg]
    async with asyncio.timeout(10):
        while (await one.head("/raw")).headers.get("ETag") != etag:
            await asyncio.sleep(0.01)


@given(
    text=st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(["", "é", "\U0001f600\x00\\\u2028"]),
    bad=st.none() | st.binary(min_size=1, max_size=3),
    piece=st.integers(1, 7),
    whole=st.booleans(),
)  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_in_pieces_is_json_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, text: str, bad: bytes | None, piece: int, whole: bool
) -> None:
    """No border of a piece splits a character; what is no text is refused with the same words."""
    monkeypatch.setattr(json_body, "_CHUNK_SIZE", piece)
    data = text.encode() + (bad or b"") + text.encode()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "a").write_bytes(data)
        fd = os.open(f"{directory}/a", os.O_RDONLY)
        file = open_file.OpenFile(fd, StatSignature.of(os.fstat(fd)), "a")

        def found(unacked: bytes | open_file.OpenFile) -> Snapshot[None]:
            contents = {name: Content(name, unacked, "0", 0.0) for name in ("a", 'b"é')}
            return Snapshot({"a": contents["a"]} if whole else contents, single=whole, value=None)

        def in_pieces() -> bytes:
            streamed = json_body.measure(found(file))
            made = b"".join(json_body.iter_json(streamed.source))
            assert streamed.size == len(made)
            return made

        assert said(in_pieces) == said(lambda: json_body.dump_json(found(data)))


def said(make: Callable[[], bytes]) -> bytes | str:
    try:
        return make()
    except problems.Problem as problem:
        return problem.detail


async def test_a_large_text_is_one_json_string(client: MakeClient, path: Path) -> None:
    """`GET /` with its length in advance, HEAD and 304; what is no text at its end is 406 each time."""
    text = "ä\n€😀" * 500_000
    place(path, text.encode())
    one = await client(reader_app(path))
    answer = await one.get("/")
    assert (await answer.read(), answer.content_length) == (
        orjson.dumps(text),
        len(orjson.dumps(text)),
    )
    assert (await one.head("/")).content_length == answer.content_length
    known = {"If-None-Match": answer.headers["ETag"]}
    assert (await one.get("/", headers=known)).status == 304
    place(path, text.encode() + b"\xff")
    await until_tag(one, tag(text.encode() + b"\xff"))
    for _ in range(2):
        found = await problem(await one.get("/"), 406, "not-text")
        assert f"offset {len(text.encode())}" in found["detail"]


async def test_a_set_with_a_large_file_is_one_json_object(
    client: MakeClient, tmp_path: Path
) -> None:
    """And its files are listed and served, whatever their size."""
    volume = sidecar.Volume(tmp_path / "set")
    large = "größer" * 300_000
    done = await volume.publish({"a.txt": large, "b/c.txt": "2", "z": large})
    one = await client(reader_app(tmp_path / "set"))
    answer = await one.get("/")
    assert answer.headers["ETag"] == done.etag
    assert await answer.read() == orjson.dumps({"a.txt": large, "b/c.txt": "2", "z": large})
    file = await one.get("/files/a.txt")
    assert (await file.text(), file.content_type) == (large, "text/plain")
    listed = await (await one.get("/files")).json()
    assert [entry["size"] for entry in listed] == [len(large.encode()), 1, len(large.encode())]


async def test_events_have_no_gigabyte_in_them(
    served: Serve, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a size the content itself, above it `null`: whoever wants it asks for it."""
    monkeypatch.setattr(readers, "_MAX_EVENT_BYTES", 3_000_000)
    place(path, b"x" * 2_000_000)
    one = await served(reader_app(path))
    source = await EventSource.open(one.port)
    event = await source.next()
    assert event is not None
    assert (event.data, event.id) == ("x" * 2_000_000, tag(b"x" * 2_000_000))
    place(path, b"y" * 4_000_000)
    event = await source.next()
    assert event is not None
    assert (event.data, event.id) == (None, tag(b"y" * 4_000_000))
    source.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def test_a_large_file_is_sent_over_tls(
    served: Serve, path: Path, certificate: tuple[Path, Path]
) -> None:
    """There the kernel cannot do it alone."""
    cert, key = certificate
    one = await served(reader_app(path), tls_cert=cert, tls_key=key)
    context = trusting()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{one.url}/raw", ssl=context) as answer:
            assert await answer.read() == DATA
        headers = {"Range": "bytes=100-2000000"}
        async with session.get(f"{one.url}/raw", ssl=context, headers=headers) as answer:
            assert await answer.read() == DATA[100:2_000_001]


async def test_a_large_file_is_sent_over_a_unix_socket(
    served: Serve, path: Path, tmp_path: Path
) -> None:
    """As over TCP."""
    await served(reader_app(path), port=None, unix_socket=tmp_path / "socket")
    connector = aiohttp.UnixConnector(str(tmp_path / "socket"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://a/raw") as answer,
    ):
        assert await answer.read() == DATA


@pytest.mark.parametrize("lacks", ["page cache", "descriptors", "sendfile"])
async def test_a_large_file_is_sent_without_what_helps(
    served: Serve, path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    """From a disk that has to be waited for; without a second descriptor; on a server that is not ours."""
    match lacks:
        case "page cache":
            monkeypatch.setattr(open_file.OpenFile, "in_page_cache", lambda *_: False)
        case "descriptors":
            monkeypatch.setattr(os, "dup", fails)
        case _:
            monkeypatch.setattr(sendfile, "_MIN_SENDFILE_BYTES", 1 << 40)
    one = await served(reader_app(path))
    async with aiohttp.ClientSession() as session, session.get(f"{one.url}/raw") as answer:
        assert await answer.read() == DATA


def fails(_: int) -> int:
    raise OSError(24, "no descriptor is left")


async def test_a_drain_waits_for_a_download(served: Serve, path: Path) -> None:
    """What was begun is finished, though the client dawdles."""
    place(path, bytes(HUGE))
    one = await served(reader_app(path))
    async with dawdling(one) as slow:
        stopping = asyncio.create_task(one.stop())
        await slow.take(8 << 20)
        assert not stopping.done()
        assert len(await slow.take(HUGE)) == HUGE - (8 << 20)
        await stopping


async def test_a_drain_does_not_wait_for_ever(served: Serve, path: Path) -> None:
    """A client that takes nothing is cut off at the limit."""
    place(path, bytes(HUGE))
    one = await served(reader_app(path), drain_timeout=0.2)
    async with dawdling(one):
        async with asyncio.timeout(10):
            await one.stop()


async def test_a_writer_takes_and_gives_back_what_is_large(
    client: MakeClient, tmp_path: Path
) -> None:
    """PUT, its conditions, GET of any part, history and rollback."""
    one = await client(writer_app(tmp_path / "config"))
    other = DATA[::-1]
    first = await one.put("/files/large", data=io.BytesIO(DATA))
    assert (first.status, first.headers["ETag"]) == (201, tag(DATA))
    wrong = await one.put("/files/large", data=io.BytesIO(other), headers={"If-Match": tag(other)})
    await problem(wrong, 412, "version-conflict")
    right = await one.put("/files/large", data=io.BytesIO(other), headers={"If-Match": tag(DATA)})
    assert (right.status, right.headers["ETag"]) == (204, tag(other))
    part = await one.get("/files/large", headers={"Range": "bytes=1000000-4000000"})
    assert (part.status, await part.read()) == (206, other[1_000_000:4_000_001])
    versions = await (await one.get("/versions?name=large")).json()
    assert [version["etag"] for version in versions] == [tag(other), tag(DATA)]
    back = await one.post("/rollback", json={"to": tag(DATA), "name": "large"})
    assert (back.status, (await back.json())["size"]) == (200, SIZE)
    assert await (await one.get("/files/large")).read() == DATA
    assert (await one.delete("/files/large")).status == 204


def memory(process: Process, which: str = "VmRSS") -> int:
    """Return a line of `/proc/PID/status` in MiB."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) >> 10


@pytest.mark.slow
async def test_memory_stays_flat_however_large_a_content_is(
    sidecar_process: StartProcess, tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    """Processes as they are shipped, on their own event loop: 8 downloads, one upload, one JSON string."""
    size = 256 << 20
    block = os.urandom(1 << 19).hex().encode()
    ports = free_ports(2)
    options = ("--host", "127.0.0.1", "--max-size", "1Gi", "--drain-delay", "0")
    path, written = tmp_path / "shared" / "large", tmp_path / "written" / "large"
    path.parent.mkdir()
    path.write_bytes(b"small")
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    reader, writer = (
        sidecar_process(role, "--path", file, "--port", port, *options, until=f"{url}/readyz")
        for role, file, port, url in zip(
            ("read", "write"), (path, written), ports, urls, strict=True
        )
    )
    rest = [memory(reader), memory(writer)]
    for process in (reader, writer):
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    with path.with_name("..new").open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)
    path.with_name("..new").rename(path)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(100)) as session:
        async with asyncio.timeout(30):
            while (await session.head(f"{urls[0]}/raw")).content_length != size:
                await asyncio.sleep(0.05)

        async def fetch(url: str, length: int) -> None:
            async with session.get(url) as answer:
                assert answer.status == 200
                received = 0
                async for chunk in answer.content.iter_any():
                    received += len(chunk)
                assert received == length

        async def send() -> None:
            with path.open("rb") as file:
                answer = await session.put(f"{urls[1]}/files/large", data=file)
                assert answer.status == 204

        downloads = [fetch(f"{urls[0]}/raw", size) for _ in range(8)]
        await asyncio.gather(send(), fetch(f"{urls[0]}/", size + 2), *downloads)
        await asyncio.gather(*(fetch(f"{urls[1]}/files/large", size) for _ in range(4)))
    grown = [memory(one, "VmHWM") - was for one, was in zip((reader, writer), rest, strict=True)]
    logging.getLogger(__name__).info("grown by %s MiB", grown)
    assert max(grown) <= 16


@pytest.mark.slow
async def test_uploads_that_stall_hold_little_memory(
    sidecar_process: StartProcess,
    tmp_path: Path,
    free_ports: Callable[[int], list[int]],
    eventually: Eventually,
) -> None:
    """What has come lies on the disk: 200 clients that owe the last byte of a MiB do not get a writer killed."""
    (port,) = free_ports(1)
    config = tmp_path / "config"
    options = ("--path", config, "--host", "127.0.0.1", "--port", port, "--drain-delay", "0")
    writer = sidecar_process("write", *options, until=f"http://127.0.0.1:{port}/readyz")
    rest = memory(writer)
    head = b"PUT /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (1 << 20)
    clients = []
    for _ in range(200):
        _, client = await asyncio.open_connection("127.0.0.1", port)
        client.write(head + bytes((1 << 20) - 1))
        clients.append(client)
    await asyncio.gather(*(client.drain() for client in clients))

    def written() -> int:
        return sum(file.stat().st_size for file in tmp_path.glob("..tmp-*"))

    await eventually(lambda: written() >= 200 * ((1 << 20) - (1 << 16)))
    grown = memory(writer) - rest
    logging.getLogger(__name__).info("grown by %s MiB", grown)
    assert grown <= 16
    for client in clients:
        client.transport.abort()
    await eventually(lambda: not [*tmp_path.glob("..tmp-*")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "secure", "most"), [("/", False, 1.5), ("/", True, 1.5), ("/raw", True, 1.0)]
)
async def test_clients_that_stop_taking_hold_little_memory(
    sidecar_process: StartProcess,
    path: Path,
    free_ports: Callable[[int], list[int]],
    certificate: tuple[Path, Path],
    target: str,
    secure: bool,
    most: float,
) -> None:
    """Each has a piece of what it asked for made for it, and for a minute no more: 40 of them, MiB each."""
    place(path, b"some text\n" * 800_000)
    (port,) = free_ports(1)
    cert, key = certificate
    tls = ("--tls-cert", cert, "--tls-key", key) if secure else ()
    options = ("--path", path, "--host", "127.0.0.1", "--port", port, "--drain-delay", "0")
    reader = sidecar_process("read", *options, *tls, until="listening on")

    def ask() -> socket.socket:
        one: socket.socket = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        one.settimeout(20)
        one.connect(("127.0.0.1", port))
        one = trusting().wrap_socket(one) if secure else one
        one.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target.encode())
        assert one.recv(12) == b"HTTP/1.1 200"
        return one

    clients = [await asyncio.to_thread(ask)]
    rest = memory(reader)
    clients += [await asyncio.to_thread(ask) for _ in range(40)]
    grown = (memory(reader, "VmHWM") - rest) / 40
    logging.getLogger(__name__).info("grown by %.2f MiB each", grown)
    assert grown <= most
    for one in clients:
        one.close()
