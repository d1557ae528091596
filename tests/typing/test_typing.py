"""A user's code under `mypy --strict`, as a user runs it: outside of the project, with no settings of ours."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAMS = ["publish_page", "greet", "api"]
FILES = [f"{name}.py" for name in PROGRAMS]


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says about all of them: one run, the imports are the long part of it."""
    directory = tmp_path_factory.mktemp("user")
    for name in PROGRAMS:
        (directory / f"{name}.py").write_text((HERE / f"{name}.py").read_text())
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", *FILES]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=directory)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_users_program_passes_strict_type_checks(verdict: str, name: str) -> None:
    """No stubs, no ignores, nothing to install: the package brings its types."""
    assert [line for line in verdict.splitlines() if line.startswith(f"{name}.py")] == []
