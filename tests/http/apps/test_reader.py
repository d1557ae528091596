"""The reader, row by row of its table."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest
from aiohttp import web

import sidecar
from sidecar.fs import open_file
from sidecar.http.apps import json_body, reader
from sidecar.http.apps.reader import reader_app
from sidecar.http.semantics import representation
from support import after
from support.httpkit import Client, MakeClient, Serve, place, problem, tag, talk


@pytest.fixture(autouse=True, params=["in memory", "on the disk"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where contents are: a large one is answered with from the disk, and nobody may see a difference."""
    if request.param == "on the disk":
        monkeypatch.setattr(open_file, "LARGE_FILE_BYTES", -1)
    return str(request.param)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The path of a file on a volume that has nothing yet."""
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared" / "config"


async def serves(client: Client, content: str) -> bool:
    answer = await client.get("/")
    return answer.status == 200 and await answer.json() == content


async def test_the_content_is_a_json_string_with_its_validators(
    client: MakeClient, config: Path
) -> None:
    """`GET /`: the string, a strong ETag that is its digest, a date, and no caching unasked."""
    place(config, '1"2\u00e9')
    answer = await (await client(reader_app(config))).get("/")
    assert (answer.status, await answer.json()) == (200, '1"2\u00e9')
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.headers["ETag"] == tag('1"2\u00e9')
    assert answer.headers["Last-Modified"] == representation.http_date(config.stat().st_mtime)
    assert answer.headers["Cache-Control"] == "no-cache"


@pytest.mark.root
async def test_a_single_file_mount_ends_the_start(client: MakeClient, config: Path) -> None:
    """A `subPath` shows the content of the start for ever: that must not look like a reader that works."""
    place(config, "1")
    source = config.parent / "source"
    source.write_text("1")
    subprocess.run(["mount", "--bind", source, config], check=True)
    try:
        with pytest.raises(sidecar.ReadError, match=r"subPath.*mount the directory"):
            await client(reader_app(config))
    finally:
        # A large content may still be held open by what was raised.
        subprocess.run(["umount", "--lazy", config], check=True)


@pytest.mark.parametrize("path", ["/", "/raw", "/files", "/files/config", "/livez", "/metrics"])
@pytest.mark.parametrize("text", ["123", ""])
async def test_head_is_get_without_the_body(
    client: MakeClient, config: Path, path: str, text: str
) -> None:
    """HEAD works wherever GET does (RFC 9110 section 9.3.2), and says how long the body would be."""
    place(config, text)
    one = await client(reader_app(config))
    whole, head = await one.get(path), await one.head(path)
    assert (head.status, await head.read()) == (whole.status, b"")
    same = ["ETag", "Content-Type"]
    if path != "/metrics":  # which count this very request
        same.append("Content-Length")
    assert [head.headers.get(n) for n in same] == [whole.headers.get(n) for n in same]


@pytest.mark.parametrize("path", ["/", "/raw", "/files", "/files/config"])
async def test_what_is_known_already_is_not_sent_again(
    client: MakeClient, config: Path, path: str
) -> None:
    """`If-None-Match` gets 304 with the ETag and without a body."""
    place(config, "123")
    one = await client(reader_app(config))
    known = (await one.get(path)).headers["ETag"]
    answer = await one.get(path, headers={"If-None-Match": known})
    assert (answer.status, answer.headers["ETag"], await answer.read()) == (304, known, b"")


async def test_raw_is_the_bytes_and_any_part_of_them(client: MakeClient, config: Path) -> None:
    """`GET /raw`, with the type that the name and the content suggest."""
    place(config, b"0123456789")
    one = await client(reader_app(config))
    whole = await one.get("/raw")
    part = await one.get("/raw", headers={"Range": "bytes=2-3", "If-Range": tag(b"0123456789")})
    assert (await whole.read(), whole.headers["Accept-Ranges"]) == (b"0123456789", "bytes")
    assert whole.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert (part.status, await part.read()) == (206, b"23")
    await problem(
        await one.get("/raw", headers={"Range": "bytes=10-"}), 416, "range-not-satisfiable"
    )


async def test_what_lies_on_the_volume_runs_nowhere(client: MakeClient, tmp_path: Path) -> None:
    """Anybody who can write there decides on the content: a browser must neither sniff nor run it."""
    page = place(tmp_path / "page.html", "<script>steal()</script>")
    one = await client(reader_app(page))
    for path in ("/raw", "/files/page.html"):
        answer = await one.get(path)
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["Content-Security-Policy"] == "sandbox"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_content_that_is_no_text_is_not_mangled(client: MakeClient, config: Path) -> None:
    """There is no JSON string for it: 406, and `/raw` has it untouched."""
    place(config, b"\xff\x00\x01")
    one = await client(reader_app(config))
    found = await problem(await one.get("/"), 406, "not-text")
    assert "/raw" in found["detail"]
    raw = await one.get("/raw")
    assert (await raw.read(), raw.content_type) == (b"\xff\x00\x01", "application/octet-stream")


async def test_the_files_beside_the_content_are_listed_and_served(
    client: MakeClient, config: Path
) -> None:
    """`GET /files` and `GET /files/NAME`, nested ones too; hidden ones are not there."""
    place(config, "123")
    place(config.parent / "sub" / "other.json", "{}")
    place(config.parent / "..hidden", "x")
    one = await client(reader_app(config))
    listed = await (await one.get("/files")).json()
    assert [(e["name"], e["size"], e["etag"]) for e in listed] == [
        ("config", 3, tag("123")),
        ("sub/other.json", 2, tag("{}")),
    ]
    answer = await one.get("/files/sub/other.json")
    assert (await answer.read(), answer.headers["Content-Type"]) == (b"{}", "application/json")
    assert answer.headers["ETag"] == tag("{}")


async def test_a_set_is_one_json_object_and_its_files(client: MakeClient, tmp_path: Path) -> None:
    """With a directory: all names and texts, of one version; there are no raw bytes of a set."""
    volume = sidecar.Volume(tmp_path / "set")
    done = await volume.publish({"a.txt": "1", "b/c.txt": "2"})
    one = await client(reader_app(tmp_path / "set"))
    whole = await one.get("/")
    assert (await whole.json(), whole.headers["ETag"]) == (
        {"a.txt": "1", "b/c.txt": "2"},
        done.etag,
    )
    assert await (await one.get("/files/b/c.txt")).text() == "2"
    assert [e["name"] for e in await (await one.get("/files")).json()] == ["a.txt", "b/c.txt"]
    await problem(await one.get("/raw"), 404, "no-such-file")


@pytest.mark.parametrize(
    "name",
    ["nothing", "..data", "..data/x", "..versions", "%2e%2e%2fsecret", "%2e%2e/secret", "a/../b",
     "%2Fetc%2Fpasswd", "/etc/passwd", "a" * 300, "a%00b", "%ff", "a/", "./config", "config%0a", "%25"],
)  # fmt: skip
@pytest.mark.parametrize("whole", [False, True], ids=["file", "set"])
async def test_a_name_that_leads_anywhere_else_is_not_found(
    client: MakeClient, config: Path, name: str, whole: bool
) -> None:
    """One answer for all of them, so that it tells nothing about what lies outside."""
    place(config, "123")
    place(config.parent.parent / "secret", "secret")
    one = await client(reader_app(f"{config.parent}/" if whole else config))
    # As it stands: a client of aiohttp would tidy the path up first.
    request = f"GET /files/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head, _, body = (await talk(one.server.port or 0, request.encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"application/problem+json" in head
    assert b'"status":404' in body


async def test_nothing_outside_the_volume_is_served(client: MakeClient, config: Path) -> None:
    """Links that lead out, FIFOs and directories: 404 at once, and the good file goes on."""
    secret = place(config.parent.parent / "secret", "secret")
    place(config, "123")
    (config.parent / "absolute").symlink_to(secret)
    (config.parent / "relative").symlink_to("../secret")
    (config.parent / "parent").symlink_to("..")
    os.mkfifo(config.parent / "fifo")
    (config.parent / "directory").mkdir()
    one = await client(reader_app(config))
    for name in ("absolute", "relative", "parent/secret", "fifo", "directory"):
        answer = await one.get(f"/files/{name}")
        assert (answer.status, "secret" in (await answer.text()).split('"detail"')[0]) == (
            404,
            False,
        )
    assert [e["name"] for e in await (await one.get("/files")).json()] == ["config"]
    assert await (await one.get("/")).json() == "123"


async def test_a_file_in_the_root_directory_does_not_open_the_machine(tmp_path: Path) -> None:
    """`--path /config` must not mean `GET /files/etc/passwd`."""
    assert reader._open_parent_directory("/config", 1) is None
    assert reader._open_parent_directory(f"{tmp_path}/", 1) is None
    assert reader._open_parent_directory(f"{tmp_path}/config", 1) is not None


async def test_nothing_is_read_beside_a_set(client: MakeClient, tmp_path: Path) -> None:
    """The files of a set are all there is; those beside its directory are nobody's business."""
    place(tmp_path / "secret", "secret")
    place(tmp_path / "set" / "a", "1")
    one = await client(reader_app(tmp_path / "set"))
    await problem(await one.get("/files/secret"), 404, "no-such-file")
    assert [e["name"] for e in await (await one.get("/files")).json()] == ["a"]


