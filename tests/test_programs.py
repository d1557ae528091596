"""The programs of the README, as they stand there, as processes on one directory."""

import json
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from support import Process, StartProcess, WaitFor

PROGRAMS = Path(__file__).parent / "typing"


def adapted(name: str, directory: Path, port: int | None = None) -> Path:
    """Copy a program; only the volume and the port are those of the test."""
    text = (PROGRAMS / f"{name}.py").read_text().replace("/shared", str(directory / "shared"))
    path = directory / f"{name}.py"
    path.write_text(text.replace("port=8080", f"host='127.0.0.1', port={port}"))
    return path


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize("name", ["publish_page", "greet"])
def test_the_readme_shows_the_programs_that_are_tested(name: str) -> None:
    """Letter by letter: what is read there is what runs here."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert (PROGRAMS / f"{name}.py").read_text() in readme


def publisher(start: StartProcess, directory: Path) -> Process:
    page = directory / "shared" / "index.html"
    return start(adapted("publish_page", directory), until=page.exists)


def test_the_publishing_program_publishes_and_ends_with_exit_0(
    tmp_path: Path, sidecar_process: StartProcess
) -> None:
    """Page and timestamp, together; SIGTERM while it waits for the next ten seconds."""
    process = publisher(sidecar_process, tmp_path)
    assert (tmp_path / "shared/index.html").read_text().startswith("<h1>Written at ")
    assert (tmp_path / "shared/written_at.txt").exists()
    process.send(signal.SIGTERM)
    assert process.wait() == 0, process
    assert "Traceback" not in process.output


def test_the_answering_program_serves_what_the_other_has_published(
    tmp_path: Path, sidecar_process: StartProcess, free_port: int, wait_for: WaitFor
) -> None:
    """It says itself that there is nothing yet, so it is ready; both end with exit 0."""
    url = f"http://127.0.0.1:{free_port}"
    reader = sidecar_process(adapted("greet", tmp_path, free_port), until=f"{url}/livez")
    assert get(f"{url}/readyz")[0] == 200
    assert get(f"{url}/")[0] == 503
    writer = publisher(sidecar_process, tmp_path)
    wait_for(lambda: get(f"{url}/")[0] == 200)
    written_at = (tmp_path / "shared/written_at.txt").read_text()
    status, body = get(f"{url}/")
    assert (status, json.loads(body)["at"]) == (200, written_at)
    assert get(f"{url}/site/index.html")[1].startswith(b"<h1>Written at ")
    assert (writer.stop(), reader.stop()) == (0, 0), (writer, reader)
