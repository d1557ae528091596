"""`values-article.yaml` renders the Pod and the Service of the article."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pod import chart
from pod.matrix import rendered

ARTICLE = chart.documents((Path(__file__).parent / "article.yaml").read_text())
ADDED = {
    "Pod": {
        ".metadata.annotations": "the container that `kubectl logs` shows",
        ".metadata.namespace": "Helm's",
        ".spec.serviceAccountName": "none of its own",
        ".spec.automountServiceAccountToken": "no container talks to the API",
        ".spec.enableServiceLinks": "a Service named sidecar would set our variables",
        ".spec.terminationGracePeriodSeconds": "longer than draining",
        ".spec.securityContext": "what the article left open",
        ".spec.volumes[].hostPath.type": "made where it is missing",
    },
    "Service": {
        ".metadata.labels": "by which a ServiceMonitor would find it",
        ".metadata.namespace": "Helm's",
        ".spec.ports[].protocol": "the default, written out",
        ".spec.ports[].targetPort": "the same port, by its name",
        ".spec.ports[].appProtocol": "for those who look",
    },
}
# Beside the article's labels, those of Helm; and all that is about our image.
ADDED["Pod"] |= {
    f".metadata.labels.{one}": "Helm's"
    for one in (
        "app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/name",
        "app.kubernetes.io/version", "helm.sh/chart",
    )
}  # fmt: skip
ADDED["Pod"] |= {
    f".spec.containers[].{one}": "how our image is run"
    for one in (
        "image", "imagePullPolicy", "args", "livenessProbe", "readinessProbe", "startupProbe", "resources",
        "securityContext", "ports[].name", "ports[].protocol", "volumeMounts[].readOnly",
    )
}  # fmt: skip


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("kind", ["Pod", "Service"])
def test_what_the_chart_renders_is_the_articles_object(kind: str, major: int) -> None:
    """Each field of the article is there with its value, lists in their order; what is added is known, with its reason."""
    (expected,) = [one for one in ARTICLE if one["kind"] == kind]
    ours = chart.only(rendered("the article", major), kind)
    differences, added = compare(expected, ours)
    assert differences == []
    assert set(added) == ADDED[kind].keys()


def test_a_difference_would_be_found() -> None:
    """The comparison itself: another value, a missing field and a shorter list are told apart."""
    assert compare({"a": 1}, {"a": 2, "b": 3}) == ([".a: 1 became 2"], [".b"])
    assert compare({"a": {"b": 1}}, {"a": {}}) == ([".a.b is missing"], [])
    assert compare({"a": [1, 2]}, {"a": [1]}) == ([".a: 2 items became 1"], [])


def compare(expected: Any, actual: Any, path: str = "") -> tuple[list[str], list[str]]:
    """Return what differs, and what was added, as paths of fields."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        parts = [
            compare(expected[key], actual[key], f"{path}.{key}")
            for key in expected.keys() & actual.keys()
        ]
        differences = [f"{path}.{key} is missing" for key in expected.keys() - actual.keys()]
        added = [f"{path}.{key}" for key in actual.keys() - expected.keys()]
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return [f"{path}: {len(expected)} items became {len(actual)}"], []
        parts = [
            compare(one, other, f"{path}[]") for one, other in zip(expected, actual, strict=True)
        ]
        differences, added = [], []
    else:
        return ([] if expected == actual else [f"{path}: {expected!r} became {actual!r}"]), []
    for more, new in parts:
        differences, added = differences + more, added + new
    return differences, added
