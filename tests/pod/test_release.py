"""What is published: the chart with the name of the image and the addresses of who publishes it."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import sidecar
from pod import chart, tools

IMAGE, SOURCE = "registry.example/team/sidecar", "https://code.example/team/sidecar"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package that tools/package-chart makes."""
    out = tmp_path_factory.mktemp("dist")
    tools.run(
        tools.ROOT / "tools" / "package-chart",
        f"--image={IMAGE}",
        f"--source={SOURCE}",
        f"--destination={out}",
        f"--helm={tools.helm(4)}",
    )
    (made,) = out.glob("sidecar-*.tgz")
    return made


def member(archive: Path, name: str) -> str:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"sidecar/{name}")
        assert file is not None
        return file.read().decode()


def described(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_a_published_chart_pulls_the_published_image(archive: Path) -> None:
    """From its registry, where it is; and its notes say nothing of loading an image by hand."""
    (container, *_) = chart.pod_spec(chart.render(chart=archive))["containers"]
    assert container["image"] == f"{IMAGE}:{sidecar.__version__}"
    assert container["imagePullPolicy"] == "IfNotPresent"
    command = (tools.helm(4), "install", "demo", archive, "--dry-run=client")
    assert "kind load" not in tools.run(*command).stdout


def test_a_published_chart_names_who_publishes_it(archive: Path) -> None:
    """No address of the working copy is left, neither in what Helm reads nor in what people read."""
    about = described(member(archive, "Chart.yaml"))
    assert (about["home"], about["sources"]) == (SOURCE, [SOURCE])
    for name in ("Chart.yaml", "values.yaml"):
        assert not re.search(
            r"localhost/|sidecar\.example", re.sub("#.*", "", member(archive, name))
        )


def test_the_chart_has_what_a_catalogue_shows() -> None:
    """Artifact Hub and `helm show chart`: home, sources, maintainers, icon, licence, images and changes."""
    about = described((tools.CHART / "Chart.yaml").read_text())
    assert {"home", "sources", "maintainers", "icon", "keywords", "kubeVersion"} <= about.keys()
    annotations = about["annotations"]
    images = yaml.safe_load(annotations["artifacthub.io/images"])
    assert [one["image"] for one in images] == [f"localhost/sidecar:{about['appVersion']}"]
    changes = yaml.safe_load(annotations["artifacthub.io/changes"])
    assert {one["kind"] for one in changes} <= {
        "added",
        "changed",
        "deprecated",
        "removed",
        "fixed",
        "security",
    }
    assert annotations["artifacthub.io/license"] == "Apache-2.0"


def test_the_release_workflow_names_the_image_in_one_place() -> None:
    """Everything else takes it from there; the chart goes to the registry as an OCI artefact."""
    text = (tools.ROOT / ".github" / "workflows" / "release.yaml").read_text()
    workflow = yaml.safe_load(text)
    assert len(re.findall(r"/sidecar(?=\n)", text)) == 1
    steps = {
        name: [one.get("run", "") for one in job["steps"]] for name, job in workflow["jobs"].items()
    }
    assert any('make release-check ARGS="--image $IMAGE' in one for one in steps["build"])
    assert any("helm push" in one and "oci://$CHARTS" in one for one in steps["chart"])
    assert ".ci/run" in steps["build"]
    assert [name for name, job in workflow["jobs"].items() if "build" not in job.get("needs", [])] == ["build"]  # fmt: skip
