"""Rendering the chart, as data."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pod import tools

Object = dict[str, Any]
Values = Mapping[str, Any]


def template(
    values: Values | None = None,
    *arguments: str,
    chart: Path = tools.CHART,
    release: str = "demo",
    major: int = 4,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `helm template` with these values on standard input."""
    command: tuple[str | Path, ...] = (
        tools.helm(major),
        "template",
        release,
        chart,
        "--namespace=here",
        "--values=-",
        *arguments,
    )
    return tools.run(*command, input=yaml.safe_dump(dict(values or {})), check=check)


def render(values: Values | None = None, *arguments: str, **options: Any) -> list[Object]:
    """Return the objects of the chart with these values."""
    return documents(template(values, *arguments, **options).stdout)


def documents(text: str) -> list[Object]:
    return [one for one in yaml.safe_load_all(text) if one]


def only(objects: list[Object], kind: str, *, hook: bool = False) -> Object:
    """Return the one object of this kind, the Pod of `helm test` only if asked for."""
    found = [one for one in objects if one["kind"] == kind and is_hook(one) is hook]
    assert len(found) == 1, f"{len(found)} of kind {kind} among {[one['kind'] for one in objects]}"
    return found[0]


def is_hook(one: Object) -> bool:
    return "helm.sh/hook" in one["metadata"].get("annotations", {})


def pod_spec(objects: list[Object]) -> Object:
    """Return the spec of the workload's Pod."""
    (spec,) = [spec for one, spec in pod_specs(objects) if not is_hook(one)]
    return spec


def pod_specs(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Yield each object that makes Pods, with the spec of its Pod."""
    for one in objects:
        if one["kind"] == "Pod":
            yield one, one["spec"]
        elif one["kind"] in {"Deployment", "StatefulSet", "DaemonSet"}:
            yield one, one["spec"]["template"]["spec"]


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def container(objects: list[Object], name: str) -> Object:
    (found,) = [one for one in containers(pod_spec(objects)) if one["name"] == name]
    return found
