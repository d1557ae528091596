"""The dead-letter file: what a receiver refuses for good is on disk before the position passes it."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from sidecar.logs.records import Record
from sidecar.logs.sinks.base import Rejected, SinkUnavailable
from sidecar.logs.sinks.deadletter import DeadLetterFile


def refused(text: str = "bad", **options: object) -> Rejected:
    return Rejected(Record(text.encode(), file="/log/a", offset=7, **options), "400: no")  # type: ignore[arg-type]


async def test_a_dead_letter_says_who_refused_what_and_why(tmp_path: Path) -> None:
    """One JSON object a line, with the record as it was to be delivered."""
    path = tmp_path / "new" / "dead.ndjson"
    await DeadLetterFile(path).write("loki", [refused(), refused("worse")])

    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert (first["sink"], first["reason"]) == ("loki", "400: no")
    assert first["record"]["message"] == "bad"
    assert (first["record"]["file"], first["record"]["offset"]) == ("/log/a", 7)
    assert second["record"]["message"] == "worse"


async def test_a_secret_that_a_stage_took_out_is_not_in_the_dead_letter(tmp_path: Path) -> None:
    """The raw line is never written: a stage may have cleaned it."""
    rejected = refused("token=s3cret")
    rejected.record.text = "token=***"
    await DeadLetterFile(tmp_path / "dead").write("loki", [rejected])

    assert "s3cret" not in (tmp_path / "dead").read_text()


async def test_what_was_written_before_stays(tmp_path: Path) -> None:
    """Restarts append."""
    for _ in range(2):
        await DeadLetterFile(tmp_path / "dead").write("loki", [refused()])

    assert len((tmp_path / "dead").read_text().splitlines()) == 2


async def test_a_file_that_cannot_be_written_holds_the_position_back(tmp_path: Path) -> None:
    """SinkUnavailable, not a silent loss: the collector waits until it is mended."""
    (tmp_path / "dead").mkdir()
    with pytest.raises(SinkUnavailable, match="wait until that is mended"):
        await DeadLetterFile(tmp_path / "dead").write("loki", [refused()])


async def test_a_planted_symlink_is_not_followed(tmp_path: Path) -> None:
    """Another container of the Pod may not make us write to a file of its choice."""
    (tmp_path / "dead").symlink_to(tmp_path / "target")
    with pytest.raises(SinkUnavailable):
        await DeadLetterFile(tmp_path / "dead").write("loki", [refused()])
    assert not (tmp_path / "target").exists()


async def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """What cannot be written whole is taken back, so that the next line is one."""
    dead = DeadLetterFile(tmp_path / "dead")
    await dead.write("loki", [refused()])
    whole = (tmp_path / "dead").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, hard))
    try:
        with pytest.raises(SinkUnavailable):
            await dead.write("loki", [refused("x" * 200)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (tmp_path / "dead").read_bytes() == whole


async def test_the_file_is_bounded_and_keeps_one_generation(tmp_path: Path) -> None:
    """A receiver that refuses everything must not fill the volume."""
    dead = DeadLetterFile(tmp_path / "dead", max_bytes=2000)
    for number in range(100):
        await dead.write("loki", [refused(f"line {number}")])

    assert sorted(os.listdir(tmp_path)) == ["dead", "dead.1"]
    assert (tmp_path / "dead").stat().st_size <= 2000
    assert "line 99" in (tmp_path / "dead").read_text()
