"""A collection in a Job ends by itself: once a file, or the end of a process, says that the application has ended."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sidecar
from sidecar import logs
from sidecar.logs import pipeline as config
from sidecar.logs import stop_conditions
from sidecar.logs.testing import LogFile, MemorySink
from sidecar.process import process_table
from support import Eventually, StartProcess, WaitFor
from support.logs_support import PAD


async def test_it_ends_when_it_was_told_and_the_last_writer_has_closed(
    log: LogFile, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 12.11: both, since a program may tell before its last line is on the disk; that line needs no newline."""
    done, sink = log.path.with_name("done"), MemorySink()
    source = logs.tail(log.path, recheck=0.05)
    with caplog.at_level("INFO"):
        collection = asyncio.create_task(
            logs.collect(source, sink=sink, until=stop_conditions.file_exists(str(done)))
        )
        log.write("one")
        await eventually(lambda: sink.lines == ["one"])
        done.touch()
        await eventually(lambda: f"open for writing: {log.path}" in caplog.text)
        assert not collection.done()
        log.write_raw(b"last")
        log.close()
        await collection
    assert sink.lines == ["one", "last"]


async def test_a_sink_that_is_away_is_waited_for_at_the_end(
    log: LogFile, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """No grace period runs: a Job that has lost its last lines is no success."""
    log.write("one")
    log.close()
    sink = MemorySink()
    sink.fail()
    collection = asyncio.create_task(
        logs.collect(logs.tail(log.path, recheck=0.05), sink=sink, until=lambda: True)
    )
    await eventually(lambda: "takes nothing now" in caplog.text)
    assert not collection.done()
    sink.recover()
    await collection
    assert sink.lines == ["one"]


def test_the_command_ends_with_the_file(
    start_process: StartProcess, tmp_path: Path, wait_for: WaitFor
) -> None:
    """As a container of a Job runs it."""
    log, out = tmp_path / "app.log", tmp_path / "out"
    log.write_text(f"one {PAD}\n")
    process = start_process(
        *(sys.executable, "-m", "sidecar.cli.main", "collect", log, "--sink", f"file://{out}"),
        *("--until-file", tmp_path / "done"),
    )
    wait_for(lambda: out.exists() and out.read_text() == log.read_text())
    (tmp_path / "done").touch()
    assert process.wait() == 0


def test_the_end_of_a_process_is_noticed(tmp_path: Path, wait_for: WaitFor) -> None:
    """By the name of the program, as in a Pod with one process namespace."""
    program = tmp_path / f"worker-{os.getpid()}"  # no other one has that name
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as process:
        # Popen returns at the close-on-exec, before the kernel has set the new arguments.
        wait_for(lambda: any(program.name in one.argv for one in process_table.others()))
        ended = stop_conditions.process_ended(program.name)
        before = ended()
        process.kill()
    assert not before
    assert ended()


def test_a_process_that_was_never_seen_has_ended_after_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A Job that is done before the collector starts must not hang; and it is said."""
    now = 0.0
    ended = stop_conditions.process_ended("no such program", clock=lambda: now)
    assert not ended()
    now = 61.0
    assert ended()
    assert "no process named no such program was seen" in caplog.text


def test_both_conditions_must_hold_where_two_are_given(tmp_path: Path) -> None:
    """A file that is made early must not end what a process still writes."""
    pipeline = config.Pipeline(until_file=str(tmp_path / "done"), until_process="sh")
    with subprocess.Popen(["sh", "-c", "read line"], stdin=subprocess.PIPE) as process:
        told = pipeline.make_until()
        assert told is not None
        assert not told()
        (tmp_path / "done").touch()
        assert not told()
        process.kill()
    assert config.Pipeline().make_until() is None


def test_a_container_of_its_own_namespace_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would see the end of everything, at once."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(sidecar.ConfigError, match="shareProcessNamespace"):
        stop_conditions.process_ended("worker")
