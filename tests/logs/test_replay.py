"""Dead letters, delivered once more after what refused them has been mended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from logs.fakes.loki import FakeLoki
from sidecar._errors import ConfigError
from sidecar.logs import stages
from sidecar.logs.records import Record
from sidecar.logs.replay import replay
from sidecar.logs.sinks.base import Rejected
from sidecar.logs.sinks.deadletter import DeadLetterFile, restore_record
from sidecar.logs.sinks.render import line
from sidecar.testing import MemorySink
from support import Process, StartProcess


def made(text: str, number: int = 0) -> Record:
    return Record(
        text.encode(), file="/log/a", offset=number, file_id="i", time=5, labels={"a.b": "c"}
    )


async def bury(path: Path, sink: str, *records: Record) -> None:
    await DeadLetterFile(path).write(sink, [Rejected(one, "no") for one in records])


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "plain",
        '{"time":"t","file":1,"labels":[2],"message":{"a":1},"n":18446744073709551616}',
        '{"a":"s3cret"}',
    ],
)
async def test_a_record_comes_out_of_its_letter_as_it_went_in(
    tmp_path: Path, text: str, change: bool
) -> None:
    """With names that the application has in common with us, changed by a stage or not."""
    record = stages.find_level(stages.parse_json(made(text, 7)))
    if change:
        stages.redact("s3cret|plain")(record)
    await bury(tmp_path / "dead", "memory", record)
    again = restore_record(json.loads((tmp_path / "dead").read_bytes()))

    for name in ("file", "file_id", "offset", "time", "level", "labels", "fields", "text"):
        assert getattr(again, name) == getattr(record, name)
    assert line(again) == line(record)
    assert again.structured == record.structured


async def test_letters_go_to_the_sink_that_refused_them(tmp_path: Path) -> None:
    """In order, and those of a sink that is not configured stay where they were."""
    path = tmp_path / "dead"
    await bury(path, "one", made("a"), made("b", 2))
    await bury(path, "gone", made("c"))
    await bury(path, "two", made("d"))
    one, two = MemorySink("one"), MemorySink("two", refuse=lambda record: "still no")
    done = await replay(str(path), [one, two])

    assert one.lines == ["a", "b"]
    assert (done.delivered, done.refused, done.left) == (2, 1, {"no sink is called gone": 1})
    letters = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(one["sink"], one["reason"]) for one in letters] == [
        ("two", "still no"),
        ("gone", "no"),
    ]
    assert not (tmp_path / "dead.replay").exists()


async def test_letters_for_a_sink_that_is_away_are_put_back(tmp_path: Path) -> None:
    """And one sink alone gets all of them, whatever it was called when it refused them."""
    path = tmp_path / "dead"
    await bury(path, "old name", made("a"))
    sink = MemorySink()
    sink.fail()
    done = await replay(str(path), [sink], timeout=0.0)
    assert sum(done.left.values()) == 1
    sink.recover()
    done = await replay(str(path), [sink])

    assert sink.lines == ["a"]
    assert done.delivered == 1
    assert not path.exists()


async def test_a_replay_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    """What it had taken is beside the file; a collector has written a new one meanwhile."""
    await bury(tmp_path / "dead.replay", "memory", made("a"))
    await bury(tmp_path / "dead", "memory", made("b"))
    sink = MemorySink()
    for _ in range(2):
        await replay(str(tmp_path / "dead"), [sink])

    assert sink.lines == ["a", "b"]
    with pytest.raises(ConfigError, match="no dead letters"):
        await replay(str(tmp_path / "dead"), [sink])


async def test_lines_that_are_no_letters_are_kept(tmp_path: Path) -> None:
    """What an older version has written, and half a line of a full disk."""
    path = tmp_path / "dead"
    path.write_text('{"sink":"memory","record":{"message":"x"}}\n{"half\n')
    done = await replay(str(path), [MemorySink()])

    assert sum(done.left.values()) == 2
    assert len(path.read_text().splitlines()) == 2


async def test_the_command_replays_what_loki_has_refused(
    tmp_path: Path, sidecar_process: StartProcess
) -> None:
    """Refused for a limit, mended, replayed: with the same labels and times."""
    (tmp_path / "a.log").write_text("good\nbad\n")
    state = tmp_path / "o.json"
    async with FakeLoki(poison=lambda text: text == "bad") as loki:
        sink = f"loki+{loki.address}"
        flags = ("collect", tmp_path / "a.log", "--sink", sink, "--checkpoint", state)
        assert await ended(sidecar_process(*flags, "--once")) == 0
        loki.poison = lambda _: False
        dead = f"{state}.dead-letters.ndjson"
        process = sidecar_process("collect", "--replay", dead, "--sink", sink)
        assert await ended(process) == 0

        assert "1 delivered, 0 refused again, 0 left" in process.output
        assert loki.texts == ["good", "bad"]
        assert len(loki.streams) == 1


async def ended(process: Process) -> int:
    return await asyncio.to_thread(process.wait, 20)
