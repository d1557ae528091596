"""The audit log: a line for each attempt to change a content, whatever comes of it, and never two in one (issue 15, point 4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from sidecar import _errors
from sidecar.http.apps.writer import writer_app
from sidecar.process import audit
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.validation.gate import Gate
from sidecar.volume.volume import Volume
from support.httpkit import Client, MakeClient, Serve, tag

Lines = Callable[[], list[dict[str, Any]]]
TOKEN = {"Authorization": "Bearer secret"}
ONE, TWO = version_of(b"1"), version_of(b"12")


@pytest.fixture
def lines(tmp_path: Path) -> Any:
    """Return the lines written since the last call; the time of each is there."""
    path = tmp_path / "audit.log"
    audit.configure(str(path))
    read = 0

    def new() -> list[dict[str, Any]]:
        nonlocal read
        found = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        found, read = found[read:], len(found)
        for one in found:
            assert one.pop("time").endswith("Z")
        return found

    yield new
    audit.disable()


@pytest_asyncio.fixture
async def one(client: MakeClient, tmp_path: Path) -> AsyncIterator[Client]:
    """A writer with a gate and two tokens, one of which may only read."""
    (tmp_path / "tokens").write_text("deploy-bot: secret\n")
    (tmp_path / "read").write_text("monitor: other\n")
    app = writer_app(
        tmp_path / "shared/config",
        gate=Gate(format="json"),
        max_size=1000,
        token_file=tmp_path / "tokens",
        read_token_file=tmp_path / "read",
    )
    yield await client(app)


async def test_a_line_says_who_did_what_from_where(
    one: Client, tmp_path: Path, lines: Lines
) -> None:
    """The version and size of before and after, and the request; publish, publish again, roll back, delete, purge."""
    where = {"path": str(tmp_path / "shared/a"), "user": "deploy-bot", "client": "127.0.0.1"}
    headers = TOKEN | {"X-Request-ID": "r"}
    where["request_id"] = "r"
    first = await one.put("/files/a", data=b"1", headers=headers)
    await one.put("/files/a", data=b"12", headers=headers)
    await one.put("/files/a", data=b"12", headers=headers)
    await one.post("/rollback", json={"to": first.headers["ETag"], "name": "a"}, headers=headers)
    await one.delete("/files/a", headers=headers)
    await one.delete("/files/a?purge=1", headers=headers)
    found = lines()
    assert found[0] == where | {
        "event": "publish", "outcome": "published", "version": ONE, "size": 1,
    }  # fmt: skip
    assert found[1] == where | {
        "event": "publish", "outcome": "published", "version": TWO, "size": 2,
        "previous_version": ONE, "previous_size": 1,
    }  # fmt: skip
    assert found[2] == where | {
        "event": "publish", "outcome": "unchanged", "version": TWO, "size": 2,
    }  # fmt: skip
    assert found[3] == where | {
        "event": "rollback", "outcome": "published", "version": ONE, "size": 1,
        "previous_version": TWO, "previous_size": 2,
    }  # fmt: skip
    assert found[4] == where | {
        "event": "delete", "outcome": "deleted", "previous_version": ONE, "previous_size": 1,
    }  # fmt: skip
    assert found[5] == where | {"event": "purge", "outcome": "deleted"}
    assert len(found) == 6


ATTEMPTS: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "refused by the gate": ("PUT", "/files/a", {"data": b"no"}, "publish", "refused"),
    "too large": ("PUT", "/files/a", {"data": b"1" * 2000}, "publish", "refused"),
    "no such name": ("PUT", "/files/..a", {"data": b"1"}, "publish", "refused"),
    "no body": ("PUT", "/files/a", {"skip": True}, "publish", "refused"),
    "in part": ("PUT", "/files/a", {"data": b"1", "headers": {"Content-Range": "bytes 0-0/2"}}, "publish", "refused"),
    "a condition": (
        "PUT", "/files/a", {"data": b"1", "headers": {"If-Match": '"x"'}}, "publish", "conflict",
    ),
    "nothing to delete": ("DELETE", "/files/a", {}, "delete", "missing"),
    "nothing to purge": ("DELETE", "/files/a?purge=1", {}, "purge", "missing"),
    "nothing to roll back to": ("POST", "/rollback", {"json": {"to": tag("?")}}, "rollback", "missing"),
    "not understood": ("POST", "/rollback", {"data": b"{"}, "rollback", "refused"),
    "a GET": ("GET", "/?content=no", {}, "publish", "refused"),
    "without a token": (
        "PUT", "/files/a", {"data": b"1", "headers": {"Authorization": ""}}, "publish", "denied",
    ),
    "no dry run, without a token": (
        "PUT", "/files/a?dry_run=0", {"data": b"1", "headers": {"Authorization": ""}}, "publish", "denied",
    ),
    "no dry run": ("PUT", "/files/..a?dry_run=no", {"data": b"1"}, "publish", "refused"),
    "perhaps a dry run": ("PUT", "/files/a?dry_run=perhaps", {"data": b"1"}, "publish", "refused"),
    "with a token to read": (
        "DELETE", "/files/a", {"headers": {"Authorization": "Bearer other"}}, "delete", "denied",
    ),
    "from another origin": (
        "PUT", "/files/a", {"data": b"1", "headers": {"Sec-Fetch-Site": "cross-site"}}, "publish", "denied",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_what_is_refused_is_a_line_as_well(one: Client, lines: Lines, name: str) -> None:
    """One, with the reason; whoever is known is named."""
    method, path, options, event, outcome = ATTEMPTS[name]
    if options.get("skip"):
        options = {"skip_auto_headers": ["Content-Length"], "headers": {}}
    options = options | {"headers": TOKEN | options.get("headers", {})}
    answer = await one.request(method, path, **options)
    assert answer.status >= 400
    (found,) = lines()
    assert (found["event"], found["outcome"]) == (event, outcome)
    assert found["reason"]
    assert found["client"] == "127.0.0.1"
    assert "secret" not in str(found)
    nobody = dict.fromkeys(("without a token", "no dry run, without a token"))
    user = {"with a token to read": "monitor"} | nobody
    if name != "from another origin":  # that is looked at first
        assert found.get("user") == user.get(name, "deploy-bot")


async def test_a_trial_and_a_read_are_none(one: Client, lines: Lines) -> None:
    for path in ("/files/a?dry_run=1", "/files/..a?dry_run=1"):
        await one.put(path, data=b"1", headers=TOKEN)
    await one.head("/?content=1", headers=TOKEN)
    for path in ("/", "/files/nowhere", "/versions"):
        await one.get(path, headers=TOKEN)
        await one.get(path)
    assert lines() == []


async def test_under_load_there_is_a_line_for_each(
    tmp_path: Path, lines: Lines, served: Serve
) -> None:
    """Also by the fast path, and of writes for which one publish stands."""
    up = await served(writer_app(tmp_path / "shared/config", durability="none"))

    async def write(client: int) -> None:
        incoming, outgoing = await asyncio.open_connection("127.0.0.1", up.port)
        for number in range(20):
            head = f"X-Request-ID: {client}-{number}"
            request = f"GET /?content={client}-{number} HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n"
            outgoing.write(request.encode())
            await incoming.readuntil(b'"ok"')
        outgoing.close()

    await asyncio.gather(*map(write, range(5)))
    found = lines()
    expected = {
        (f"{client}-{number}", version_of(f"{client}-{number}".encode()))
        for client in range(5)
        for number in range(20)
    }
    assert {(one["request_id"], one["version"]) for one in found} == expected
    assert len(found) == len(expected)


async def test_of_a_program_the_publisher_is_named(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no client; what another program has put there before is told, too."""
    monkeypatch.setenv("POD_NAME", "web-0")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/config").write_text("1")
    await Volume(tmp_path / "shared").put("config", "12")
    await Volume(tmp_path / "shared/set").publish({"a": "1"})
    (first, second) = lines()
    assert first == {
        "event": "publish", "outcome": "published", "path": str(tmp_path / "shared/config"), "user": "web-0",
        "version": TWO, "size": 2, "previous_version": ONE, "previous_size": 1,
    }  # fmt: skip
    assert (second["path"], "client" in second) == (str(tmp_path / "shared/set"), False)


