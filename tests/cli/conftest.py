"""Commands that end by themselves: run one, look at what it said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.commands import Command, Result
from support import environment


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """`command("publish", file, "--path", path)`: the command as a real process, in an empty directory."""

    def run(*arguments: object, env: dict[str, str] | None = None, stdin: bytes = b"") -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "sidecar.cli", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env=environment() | (env or {}),
            cwd=tmp_path,
            timeout=30.0,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
