"""`sidecar mirror`: its options, its exit codes, its probes."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support import StartProcess, WaitFor
from support.commands import Command


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"debug": true}' if self.path == "/app.json" else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
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