async def test_a_file_that_is_rotated_is_created_again(tmp_path: Path, lines: Lines) -> None:
    """As logrotate renames it; nothing has to be told to the program."""
    volume = Volume(tmp_path / "shared")
    await volume.put("config", "1")
    assert len(lines()) == 1
    (tmp_path / "audit.log").rename(tmp_path / "audit.log.1")
    await volume.put("config", "2")
    assert len((tmp_path / "audit.log").read_bytes().splitlines()) == 1
    assert len((tmp_path / "audit.log.1").read_bytes().splitlines()) == 1


async def test_a_log_that_cannot_be_written_refuses_nothing(
    tmp_path: Path,
    lines: Lines,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It is an error in the log of the program, once, without a traceback."""
    audit.configure("/dev/full")
    volume = Volume(tmp_path / "shared")
    for content in "123":
        assert (await volume.put("config", content)).changed
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 1
    assert "cannot write the audit log" in errors[0]
    assert "Traceback" not in capfd.readouterr().err


def test_a_file_that_cannot_be_opened_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(_errors.ConfigError, match="audit log"):
        audit.configure(str(tmp_path / "nowhere" / "audit.log"))


async def test_nothing_breaks_a_line(tmp_path: Path, lines: Lines) -> None:
    """Names and reasons of others are data: no line break, and always JSON."""
    volume = Volume(tmp_path / "shared")
    for name in ("a\nb", "\udcff", "x" * 300):
        with pytest.raises(_errors.NameRefused):
            await volume.put(name, "1")
    found = lines()
    assert [one["outcome"] for one in found] == ["refused"] * 3
    assert all("\n" not in one["reason"] for one in found)
