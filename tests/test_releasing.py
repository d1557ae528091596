"""What a release and a review rely on: one version everywhere, a changelog, workflows that parse, and names that exist."""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from pod import tools

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION_FILE = PROJECT["tool"]["hatch"]["version"]["path"]
CHART = yaml.safe_load((ROOT / "charts/sidecar/Chart.yaml").read_text())
IMAGE = re.compile(r"localhost/sidecar:(\d[\w.+-]*)")
"""The image of a working copy, with a tag."""
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
WITH_TARGETS = [
    *(ROOT / name for name in ("RELEASING.md", "CONTRIBUTING.md", "README.md")),
    ROOT / ".github/pull_request_template.md",
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read_version() -> str:
    found = re.findall(
        r'^__version__ = "([^"]+)"$', (ROOT / VERSION_FILE).read_text(), re.MULTILINE
    )
    assert len(found) == 1
    return str(found[0])


def naming_the_image() -> list[Path]:
    """Return the files that a user runs or reads with a tag of the image in them."""
    files = [ROOT / name for name in ("Makefile", "Dockerfile", "compose.yaml")]
    for directory in ("charts", "docs", "examples"):
        files += (path for path in (ROOT / directory).rglob("*") if path.is_file())
    return sorted(path for path in files if IMAGE.search(path.read_text(errors="replace")))


def yaml_files() -> list[Path]:
    return [ROOT / ".pre-commit-config.yaml", *sorted((ROOT / ".github").rglob("*.y*ml"))]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def make_targets() -> set[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    return set(phony[1].split())


def test_package_chart_and_image_have_one_version() -> None:
    """Helm and the build cannot read the package, so they repeat its version."""
    built = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    assert [CHART["version"], CHART["appVersion"], *built] == [read_version()] * 3


@pytest.mark.parametrize("path", naming_the_image(), ids=relative)
def test_each_tag_of_the_image_is_the_version(path: Path) -> None:
    """What is pasted from a page or an example finds the image that `make image` builds."""
    assert set(IMAGE.findall(path.read_text())) == {read_version()}


def test_the_version_is_set_everywhere_by_one_command(tmp_path: Path) -> None:
    """As RELEASING.md says; what it forgets would be found by the test above after the fact."""
    for name in ("charts", "docs", "examples", "sidecar", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "Dockerfile", "compose.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n### Added\n\n- A.\n")
    (tmp_path / "UPGRADING.md").write_text("## Unreleased\n\n- B.\n")
    tools.run(sys.executable, tmp_path / "tools/set-version", "9.8.7", "--date", "2031-02-03")

    chart = load(tmp_path / "charts/sidecar/Chart.yaml")
    (dependency,) = load(tmp_path / "examples/chart/Chart.yaml")["dependencies"]
    assert [chart["version"], chart["appVersion"], dependency["version"]] == ["9.8.7"] * 3
    assert '__version__ = "9.8.7"' in (tmp_path / VERSION_FILE).read_text()
    assert "ARG VERSION=9.8.7\n" in (tmp_path / "Dockerfile").read_text()
    assert (tmp_path / "CHANGELOG.md").read_text() == (
        "## [Unreleased]\n\n## [9.8.7] - 2031-02-03\n\n### Added\n\n- A.\n"
    )
    assert (tmp_path / "UPGRADING.md").read_text() == "## 9.8.7\n\n- B.\n"
    texts = [(tmp_path / path.relative_to(ROOT)).read_text() for path in naming_the_image()]
    assert {tag for text in texts for tag in IMAGE.findall(text)} == {"9.8.7"}


def test_make_builds_the_image_that_the_chart_runs() -> None:
    """The tag of the chart is its appVersion, and that of the Makefile is the same."""
    default = re.search(r"^IMAGE +\?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert default is not None
    repository = load(ROOT / "charts/sidecar/values.yaml")["image"]["repository"]

    assert default[1] == f"{repository}:{CHART['appVersion']}"


def test_the_release_workflow_looks_for_the_version_where_it_stands() -> None:
    """A tag is compared with the one place of the version."""
    steps = load(ROOT / ".github/workflows/release.yaml")["jobs"]["build"]["steps"]
    commands = "\n".join(step.get("run", "") for step in steps)

    assert f'__version__ = \\"$version\\"" {VERSION_FILE}\n' in commands


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    """The newest heading is Unreleased, or the version that is about to be released; each other has its date."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    dated = r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d"

    assert headings[0] == "[Unreleased]" or headings[0].startswith(f"[{read_version()}] - ")
    assert [one for one in headings if one != "[Unreleased]" and not re.fullmatch(dated, one)] == []


@pytest.mark.parametrize("path", yaml_files(), ids=relative)
def test_workflows_forms_and_hooks_parse(path: Path) -> None:
    """The hosting reports a file that it cannot read late, or not at all."""
    assert isinstance(load(path), dict)


def test_workflows_are_valid() -> None:
    """By actionlint: keys, expressions, inputs of actions, runtimes that GitHub has removed."""
    workflows = sorted(map(str, (ROOT / ".github/workflows").glob("*.yaml")))
    program = Path(sys.executable).parent / "actionlint"
    done = subprocess.run(
        [program, "-shellcheck=", "-pyflakes=", *workflows],
        capture_output=True,
        text=True,
        check=False,
    )

    assert len(workflows) == 2
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_action_is_pinned() -> None:
    """By the hash of a commit, with its version for people: a tag can be moved to other code."""
    for path in (ROOT / ".github/workflows").glob("*.yaml"):
        used = re.findall(r"uses: (.*)", path.read_text())
        pinned = r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
        assert used
        assert [one for one in used if not re.fullmatch(pinned, one)] == []


def test_each_right_of_a_workflow_is_given_to_a_job() -> None:
    """The whole workflow may read; who writes, signs or uploads says so by itself."""
    for path in (ROOT / ".github/workflows").glob("*.yaml"):
        workflow = load(path)
        assert workflow["permissions"] == {"contents": "read"}
        jobs = {name: job.get("permissions", {}) for name, job in workflow["jobs"].items()}
        assert {name for name, rights in jobs.items() if rights.get("contents") == "write"} <= {
            "page",
            "site",
        }


def test_the_image_is_built_for_both_architectures() -> None:
    """With provenance and a bill of materials; only once the same image was scanned for known vulnerabilities."""
    steps = load(ROOT / ".github/workflows/release.yaml")["jobs"]["image"]["steps"]
    used = [one for one in steps if re.match("docker/build-push|anchore/scan", one.get("uses", ""))]
    local, scan, build = (one["with"] for one in used)

    assert (local["tags"], local.get("push")) == (scan["image"], None)
    assert scan["severity-cutoff"] == "critical"
    assert build["platforms"] == "linux/amd64,linux/arm64"
    assert (build["provenance"], build["sbom"]) == ("mode=max", True)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make release-check` builds; it fails where two builds differ."""
    out = tmp_path_factory.mktemp("release") / "dist"
    tools.run(
        sys.executable, ROOT / "tools/release-check", "--no-install", "--helm", tools.helm(4),
        "--image", "registry.example/team/sidecar", "--source", "https://code.example/team/sidecar", "--destination", out,
    )  # fmt: skip
    return out


@pytest.mark.slow
def test_a_release_has_each_artefact_with_its_checksum(release: Path) -> None:
    """As `sha256sum --check` reads it."""
    version = read_version()
    names = {path.name for path in release.iterdir()}
    lines = (release / "SHA256SUMS").read_text().splitlines()

    assert names == {
        "SHA256SUMS",
        "sidecar.cdx.json",
        f"sidecar-{version}.tgz",
        f"podsidecar-{version}.tar.gz",
        f"podsidecar-{version}-py3-none-any.whl",
    }
    for digest, name in (line.split("  ") for line in lines):
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest
    assert {line.split("  ")[1] for line in lines} == names - {"SHA256SUMS"}


@pytest.mark.slow
def test_the_published_package_names_who_publishes_it(release: Path) -> None:
    """Each address is one of the repository; none of nobody is left."""
    (wheel,) = release.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        head = archive.read(metadata).decode().partition("\n\n")[0]
    urls = dict(re.findall(r"^Project-URL: (\w+), (\S+)$", head, re.MULTILINE))

    assert {"Documentation", "Source", "Changelog", "Issues", "Security"} == urls.keys()
    assert all(url.startswith("https://code.example/team/sidecar") for url in urls.values())


@pytest.mark.slow
def test_the_source_archive_has_what_a_packager_needs(release: Path) -> None:
    """Licence, changelog, types and tests; nothing that was made by running it."""
    (path,) = release.glob("podsidecar-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "PKG-INFO",
        "sidecar/py.typed",
        "tests/conftest.py",
    } <= names
    assert [name for name in names if name.endswith(".pyc")] == []


@pytest.mark.parametrize("path", FORMS, ids=relative)
def test_issue_forms_have_what_the_hosting_requires(path: Path) -> None:
    """Name, description and body; each input has a label, and an id of its own."""
    form = load(path)
    inputs = [one for one in form["body"] if one["type"] != "markdown"]

    assert {"name", "description", "body"} <= form.keys()
    assert all(one["attributes"]["label"] for one in inputs)
    assert len({one["id"] for one in inputs}) == len(inputs) > 0


def test_hooks_need_no_network() -> None:
    """Every hook is local, and runs git or a program that `.venv` has."""
    repositories = load(ROOT / ".pre-commit-config.yaml")["repos"]
    programs = {hook["entry"].split()[0] for one in repositories for hook in one["hooks"]}
    ours = {Path(one) for one in programs - {"git"}}

    assert [one["repo"] for one in repositories] == ["local"]
    assert {str(one.parent) for one in ours} == {".venv/bin"}
    assert [one for one in ours if not (Path(sys.executable).parent / one.name).exists()] == []


def test_each_path_with_an_owner_exists() -> None:
    """A rule for a path that has moved asks nobody."""
    lines = (ROOT / ".github/CODEOWNERS").read_text().splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    paths = [rule[0] for rule in rules if rule[0] != "*"]

    assert all(owner.startswith("@") for rule in rules for owner in rule[1:])
    assert [one for one in paths if not (ROOT / one.removeprefix("/")).exists()] == []
    assert [one for one in paths if one.endswith("/") and not (ROOT / one[1:]).is_dir()] == []


@pytest.mark.parametrize("page", WITH_TARGETS, ids=relative)
def test_each_make_target_that_a_page_names_exists(page: Path) -> None:
    """Somebody follows a list of steps only as far as its first command that is not there."""
    text = page.read_text()
    named = set(re.findall(r"(?:`|^\$ |^ {4})make ([a-z][a-z-]*)", text, re.MULTILINE))

    assert named - make_targets() == set()
