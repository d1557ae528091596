"""Tokens: who gets in, and that a file which is gone opens no door."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import ClientSession, web

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
    ["Bearer wrong", "Bearer secre", "Bearer secrett", "Bearer", "Bearer ", "bearer wrong",
     "Bearer secret secret", "Bearer sécret", "Bearer " + "x" * 8000],
)  # fmt: skip
async def test_what_is_not_the_token_is_refused(
    client: MakeClient, tmp_path: Path, token: Path, value: str
) -> None:
    """And is told to be invalid, not missing."""
    one = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))
    answer = await one.get("/", headers={"Authorization": value})
    await problem(answer, 401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize("value", ["secret", "Basic secret", "Token secret", ""])
async def test_another_scheme_is_told_which_one_is_needed(
    client: MakeClient, tmp_path: Path, token: Path, value: str
) -> None:
    """Without an error code: it sent no bearer token that could be wrong (RFC 6750 section 3.1)."""
    one = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))
    answer = await one.get("/", headers={"Authorization": value})
    await problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="sidecar"'


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
    tokens = bearer_auth.BearerTokens(path)
    assert [one.secret for one in await tokens.tokens()] == [b"older"]
    path.write_text("newer")
    now = 1.01
    assert [one.secret for one in await tokens.tokens()] == [b"newer"]


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


SCOPE = 'Bearer realm="sidecar", error="insufficient_scope", scope="write"'


async def test_a_token_for_reading_changes_nothing(
    client: MakeClient, tmp_path: Path, token: Path
) -> None:
    """403 and the scope that is needed (RFC 6750 section 3.1), for each way to write; reading works."""
    (tmp_path / "readers").write_text("viewer: public\n")
    place(tmp_path / "config", "old")
    readers = tmp_path / "readers"
    writer = await client(
        writer_app(tmp_path / "config", token_file=token, read_token_file=readers)
    )
    headers = with_token("public")
    for answer in (
        await writer.get("/?content=1", headers=headers),
        await writer.get("/?content=1&dry_run=1", headers=headers),
        await writer.head("/?content=1", headers=headers),
        await writer.get("/", headers=headers),
        await writer.put("/files/config", data=b"1", headers=headers),
        await writer.delete("/files/config?dry_run=1", headers=headers),
        await writer.post("/rollback", json={"to": "x"}, headers=headers),
        await writer.post("/nope", headers=headers),
    ):
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (403, SCOPE)
        if answer.method != "HEAD":
            await problem(answer, 403, "insufficient-scope")
    assert (tmp_path / "config").read_text() == "old"
    for path in ("/files", "/files/config", "/versions", "/metrics", "/openapi.json", "/ui/state"):
        for secret in ("public", "secret"):
            assert (await writer.get(path, headers=with_token(secret))).status == 200
        await problem(await writer.get(path), 401, "unauthorized")
    assert (await writer.get("/?content=1", headers=with_token("secret"))).status == 200
    reader = await client(
        reader_app(tmp_path / "config", token_file=token, read_token_file=readers)
    )
    for secret in ("public", "secret"):
        assert (await reader.get("/", headers=with_token(secret))).status == 200


def test_a_writer_that_nobody_may_use_does_not_start(tmp_path: Path, token: Path) -> None:
    """With tokens for reading alone: writing would be open, or closed to everybody; neither is what was meant."""
    with pytest.raises(sidecar.ConfigError, match="no request could write"):
        writer_app(tmp_path / "config", read_token_file=token)
    reader_app(tmp_path / "config", read_token_file=token)


async def found(*paths: Path) -> list[tuple[str, str, bool]]:
    tokens = await bearer_auth.BearerTokens(*paths).tokens()
    return [(one.name, one.secret.decode(), one.may_write) for one in tokens]


async def test_a_token_has_a_name_of_its_own_or_that_of_its_file(tmp_path: Path) -> None:
    """`NAME: TOKEN` needs the space: a token that is `user:password` stays one."""
    write, read = tmp_path / "deploy", tmp_path / "my readers"
    write.write_text("one\nalice: two\n bob@example.com:\tthree \r\nuser:password\nb64+/=\n")
    read.write_text("four\nalice: five\n")
    assert await found(write, read) == [
        ("deploy", "one", True),
        ("alice", "two", True),
        ("bob@example.com", "three", True),
        ("deploy", "user:password", True),
        ("deploy", "b64+/=", True),
        ("my_readers", "four", False),
        ("alice", "five", False),
    ]


async def test_the_handler_learns_the_name_of_the_token(
    client: MakeClient, tmp_path: Path, token: Path
) -> None:
    """For who wants to say who has changed something."""
    token.write_text("alice: secret\n")
    app = reader_app(tmp_path / "config", token_file=token)

    async def whoami(request: web.Request) -> web.Response:
        return web.Response(text=request[bearer_auth.ADMISSION].name)

    app.router.add_get("/whoami", whoami)
    one = await client(app)
    assert await (await one.get("/whoami", headers=with_token("secret"))).text() == "alice"


async def test_a_line_without_a_token_admits_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A template that had no value leaves `deploy:`, which is easily guessed; a bad name is no reason to show the line."""
    path = tmp_path / "tokens"
    path.write_text(
        "deploy:\ndeploy: \n: secret-1\nnämlich: secret-2\na b: secret-3\ngood: secret-4\n"
    )
    assert await found(path) == [("tokens", "a b: secret-3", True), ("good", "secret-4", True)]
    assert [f"line {number} of" in caplog.text for number in (1, 2, 3, 4, 5, 6)] == [True] * 4 + [
        False
    ] * 2
    assert "secret" not in caplog.text


