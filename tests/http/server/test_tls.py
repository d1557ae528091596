"""Certificates: replaced while serving, and no broken pair ever breaks a handshake."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from sidecar import _errors, health_routes
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.server import limits as guard
from sidecar.http.server import serve as serving
from sidecar.http.server import tls
from sidecar.http.server.tls import ReloadingCertificate
from support import StartProcess
from support.httpkit import Serve, Served, start_serving

pytestmark = [
    pytest.mark.skipif(
        shutil.which("openssl") is None, reason="needs openssl to make certificates"
    ),
]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Two certificates for localhost, with their keys, as PEM."""
    directory = tmp_path_factory.mktemp("pairs")
    made = []
    for name in ("first", "second"):
        cert, key = directory / f"{name}.crt", directory / f"{name}.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
             "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost",
             "-keyout", str(key), "-out", str(cert)],
            check=True,
            capture_output=True,
        )  # fmt: skip
        made.append((cert.read_text(), key.read_text()))
    return made


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str, str], tuple[Path, Path]]:
    """`install(cert, key)`: the files that are served, replaced."""

    def write(cert: str, key: str) -> tuple[Path, Path]:
        paths = (tmp_path / "tls.crt", tmp_path / "tls.key")
        for path, text in zip(paths, (cert, key), strict=True):
            path.write_text(text)
        return paths

    return write


async def shown(one: Served) -> str:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", one.port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return ssl.DER_cert_to_PEM_cert(der)


async def test_https_is_served(
    served: Serve, pairs: list[tuple[str, str]], install: Callable[..., tuple[Path, Path]]
) -> None:
    """The address says so, and the certificate is the one that was given."""
    cert, key = install(*pairs[0])
    one = await served(web.Application(), tls_cert=cert, tls_key=key)
    assert one.url.startswith("https://")
    assert await shown(one) == pairs[0][0]


async def test_a_python_that_was_built_for_an_older_c_library_serves_https_too(
    served: Serve,
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As that of conda: it has no `os.memfd_create`, in whose files certificate and key are handed over."""
    monkeypatch.delattr(os, "memfd_create")
    cert, key = install(*pairs[0])
    assert await shown(await served(web.Application(), tls_cert=cert, tls_key=key)) == pairs[0][0]


async def test_certificate_and_key_may_lie_in_one_file(
    served: Serve, pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    """As some tools write them."""
    both = tmp_path / "both.pem"
    both.write_text("".join(pairs[0]))
    one = await served(web.Application(), tls_cert=both)
    assert await shown(one) == pairs[0][0]


async def test_a_new_certificate_is_shown_without_a_restart(
    served: Serve,
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As cert-manager replaces them."""
    monkeypatch.setattr(tls, "RECHECK", 0.02)
    cert, key = install(*pairs[0])
    one = await served(web.Application(), tls_cert=cert, tls_key=key)
    install(*pairs[1])
    async with asyncio.timeout(5):
        while await shown(one) != pairs[1][0]:
            await asyncio.sleep(0.01)


async def test_a_broken_pair_breaks_no_handshake(
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Mismatched, half written, empty, gone: the pair in force stays, and one line says why."""
    cert, key = install(*pairs[0])
    certificate = ReloadingCertificate(cert, key)
    (first, first_key), (second, second_key) = pairs
    for bad in ((second, first_key), (first, second_key), (second, ""), (second[:100], second_key)):
        install(*bad)
        await certificate.reload()
        await certificate.reload()
        assert await handshake(certificate) == first
    assert len(caplog.records) >= 1
    key.unlink()
    await certificate.reload()
    assert await handshake(certificate) == first
    install(second, second_key)
    await certificate.reload()
    assert await handshake(certificate) == second


async def handshake(certificate: ReloadingCertificate) -> str:
    """The certificate that a server with this context shows."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0, ssl=certificate.context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        task = asyncio.get_running_loop().create_future()
        task.cancel()
        return await shown(Served([f"https://127.0.0.1:{port}"], task))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["other", "none", "missing", "encrypted"])
def test_what_cannot_be_served_is_told_at_the_start(
    pairs: list[tuple[str, str]], install: Callable[..., tuple[Path, Path]], key: str
) -> None:
    """With both paths; an encrypted key asks nobody for a password."""
    cert, path = install(pairs[0][0], pairs[1][1])
    if key == "none":
        path.write_text("")
    elif key == "missing":
        path.unlink()
    elif key == "encrypted":
        encrypt = ["openssl", "pkey", "-aes256", "-passout", "pass:x"]
        path.write_bytes(
            subprocess.run(
                encrypt, input=pairs[0][1].encode(), check=True, capture_output=True
            ).stdout
        )
    with pytest.raises(_errors.ConfigError, match=r"tls\.key"):
        ReloadingCertificate(cert, path)


async def test_a_key_without_a_certificate_is_an_error(tmp_path: Path) -> None:
    """Else the port would be open without TLS."""
    with pytest.raises(_errors.ConfigError, match="tls_cert"):
        await serving.serve(web.Application(), tls_key=tmp_path / "key")


async def test_repeated_requests_slow_heads_and_events_are_the_same_over_tls(
    served: Serve, pairs: list[tuple[str, str]], install: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
) -> None:  # fmt: skip
    """What is written straight to the connection is encrypted as all else."""
    cert, key = install(*pairs[0])
    config = tmp_path / "config"
    config.write_text("123")
    one = await served(reader_app(config), tls_cert=cert, tls_key=key, head_timeout=1.0)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port, ssl=context)
    async with asyncio.timeout(10):
        for _ in range(4):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b" 200 OK" in await reader.readuntil(b'\r\n\r\n"123"')
        writer.write(b"GET /")
        assert b" 408 " in await reader.read()
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port, ssl=context)
        writer.write(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b'data: "123"\n\n')
        draft = tmp_path / "draft"
        draft.write_text("456")
        draft.rename(config)
        await reader.readuntil(b'data: "456"\n\n')
        one.task.cancel()
        assert (await reader.read()).endswith(b"0\r\n\r\n")
    writer.close()


