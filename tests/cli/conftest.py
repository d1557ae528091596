"""Commands that end by themselves: run one, look at what it said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import environment
from support.commands import Command, Result


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


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, with its key in the same file."""
    path = tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1"
        " -subj /CN=test -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out certificate.pem"
    )
    subprocess.run(command.split(), check=True, capture_output=True, cwd=tmp_path)
    path.write_bytes(path.read_bytes() + (tmp_path / "key.pem").read_bytes())
    return path
