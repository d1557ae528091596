"""What docs/logs.md and the example show is read, checked and run as it stands."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from logs.fakes.ndjson import FakeNdjson
from sidecar.logs import config_file
from sidecar.logs import pipeline as config
from sidecar.logs.sinks import factory
from support import Eventually, StartProcess

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "logs.md").read_text()
EXAMPLE = ROOT / "examples" / "log-collection"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_pipelines_that_are_shown_are_right(tmp_path: Path) -> None:
    """Each name, pattern and address in them means something."""
    documents = [*blocks("yaml"), (EXAMPLE / "pipeline.yaml").read_text()]
    assert len(documents) >= 2
    for document in documents:
        path = tmp_path / "pipeline.yaml"
        path.write_text(document)
        for pipeline in config_file.load(path).pipelines.values():
            assert pipeline.source()
            assert pipeline.make_stages()
            assert pipeline.make_routes()


def test_every_name_of_the_configuration_is_in_the_page() -> None:
    """What nobody explains is of no use: options of sinks, keys of the file, stages."""
    names = {name for kind in factory._OWN.values() for name in kind}
    shown = {name for document in blocks("yaml") for name in yaml.safe_load(document)}
    receivers = PAGE.partition("## Receivers")[2].partition("\n## ")[0]
    assert {name for name in names if f"`{name}`" not in receivers} == set()
    assert set(config._MAKERS) <= set(re.findall(r"[a-z_]+", PAGE))
    assert shown == {*config.READERS, "pipelines"}


def test_each_cell_of_the_comparison_has_its_source_or_its_test() -> None:
    """A claim about others without a source, or about us without a test, is worth nothing."""
    table = PAGE.partition("## Beside other collectors")[2]
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    known = set(re.findall(r"^\[(\w\d)\]: https://", table, re.MULTILINE))
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for _what, ours, *others in rows:
        [name] = re.findall(r"`(test_\w+)`", ours)
        assert f"def {name}(" in tests
        for cell in others:
            assert cell.strip() == "–" or set(re.findall(r"\[\[(\w\d)\]\]", cell)) & known, cell


@pytest.mark.parametrize("lines", [2000])
async def test_the_example_loses_no_line_while_its_application_rotates(
    start_process: StartProcess,
    sidecar_process: StartProcess,
    eventually: Eventually,
    tmp_path: Path,
    lines: int,
) -> None:
    """The application as it is, the pipeline as it is; only the paths and the receiver are those of the test."""
    async with FakeNdjson() as receiver:
        text = (
            (EXAMPLE / "pipeline.yaml").read_text().replace("/var/log/app", str(tmp_path / "log"))
        )
        text = text.replace("/state", str(tmp_path)).replace("- stdout", f"- {receiver.address}")
        (tmp_path / "pipeline.yaml").write_text(text)
        collector = sidecar_process("collect", "--config", tmp_path / "pipeline.yaml")
        env = {
            "LOG_FILE": str(tmp_path / "log" / "app.log"),
            "LINES": str(lines),
            "LINES_PER_SECOND": "2000",
        }
        app = start_process(sys.executable, EXAMPLE / "app.py", env=env)
        await eventually(lambda: app.popen.poll() == 0, timeout=30)
        await eventually(lambda: len(receiver.objects) >= lines, timeout=20)
        collector.popen.terminate()
        await eventually(lambda: collector.popen.poll() is not None)

    assert collector.popen.returncode == 0, collector
    numbers = [int(one["msg"].split()[1]) for one in receiver.objects]
    assert sorted(numbers) == list(range(1, lines + 1))
    assert "4111" not in json.dumps(receiver.objects)
    assert len(list((tmp_path / "log").iterdir())) > 1  # it has rotated
