"""examples/log-collection as real Pods: an application that rotates its files, and what comes out of the collector."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pod import chart, cluster, podman, tools
from pod.podman import Pod, until

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

EXAMPLE = tools.ROOT / "examples" / "log-collection"
FAST = "400"
"""Lines a second: a rotation every two seconds."""
ROTATIONS = 3
_LINE = 105
"""Bytes that a line takes at least; the application begins a new file every 64 KiB."""


def orders(pod: Pod) -> list[int]:
    """Return the numbers of the orders in the collector's output, in their order."""
    return [int(found[1]) for found in re.finditer(r'"order (\d+) for', output(pod))]


def output(pod: Pod) -> str:
    """What `kubectl logs POD -c logs` shows: lines of the application; the collector's own go to stderr."""
    return podman.podman("logs", f"{pod.name}-logs").stdout


def closed_after(pod: Pod) -> int:
    """Return the number of orders by the last line that the application wrote."""
    (found,) = re.findall(r"closed after order (\d+)", output(pod))
    return int(found)


def rotated(pod: Pod) -> bool:
    return len(orders(pod)) * _LINE > (ROTATIONS + 0.5) * 65536


def plain() -> str:
    return (EXAMPLE / "pod.yaml").read_text().replace('value: "10"', f'value: "{FAST}"')


def test_each_line_comes_out_once_through_rotations_and_the_end(
    image: str, shops_image: str
) -> None:
    """The plain Pod: in order, no line lost and none twice, and after SIGTERM the last ones, too; all exit with 0."""
    with podman.play(plain()) as pod:
        until(lambda: rotated(pod), timeout=60)
        pod.stop(30)
        exits = {name: pod.inspect(name)["State"]["ExitCode"] for name in ("shop", "logs")}
        assert exits == {"shop": 0, "logs": 0}, pod.logs("logs")
        assert orders(pod) == list(range(1, closed_after(pod) + 1))
        shown = output(pod)
    assert "healthz" not in shown
    assert "4111" not in shown


def test_a_collector_that_is_killed_goes_on_where_it_was(image: str, shops_image: str) -> None:
    """SIGKILL, twice, while files rotate: no line is lost, and none comes again but those of the last second."""
    with podman.play(plain()) as pod:
        for kills in (1, 2):
            before = len(orders(pod))
            until(lambda before=before: len(orders(pod)) > before + 900, timeout=60)
            pod.kill("logs")
            until(lambda kills=kills: pod.restarts("logs") == kills)
        until(lambda: rotated(pod), timeout=60)
        pod.stop(30)
        found = orders(pod)
        assert sorted(set(found)) == list(range(1, closed_after(pod) + 1))
        again = len(found) - len(set(found))
        print(f"{again} lines of {len(found)} came twice after two kills")
        # The checkpoint is saved once a second; from the beginning it would be 2700.
        assert again <= 2 * 2 * int(FAST)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sidecar-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_the_chart_delivers_what_is_written_after_the_pod_is_told_to_end(
    image: str, shops_image: str, directory: Path
) -> None:
    """A native sidecar, in the order of the kubelet: first the application ends, then the collector; probes, labels, limits."""
    values: dict[str, Any] = yaml.safe_load((EXAMPLE / "values.yaml").read_text())
    values["workload"] = {"kind": "Pod"}
    values["collector"]["json"] = True
    values["extraContainers"][0]["env"][0]["value"] = FAST
    objects = chart.render(values, "--no-hooks", release="shop")
    collector = chart.container(objects, "logs")
    with podman.play(yaml.safe_dump_all(cluster.translated(objects, directory))) as pod:
        until(lambda: rotated(pod), timeout=60)
        for kind in ("startup", "liveness"):
            done = pod.probe(collector, kind)
            assert (done.returncode, done.stdout) == (0, "200 OK\n"), done.stderr
        status = pod.execute("logs", "sidecar", "collect", "--status", "/var/lib/sidecar/offsets.json")  # fmt: skip
        assert "/var/log/app/app.log" in status.stdout
        state = pod.inspect("logs")
        assert (state["RestartCount"], state["State"]["OOMKilled"]) == (0, False)
        print(f"resident at most: {peak(pod) >> 10} KiB")

        podman.podman("stop", "--time=20", f"{pod.name}-shop", timeout=30)
        podman.podman("stop", "--time=10", f"{pod.name}-logs", timeout=30)
        exits = {name: pod.inspect(name)["State"]["ExitCode"] for name in ("shop", "logs")}
        assert exits == {"shop": 0, "logs": 0}, pod.logs("logs")
        assert orders(pod) == list(range(1, closed_after(pod) + 1))
        last = json.loads(output(pod).splitlines()[-1])
    assert last["msg"].startswith("closed after order")
    labels = last["labels"]
    assert (labels["pod"], labels["namespace"], labels["node"]) == (pod.name, "default", "node-1")
    assert labels["app.kubernetes.io/instance"] == "shop"


def peak(pod: Pod) -> int:
    """Return the greatest resident size of the collector's process, from the kernel."""
    status = Path(f"/proc/{pod.pid('logs')}/status").read_text()
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) * 1024


def test_the_three_ways_of_the_example_are_one_pipeline() -> None:
    """The file for a terminal, the plain Pod and the chart's values say the same."""
    file = yaml.safe_load((EXAMPLE / "pipeline.yaml").read_text())
    config_map, _ = chart.documents((EXAMPLE / "pod.yaml").read_text())
    assert yaml.safe_load(config_map["data"]["pipeline.yaml"]) == file
    values = yaml.safe_load((EXAMPLE / "values.yaml").read_text())
    collector = values["collector"]
    assert (collector["stages"], collector["sinks"]) == (file["stages"], file["sinks"])
    assert f"{values['volume']['mountPath']}/{collector['files'][0]}" == file["files"]