async def test_nothing_is_read_beside_a_path_that_was_never_a_file(
    client: MakeClient, tmp_path: Path
) -> None:
    """An empty directory given as the path: its parent is nobody's business."""
    place(tmp_path / "secret", "secret")
    (tmp_path / "set").mkdir()
    one = await client(reader_app(tmp_path / "set"))
    for path in ("/files", "/files/secret", "/files/set"):
        await problem(await one.get(path), 503, "nothing-published")


@pytest.mark.parametrize("path", ["/", "/raw", "/files/config"])
async def test_nothing_published_yet_is_503_and_when_to_come_back(
    client: MakeClient, config: Path, path: str
) -> None:
    """With `Retry-After`, until there is something."""
    one = await client(reader_app(config))
    answer = await one.get(path)
    await problem(answer, 503, "nothing-published")
    assert answer.headers["Retry-After"] == "1"


async def test_a_text_can_stand_in_for_what_is_missing(client: MakeClient, config: Path) -> None:
    """`--missing ok`: as the article's reader says, until there is a content."""
    one = await client(reader_app(config, missing="ok"))
    answer = await one.get("/")
    assert (answer.status, await answer.json()) == (200, "ok")
    assert await (await one.get("/raw")).text() == "ok"
    assert (await one.get("/readyz")).status == 200
    await sidecar.publish_file(config, "123")
    await until_served(one, "123")


