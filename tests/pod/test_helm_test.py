"""The program of `helm test`, against a writer and a reader with each kind of gate."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pod import tools
from pod.podman import get, http_call, until
from support import Process, environment

PROGRAM = tools.CHART / "tests" / "write_read.py"
SAME, REFUSED = "write -> read: the same", "the gate refuses all that this test knows"
SCHEMA = '{"type": "object", "required": ["version"]}'


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """`start(*gate)`: a writer with these options and a reader; returns their addresses as the program wants them."""
    with ExitStack() as stack:

        def begin(*gate: str) -> dict[str, str]:
            processes = {}
            for role, command, options in (("WRITER", "write", gate), ("READER", "read", ())):
                own = tmp_path / command
                own.mkdir()
                line = [sys.executable, "-m", "sidecar.cli", command, *options]
                line += [
                    f"--path={tmp_path}/volume/content",
                    "--host=127.0.0.1",
                    "--port=0",
                    "--drain-delay=0",
                ]
                processes[role] = Process(line, own, cwd=tmp_path, env=environment())
                stack.callback(processes[role].stop)
            return {
                role: until(lambda one=one: re.search(r"http://127\.0\.0\.1:\d+", one.output))[0]
                for role, one in processes.items()
            }

        yield begin


def helm_test(urls: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **urls, "TIMEOUT": "10", **variables}
    return tools.run(sys.executable, PROGRAM, env=variables, check=False)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ((), SAME),
        (("--format=toml",), SAME),
        (("--format=json", f"--schema={SCHEMA}"), REFUSED),
        (("--check=false",), REFUSED),
    ],
)
def test_it_passes_behind_every_gate(
    start: Any, gate: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    """A gate that refuses works: what it takes instead, nobody but its owner knows."""
    (tmp_path / "schema").write_text(SCHEMA)
    urls = start(*(one.replace(SCHEMA, str(tmp_path / "schema")) for one in gate))
    done = helm_test(urls)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
    assert get(f"{urls['READER']}/files/helm-test").status == 404


def test_it_takes_the_content_that_it_is_given_or_that_is_there(start: Any, tmp_path: Path) -> None:
    """`tests.content` first; without it what the reader serves has passed the gate."""
    (tmp_path / "schema").write_text(SCHEMA)
    urls = start("--format=json", f"--schema={tmp_path}/schema")
    assert SAME in helm_test(urls, CONTENT='{"version": 1}').stdout
    wrong = helm_test(urls, CONTENT="{}")
    assert wrong.returncode == 1
    assert "the writer refuses tests.content" in wrong.stderr
    http_call("PUT", f"{urls['WRITER']}/files/content", b'{"version": 2}')
    until(lambda: get(f"{urls['READER']}/raw").body == b'{"version": 2}')
    assert SAME in helm_test(urls).stdout
