"""`sidecar mirror`: its options, its exit codes, its probes."""

from __future__ import annotations

import base64
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from support import StartProcess, WaitFor
from support.commands import Command


class Handler(BaseHTTPRequestHandler):
    content = b'{"debug": true}'
    status_of_hook = 200
    told: ClassVar[list[Message]] = []

    def do_GET(self) -> None:
        body = Handler.content if self.path == "/app.json" else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        Handler.told.append(self.headers)
        self.send_response(Handler.status_of_hook)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Handler.content, Handler.status_of_hook = b'{"debug": true}', 200
    Handler.told.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/app.json"
    server.shutdown()
    thread.join()
    server.server_close()


def test_once_publishes_the_present_state_and_exits(
    command: Command, tmp_path: Path, url: str
) -> None:
    """For an init container: 0, and the files are there."""
    done = command("mirror", f"{url}#into=etc", "--path", tmp_path / "set", "--once")
    assert done.code == 0, done.err
    assert (tmp_path / "set/etc/app.json").read_text() == '{"debug": true}'


@pytest.mark.parametrize("flags", [(), ("--or-last-good",)], ids=["alone", "or-last-good"])
def test_once_ends_at_its_timeout(command: Command, tmp_path: Path, url: str, *, flags: tuple[str, ...]) -> None:  # fmt: skip
    """1, with the reason; 0 with --or-last-good where the volume has a set from before."""
    path = tmp_path / "set"
    (tmp_path / "old").mkdir()
    (tmp_path / "old/app.json").write_text("old")
    assert command("publish", tmp_path / "old", "--path", path).code == 0
    missing = url.replace("app.json", "missing")
    done = command("mirror", missing, "--path", path, "--once", "--timeout", "2", *flags)
    assert done.code == (0 if flags else 1)
    assert f"cannot read {missing}: it answered 404" in done.err
    assert (path / "app.json").read_text() == "old"


def test_a_refused_content_is_named(command: Command, tmp_path: Path, url: str) -> None:
    """With the gate's reason; the exit code says that a state was taken over as far as it may be."""
    path = tmp_path / "set"
    done = command("mirror", url, "--path", path, "--once", "--format", "toml", "--timeout", "5")
    assert "is refused" in done.err
    assert not (path / "app.json").exists()


def test_a_mirror_answers_probes_until_sigterm(
    sidecar_process: StartProcess, tmp_path: Path, url: str, free_port: int, wait_for: WaitFor
) -> None:
    """Ready once a set is published, and metrics with the words of the documentation."""
    server, path = f"http://127.0.0.1:{free_port}", tmp_path / "set"
    process = sidecar_process("mirror", url, "--path", path, "--port", free_port)

    def is_ready() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{server}/readyz") as answer:
            return bool(answer.status == 200)
        return False

    wait_for(is_ready)
    assert (path / "app.json").exists()
    with urllib.request.urlopen(f"{server}/metrics") as answer:
        assert b'sidecar_mirror_versions_total{result="published"} 1.0' in answer.read()
    assert process.stop() == 0


def test_once_runs_the_actions_when_everything_is_published(
    command: Command, tmp_path: Path, url: str
) -> None:
    """What METHOD=LIST with SCRIPT does in k8s-sidecar; one that fails ends with 1, and its reason."""
    path = tmp_path / "set"
    copy = f"cp {path}/app.json {tmp_path}/copy"
    done = command("mirror", url, "--path", path, "--once", "--exec", copy)
    assert done.code == 0, done.err
    assert (tmp_path / "copy").read_text() == '{"debug": true}'
    done = command("mirror", url, "--path", path, "--once", "--exec", "false", "--timeout", "1")
    assert done.code == 1
    assert "command false exited with 1" in done.err


def test_an_application_is_told_of_each_version_by_the_mirror_itself(
    sidecar_process: StartProcess, tmp_path: Path, url: str, free_port: int, wait_for: WaitFor
) -> None:
    """REQ_URL, REQ_USERNAME, REQ_PASSWORD_FILE and REQ_SKIP_INIT of k8s-sidecar; not ready while it is not told."""
    server, path, password = f"http://127.0.0.1:{free_port}", tmp_path / "set", tmp_path / "password"  # fmt: skip
    password.write_text("secret\n")
    hook = ("--webhook", url.replace("app.json", "hook"), "--no-initial")
    access = ("--user", "ada", "--password-file", password)
    flags = ("--path", path, "--port", free_port, *hook, *access)
    sidecar_process("mirror", f"{url}#interval=0.05", *flags)

    def readiness() -> int:
        try:
            with urllib.request.urlopen(f"{server}/readyz") as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def change(content: bytes) -> None:
        Handler.content = content
        wait_for(lambda: (path / "app.json").read_bytes() == content)

    wait_for(lambda: readiness() == 200)
    assert Handler.told == []
    change(b"second")
    wait_for(lambda: len(Handler.told) == 1)
    told = Handler.told[0]
    assert told["Authorization"] == f"Basic {base64.b64encode(b'ada:secret').decode()}"
    assert told["Sidecar-Changed"] == "app.json"
    Handler.status_of_hook = 500
    change(b"third")
    wait_for(lambda: readiness() == 503)
    Handler.status_of_hook = 200
    wait_for(lambda: readiness() == 200)
    versions = {one["Sidecar-Version"] for one in Handler.told}
    assert len(versions) == 2, "the first one is not told"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("https://host/file", "--expect-status", "200"), "--expect-status needs --webhook"),
        (("https://host/file", "--user", "ada"), "--user and --password-file go together"),
        (("https://host/file", "--no-initial"), "--no-initial needs an action"),
        (("gopher://host/file",), "is no source"),
        (("https://host/file", "--or-last-good"), "--once"),
        ((), "SOURCE... is missing"),
    ],
)
def test_wrong_arguments_are_named(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = command("mirror", *arguments, "--path", tmp_path)
    assert done.code == 2
    assert said in done.err
