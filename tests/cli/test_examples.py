"""The programs under examples/, as processes: they answer on the wire as the article shows."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from support import FreePorts, Process, StartProcess, WaitFor

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def start(sidecar_process: StartProcess, free_ports: FreePorts, tmp_path: Path):
    """`start("writer")`: the example on a free port and on the file of this test; returns it and its port."""

    def begin(name: str) -> tuple[Process, int]:
        (port,) = free_ports(1)
        env = {"CONFIG_FILE": str(tmp_path / "gin" / "config"), "PORT": str(port)}
        url = f"http://127.0.0.1:{port}/livez"
        return sidecar_process(EXAMPLES / name / "main.py", until=url, env=env), port

    return begin


def transcript(page: Path) -> list[tuple[str, str]]:
    (block,) = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    steps = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, output.strip()) for command, _, output in (s.partition("\n") for s in steps)]


def shell(line: str) -> str:
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@pytest.mark.parametrize("page", ["writer", "reader"])
def test_the_transcript_of_the_page_is_what_happens(
    page: str, start, tmp_path: Path, wait_for: WaitFor
) -> None:
    """Command by command; only file and ports are those of the test."""
    (_, writer), (_, reader) = start("writer"), start("reader")
    steps = transcript(EXAMPLES / page / "README.md")
    assert len(steps) >= 4
    for line, expected in steps:
        here = line.replace("localhost:8080", f"localhost:{writer}")
        here = here.replace("localhost:8081", f"localhost:{reader}")
        here = here.replace("/tmp/gin/config", str(tmp_path / "gin" / "config"))
        wait_for(lambda here=here, expected=expected: shell(here) == expected)


def test_the_reader_says_ok_where_there_is_no_file(start) -> None:
    """As the article's does."""
    _, reader = start("reader")
    assert shell(f"curl localhost:{reader}") == '"ok"'


@pytest.mark.parametrize("name", ["writer", "reader"])
def test_the_program_ends_with_0_when_the_pod_does(name: str, start) -> None:
    """SIGTERM, as kubelet sends it."""
    process, _ = start(name)
    process.send(signal.SIGTERM)
    assert process.wait() == 0


def test_where_the_writer_differs_is_as_its_page_says(start, tmp_path: Path) -> None:
    """A bare GET changes nothing, a restart keeps the content, `?content=` empties it."""
    process, port = start("writer")
    path = tmp_path / "gin" / "config"
    assert shell(f"curl 'localhost:{port}/?content=kept'") == '"ok"'
    assert shell(f"curl -s -o /dev/null -w '%{{http_code}}' localhost:{port}/") == "400"
    assert path.read_text() == "kept"
    assert process.stop() == 0
    _, port = start("writer")
    assert path.read_text() == "kept"
    assert shell(f"curl 'localhost:{port}/?content='") == '"ok"'
    assert path.read_text() == ""


@pytest.mark.parametrize("name", ["writer", "reader"])
def test_the_program_is_about_ten_lines(name: str) -> None:
    """What a user has to read before they make it their own."""
    lines = (EXAMPLES / name / "main.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 10