async def test_a_token_with_two_names_counts_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For the first: one that may write and read may write. The log names both, and not the token."""
    write, read = tmp_path / "write", tmp_path / "read"
    write.write_text("alice: same\nbob: same\n")
    read.write_text("carol: same\n")
    assert await found(write, read) == [("alice", "same", True)]
    assert "alice and bob have the same token" in caplog.text
    assert "alice and carol have the same token" in caplog.text
    assert "same\n" not in caplog.text.replace("have the same token", "")


async def test_a_huge_file_is_not_cut_in_the_middle_of_a_token(
    client: MakeClient, tmp_path: Path, token: Path
) -> None:
    """The part that was read would be a token that nobody has made."""
    line = "x" * 99
    token.write_text(f"{line}\n" * 700)
    one = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))
    cut = token.read_bytes()[: 64 << 10].splitlines()[-1].decode()
    for value in (line, cut):
        await problem(await one.get("/", headers=with_token(value)), 401, "unauthorized")


async def test_non_ascii_tokens_are_compared_as_utf_8(
    client: MakeClient, tmp_path: Path, token: Path
) -> None:
    """Outside RFC 6750, and no error."""
    token.write_bytes("sécret\n".encode() + b"\xff\xfe\n")
    one = await client(reader_app(tmp_path / "config", missing="ok", token_file=token))
    assert (await one.get("/", headers=with_token("sécret"))).status == 200
    await problem(await one.get("/", headers=with_token("secret")), 401, "unauthorized")


class Secret:
    """A directory as kubelet mounts a Secret: files are links through `..data`, which is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0

    def write(self, keys: dict[str, str]) -> None:
        self._count += 1
        generation = self.path / f"..{self._count}"
        generation.mkdir(parents=True)
        for name, value in keys.items():
            (generation / name).write_text(value)
        link = self.path / "..data_tmp"
        link.symlink_to(generation.name)
        link.rename(self.path / "..data")
        for one in self.path.iterdir():
            if not one.name.startswith("..") and one.name not in keys:
                one.unlink()
        for name in keys:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")


async def test_a_mounted_secret_has_a_file_for_each_name(
    client: MakeClient, tmp_path: Path, token: Path
) -> None:
    """And is followed when kubelet replaces it: a new name counts, one that is gone does not."""
    secret = Secret(tmp_path / "secret")
    secret.write({"alice": "one\nold-one\n", "bob": "two"})
    assert await found(secret.path) == [
        ("alice", "one", True), ("alice", "old-one", True), ("bob", "two", True)
    ]  # fmt: skip
    one = await client(reader_app(tmp_path / "config", missing="ok", token_file=secret.path))

    async def until(expected: dict[str, int]) -> None:
        async with asyncio.timeout(5):
            while expected != {
                value: (await one.get("/", headers=with_token(value))).status for value in expected
            }:
                await asyncio.sleep(0.01)

    await until({"one": 200, "old-one": 200, "two": 200, "three": 401})
    secret.write({"alice": "one\n", "carol": "three\n"})
    await until({"one": 200, "old-one": 401, "two": 401, "three": 200})
    secret.write({"alice": ""})
    await until({"one": 401, "three": 401})


async def test_a_revoked_token_is_refused_on_a_connection_that_used_it(
    served: Serve, tmp_path: Path, token: Path
) -> None:
    """No answer to a request with a token is kept: the same bytes, pipelined, are refused once the token is gone."""
    config = place(tmp_path / "config", "123")
    one = await served(reader_app(config, token_file=token))
    request = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)

    async def ask(count: int) -> set[bytes]:
        writer.write(request * count)
        statuses = set()
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(size)
            statuses.add(head.split()[1])
        return statuses

    async with asyncio.timeout(20):
        assert await ask(8) == {b"200"}
        token.write_text("other\n")
        while (last := await ask(2)) != {b"401"}:
            assert last <= {b"200", b"401"}
            await asyncio.sleep(0.01)
        assert await ask(4) == {b"401"}
    writer.close()
    await writer.wait_closed()