async def test_a_client_that_begins_no_handshake_is_closed_after_the_time_for_a_head(
    served: Serve,
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
) -> None:
    """It costs as much as one that begins no request, and whoever has set the limit means it."""
    cert, key = install(*pairs[0])
    one = await served(
        reader_app(tmp_path / "config"), tls_cert=cert, tls_key=key, head_timeout=0.1
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def on_loop(request: pytest.FixtureRequest) -> Iterator[Callable[[Awaitable[None]], None]]:
    """`on_loop(scene())`: an event loop of either kind, at the end of which no transport is left."""
    new_loop = asyncio.new_event_loop
    if request.param == "uvloop":
        new_loop = pytest.importorskip("uvloop").new_event_loop

    def run(scene: Awaitable[None]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(40):
                await scene

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(limited())

    yield run
    gc.collect()  # an unclosed transport warns when it is collected


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def probe(port: int) -> bytes:
    """The first line of the answer to a probe over TLS, that has to come within a second."""
    async with asyncio.timeout(1):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=unverified())
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.partition(b"\r\n")[0]


@pytest.mark.parametrize("words", ["nothing", "a part of a handshake", "a handshake"])
def test_clients_that_stay_silent_do_not_keep_a_probe_out(
    on_loop: Callable[[Awaitable[None]], None],
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
    words: str,
) -> None:
    """More of them than are allowed, which come again: the oldest give way, wherever in their handshake they are."""
    cert, key = install(*pairs[0])

    async def scene() -> None:
        app = web.Application()
        app.add_routes(health_routes())
        one = await start_serving(
            app, tls_cert=cert, tls_key=key, max_connections=8, head_timeout=3600
        )
        silent: list[asyncio.StreamWriter] = []
        opened: list[asyncio.StreamReader] = []
        for number in range(40):
            context = unverified() if words == "a handshake" else None
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port, ssl=context)
            opened.append(reader)
            silent.append(writer)
            if words == "a part of a handshake":
                writer.write(b"\x16\x03\x01\x02\x00\x01")  # of a ClientHello (RFC 8446 section 5.1)
            if number >= 20:
                assert await probe(one.port) == b"HTTP/1.1 200 OK"
        for reader in opened[:32]:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        await one.stop()
        for writer in silent:
            writer.transport.abort()
        await asyncio.sleep(0)

    on_loop(scene())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_silent_handshakes_leave_descriptors_for_a_probe(
    start_process: StartProcess,
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    free_port: int,
    loop: str,
) -> None:
    """Twice as many as the process has descriptors, all at once, and as many again: a probe within a second, 20 times in a row."""
    cert, key = install(*pairs[0])
    (tmp_path / "config").write_text("123")
    limits = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256));"
    without = "import sys; sys.modules['uvloop'] = None;" if loop == "asyncio" else ""
    start_process(
        sys.executable, "-c", f"{limits}{without}from sidecar.cli.main import main; main()",
        "read", "--path", tmp_path / "config", "--host", "127.0.0.1", "--port", free_port,
        "--tls-cert", cert, "--tls-key", key, until="listening on",
    )  # fmt: skip
    silent: list[socket.socket] = []

    async def probes() -> None:
        assert await probe(free_port) == b"HTTP/1.1 200 OK"

    try:
        for number in range(520):
            silent.append(socket.create_connection(("127.0.0.1", free_port), timeout=10))
            if number >= 500:
                asyncio.run(probes())
    finally:
        for one in silent:
            one.close()


