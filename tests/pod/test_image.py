"""The image: small, without tools to install or compile, at home with a read-only root and any user."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pod import podman, tools

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
HARDENED = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--network=none",
)


def config(image: str) -> dict[str, Any]:
    (found,) = json.loads(podman.podman("image", "inspect", image).stdout)
    described: dict[str, Any] = found
    return described


def python(image: str, program: str, *options: str) -> str:
    done = podman.podman(
        "run",
        "--rm",
        *HARDENED,
        *options,
        "--entrypoint=python3",
        image,
        "-c",
        program,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip()


def test_it_adds_no_more_than_60_megabytes_to_its_base(image: str) -> None:
    """Measured by podman as the sum of its layers; printed, since people compare it."""
    beyond = config(image)["Size"] - config(podman.base())["Size"]
    print(f"beyond the base image: {beyond / 1e6:.1f} MB")
    assert 0 < beyond <= 60e6


def test_it_says_what_it_is_and_runs_as_nobody(image: str) -> None:
    """OCI annotations, a numeric user, no HEALTHCHECK (Kubernetes has probes), never `python -O`."""
    described = config(image)
    labels = described["Labels"]
    for name in ("title", "description", "licenses", "version", "revision"):
        assert labels[f"org.opencontainers.image.{name}"]
    assert described["Config"]["User"] == "65532:65532"
    assert described["Config"]["Entrypoint"] == ["sidecar"]
    assert "Healthcheck" not in described["Config"]
    assert not any(one.startswith("PYTHONOPTIMIZE") for one in described["Config"]["Env"])


@pytest.mark.parametrize("user", ["65532:65532", "12345:0", "0:0"])
def test_it_runs_as_any_user_with_a_read_only_root_and_no_capability(image: str, user: str) -> None:
    """Also as one that /etc/passwd does not know."""
    done = podman.podman("run", "--rm", *HARDENED, f"--user={user}", image, "--version")
    assert re.fullmatch(r"sidecar \d+\.\d+\.\d+\S*\n", done.stdout)


@pytest.mark.parametrize("role", ["write", "read", "collect", "publish", "wait", "check", "doctor"])
def test_it_knows_all_roles(image: str, role: str) -> None:
    """One image: the argument is the role."""
    done = podman.podman("run", "--rm", *HARDENED, image, role, "--help")
    assert done.stdout.startswith(f"Usage: sidecar {role}")


def test_nothing_in_it_can_install_or_compile(image: str) -> None:
    """No pip, no ensurepip that would bring it back, no compiler."""
    found = python(
        image,
        "import importlib.util as u, shutil as s;"
        "print([m for m in ('pip', 'ensurepip', 'setuptools') if u.find_spec(m)],"
        "[p for p in ('pip', 'pip3', 'gcc', 'cc', 'make', 'git') if s.which(p)])",
    )
    assert found == "[] []"


def test_what_a_start_imports_is_compiled(image: str) -> None:
    """With a read-only root each start would compile it again: every module has its bytecode in the image."""
    program = (
        "import os, sys, importlib.util as u;"
        "import sidecar.cli.main, sidecar.cli.commands.check, sidecar.http.apps.reader, sidecar.http.apps.writer, sidecar.http.server.serve;"
        "import yaml, sidecar.cli.impl.collect, sidecar.logs.sinks.http, sidecar.logs.sinks.stdout;"
        "files = [m.__file__ for m in list(sys.modules.values()) if (getattr(m, '__file__', None) or '').endswith('.py')];"
        "print(sorted(f for f in files if not os.path.exists(u.cache_from_source(f))))"
    )
    assert python(image, program) == "[]"


def test_the_lock_has_hashes_and_satisfies_what_the_package_asks_for() -> None:
    """Each line of the lock has a version and a hash, and it names every dependency of the package."""
    import tomllib

    lock = (tools.ROOT / "image" / "requirements.txt").read_text()
    blocks = re.split(r"\n(?=\S)", lock.strip())
    pinned = {}
    for block in blocks:
        if not block.startswith("#"):
            found = re.match(r"([a-z0-9-]+)==(\S+)", block)
            assert found, block
            assert "--hash=sha256:" in block, block
            pinned[found[1]] = found[2]
    project = tomllib.loads((tools.ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["schema"]]
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    for line in asked:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_the_lock_has_the_versions_that_the_tests_run_with() -> None:
    """What was tested is what is shipped: tools/venv installs the versions of the lock (`make lock` renews them)."""
    from importlib import metadata

    locks = ("requirements.txt", "sign.txt")
    lock = "\n".join((tools.ROOT / "image" / one).read_text() for one in locks)
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    assert {name: metadata.version(name) for name in pinned} == pinned


def test_the_default_base_is_public_and_exact() -> None:
    """Users build on a public image by its exact version; a build argument replaces it."""
    dockerfile = (tools.ROOT / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE=(\S+)$", dockerfile, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-\w+", base)
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${BASE}"}


def test_the_context_of_the_build_is_what_the_image_is_made_of() -> None:
    """Everything is left out that is not named: no .git, no tests, no secrets that lie about."""
    lines = [
        one
        for one in (tools.ROOT / ".dockerignore").read_text().splitlines()
        if one and one[0] != "#"
    ]
    assert lines[0] == "*"
    named = {one[1:] for one in lines if one.startswith("!")}
    copied = set()
    for line in (tools.ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= {
                Path(one).name if "/" not in one else "image/*.txt" for one in line.split()[1:-1]
            }
    assert named == copied
