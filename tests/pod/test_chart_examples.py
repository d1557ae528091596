"""Each example of the chart: a directory with values that render, objects that Kubernetes knows, and a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pod import chart, tools
from support.pages import Checker

EXAMPLES = sorted((tools.CHART / "examples").iterdir())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_values_of_an_example_render(example: Path, tmp_path: Path) -> None:
    """What is pasted installs; arguments of our containers among them are ones that there are."""
    objects = chart.render(yaml.safe_load((example / "values.yaml").read_text()))

    Checker(tmp_path).validate(objects)
    assert chart.pod_spec(objects)["containers"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_a_page_that_installs_it(example: Path) -> None:
    """With its own values, and nothing beside."""
    assert {path.name for path in example.iterdir()} == {"README.md", "values.yaml"}
    assert (
        f"-f charts/sidecar/examples/{example.name}/values.yaml\n"
        in (example / "README.md").read_text()
    )
    assert f"(examples/{example.name}/README.md)" in (tools.CHART / "README.md").read_text()