def test_refused_clients_that_do_not_confirm_the_end_keep_no_descriptor(
    on_loop: Callable[[Awaitable[None]], None],
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
) -> None:
    """Where all are at work, each of them is told so, and does not stay for the half minute that TLS would give it."""
    cert, key = install(*pairs[0])

    async def scene() -> None:
        over = asyncio.Event()

        async def wait(_: web.Request) -> web.Response:
            await over.wait()
            return web.Response()

        app = web.Application()
        app.add_routes([*health_routes(), web.get("/wait", wait)])
        one = await start_serving(app, tls_cert=cert, tls_key=key, max_connections=1)
        at_work = await refusing_to_end(one.port, b"GET /wait")
        before = len(os.listdir("/proc/self/fd"))
        refused = [await refusing_to_end(one.port, b"GET /") for _ in range(100)]
        for client in refused:
            answer = await asyncio.to_thread(client.recv, 4096)
            assert answer.startswith(b"HTTP/1.1 503 ")
        assert (
            len(os.listdir("/proc/self/fd")) - before
            <= len(refused) + guard._MAX_SURPLUS_CONNECTIONS + 1
        )
        assert await probe(one.port) == b"HTTP/1.1 200 OK"
        over.set()
        assert (await asyncio.to_thread(at_work.recv, 4096)).startswith(b"HTTP/1.1 200 ")
        await one.stop()
        for client in (at_work, *refused):
            client.close()

    on_loop(scene())


