"""What `sidecar publish` reads: all of it, as it was at one moment."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar import _errors
from sidecar.cli.commands import publish
from sidecar.cli.impl import publish_source
from sidecar.volume.content import loader, read_state
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.publish.models import Publication
from sidecar.volume.volume import Volume

NAMES = pytest.mark.parametrize("name", ["a", None], ids=["file", "directory"])


async def published(path: Path, name: str | None) -> Publication:
    """Publish a directory, or one file of it."""
    volume, source = Volume(path / "shared", keep=0), path / "source"
    which = str(source / name) if name else str(source)
    return await publish._publish(volume, which, name, {}, limit=1 << 20, dry_run=False)


def changing(path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> list[float]:
    """Rewrite a file in place, so many times, whenever it is about to be looked at once more."""
    path.parent.mkdir()
    path.write_text("0")
    changes: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds == publish_source._SECOND_READ_DELAY and len(changes) < times:
            changes.append(seconds)
            path.write_text(str(len(changes)))

    monkeypatch.setattr(time, "sleep", sleep)
    return changes


@NAMES
async def test_a_source_that_is_always_being_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """Neither half of a content nor a mixture of two is a version, however often it is read (tar(1): "file changed as we read it")."""
    changes = changing(tmp_path / "source" / "a", monkeypatch, 99)
    with pytest.raises(_errors.PublishError, match="changed while it was read, 3 times"):
        await published(tmp_path, name)
    assert len(changes) == 3
    assert not (tmp_path / "shared" / "a").exists()


@NAMES
async def test_a_source_that_changes_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """Then it is whole, and published."""
    changing(tmp_path / "source" / "a", monkeypatch, 1)
    await published(tmp_path, name)
    assert (tmp_path / "shared" / "a").read_text() == "1"


@NAMES
async def test_a_source_at_rest_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """Only what is so young that a clock could hide a change costs a second look."""
    changes = changing(tmp_path / "source" / "a", monkeypatch, 99)
    for path in (tmp_path / "source" / "a", tmp_path / "source"):
        os.utime(path, (0, time.time() - 60))
    monkeypatch.setattr(read_state, "_CLOCK_GRANULARITY", 0.0)  # ctime cannot be set
    await published(tmp_path, name)
    assert changes == []


@pytest.mark.parametrize("appears", [True, False])
def test_a_name_that_comes_or_goes_meanwhile_makes_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, appears: bool
) -> None:
    """What is there for a moment alone, or missing for one, belongs to no version of a directory."""
    (tmp_path / "a").write_text("1")
    real, looks = loader.read_directory, []

    def load(*args: Any, **options: Any) -> ScanResult:
        looks.append("")
        if (len(looks) == 1) == appears:
            (tmp_path / "moment").write_text("1")
        else:
            (tmp_path / "moment").unlink(missing_ok=True)
        return real(*args, **options)

    monkeypatch.setattr(loader, "read_directory", load)
    assert sorted(publish_source.read_set(str(tmp_path), 100)) == ["a"] + ["moment"] * (not appears)
    assert len(looks) == 4


async def test_what_is_left_of_standard_input_is_read_again_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell may have read the first line of the file that is our standard input."""
    path = tmp_path / "source" / "a"
    changing(path, monkeypatch, 0)
    path.write_text("first\nrest")
    with path.open("rb", buffering=0) as file:
        file.seek(6)
        steady = publish_source.ChangeDetector(file.fileno())
        for _ in range(2):
            assert file.read() == b"rest"
            assert steady.is_unchanged(4, publish_source._version_of(file.fileno(), 6))
            steady.restart()
