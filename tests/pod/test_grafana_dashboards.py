"""examples/grafana-dashboards: the values render, and what its mirror does with its ConfigMaps is what Grafana finds."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from mirror.fakes.kube import KubeApi
from pod import chart, tools
from support.pages import Checker

EXAMPLE = tools.ROOT / "examples" / "grafana-dashboards"


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    """An API server with the ConfigMaps of the example, one that is no dashboard, and one in another namespace."""
    made = KubeApi()
    await made.server.start_server()
    for one in yaml.safe_load_all((EXAMPLE / "dashboards.yaml").read_text()):
        meta = one["metadata"]
        made.put("configmaps", meta["name"], one["data"], labels=meta["labels"], annotations=meta.get("annotations"))  # fmt: skip
    made.put("configmaps", "other", {"other.json": "{}"}, labels={"grafana_dashboard": "0"})
    label = {"grafana_dashboard": "1"}
    made.put("configmaps", "far", {"far.json": "{}"}, namespace="far", labels=label)
    made.put("configmaps", "broken", {"broken.json": "{"}, labels=label)
    yield made
    made.drop_watches()
    await made.server.close()


def render(major: int = 4) -> list[chart.Object]:
    return chart.render(yaml.safe_load((EXAMPLE / "values.yaml").read_text()), major=major)


def test_its_objects_are_those_of_kubernetes(tmp_path: Path) -> None:
    """With the right to list and watch ConfigMaps of all namespaces, and nothing else; by both Helms."""
    objects = render()
    assert render(3) == objects
    Checker(tmp_path).validate(objects)
    (rule,) = chart.only(objects, "ClusterRole")["rules"]
    assert (rule["resources"], rule["verbs"]) == (["configmaps"], ["list", "watch"])
    (provider,) = [one for one in objects if one["metadata"]["name"] == "grafana-provider"]
    (found,) = yaml.safe_load(provider["data"]["mirror.yaml"])["providers"]
    assert found["options"] == {"path": "/shared/grafana", "foldersFromFilesStructure": True}


async def mirror(objects: list[chart.Object], api: KubeApi, place: Path) -> str:
    """Run the mirror of the Pod once, with the shared volume in `place`; return what it says."""
    (scripts,) = [one for one in objects if one["metadata"]["name"] == "grafana-folders"]
    (place / "folders.py").write_text(scripts["data"]["folders.py"])
    replaced = {
        "/shared": str(place),
        "/etc/folders": str(place),
        "python3": sys.executable,
        "url_keys=grafana.com": f"url_keys=grafana.com&server={api.url}",
    }
    arguments = []
    for given in chart.container(objects, "mirror")["args"]:
        argument = given
        for old, new in replaced.items():
            argument = argument.replace(old, new)
        if not argument.startswith("--port"):
            arguments.append(argument)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar.cli.main", *arguments, "--once", stderr=asyncio.subprocess.PIPE
    )  # fmt: skip
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def grafana_finds(place: Path) -> dict[str, str]:
    """Return the dashboards as Grafana walks: into directories that are no links, and to files through links."""
    return {
        os.path.relpath(Path(directory, name), place / "grafana"): Path(directory, name).read_text()
        for directory, _, names in os.walk(place / "grafana")
        for name in names
        if name.endswith(".json")
    }


async def test_grafana_finds_the_dashboards_in_their_folders(api: KubeApi, tmp_path: Path) -> None:
    """Of all namespaces, by label, never outside; a changed one through the same link, a deleted one not any more."""
    objects = render()
    said = await mirror(objects, api, tmp_path)
    found = grafana_finds(tmp_path)
    assert sorted(found) == ["Kitchen/soups.json", "Kitchen/stoves.json", "far.json", "menu.json"]
    assert "the unit shop/configmaps/outside is refused" in said
    assert "the unit shop/configmaps/broken is refused" in said
    api.put("configmaps", "menu", {"menu.json": '{"title": "New"}'}, labels={"grafana_dashboard": "1"})  # fmt: skip
    api.delete("configmaps", "kitchen")
    await mirror(objects, api, tmp_path)
    assert grafana_finds(tmp_path) == {"far.json": "{}", "menu.json": '{"title": "New"}'}
    assert not (tmp_path / "grafana/Kitchen").exists()
