"""Without a cluster: the same image as two containers on a shared volume."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pod import podman, tools
from pod.podman import get, http_call, until

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
WRITER, READER = "http://127.0.0.1:30082", "http://127.0.0.1:30083"


@pytest.fixture
def up(image: str) -> Iterator[None]:
    """`podman-compose up --detach`, and `down` with its volume."""
    program = shutil.which(
        "podman-compose", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if program is None:
        pytest.skip("needs podman-compose")
    ports = {"WRITER_PORT": "30082", "READER_PORT": "30083", "IMAGE": image}
    command = (program, "--file", tools.ROOT / "compose.yaml", "--project-name", "sidecar-tests")
    environment = podman.environment() | ports
    try:
        tools.run(*command, "up", "--detach", env=environment, timeout=120)
        until(lambda: {get(f"{url}/readyz").status for url in (WRITER, READER)} == {200})
        yield
    finally:
        tools.run(
            *command, "down", "--volumes", "--timeout=0", env=environment, timeout=120, check=False
        )


def test_what_is_written_in_one_container_is_read_in_the_other(up: None) -> None:
    """The article's requests, and the writer that asks the reader by its name."""
    assert get(READER).text == '""'
    assert get(f"{WRITER}/?content=123").text == '"ok"'
    until(lambda: get(READER).text == '"123"')
    answer = http_call("PUT", f"{WRITER}/files/config", b"now", prefer="wait=5")
    assert answer.status in {200, 201, 204}, answer.text
    assert get(READER).text == '"now"'


def test_the_reader_has_the_volume_read_only(up: None) -> None:
    """As in the Pod, the consumer cannot touch what it consumes."""
    listed = podman.podman("ps", "--format={{.Names}}").stdout.split()
    (reader,) = [name for name in listed if "reader" in name]
    done = podman.podman("exec", reader, "python3", "-c", "open('/shared/x', 'w')", check=False)
    assert "Read-only file system" in done.stderr
