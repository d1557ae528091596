"""Other charts add our containers with one line each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from pod import chart, tools

EXAMPLE = tools.ROOT / "examples" / "chart"


@pytest.fixture(params=[3, 4])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def example(tmp_path: Path, major: int) -> Path:
    """The example with its dependency, as `helm dependency build` fetches it, in a copy."""
    copy = tmp_path / "examples" / "chart"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("charts", "Chart.lock"))
    shutil.copytree(tools.CHART, tmp_path / "charts" / "sidecar")
    tools.run(tools.helm(major), "dependency", "build", copy)
    return copy


def test_our_containers_stand_beside_the_charts_own(example: Path, major: int) -> None:
    """One Deployment with three containers on one volume, and no other workload."""
    objects = chart.render(chart=example, major=major)
    assert sorted(one["kind"] for one in objects) == ["ConfigMap", "ConfigMap", "Deployment"]
    spec = chart.pod_spec(objects)
    assert [one["name"] for one in spec["containers"]] == ["shop", "writer", "reader"]
    assert [one["name"] for one in spec["initContainers"]] == ["writer-initial", "logs"]
    volumes = {one["name"] for one in spec["volumes"]}
    mounted = {mount["name"] for one in chart.containers(spec) for mount in one["volumeMounts"]}
    collectors = {"collector", "collector-state", "collector-podinfo"}
    assert mounted == volumes == {"shared", "logs", "initial-content"} | collectors
    assert "--format=json" in chart.container(objects, "writer")["args"]
    config_maps = {one["metadata"]["name"] for one in objects if one["kind"] == "ConfigMap"}
    assert {
        one["configMap"]["name"] for one in spec["volumes"] if "configMap" in one
    } == config_maps


def test_they_are_the_same_containers_as_those_of_our_own_chart(example: Path, major: int) -> None:
    """A container does not depend on which chart it is rendered from."""
    values = yaml.safe_load((EXAMPLE / "values.yaml").read_text())["sidecar"] | {"enabled": True}
    own = chart.render(values, major=major)
    theirs = chart.render(chart=example, major=major)
    for name in ("writer", "reader", "writer-initial", "logs"):
        assert chart.container(theirs, name) == chart.container(own, name)


def test_a_change_of_what_is_read_at_the_start_makes_a_new_pod(example: Path, major: int) -> None:
    """The checksums that our own chart puts into the Pod's annotations are there for others, too."""

    def annotations(**values: object) -> dict[str, str]:
        objects = chart.render({"sidecar": values}, chart=example, major=major)
        found: dict[str, str] = chart.only(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]  # fmt: skip
        return found

    before = annotations()
    assert before.keys() == {"checksum/initial-content", "checksum/collector"}
    after = annotations(collector={"stages": [{"drop": "x"}]})
    assert after["checksum/initial-content"] == before["checksum/initial-content"]
    assert after["checksum/collector"] != before["checksum/collector"]


def test_an_alias_gives_its_own_context(example: Path, major: int) -> None:
    """Two volumes in one Pod: the dependency twice, each under a name of its own."""
    description = yaml.safe_load((example / "Chart.yaml").read_text())
    description["dependencies"][0]["alias"] = "prices"
    (example / "Chart.yaml").write_text(yaml.safe_dump(description))
    template = example / "templates" / "deployment.yaml"
    template.write_text(template.read_text().replace('container" .', 'container" .Subcharts.prices').replace(
        'sharedVolume" .', 'sharedVolume" .Subcharts.prices'))  # fmt: skip
    tools.run(tools.helm(major), "dependency", "update", example)
    template.write_text(
        template.read_text().replace('checksums" .', 'checksums" .Subcharts.prices')
    )
    values = {"prices": {"enabled": False, "writer": {"name": "price-writer"}}}
    spec = chart.pod_spec(chart.render(values, chart=example, major=major))
    assert [one["name"] for one in spec["containers"]] == ["shop", "price-writer", "reader"]


def test_the_example_passes_lint(example: Path, major: int) -> None:
    """`helm lint --strict` says nothing about it."""
    tools.run(tools.helm(major), "lint", "--strict", example)