async def until_served(one: Client, content: str) -> None:
    async with asyncio.timeout(10):
        while not await serves(one, content):
            await asyncio.sleep(0.01)


async def test_the_last_good_content_outlives_its_file_and_says_so(
    client: MakeClient, config: Path
) -> None:
    """Deleted, and still served: 200 and 304 with the reason why it may be out of date."""
    place(config, "123")
    one = await client(reader_app(config, recheck=0.05))
    assert "Sidecar-Stale" not in (await one.get("/")).headers
    config.unlink()
    async with asyncio.timeout(10):
        while "Sidecar-Stale" not in (answer := await one.get("/")).headers:
            await asyncio.sleep(0.01)
    assert (answer.status, await answer.json()) == (200, "123")
    assert str(config) in answer.headers["Sidecar-Stale"]
    known = await one.get("/", headers={"If-None-Match": tag("123")})
    assert (known.status, "Sidecar-Stale" in known.headers) == (304, True)
    assert (await one.get("/readyz")).status == 200


@pytest.mark.parametrize("path", ["/", "/raw", "/files", "/files/config"])
async def test_a_long_poll_answers_with_the_new_content(
    client: MakeClient, config: Path, path: str
) -> None:
    """`If-None-Match` with `Prefer: wait`: nothing until there is something new, then that."""
    place(config, "old")
    one = await client(reader_app(config))
    known = (await one.get(path)).headers["ETag"]
    headers = {"If-None-Match": known, "Prefer": "wait=30"}
    waiting = asyncio.create_task(one.get(path, headers=headers))
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    await sidecar.publish_file(config, "new")
    async with asyncio.timeout(10):
        answer = await waiting
    assert (answer.status, answer.headers["Preference-Applied"]) == (200, "wait=30")
    assert answer.headers["ETag"] != known


async def test_a_long_poll_ends_with_304_when_nothing_has_come(
    client: MakeClient, config: Path
) -> None:
    """After the time that the client gave."""
    place(config, "123")
    one = await client(reader_app(config))
    most_of_it = after(0.19)
    headers = {"If-None-Match": tag("123"), "Prefer": "wait=0.2"}
    answer = await one.get("/", headers=headers)
    assert (answer.status, answer.headers["Preference-Applied"]) == (304, "wait=0.2")
    assert most_of_it.is_set()


async def test_who_knows_nothing_does_not_wait(client: MakeClient, config: Path) -> None:
    """There is something new for them already, so the preference has no effect and is not confirmed."""
    place(config, "123")
    one = await client(reader_app(config))
    for headers in ({"Prefer": "wait=30"}, {"Prefer": "wait=30", "If-None-Match": '"x"'}):
        answer = await one.get("/", headers=headers)
        assert (answer.status, "Preference-Applied" in answer.headers) == (200, False)


@pytest.mark.parametrize("address", ["/", "/files"])
async def test_no_date_hides_that_a_file_of_a_set_has_gone(
    client: MakeClient, tmp_path: Path, address: str
) -> None:
    """What is left is no newer than before: only the entity tag tells that it is not the same."""
    volume = sidecar.Volume(tmp_path)
    await volume.publish({"a": "1", "b": "2"})
    one = await client(reader_app(tmp_path))
    headers = (await one.get(address)).headers
    before = headers["ETag"]
    assert "Last-Modified" in headers
    await volume.delete("a")
    async with asyncio.timeout(10):
        while (await one.get(address)).headers["ETag"] == before:
            await asyncio.sleep(0)
    now = {"If-Modified-Since": representation.http_date(time.time())}
    assert (await one.get(address, headers=now)).status == 200


