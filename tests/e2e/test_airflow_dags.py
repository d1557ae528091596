"""examples/airflow-dags against a local git server: the containers of the Pod, with its own arguments."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pod import chart
from support import Eventually, FreePorts, StartProcess
from support.git_servers import BACKEND, Backend, Project
from support.pages import Checker

EXAMPLE = Path(__file__).parents[2] / "examples" / "airflow-dags"
REPOSITORY = "git+https://git.example.com/team/dags.git"

pytestmark = pytest.mark.skipif(not BACKEND.exists(), reason="needs git (apt-get install git)")


def pod() -> Any:
    _, found = yaml.safe_load_all((EXAMPLE / "pod.yaml").read_text())
    return found


def test_the_objects_are_ones_that_kubernetes_knows(tmp_path: Path) -> None:
    """The arguments of the containers are ones that there are."""
    Checker(tmp_path).validate(list(chart.documents((EXAMPLE / "pod.yaml").read_text())))


def walk(folder: Path) -> list[str]:
    """Return the files that Airflow finds: it follows links, and refuses a directory that it meets twice."""
    found, seen = [], set()
    for root, directories, files in os.walk(folder, followlinks=True):
        for one in directories:
            directory = Path(root, one).resolve()
            assert directory not in seen, f"a recursive loop: {directory}"
            seen.add(directory)
        found += [str(Path(root, one).relative_to(folder)) for one in files]
    return sorted(found)


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    made = Backend(tmp_path / "srv")
    await made.server.start_server(auto_decompress=False)
    yield made
    await made.server.close()


async def test_the_dags_are_there_before_airflow_and_follow_the_branch(
    tmp_path: Path, backend: Backend, free_ports: FreePorts, sidecar_process: StartProcess, eventually: Eventually
) -> None:  # fmt: skip
    """The init container ends with the present commit; the sidecar publishes the next; a broken server takes nothing away."""
    project = Project(tmp_path / "srv" / "dags")
    backend.password = "read-only"
    (tmp_path / "token").write_text("read-only\n")
    project.commit(dags__hello="DAG(1)", dags__team__more="DAG(2)", README="no DAG")
    (port,) = free_ports(1)
    own = {
        REPOSITORY: backend.url("dags"),
        "/run/secrets/git/token": str(tmp_path / "token"),
        "--path=/dags/": f"--path={tmp_path}/dags/",
        "--port=8083": f"--port={port}",
    }

    def arguments(name: str) -> list[str]:
        (container,) = [one for one in pod()["spec"]["initContainers"] if one["name"] == name]
        made: list[str] = container["args"]
        for old, new in own.items():
            made = [one.replace(old, new) for one in made]
        return [one.replace("interval=10", "interval=0.2") for one in made]

    (airflow,) = pod()["spec"]["containers"]
    (folder,) = [one["value"] for one in airflow["env"] if one["name"].endswith("DAGS_FOLDER")]
    dags = Path(f"{tmp_path}{folder}")
    first = sidecar_process(*arguments("dags-first"))
    assert await asyncio.to_thread(first.wait, 30) == 0
    assert walk(dags) == ["hello", "team/more"]
    sidecar_process(*arguments("dags"))
    project.commit(dags__hello="DAG(3)")
    await eventually(lambda: (dags / "hello").read_text() == "DAG(3)")
    assert walk(dags) == ["hello", "team/more"]
