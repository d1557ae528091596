"""Readers of every kind while contents are published as fast as possible: none is torn, empty, missing or mixed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from faults import reader
from sidecar.volume.publish.models import Operation, VolumeConfig
from sidecar.volume.publish.store import Store
from support.faultkit import TESTS

READERS = 4


@dataclass
class Found:
    """What the readers say when all is published."""

    said: list[dict[str, Any]] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, int]:
        return {what: count for one in self.said for what, count in one["wrong"].items()}


@contextmanager
def reading(kinds: list[str], directory: Path) -> Iterator[Found]:
    """Run readers in processes of their own while the block publishes."""
    program = str(TESTS / "faults" / "reader.py")
    found = Found()
    running = [
        subprocess.Popen(
            [sys.executable, program, kind, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": ":".join(sys.path)},
            text=True,
        )
        for kind in kinds
    ]
    try:
        yield found
        found.said = [json.loads(one.communicate("stop\n", timeout=20)[0]) for one in running]
    finally:
        for one in running:
            one.kill()
            one.communicate()


def publish(
    directory: Path, kinds: list[str], publishes: int, once: Callable[[Store, int], object]
) -> Found:
    """Publish so often while readers of these kinds look, and check that they have looked."""
    directory.mkdir()
    store = Store(VolumeConfig(str(directory), 0o644, None, 3, 30.0, 1 << 20))
    once(store, 1)
    with reading(kinds, directory) as found:
        for number in range(2, publishes + 1):
            once(store, number)
    for one in found.said:
        assert one["reads"] > publishes / 50, one
        assert one["seen"] > publishes / 500, one
    return found


def put(store: Store, number: int) -> object:
    return store.put("config", reader.content(number), Operation())


def publish_set(store: Store, number: int) -> object:
    files = {name: reader.content(number, name) for name in ("config", "other", "sub/third")}
    return store.publish(files, Operation())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_file_is_whole_at_every_moment(scratch: Path) -> None:
    """Four readers that open the path; the soak below publishes a hundred thousand times."""
    found = publish(scratch / "readers-of-a-file", ["file"] * READERS, 8_000, put)
    assert found.wrong == {}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_set_is_never_mixed(scratch: Path) -> None:
    """Four readers that pin a generation; the soak below publishes 20,000 of them."""
    kinds = ["pinned"] * READERS
    found = publish(scratch / "readers-of-a-set", kinds, 1_200, publish_set)
    assert found.wrong == {}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_whoever_has_resolved_the_link_finds_the_whole_generation(scratch: Path) -> None:
    """The grace of the generation before: at a pace at which people publish, kubelet's readers find all files."""
    kinds = ["resolved"] * 2
    found = publish(scratch / "readers-by-link", kinds, 1_000, publish_set)
    assert found.wrong == {}


@pytest.mark.soak
def test_a_hundred_thousand_publishes_and_nothing_is_torn(scratch: Path) -> None:
    """The goal R5."""
    found = publish(scratch / "soak-of-a-file", ["file"] * READERS, 100_000, put)
    assert found.wrong == {}
    found = publish(scratch / "soak-of-a-set", ["pinned"] * READERS, 20_000, publish_set)
    assert found.wrong == {}
