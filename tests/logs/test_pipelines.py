"""Several pipelines in one file, routes by condition, and a configuration that changes while it runs."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar import logs
from sidecar._errors import ConfigError
from sidecar.logs import config_file, pipelines
from sidecar.logs.collector import Collector
from sidecar.testing import LogFile, MemorySink
from support import Eventually, StartProcess

# -- routes and pipelines


async def test_each_sink_gets_what_its_route_lets_through(log: LogFile) -> None:
    """And what a route drops is acknowledged as any other line: the position moves past it."""
    log.write("INFO a", "ERROR b s3cret", "INFO c")
    everything, errors = MemorySink(name="all"), MemorySink(name="errors")
    route = logs.Route(errors, [logs.keep("ERROR"), logs.redact("s3cret")])
    summary = await logs.collect(logs.tail(log.path), sink=[everything, route], until_end=True)

    assert everything.lines == ["INFO a", "ERROR b s3cret", "INFO c"]
    assert errors.lines == ["ERROR b ***"]
    assert summary.lines == 3


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two pipelines with a sink each, and something in common."""
    path = tmp_path / "pipeline.yaml"
    for name in ("web", "app"):
        (tmp_path / name).mkdir()
    path.write_text(
        f"""
checkpoint: {tmp_path}/state/offsets.json
json: true
pipelines:
  web:
    files: {tmp_path}/web/*.log
    stages: [{{parse: {{regex: '(?P<status>\\d+)'}}}}]
    sinks: ['file://{tmp_path}/web.out']
  app:
    files: {tmp_path}/app/*.log
    stages: [{{parse: json}}]
    sinks:
      - file://{tmp_path}/app.out
      - {{url: 'file://{tmp_path}/errors.out', when: {{min_level: error}}, stages: [{{add: {{team: shop}}}}]}}
"""
    )
    return path


def objects(path: Path) -> list[Any]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def test_pipelines_of_one_file_go_their_own_ways(
    config: Path, tmp_path: Path, sidecar_process: StartProcess
) -> None:
    """Sources with stages of their own, each with its own checkpoint; `--once` ends when all have ended."""
    (tmp_path / "web/a.log").write_text("GET 200\n")
    (tmp_path / "app/a.log").write_text('{"level":"info","n":1}\n{"level":"error","n":2}\n')
    process = sidecar_process("collect", "--config", config, "--once")
    assert process.wait(20) == 0

    assert [one["status"] for one in objects(tmp_path / "web.out")] == ["200"]
    assert [one["n"] for one in objects(tmp_path / "app.out")] == [1, 2]
    assert [(one["n"], one["team"]) for one in objects(tmp_path / "errors.out")] == [(2, "shop")]
    names = {one.name for one in (tmp_path / "state").iterdir()}
    assert {"offsets-web.json", "offsets-app.json"} <= names


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("pipelines: []", "expected a mapping of names"),
        ("pipelines: {Web: {files: a}}", "is no name"),
        ("pipelines: {web: [a]}", "expected a mapping"),
        ("pipelines: {web: {file: a}}", "pipelines: web: there is no 'file'"),
        ("fils: a\npipelines: {web: {files: a}}", "there is no 'fils'"),
        ("pipelines: {a: {checkpoint: /c}, b: {checkpoint: /c}}", "same checkpoint"),
    ],
)
def test_pipelines_that_cannot_work_are_refused_with_their_name(
    tmp_path: Path, document: str, words: str
) -> None:
    (tmp_path / "p.yaml").write_text(document)
    with pytest.raises(ConfigError, match=words):
        config_file.load(tmp_path / "p.yaml")


def test_a_route_that_means_nothing_is_refused(tmp_path: Path) -> None:
    for sink in (
        "{url: stdout, when: {lvl: x}}",
        "{url: stdout, stages: [nothing]}",
        "{url: stdout, stages: x}",
    ):
        (tmp_path / "p.yaml").write_text(f"files: a\nsinks: [{sink}]")
        with pytest.raises((ConfigError, TypeError), match=r"sink 1|list"):
            config_file.load(tmp_path / "p.yaml").only.make_routes()


