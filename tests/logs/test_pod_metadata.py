"""The Pod's labels by the downward API: from files, from variables, read again when they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.logs.pod_metadata import PodMetadata, parse_quoted
from sidecar.logs.records import Record


def publish(volume: Path, generation: str, files: dict[str, str]) -> None:
    """Do what kubelet does: a directory, `..data` to it, links through `..data`."""
    (volume / generation).mkdir(parents=True)
    for name, content in files.items():
        (volume / generation / name).write_text(content)
    (volume / "..tmp").symlink_to(generation)
    os.replace(volume / "..tmp", volume / "..data")
    for name in files:
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_labels_are_read_from_the_downward_apis_files(tmp_path: Path) -> None:
    publish(
        tmp_path,
        "..1",
        {"labels": 'app="web"\ntier="a \\"b\\""\n', "namespace": "shop", "name": "web-0"},
    )
    found = PodMetadata(tmp_path, environ={}).labels
    assert dict(found) == {"app": "web", "tier": 'a "b"', "namespace": "shop", "pod": "web-0"}


def test_edited_labels_are_seen_without_a_restart(tmp_path: Path) -> None:
    """Scenario 37. At most once in `recheck` seconds, and the mapping stays the same object in between."""
    clock = Clock()
    publish(tmp_path, "..1", {"labels": 'app="web"\n'})
    metadata = PodMetadata(tmp_path, environ={}, clock=clock)
    first = metadata.labels
    publish(tmp_path, "..2", {"labels": 'app="shop"\n'})
    assert metadata.labels is first
    clock.now = 1.5
    assert dict(metadata.labels) == {"app": "shop"}


def test_files_win_over_variables_and_variables_count_only_in_a_pod(tmp_path: Path) -> None:
    publish(tmp_path, "..1", {"name": "from-file"})
    in_pod = {"POD_NAME": "from-variable", "NODE_NAME": "n1", "CONTAINER_NAME": "c"}
    found = PodMetadata(tmp_path, environ=in_pod).labels
    assert dict(found) == {"pod": "from-file", "node": "n1", "container": "c"}
    assert not PodMetadata("/nonexistent", environ={"NODE_NAME": "x", "HOSTNAME": "y"}).labels


def test_the_host_name_is_the_pod_where_nothing_else_is_known() -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "web-0"}
    assert PodMetadata("/nonexistent", environ=environ).labels["pod"] == "web-0"


def test_annotations_are_taken_only_by_name(tmp_path: Path) -> None:
    publish(tmp_path, "..1", {"annotations": 'team="x"\nsecret="y"\n'})
    found = PodMetadata(tmp_path, environ={}, annotations=["team", "missing"]).labels
    assert dict(found) == {"team": "x"}


def test_a_volume_that_goes_away_leaves_the_last_labels(tmp_path: Path) -> None:
    clock = Clock()
    publish(tmp_path, "..1", {"labels": 'app="web"\n'})
    metadata = PodMetadata(tmp_path, environ={}, clock=clock)
    assert metadata.labels
    (tmp_path / "labels").unlink()
    (tmp_path / "labels").mkdir()
    publish(tmp_path, "..2", {})
    clock.now = 2.0
    assert dict(metadata.labels) == {"app": "web"}


def test_a_record_gets_the_labels_and_keeps_its_own() -> None:
    stage = PodMetadata("/nonexistent", environ={"POD_NAME": "web-0"})
    assert dict(stage(Record(b"x")).labels) == {"pod": "web-0"}
    assert dict(stage(Record(b"x", labels={"pod": "mine", "a": "b"})).labels) == {
        "pod": "mine",
        "a": "b",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r'a="\x41\u00fc\t"', {"a": "Aü\t"}),
        (r'a="\ud800" b="\U00110000"', {"a": "\ufffd", "b": "\ufffd"}),
        ('a="x', {}),
        ("", {}),
        ('kubernetes.io/x="a=b"', {"kubernetes.io/x": "a=b"}),
    ],
)
def test_gos_quoting_is_read(text: str, expected: dict[str, str]) -> None:
    assert parse_quoted(text) == expected
