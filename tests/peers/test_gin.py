"""The article's own Go programs and ours, on one directory, both ways round."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from support import FreePorts, Process, StartProcess, WaitFor

SOURCES = Path(__file__).parent / "gin"
LIBRARIES = Path("/usr/share/gocode/src/github.com/gin-gonic/gin")


@pytest.fixture(scope="session")
def gin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The article's programs, built from Debian's packages: `gin["writer"]`, `gin["reader"]`."""
    if shutil.which("go") is None or not LIBRARIES.is_dir():
        pytest.skip("needs golang-go and golang-github-gin-gonic-gin-dev")
    built = tmp_path_factory.mktemp("gin")
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",
        "GOCACHE": str(built / "cache"),
        "CGO_ENABLED": "0",
    }
    for name in ("writer", "reader"):
        command = ["go", "build", "-o", str(built / name), str(SOURCES / f"{name}.go")]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    return {name: built / name for name in ("writer", "reader")}


def get(port: int, query: str = "") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{query}", timeout=10) as answer:
        return answer.read().decode()


def write(port: int, content: str) -> str:
    return get(port, "?content=" + urllib.parse.quote(content))


def start_gin(
    start_process: StartProcess, program: Path, config: Path, port: int, *, up: str
) -> Process:
    environment = {"CONFIG": str(config), "PORT": str(port)}
    return start_process(program, env=environment, until=f"http://127.0.0.1:{port}{up}")


@pytest.mark.timeout(120)  # the first build compiles Gin itself
def test_our_reader_follows_the_articles_writer(
    gin: dict[str, Path],
    start_process: StartProcess,
    sidecar_process: StartProcess,
    free_ports: FreePorts,
    wait_for: WaitFor,
    tmp_path: Path,
) -> None:
    """A writer that truncates in place is followed: each of its contents arrives, none of them half."""
    config = tmp_path / "gin" / "config"
    writer, reader = free_ports(2)
    start_gin(start_process, gin["writer"], config, writer, up="/metrics")
    sidecar_process(
        "read", "--path", config, "--port", reader, until=f"http://127.0.0.1:{reader}/livez"
    )

    wait_for(lambda: get(reader) == '""')
    for content in ("ok", "123", "x" * 5000, "", "last"):
        assert write(writer, content) == '"ok"'
        wait_for(lambda content=content: get(reader) == f'"{content}"')


@pytest.mark.timeout(120)
def test_the_articles_reader_follows_our_writer(
    gin: dict[str, Path],
    start_process: StartProcess,
    sidecar_process: StartProcess,
    free_ports: FreePorts,
    tmp_path: Path,
) -> None:
    """When our writer has answered, a reader in another language sees the content at its next read."""
    config = tmp_path / "gin" / "config"
    writer, reader = free_ports(2)
    start_gin(start_process, gin["reader"], config, reader, up="/")
    assert get(reader) == '"ok"'  # no file yet

    sidecar_process(
        "write", "--path", config, "--port", writer, until=f"http://127.0.0.1:{writer}/livez"
    )

    assert get(reader) == '""'
    for content in ("ok", "123", "x" * 5000, "", "last"):
        assert write(writer, content) == '"ok"'
        assert get(reader) == f'"{content}"'