@pytest.mark.parametrize("address", ["/", "/raw", "/files/config"])
async def test_the_first_content_can_be_waited_for(
    client: MakeClient, config: Path, address: str
) -> None:
    """Where nothing has been published, `Prefer: wait` waits for the first content."""
    one = await client(reader_app(config))
    await problem(await one.get(address, headers={"Prefer": "wait=0.05"}), 503, "nothing-published")
    waiting = asyncio.create_task(one.get(address, headers={"Prefer": "wait=30"}))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    await sidecar.publish_file(config, "first")
    async with asyncio.timeout(10):
        answer = await waiting
    assert (answer.status, answer.headers["ETag"]) == (200, tag("first"))


async def test_a_change_beside_the_content_is_waited_for_too(
    client: MakeClient, config: Path
) -> None:
    """Other files of the volume are not watched, but looked at while somebody waits."""
    place(config, "123")
    place(config.parent / "other", "old")
    one = await client(reader_app(config))
    headers = {"If-None-Match": tag("old"), "Prefer": "wait=30"}
    waiting = asyncio.create_task(one.get("/files/other", headers=headers))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    await sidecar.publish_file(config.parent / "other", "new")
    async with asyncio.timeout(10):
        assert await (await waiting).text() == "new"


async def test_the_probes_know_the_content(client: MakeClient, config: Path) -> None:
    """They tell whether there is one, and nothing that is made of it: they are open to all."""
    one = await client(reader_app(config))
    (detail,) = (await (await one.get("/readyz")).json())["details"].values()
    assert detail == {"mode": detail["mode"], "published": False, "stale": None}
    await sidecar.publish_file(config, "123")
    await until_served(one, "123")
    (detail,) = (await (await one.get("/readyz")).json())["details"].values()
    assert detail == {"mode": detail["mode"], "published": True, "stale": None}


async def test_a_dead_watch_fails_liveness(
    client: MakeClient, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart would mend it, so that is what liveness is for; an absent file is none."""
    one = await client(reader_app(config))
    monkeypatch.setattr(sidecar.Watch, "failure", "the watch of config fails: planted")
    found = await problem(await one.get("/livez"), 503, "not-live")
    assert "planted" in found["detail"]


async def test_options_of_the_server_as_a_whole_are_told(served: Serve, config: Path) -> None:
    """`OPTIONS *` asks for no resource (RFC 9110 section 9.3.7); a path that is not there stays an error."""
    one = await served(reader_app(config))
    ask = b"OPTIONS %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await talk(one.port, ask % b"*")
    assert answer.startswith(b"HTTP/1.1 204 No Content\r\nAllow: GET,HEAD,OPTIONS\r\n")
    assert b"\r\nContent-Length:" not in answer
    assert (await talk(one.port, ask % b"/nothing")).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_a_reader_changes_nothing(client: MakeClient, config: Path, method: str) -> None:
    """405 with what is allowed, as a problem."""
    one = await client(reader_app(config))
    answer = await one.request(method, "/")
    await problem(answer, 405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}


async def test_an_unknown_path_is_a_problem(client: MakeClient, config: Path) -> None:
    """404, with what was asked for."""
    found = await problem(await (await client(reader_app(config))).get("/nope"), 404, "not-found")
    assert "/nope" in found["detail"]


async def test_the_reader_works_beneath_a_prefix(client: MakeClient, config: Path) -> None:
    """As a sub-application of a user's own, errors included."""
    place(config, "123")
    app = web.Application()
    app.add_subapp("/config/", reader_app(config))
    one = await client(app)
    assert await (await one.get("/config/")).json() == "123"
    assert await (await one.get("/config/files/config")).text() == "123"
    assert (await one.get("/config/readyz")).status == 200
    await problem(await one.get("/config/nope"), 404, "not-found")


async def test_a_large_content_is_weighed_as_json_once_for_each_version(
    client: MakeClient, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is weighed once: a second request costs no second look at whether it is text, and how long."""
    place(config, "x" * (2 << 20))
    made = []
    streamed = json_body.measure
    monkeypatch.setattr(json_body, "measure", lambda found: made.append(found) or streamed(found))
    one = await client(reader_app(config))
    for _ in range(3):
        assert len(await (await one.get("/")).json()) == 2 << 20
    assert len(made) == 1