async def refusing_to_end(port: int, request: bytes) -> ssl.SSLSocket:
    """A client that has asked, and says nothing when it is told that the connection ends."""

    def connect() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port), 10)
        one = unverified().wrap_socket(plain)
        one.sendall(request + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        return one

    return await asyncio.to_thread(connect)


def test_no_transport_outlives_the_server(
    on_loop: Callable[[Awaitable[None]], None],
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
) -> None:
    """Neither in a handshake, nor where a client does not confirm the end, which TLS would wait half a minute for."""
    cert, key = install(*pairs[0])

    async def scene() -> None:
        app = web.Application()
        app.add_routes(health_routes())
        one = await start_serving(app, tls_cert=cert, tls_key=key)
        silent = socket.create_connection(("127.0.0.1", one.port), 10)
        asked = await refusing_to_end(one.port, b"GET /livez")
        assert (await asyncio.to_thread(asked.recv, 4096)).startswith(b"HTTP/1.1 200 ")
        before = len(os.listdir("/proc/self/fd"))
        await one.stop()
        assert before - len(os.listdir("/proc/self/fd")) >= 2
        assert await asyncio.to_thread(silent.recv, 10) == b""
        assert await asyncio.to_thread(asked.recv, 10) == b""
        silent.close()
        asked.close()

    on_loop(scene())


def test_connections_that_nobody_has_accepted_finish_their_handshakes_at_the_end(
    on_loop: Callable[[Awaitable[None]], None],
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
) -> None:
    """And their first requests are answered."""
    cert, key = install(*pairs[0])

    async def scene() -> None:
        app = web.Application()
        app.add_routes(health_routes())
        one = await start_serving(app, tls_cert=cert, tls_key=key)
        made = [socket.create_connection(("127.0.0.1", one.port), timeout=10) for _ in range(30)]
        context = unverified()

        async def say(plain: socket.socket) -> bytes:
            plain.setblocking(False)
            reader, writer = await asyncio.open_connection(
                sock=plain, ssl=context, server_hostname=""
            )
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = await reader.readuntil(b"\r\n")
            writer.transport.abort()
            return answer

        answers = await asyncio.gather(*map(say, made), one.stop())
        assert answers == [*[b"HTTP/1.1 200 OK\r\n"] * len(made), None]

    on_loop(scene())


async def ask(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool | None]:
    """The session of a connection that has been answered once (RFC 8446 section 4.6.1), and whether it was resumed."""

    def talk() -> tuple[ssl.SSLSession | None, bool | None]:
        plain = socket.create_connection(("127.0.0.1", port), 10)
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as one:
            one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while one.recv(1 << 16):
                pass
            return one.session, one.session_reused

    return await asyncio.to_thread(talk)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_resumes_its_session_even_after_the_certificate_was_replaced(
    served: Serve,
    pairs: list[tuple[str, str]],
    install: Callable[..., tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
    version: ssl.TLSVersion,
) -> None:
    """A resumed handshake needs no signature (RFC 8446 section 2.2, RFC 5077): the key of tickets outlives certificates."""
    monkeypatch.setattr(tls, "RECHECK", 0.02)
    cert, key = install(*pairs[0])
    one = await served(web.Application(), tls_cert=cert, tls_key=key)
    context = ssl.create_default_context(cadata=pairs[0][0] + pairs[1][0])
    context.maximum_version = version
    session, _ = await ask(one.port, context, None)
    assert (await ask(one.port, context, session))[1]
    install(*pairs[1])
    async with asyncio.timeout(5):
        while await shown(one) != pairs[1][0]:
            await asyncio.sleep(0.01)
    assert (await ask(one.port, context, session))[1]


def test_nothing_older_than_tls_1_2_is_spoken(
    pairs: list[tuple[str, str]], install: Callable[..., tuple[Path, Path]]
) -> None:
    """TLS 1.0 and 1.1 must not be used (RFC 8996), also where OpenSSL's own policy would allow them."""
    context = ReloadingCertificate(*install(*pairs[0])).context
    context.set_ciphers("ALL:@SECLEVEL=0")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported protocol|alert protocol version"):
        connect_in_memory(context, client)


def connect_in_memory(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A handshake between two contexts, without a network."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [server.wrap_bio(there, back, server_side=True), client.wrap_bio(back, there)]
    done: set[ssl.SSLObject] = set()
    while len(done) < len(sides):
        for side in reversed(sides):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                done.add(side)


@pytest.mark.parametrize(
    ("host", "ca", "status"),
    [
        ("localhost", None, 201),
        ("127.0.0.1", None, 201),
        ("localhost", 0, 201),
        ("localhost", 1, 202),
        ("127.0.0.1", 0, 202),  # a certificate for localhost
    ],
)
async def test_a_reader_with_tls_confirms(
    served: Serve,
    tmp_path: Path,
    pairs: list[tuple[str, str]],
    install: Callable[[str, str], tuple[Path, Path]],
    host: str,
    ca: int | None,
    status: int,
) -> None:
    """Verified as `sidecar check` does: against an authority that is named, and without one not on this machine."""
    cert, key = install(*pairs[0])
    authority = tmp_path / "ca.crt"
    authority.write_text(pairs[ca or 0][0])
    reader = await served(reader_app(tmp_path / "config"), tls_cert=cert, tls_key=key)
    app = writer_app(
        tmp_path / "config",
        confirm=f"https://{host}:{reader.port}",
        confirm_ca=None if ca is None else authority,
    )
    writer = await served(app)
    async with ClientSession() as http:
        wait = {"Prefer": f"wait={10 if status == 201 else 0.3}"}
        answer = await http.put(f"{writer.url}/files/new", data=b"1", headers=wait)
        assert answer.status == status


async def test_an_authority_that_is_none_is_told_at_the_start(
    served: Serve, tmp_path: Path
) -> None:
    """Not at the first write that waits."""
    (tmp_path / "ca").write_text("no certificate")
    app = writer_app(tmp_path / "config", confirm="https://reader", confirm_ca=tmp_path / "ca")
    with pytest.raises(_errors.ConfigError, match="--confirm-ca"):
        await served(app)
