"""The first minute of a newcomer: `make` on a machine that lacks something."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of the project as is there before anything is installed."""
    directory = tmp_path / "clone"
    directory.mkdir()
    for name in ("Makefile", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    for name in ("tools", "image", "sidecar"):
        shutil.copytree(ROOT / name, directory / name)
    return directory


def make(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=directory,
        env=ours | variables,
    )


def interpreter(directory: Path, text: str) -> str:
    path = directory / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"PYTHON={path}"


def test_make_alone_says_what_there_is(clone: Path) -> None:
    """Each target that is meant for people, with a line on what it does."""
    lines = make(clone).stdout.splitlines()
    shown = {line.split()[1] for line in lines if line.startswith("  make ")}
    phony = next(
        line for line in (clone / "Makefile").read_text().splitlines() if line.startswith(".PHONY")
    )
    assert shown == set(phony.split()[1:])


@pytest.mark.parametrize(
    ("target", "extras"),
    [("run", "schema,logs"), ("test", "schema,logs,test"), ("lint", "schema,logs,test")],
)
def test_the_tools_of_the_tests_are_installed_by_what_uses_them(
    clone: Path, target: str, extras: str
) -> None:
    """Who only wants to see it run does not wait for them, and who has them has what runs as well."""
    setup = next(
        line
        for line in make(clone, "--dry-run", target).stdout.splitlines()
        if "tools/venv" in line
    )
    assert setup.split()[3:] == [extras]
    (clone / ".venv").mkdir()
    stamps = make(clone, "--dry-run", "test").stdout
    for stamp in (".venv/.runtime", ".venv/.installed"):
        assert f" {stamp}" in stamps


def test_what_runs_is_at_most_30_packages_and_80_mb() -> None:
    """All that `make run` installs, with pip: issue 17. The sizes are those on the disk, compiled files included."""
    wanted = ["podsidecar[schema,logs]", "pip"]
    found: dict[str, metadata.Distribution] = {}
    examined = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        if (str(requirement)) in examined:
            continue
        examined.add(str(requirement))
        name = canonicalize_name(requirement.name)
        found[name] = metadata.distribution(name)
        for text in found[name].requires or ():
            inner = Requirement(text)
            extras = requirement.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                inner.marker = None
                wanted.append(str(inner))
    files = {file.locate() for one in found.values() for file in one.files or ()}
    assert 20 <= len(found) <= 30
    assert sum(os.path.getsize(file) for file in files if os.path.isfile(file)) <= 80e6


def test_an_old_python_is_refused_with_its_version(clone: Path) -> None:
    """And with the way to name another one."""
    old = 'case "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac'
    done = make(clone, "run", interpreter(clone, old))
    assert done.returncode != 0
    assert "is Python 3.9, and sidecar needs 3.11 or newer" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_missing_python_is_said_so(clone: Path) -> None:
    """Not "command not found" from somewhere inside."""
    done = make(clone, "test", "PYTHON=python-that-is-not-there")
    assert done.returncode != 0
    assert "no python-that-is-not-there here" in done.stderr


def test_a_python_without_venv_names_the_package(clone: Path) -> None:
    """Debian's python3 without python3-venv: the usual case on a new machine."""
    (clone / "missing").mkdir()
    (clone / "missing/ensurepip.py").write_text("raise ImportError")
    without = f'PYTHONPATH={clone}/missing exec {sys.executable} "$@"'
    done = make(clone, "run", interpreter(clone, without))
    assert done.returncode != 0
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"apt-get install python{version}-venv" in done.stderr


@pytest.mark.slow
def test_no_network_is_said_so_and_the_next_try_begins_again(clone: Path) -> None:
    """A half-made environment must not count as made."""
    nowhere = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_RETRIES": "0",
    }
    for _ in range(2):
        done = make(clone, "test", f"PYTHON={sys.executable}", **nowhere)
        assert done.returncode != 0
        assert "setting up .venv (2/2): sidecar[schema,logs,test]" in done.stdout
        assert "It needs a package index: check the network" in done.stderr
    assert not (clone / ".venv/.installed").exists()
