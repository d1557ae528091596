"""checkov on the rendered chart: nothing, but for what the chart's README argues."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from pod import chart, tools

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def checkov() -> str:
    """The program: from PATH, else from an environment of its own in the cache (its dependencies would mix with ours)."""
    if found := shutil.which("checkov"):
        return found
    program = tools.CACHE / "checkov" / "bin" / "checkov"
    if not program.exists():
        tools.run(sys.executable, "-m", "venv", program.parents[1], timeout=60)
        done = tools.run(
            program.parent / "pip", "install", "--quiet", "checkov==3.*", timeout=300, check=False
        )
        if done.returncode:
            shutil.rmtree(program.parents[1])
            pytest.skip(f"checkov cannot be installed: {done.stderr[-300:]}")
    return str(program)


def failed(checkov: str, text: str, directory: Path) -> set[tuple[str, str]]:
    (directory / "rendered.yaml").write_text(text)
    command = (
        checkov,
        "--file",
        "rendered.yaml",
        "--framework",
        "kubernetes",
        "--quiet",
        "--skip-download",
    )
    done = tools.run(*command, "--output", "json", cwd=directory, check=False)
    results = json.loads(done.stdout)["results"]
    return {(one["check_id"], one["resource"]) for one in results["failed_checks"]}


def test_the_defaults_fail_only_what_the_readme_argues(checkov: str, tmp_path: Path) -> None:
    """Each failed check is in the README's table of exceptions, and each exception is still one."""
    section = (
        (tools.CHART / "README.md").read_text().partition("## Security")[2].partition("\n## ")[0]
    )
    argued = set(re.findall(r"CKV2?_K8S_\d+", section))
    assert {check for check, _ in failed(checkov, chart.template().stdout, tmp_path)} == argued


def test_with_an_image_of_ones_registry_nothing_fails(checkov: str, tmp_path: Path) -> None:
    """As the README says: digest, pull policy, and without the Pod of `helm test`."""
    values = {
        "image": {"digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
        "tests": {"enabled": False},
    }
    assert failed(checkov, chart.template(values).stdout, tmp_path) == set()


@pytest.mark.parametrize("native", [True, False])
def test_a_collector_fails_nothing_but_what_the_readme_argues(
    checkov: str, tmp_path: Path, native: bool
) -> None:
    """Beside writer and reader, as a native sidecar and as an ordinary container: no readiness probe is on purpose."""
    values = {
        "image": {"digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
        "tests": {"enabled": False},
        "collector": {"enabled": True, "native": native},
    }
    found = {check for check, _ in failed(checkov, chart.template(values).stdout, tmp_path)}
    assert found == (set() if native else {"CKV_K8S_9"})


def test_it_would_find_a_hole(checkov: str, tmp_path: Path) -> None:
    """The check itself: a privileged container is found."""
    values = {"containerSecurityContext": {"privileged": True}}
    assert "CKV_K8S_16" in {
        check for check, _ in failed(checkov, chart.template(values).stdout, tmp_path)
    }