# -- a configuration that changes


def plan(
    source: logs.Tail, sink: MemorySink, says: object, files: tuple[Path, ...] = ()
) -> pipelines.Plan:
    return pipelines.Plan(
        {"": Collector(source, [], [sink])}, 5.0, says, pipelines.read_signature(map(str, files))
    )


async def test_a_changed_configuration_goes_on_where_the_one_before_ended(
    log: LogFile, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 37. Without a checkpoint, too: nothing is lost, and nothing delivered twice."""
    monkeypatch.setattr(pipelines, "_CHECK_INTERVAL_SECONDS", 0.02)
    config = tmp_path / "config"
    config.write_text("1")
    sink = MemorySink()

    def make() -> pipelines.Plan:
        if config.read_text() == "wrong":
            raise ConfigError("it says nothing that can work")
        return plan(logs.tail(log.path), sink, config.read_text(), (config,))

    running = asyncio.create_task((made := pipelines.Topology(make(), make)).run())
    for number, text in enumerate(["22", "wrong", "333"]):
        log.write(*(f"{number} {line}" for line in range(50)))
        await eventually(lambda number=number: len(sink.lines) == 50 * (number + 1))
        before = made._plan
        config.write_text(text)
        if text != "wrong":
            await eventually(lambda before=before: made._plan is not before and made.started)
    log.write("last")
    await eventually(lambda: "last" in sink.lines)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert sink.lines == [*(f"{n} {line}" for n in range(3) for line in range(50)), "last"]


@pytest.fixture
def dead() -> MemorySink:
    """A receiver that takes nothing."""
    sink = MemorySink(name="dead")
    sink.fail()
    return sink


async def delete_unread(
    log: LogFile,
    collector: Collector,
    eventually: Eventually,
    lines: Sequence[str] = ("one", "two"),
) -> None:
    """Write lines, and delete their file while it is open and the sink of the collector takes nothing."""
    log.write(*lines)
    await eventually(lambda: not collector.workers[0].idle)
    log.close()
    Path(log.path).unlink()
    await eventually(lambda: collector.source.deleted_unacknowledged() > 0)


@pytest.mark.parametrize("checkpoint", ["same", "another", "none"])
async def test_a_new_configuration_gets_the_deleted_files_that_a_dead_sink_still_holds(
    log: LogFile,
    tmp_path: Path,
    dead: MemorySink,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: str,
) -> None:
    """The address of the sink may be the very thing that the change mends: to wait for the old one would be for ever."""
    monkeypatch.setattr(pipelines, "_CHECK_INTERVAL_SECONDS", 0.02)
    config = tmp_path / "config"
    config.write_text("1")
    alive = MemorySink(name="alive")

    def make() -> pipelines.Plan:
        says = config.read_text()
        file = tmp_path / ("2.json" if checkpoint == "another" and says == "22" else "1.json")
        source = logs.tail(log.path, checkpoint=None if checkpoint == "none" else file)
        sink = dead if says == "1" else alive
        files = pipelines.read_signature([str(config)])
        return pipelines.Plan({"": Collector(source, [], [sink])}, 0.0, says, files)

    running = asyncio.create_task((made := pipelines.Topology(make(), make)).run())
    await delete_unread(log, made._plan.collectors[""], eventually)
    Path(log.path).write_text("three\n")
    config.write_text("22")
    await eventually(lambda: len(alive.lines) == 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert sorted(alive.lines) == ["one", "three", "two"]


async def test_files_are_handed_on_by_a_collection_that_never_began(
    log: LogFile, tmp_path: Path, dead: MemorySink, eventually: Eventually
) -> None:
    """It waits for a checkpoint that another one has, and the next change mends that."""
    checkpoint = tmp_path / "o.json"
    first = Collector(logs.tail(log.path), [], [dead])
    blocking = Collector(logs.tail(tmp_path / "x", checkpoint=checkpoint), [], [MemorySink()])
    second = Collector(logs.tail(log.path, checkpoint=checkpoint), [], [MemorySink(name="2")])
    third = Collector(logs.tail(log.path), [], [alive := MemorySink(name="3")])
    running = [asyncio.create_task(one.run()) for one in (first, blocking)]
    await eventually(lambda: first.started and blocking.started)
    await delete_unread(log, first, eventually)
    first.leave(0.0, second.source)
    await running[0]
    waiting = asyncio.create_task(second.run())
    await asyncio.sleep(0)
    second.leave(0.0, third.source)
    await waiting
    running[0] = asyncio.create_task(third.run())
    await eventually(lambda: alive.lines == ["one", "two"])
    for one, task in zip((third, blocking), running, strict=True):
        one.leave(5.0)
        await task


async def test_a_pipeline_that_is_taken_out_delivers_its_deleted_files_before(
    log: LogFile, dead: MemorySink, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """A deleted file is there as long as it is open, and nobody is to follow. Most of it has not been read yet."""
    lines = [f"line {number}" for number in range(50_000)]
    collector = Collector(logs.tail(log.path), [], [dead], budget=1)
    running = asyncio.create_task(collector.run())
    await delete_unread(log, collector, eventually, lines)
    collector.leave(60.0)
    await eventually(lambda: "deleted files are delivered" in caplog.text)
    assert not running.done()
    dead.recover()
    await running

    assert dead.lines == lines
    assert not collector.source.lost


async def test_a_pipeline_that_is_taken_out_does_not_wait_for_a_dead_sink(
    log: LogFile, dead: MemorySink, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """What is given up is named and counted."""
    collector = Collector(logs.tail(log.path), [], [dead])
    running = asyncio.create_task(collector.run())
    await delete_unread(log, collector, eventually)
    collector.leave(0.0)
    await running

    assert collector.source.lost == {"deleted": len("one\ntwo\n")}
    assert "8 bytes" in caplog.text


async def test_a_collection_that_waits_for_its_checkpoint_leaves_at_once(
    log: LogFile, tmp_path: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong checkpoint may be the very thing that the change mends."""
    first, second = (
        Collector(logs.tail(log.path, checkpoint=tmp_path / "o.json"), [], [MemorySink()])
        for _ in range(2)
    )
    running = asyncio.create_task(first.run())
    await eventually(lambda: first.started)
    waiting = asyncio.create_task(second.run())
    await eventually(lambda: "another collector uses the checkpoint" in caplog.text)
    second.leave(5.0)
    await waiting
    first.leave(5.0)
    await running


def test_a_change_of_the_file_is_taken_over_by_the_command(
    config: Path, tmp_path: Path, sidecar_process: StartProcess
) -> None:
    """A ConfigMap that is edited reaches the collector without a restart; a wrong one is refused and named."""
    (tmp_path / "web/a.log").write_text("GET 200\n")
    process = sidecar_process(
        *("collect", "--config", config, "--port", "0", "--host", "127.0.0.1"),
        until="listening on",
    )
    process.wait_until(lambda: len(objects(tmp_path / "web.out")) == 1)
    (url,) = re.findall(r"listening on (\S+)", process.output)

    def refused() -> str:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        return re.findall(r'sidecar_reload_total{action="config",result="refused"} (\S+)', text)[0]

    assert refused() == "0.0", "an alert needs the value before the first one"
    good = config.read_text()
    config.write_text(good.replace("parse: {regex", "parze: {regex"))
    process.wait_until("parze")
    assert refused() == "1.0"
    config.write_text(good.replace("stages: [{parse: {", "stages: [{add: {team: web}}, {parse: {"))
    process.wait_until("the new configuration is in use")
    with (tmp_path / "web/a.log").open("a") as file:
        file.write("GET 404\n")
    process.wait_until(lambda: len(objects(tmp_path / "web.out")) == 2)

    assert [one.get("team") for one in objects(tmp_path / "web.out")] == [None, "web"]
