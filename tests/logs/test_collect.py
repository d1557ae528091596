"""The whole run: workers, budget, acknowledgement, drain. Scenarios 10, 32, 33, 35, 38, 41, 46."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import sidecar
from sidecar import logs
from sidecar.fs.notify import inotify
from sidecar.logs import read_loop, sink_worker, source_metrics
from sidecar.logs.collector import Collector, save_intervals
from sidecar.logs.input.checkpoint import Checkpoint
from sidecar.logs.input.rotation import RotationTracker
from sidecar.logs.records import MAX_BLOCK_RECORDS
from sidecar.logs.sinks.deadletter import DeadLetterFile
from sidecar.logs.testing import LogFile, MemorySink
from sidecar.process import memory, metrics
from support import Eventually, as_user
from support.logs_support import PAD


@pytest.fixture
def offsets(tmp_path: Path) -> Path:
    return tmp_path / "state" / "offsets.json"


@contextlib.asynccontextmanager
async def collecting(collector: Collector, **options: Any) -> Any:
    """A collection in the background; at the end it is told to stop, and drains."""
    # The log is open for writing all the time, so the drain would wait half a second for more.
    task = asyncio.create_task(collector.run(**{"drain_quiet": 0.02} | options))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[None]:
    """Let a method note its calls in the list that is returned, one item each."""
    calls: list[None] = []
    method = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(None)
        return method(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


async def test_everything_there_is_delivered_and_the_call_ends(log: LogFile, offsets: Path) -> None:
    """`until_end`: for jobs; the second run has nothing to do."""
    log.write("one", "two")
    log.write_raw(b"three")
    sink = MemorySink()
    summary = await logs.collect(logs.tail(log.path, checkpoint=offsets), sink=sink, until_end=True)
    assert sink.lines == ["one", "two", "three"]
    assert (summary.lines, summary.size, summary.refused) == (3, 14, 0)
    again = MemorySink()
    await logs.collect(logs.tail(log.path, checkpoint=offsets), sink=again, until_end=True)
    assert again.lines == []


async def test_lines_pass_the_stages_in_order(log: LogFile) -> None:
    """A stage changes a record, replaces it or drops it; what is dropped is done with."""
    log.write("keep me", "drop me", "keep me too")

    def shout(record: logs.Record) -> logs.Record:
        record.text = record.text.upper()
        return record

    def drop(record: logs.Record) -> logs.Record | None:
        return None if record.text.startswith("DROP") else record

    sink = MemorySink()
    await logs.collect(logs.tail(log.path), shout, drop, sink=sink, until_end=True)
    assert sink.lines == ["KEEP ME", "KEEP ME TOO"]


async def test_a_new_line_is_delivered_at_once(log: LogFile, eventually: Eventually) -> None:
    """Not at the next re-check, which is a minute away here."""
    sink = MemorySink()
    async with collecting(Collector(logs.tail(log.path, recheck=60), [], [sink])):
        for number in range(5):
            log.write(f"line {number}")
            await eventually(lambda n=number: len(sink.lines) == n + 1)


async def test_new_files_and_rotations_need_no_recheck(
    log: LogFile, eventually: Eventually
) -> None:
    """An event of a directory starts a scan at once."""
    sink = MemorySink()
    pattern = log.path.parent / "**" / "*.log"
    async with collecting(Collector(logs.tail(pattern, recheck=60), [], [sink])):
        log.write("one")
        await eventually(lambda: sink.lines == ["one"])
        log.rotate()
        log.write("two")
        log.reopen()
        log.write("three")
        await eventually(lambda: sorted(sink.lines) == ["one", "three", "two"])
        other = LogFile(log.path.parent / "new" / "deep" / "b.log")
        other.write("four")
        await eventually(lambda: "four" in sink.lines)
        other.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC])
async def test_without_events_lines_arrive_all_the_same(
    log: LogFile, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Scenario 41: no inotify instance, no watch: polling replaces the events."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    method = "__init__" if code == errno.EMFILE else "add"
    monkeypatch.setattr(inotify.Inotify, method, refuse)
    sink = MemorySink()
    async with collecting(Collector(logs.tail(log.path, recheck=60), [], [sink])):
        log.write("one")
        await eventually(lambda: sink.lines == ["one"])


async def test_a_lost_event_costs_one_recheck(
    log: LogFile, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 41: an event may be lost; the next scan finds the line."""
    monkeypatch.setattr(inotify.Inotify, "drain", lambda _: [])
    sink = MemorySink()
    async with collecting(Collector(logs.tail(log.path, recheck=0.1), [], [sink])):
        log.write("one")
        await eventually(lambda: sink.lines == ["one"])


async def test_an_overflow_of_events_is_followed_by_a_scan_of_everything(
    log: LogFile, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 41: the events that were dropped may have named any file."""
    overflow = inotify.Event(-1, inotify.Inotify.OVERFLOW, b"")
    drained = inotify.Inotify.drain

    def drain(self: inotify.Inotify) -> list[inotify.Event]:
        return [overflow] if drained(self) else []

    monkeypatch.setattr(inotify.Inotify, "drain", drain)
    sink = MemorySink()
    async with collecting(Collector(logs.tail(log.path, recheck=60), [], [sink])):
        for number in range(3):
            log.write(f"{number}")
            await eventually(lambda n=number: len(sink.lines) == n + 1)


# when the sink does not take it


async def test_the_position_follows_only_what_was_acknowledged(
    log: LogFile, offsets: Path, eventually: Eventually
) -> None:
    """A batch that hangs is read again after the restart."""
    log.write("one")
    sink = MemorySink()
    collector = Collector(logs.tail(log.path, checkpoint=offsets), [], [sink])
    async with collecting(collector, drain_timeout=0.1):
        await eventually(lambda: sink.lines == ["one"])
        sink.hang()
        log.write("two")
        await eventually(lambda: collector.source.stats().unacknowledged_bytes == 4)
    (entry,) = Checkpoint(str(offsets)).load().entries
    assert entry.lowest == 4
    again = MemorySink()
    await logs.collect(logs.tail(log.path, checkpoint=offsets), sink=again, until_end=True)
    assert again.lines == ["two"]


async def test_a_sink_that_is_unavailable_is_tried_again(
    log: LogFile, eventually: Eventually
) -> None:
    """Scenario 32: nothing lost, nothing twice, and a probe can say what is wrong."""
    log.write("one", "two")
    sink = MemorySink()
    sink.fail("no route to host")
    collector = Collector(logs.tail(log.path), [], [sink])
    async with collecting(collector):
        await eventually(lambda: collector.failure(after=0.01) is not None)
        assert "no route to host" in (collector.failure(after=0.01) or "")
        sink.recover()
        await eventually(lambda: sink.lines == ["one", "two"])
        assert collector.failure(after=0) is None
        with pytest.warns(DeprecationWarning, match="failure"):
            assert collector.trouble(patience=0) is None


async def test_a_sink_that_stays_unavailable_is_named_again(
    log: LogFile,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who looks at the end of the log after hours must see it, with the reason of now; and at the end what is left."""
    monkeypatch.setattr(sink_worker, "_REPEAT_WARNING_SECONDS", 0.0)
    log.write("one", "two")
    sink = MemorySink()
    sink.fail("connection refused")
    async with collecting(Collector(logs.tail(log.path), [], [sink]), drain_timeout=0.1):
        await eventually(lambda: "memory takes nothing now: connection refused" in caplog.text)
        sink.fail("401 who are you")
        await eventually(lambda: "memory has taken nothing for 0 s: 401 who are you" in caplog.text)
    assert "within 0.1 s: 8 bytes to memory (401 who are you); the rest" in caplog.text


async def test_a_blocked_sink_stops_the_reading_at_the_budget(
    log: LogFile, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the buffer: memory does not grow with what is written."""
    for _ in range(100):
        log.write(*["x" * 999] * 100)
    sink = MemorySink()
    sink.hang()
    source = logs.tail(log.path, max_line=10_000, recheck=0.01)
    collector = Collector(source, [], [sink], budget=1 << 20)
    async with collecting(collector):
        await eventually(lambda: collector.workers[0].free_bytes <= 0)
        held = collector.workers[0].pending_bytes
        log.write("more")
        await eventually(lambda: source.stats().lag_bytes == 10_000_005)
        scans = count_calls(monkeypatch, source, "scan")
        await eventually(lambda: len(scans) == 3)
        assert collector.workers[0].pending_bytes == held < 2 << 20
        sink.recover()
        await eventually(lambda: len(sink.lines) == 10_001)


async def test_what_a_burst_leaves_in_the_heap_is_given_back(
    log: LogFile, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each burst, some seconds later; never while nothing moves."""
    monkeypatch.setattr(read_loop, "_TRIM_INTERVAL_SECONDS", 0.05)
    collector = Collector(logs.tail(log.path, recheck=0.01), [], [MemorySink()])
    scans = count_calls(monkeypatch, collector.source, "scan")
    trims: list[int] = []
    monkeypatch.setattr(memory, "trim_heap", lambda: trims.append(len(scans)))
    async with collecting(collector):
        for burst in (1, 2):
            log.write("a line")
            await eventually(lambda count=burst: len(trims) == count)
        await eventually(lambda: len(scans) > trims[-1] + 20)
        assert len(trims) == 2


async def test_truncated_while_the_sink_was_blocked(log: LogFile, eventually: Eventually) -> None:
    """Scenario 10: what was read is delivered, what was not is counted, the new lines come."""
    sink = MemorySink()
    sink.hang()
    collector = Collector(logs.tail(log.path), [], [sink])
    async with collecting(collector):
        log.write("one")
        await eventually(lambda: collector.source.stats().unacknowledged_bytes > 0)
        log.truncate()
        log.write("two and more")
        sink.recover()
        await eventually(lambda: sink.lines == ["one", "two and more"])


async def test_rotated_three_times_while_the_sink_was_down(
    log: LogFile, eventually: Eventually
) -> None:
    """Scenario 33: all generations are found and delivered, in whatever order."""
    sink = MemorySink()
    sink.fail()
    collector = Collector(logs.tail(log.path), [], [sink])
    async with collecting(collector):
        await eventually(lambda: collector.started)
        for number in range(3):
            log.write(f"generation {number}")
            log.rotate()
            log.reopen()
        log.write("generation 3")
        sink.recover()
        await eventually(lambda: sorted(sink.lines) == [f"generation {n}" for n in range(4)])


async def test_what_waits_for_a_sink_waits_over_a_restart(
    log: LogFile, offsets: Path, eventually: Eventually
) -> None:
    """Scenario 45: there is no spool that could get lost; the files are it, those that were rotated meanwhile too."""
    sink = MemorySink()
    sink.fail()
    collector = Collector(logs.tail(log.path, checkpoint=offsets), [], [sink])
    async with collecting(collector, drain_timeout=0.1):
        await eventually(lambda: collector.started)
        log.write(*(f"{n} {PAD}" for n in range(1000)))
        await eventually(lambda: collector.workers[0].failure is not None)
        log.rotate()
        log.reopen()
        log.write(*(f"{n} {PAD}" for n in range(1000, 2000)))
    again = MemorySink()
    await logs.collect(logs.tail(log.path, checkpoint=offsets), sink=again, until_end=True)
    assert sink.lines == []
    assert sorted(again.lines) == sorted(f"{n} {PAD}" for n in range(2000))


async def test_another_configuration_under_load_loses_and_repeats_nothing(
    log: LogFile, offsets: Path, eventually: Eventually
) -> None:
    """Scenario 37: stopped and started with other labels and stages while lines are written, five times."""
    sinks, written = [], itertools.count()

    async def write() -> None:
        while True:
            log.write(*(f"{next(written)} {PAD}" for _ in range(20)))
            await asyncio.sleep(0)

    writer = asyncio.create_task(write())
    for number in range(5):
        sink = MemorySink()
        sinks.append(sink)
        stages = [logs.add_fields(run=number), logs.parse_json][number % 2 :]
        source = logs.tail(log.path, checkpoint=offsets)
        labels = {"run": str(number)}
        async with collecting(Collector(source, stages, [sink], labels=labels), drain_timeout=0.3):
            await eventually(lambda one=sink: len(one.lines) > 100)
    writer.cancel()
    last = MemorySink()
    await logs.collect(logs.tail(log.path, checkpoint=offsets), sink=last, until_end=True)
    lines = [line for sink in [*sinks, last] for line in sink.lines]
    assert lines == [f"{number} {PAD}" for number in range(next(written))]
    assert [sink.records[0].labels["run"] for sink in sinks] == ["0", "1", "2", "3", "4"]


async def test_refused_records_are_in_the_dead_letters_before_the_position_passes(
    log: LogFile, offsets: Path
) -> None:
    """One poisoned line does not hold back the rest, and is not gone either."""
    log.write("good", "poison", "good too")
    sink = MemorySink(refuse=lambda record: "bad" if record.text == "poison" else None)
    summary = await logs.collect(logs.tail(log.path, checkpoint=offsets), sink=sink, until_end=True)
    assert sink.lines == ["good", "good too"]
    assert summary.refused == 1
    assert "poison" in Path(f"{offsets}.dead-letters.ndjson").read_text()


async def test_a_dead_letter_file_that_cannot_be_written_holds_the_position(
    log: LogFile, tmp_path: Path, offsets: Path, eventually: Eventually
) -> None:
    """Passing the record then would be losing it."""
    log.write("poison")
    (tmp_path / "file").touch()
    dead = DeadLetterFile(tmp_path / "file" / "cannot-be-there")
    sink = MemorySink(refuse=lambda _: "bad")
    collector = Collector(logs.tail(log.path, checkpoint=offsets), [], [sink], dead_letters=dead)
    async with collecting(collector, drain_timeout=0.1):
        await eventually(lambda: collector.failure(after=0.01) is not None)
        assert collector.source.stats().unacknowledged_bytes == 7


async def test_sinks_progress_independently(
    log: LogFile, offsets: Path, eventually: Eventually
) -> None:
    """A dead sink holds back no other; after a restart each gets what it has not had."""
    good, dead = MemorySink("good"), MemorySink("dead")
    dead.hang()
    log.write(*(str(n) for n in range(100)))
    collector = Collector(
        logs.tail(log.path, checkpoint=offsets, max_line=50), [], [good, dead], budget=200
    )
    async with collecting(collector, drain_timeout=0.1):
        await eventually(lambda: len(good.lines) == 100)
    good, dead = MemorySink("good"), MemorySink("dead")
    source = logs.tail(log.path, checkpoint=offsets)
    await logs.collect(source, sink=[good, dead], until_end=True)
    assert good.lines == []
    assert dead.lines == [str(n) for n in range(100)]


async def test_a_batch_waits_for_more_lines(log: LogFile, eventually: Eventually) -> None:
    """`linger`: lines that are written one after the other leave in one batch."""
    sink = MemorySink(batching=logs.Batching(linger=60))
    collector = Collector(logs.tail(log.path), [], [sink])
    async with collecting(collector):
        for number in range(5):
            log.write(str(number))
            await eventually(lambda n=number: collector.workers[0].pending_bytes == 2 * (n + 1))
    assert (sink.batches, len(sink.lines)) == (1, 5)


async def test_a_line_waits_no_longer_than_linger(log: LogFile, eventually: Eventually) -> None:
    """A line that no other follows leaves alone."""
    sink = MemorySink(batching=logs.Batching(linger=0.05))
    async with collecting(Collector(logs.tail(log.path), [], [sink])):
        log.write("one")
        await eventually(lambda: sink.lines == ["one"])


@pytest.mark.parametrize("stages", [[], [logs.keep(".*")]])
async def test_a_batch_makes_no_more_records_than_memory_is_meant_for(
    log: LogFile, stages: list[logs.Stage]
) -> None:
    """For stages, and for sinks that want records: a megabyte of empty lines would take half a gigabyte."""
    sizes = []

    class Measuring(logs.BaseSink):
        name = "measuring"

        async def write(self, batch: logs.Batch) -> logs.Receipt:
            sizes.append(len(batch.records()))
            return logs.ACCEPTED

    log.write_raw(b"\n" * 60_000)
    await logs.collect(logs.tail(log.path), *stages, sink=Measuring(), until_end=True)
    assert sum(sizes) == 60_000
    assert max(sizes) <= MAX_BLOCK_RECORDS


async def test_batches_that_overtake_each_other_do_not_lose_the_gap(
    log: LogFile, offsets: Path, eventually: Eventually
) -> None:
    """With several batches on their way, the position stays before the first that is missing."""

    class Odd(MemorySink):
        async def write(self, batch: logs.Batch) -> logs.Receipt:
            if batch.records()[0].text.startswith("0"):
                await asyncio.Event().wait()
            return await super().write(batch)

    sink = Odd(batching=logs.Batching(max_lines=1, concurrency=3))
    collector = Collector(logs.tail(log.path, checkpoint=offsets, max_line=3), [], [sink])
    async with collecting(collector, drain_timeout=0.1):
        log.write("000")
        await eventually(lambda: collector.source.stats().unacknowledged_bytes == 4)
        log.write("111")
        await eventually(lambda: sink.lines == ["111"])
        assert collector.source.stats().unacknowledged_bytes == 8
    (entry,) = Checkpoint(str(offsets)).load().entries
    assert entry.lowest == 0


# errors and ends


async def test_an_error_of_a_stage_ends_the_run_and_saves_what_was_done(
    log: LogFile, offsets: Path, eventually: Eventually
) -> None:
    """The line on which it failed is still there after the repair."""

    def fragile(record: logs.Record) -> logs.Record:
        if record.text == "two":
            raise ZeroDivisionError
        return record

    sink = MemorySink()
    task = asyncio.create_task(
        logs.collect(logs.tail(log.path, checkpoint=offsets), fragile, sink=sink)
    )
    log.write("one")
    await eventually(lambda: sink.lines == ["one"])
    log.write("two")
    with pytest.raises(ZeroDivisionError):
        await task
    assert sink.closed
    again = MemorySink()
    await logs.collect(logs.tail(log.path, checkpoint=offsets), sink=again, until_end=True)
    assert again.lines == ["two"]


async def test_told_to_stop_it_reads_to_the_end_first(log: LogFile, eventually: Eventually) -> None:
    """Scenario 35: a backlog, and lines written while it drains."""
    sink = MemorySink()
    collector = Collector(logs.tail(log.path, recheck=60), [], [sink])
    async with collecting(collector):
        await eventually(lambda: collector.started)
        log.write(*(str(n) for n in range(50_000)))
    assert len(sink.lines) == 50_000


async def test_told_to_stop_during_a_scan_it_scans_again(
    log: LogFile, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written after that scan and before SIGTERM would be gone with the Pod."""
    sink, scanned, go_on = MemorySink(), threading.Event(), threading.Event()
    source = logs.tail(log.path, recheck=0.01)
    collector = Collector(source, [], [sink])
    task = asyncio.create_task(collector.run(drain_quiet=0.0))
    await eventually(lambda: collector.started)
    scan = source.scan

    def slow(**options: Any) -> None:
        scan(**options)
        scanned.set()
        assert go_on.wait(10)

    monkeypatch.setattr(source, "scan", slow)
    await eventually(scanned.is_set)
    log.write("one")
    task.cancel()
    await eventually(lambda: collector._loop.draining)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sink.lines == ["one"]


async def test_told_to_stop_it_asks_a_receiver_that_was_away_again(
    log: LogFile, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses grow to half a minute, more than there is to drain: a receiver that is back by then gets its lines."""
    monkeypatch.setattr(sink_worker, "_MIN_BACKOFF_SECONDS", 60.0)

    class Away(MemorySink):
        away = True

        async def write(self, batch: logs.Batch) -> logs.Receipt:
            if self.away:
                raise logs.SinkUnavailable("away")
            return await super().write(batch)

    sink = Away()
    log.write("one")
    collector = Collector(logs.tail(log.path), [], [sink])
    async with collecting(collector, drain_timeout=5.0):
        await eventually(lambda: collector.workers[0].failure is not None)
        sink.away = False
    assert sink.lines == ["one"]


async def test_a_last_line_without_newline_is_delivered_at_the_end_if_its_writer_is_gone(
    log: LogFile, eventually: Eventually
) -> None:
    """The last words of an application that has ended."""
    sink = MemorySink()
    log.write_raw(b"one\nlast words")
    async with collecting(Collector(logs.tail(log.path), [], [sink])):
        await eventually(lambda: sink.lines == ["one"])
        log.close()
    assert sink.lines == ["one", "last words"]


async def test_a_line_whose_writer_is_there_is_not_torn_at_the_end(
    log: LogFile, offsets: Path, eventually: Eventually
) -> None:
    """It is completed after the restart, once."""
    sink = MemorySink()
    log.write_raw(b"one\nhalf a ")
    async with collecting(Collector(logs.tail(log.path, checkpoint=offsets), [], [sink])):
        await eventually(lambda: sink.lines == ["one"])
    log.write_raw(b"line\n")
    await logs.collect(logs.tail(log.path, checkpoint=offsets), sink=sink, until_end=True)
    assert sink.lines == ["one", "half a line"]


class HangingSink(MemorySink):
    """A sink that blocks each write, and reports it."""

    def __init__(self) -> None:
        super().__init__()
        self.hang()
        self.writing = asyncio.Event()

    async def write(self, batch: logs.Batch) -> logs.Receipt:
        self.writing.set()
        return await super().write(batch)


async def test_the_end_leaves_no_descriptor_and_no_task(log: LogFile, offsets: Path) -> None:
    """Scenario 46: also when it is cancelled while a write is blocked."""
    before, tasks = set(os.listdir("/proc/self/fd")), asyncio.all_tasks()
    sink = HangingSink()
    log.write("one")
    async with collecting(
        Collector(logs.tail(log.path, checkpoint=offsets), [], [sink]), drain_timeout=0.05
    ):
        await sink.writing.wait()
    assert asyncio.all_tasks() == tasks
    assert set(os.listdir("/proc/self/fd")) <= before


async def test_told_to_stop_while_it_scans_for_files_it_keeps_none_open(
    log: LogFile, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first scan of thousands of files takes a while, and a program that goes on wants its descriptors back."""
    before, look, looked = set(os.listdir("/proc/self/fd")), RotationTracker.scan, threading.Event()
    go_on = threading.Event()

    def slow(*args: Any) -> None:
        looked.set()
        assert go_on.wait(10)
        look(*args)

    monkeypatch.setattr(RotationTracker, "scan", slow)
    log.write("one")
    task = asyncio.create_task(logs.collect(logs.tail(log.path), sink=MemorySink()))
    await eventually(looked.is_set)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(os.listdir("/proc/self/fd")) <= before


async def test_a_sink_that_fails_to_close_keeps_nothing_else_open(log: LogFile) -> None:
    """Its error comes out, and the other sinks and the files are closed all the same."""

    class Stuck(MemorySink):
        async def close(self) -> None:
            raise OSError("stuck")

    before, other = set(os.listdir("/proc/self/fd")), MemorySink("other")
    log.write("one")
    sinks = [Stuck("stuck"), other]
    with pytest.raises(OSError, match="stuck"):
        await logs.collect(logs.tail(log.path), sink=sinks, until_end=True)
    assert other.closed
    assert set(os.listdir("/proc/self/fd")) <= before


async def test_a_second_cancellation_does_not_wait_for_the_drain(
    log: LogFile, eventually: Eventually
) -> None:
    """The drain would take a minute."""
    sink = HangingSink()
    log.write("one")
    collector = Collector(logs.tail(log.path), [], [sink])
    task = asyncio.create_task(collector.run(drain_timeout=60))
    await sink.writing.wait()
    task.cancel()
    await eventually(lambda: collector._loop.draining)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)


def test_a_run_saves_several_times_in_its_first_second_and_each_second_later() -> None:
    """A process that is killed every second makes progress, and one that runs for long repeats a second at most."""
    intervals = list(itertools.islice(save_intervals(), 20))
    assert sum(intervals[:4]) < 1.0
    assert max(intervals) <= 1.0


async def test_a_checkpoint_that_cannot_be_saved_does_not_stop_the_collection(
    log: LogFile, offsets: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 39: lines are delivered, a probe says what is wrong, saving is tried again."""

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = MemorySink()
    collector = Collector(logs.tail(log.path, checkpoint=offsets), [], [sink])
    with monkeypatch.context() as planted:
        planted.setattr(Checkpoint, "save", full)
        async with collecting(collector):
            log.write("one")
            await eventually(lambda: sink.lines == ["one"])
            await eventually(lambda: "no space" in (collector.failure() or ""))


@pytest.mark.root
async def test_a_checkpoint_that_may_not_be_written_is_named_once_with_what_to_change(
    open_path: Path,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is tried each second, and a log that says so each second hides everything else."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    (open_path / "state").mkdir(mode=0o755)
    offsets, log = open_path / "state" / "offsets.json", LogFile(open_path / "app.log")
    sink = MemorySink()
    with as_user(65532):
        collector = Collector(logs.tail(log.path, checkpoint=offsets), [], [sink])
        async with collecting(collector):
            for number in range(3):
                log.write(str(number))
                await eventually(lambda count=number + 1: len(sink.lines) == count)
                collector._dirty.set()
                await eventually(lambda: not collector._dirty.is_set())
                await eventually(collector._dirty.is_set)
    log.close()
    said = f"cannot save the checkpoint {offsets}: permission denied for user 65532"
    assert caplog.text.count(said) == 1
    assert "fsGroup" in (collector.failure() or "")


@pytest.mark.root
async def test_a_file_that_may_not_be_read_is_not_said_to_be_missing(
    open_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is told that nothing matches looks for the mistake in the pattern."""
    (open_path / "app.log").touch(mode=0o600)
    source = logs.tail(open_path / "*.log")
    with as_user(65532):
        summary = await logs.collect(source, sink=MemorySink(), until_end=True)
    assert "cannot read" in caplog.text
    assert "no file matches" not in caplog.text
    assert "permission denied" in summary.unreadable[str(open_path / "app.log")]


async def test_a_run_to_the_end_delivers_what_was_there_and_no_more_than_that_is_waited_for(
    log: LogFile,
) -> None:
    """Issue 12.1d: a program that writes on and on cannot hold `--once`. This one answers each line with another."""

    class Answering(MemorySink):
        async def write(self, batch: logs.Batch) -> logs.Receipt:
            log.write("another")
            return await super().write(batch)

    log.write("one", "two")
    unfinished = LogFile(log.path.with_name("quiet.log"))
    unfinished.write_raw(b"no newline")
    sink = Answering()
    await logs.collect(logs.tail(log.path.parent / "*.log"), sink=sink, until_end=True)
    unfinished.close()
    assert {"one", "two", "no newline"} <= set(sink.lines)


async def test_a_run_to_the_end_leaves_out_nothing_that_may_be_a_copy(log: LogFile) -> None:
    """Issue 12.1a: nobody looks again after it, so there is nothing to wait for."""
    lines = [f"{number} {PAD}" for number in range(9)]
    log.write(*lines)
    log.path.with_name("app.log.1").write_text(f"{lines[0]}\n")
    sink = MemorySink()
    await logs.collect(logs.tail(log.path.with_name("app.log*")), sink=sink, until_end=True)
    assert sorted(sink.lines) == sorted([*lines, lines[0]])


async def test_what_the_collection_writes_itself_is_not_collected(tmp_path: Path) -> None:
    """Each line would make another one, without end; rotated or not, by whatever way the directory is reached."""
    (tmp_path / "log").mkdir()
    (tmp_path / "way").symlink_to("log")
    for name in ("app.log", "out.log", "out.log.1", "out.log.2.gz"):
        (tmp_path / "log" / name).write_text(f"{name}\n")
    sink = logs.FileSink(tmp_path / "way" / "out.log", max_bytes=20)
    source = logs.tail(tmp_path / "log" / "*", checkpoint=tmp_path / "log" / "offsets.json")
    summary = await logs.collect(source, sink=sink, until_end=True)
    assert summary.lines == 1
    assert (tmp_path / "log" / "out.log").read_text() == "out.log\napp.log\n"


@pytest.mark.parametrize("own", ["out.log", "offsets.json", "offsets.json.dead-letters.ndjson"])
def test_a_file_named_for_reading_and_for_writing_is_refused(tmp_path: Path, own: str) -> None:
    """A checkpoint would move an application's log out of its way."""
    source = logs.tail(tmp_path / own, checkpoint=tmp_path / "offsets.json")
    with pytest.raises(sidecar.ConfigError, match=f"{own} cannot be collected"):
        Collector(source, [], [logs.FileSink(tmp_path / "out.log")])


async def test_a_second_collection_waits_for_the_checkpoint_of_the_first(
    log: LogFile, offsets: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """A rolling update: the old Pod drains while the new one starts. No line twice, none forgotten."""
    log.write("one")
    old, new = MemorySink(), MemorySink()
    async with collecting(Collector(logs.tail(log.path, checkpoint=offsets), [], [old])):
        await eventually(lambda: old.lines == ["one"])
        second = asyncio.create_task(
            logs.collect(logs.tail(log.path, checkpoint=offsets), sink=new)
        )
        await eventually(lambda: "another collector uses the checkpoint" in caplog.text)
        log.write("two")
        await eventually(lambda: old.lines == ["one", "two"])
    log.write("three")
    await eventually(lambda: new.lines == ["three"])
    second.cancel()
    await asyncio.wait({second})


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"max_bytes": 0}, {"max_lines": 0}, {"linger": -1.0}]
)
def test_a_batching_that_would_never_send_is_refused(wrong: dict[str, Any]) -> None:
    """Without a task that delivers a collection would end at once, as if everything had arrived."""
    with pytest.raises(sidecar.ConfigError, match=f"{next(iter(wrong))} of a batching must be"):
        logs.Batching(**wrong)


async def test_a_tail_that_is_in_use_goes_on_when_another_collection_wants_it(
    log: LogFile, offsets: Path, eventually: Eventually
) -> None:
    """One for each: the second is refused, and takes nothing away from the first."""
    source, sink = logs.tail(log.path, checkpoint=offsets), MemorySink()
    first = Collector(source, [], [sink])
    async with collecting(first):
        await eventually(lambda: first.started)
        with pytest.raises(RuntimeError, match="in use already"):
            await logs.collect(source, sink=MemorySink("other"))
        log.write("one")
        await eventually(lambda: sink.lines == ["one"])
        assert not Checkpoint(str(offsets)).lock()


async def test_two_sinks_of_one_name_are_refused(log: LogFile) -> None:
    """Their progress could not be told apart."""
    with pytest.raises(sidecar.ConfigError, match="a name of its own"):
        await logs.collect(logs.tail(log.path), sink=[MemorySink(), MemorySink()])


class FailsToClose(MemorySink):
    """A sink whose end is an error."""

    async def close(self) -> None:
        raise OSError("the disk is gone")


async def test_a_collection_that_fails_at_its_end_counts_no_longer(log: LogFile) -> None:
    """Its lag would be added to that of all others of the process."""
    log.write("one")
    with pytest.raises(OSError, match="the disk is gone"):
        await logs.collect(logs.tail(log.path), sink=FailsToClose(), until_end=True)
    assert not source_metrics._stats_by_source


async def test_metrics_tell_lines_bytes_and_lag(log: LogFile, eventually: Eventually) -> None:
    """What DESIGN 5 promises, after a real run."""

    def value(name: str) -> float:
        return metrics.REGISTRY.get_sample_value(name) or 0.0

    lines, size = value("sidecar_logs_lines_total"), value("sidecar_logs_bytes_total")
    sink = MemorySink()
    sink.hang()
    async with collecting(Collector(logs.tail(log.path, recheck=0.02), [], [sink])):
        log.write("one", "two")
        await eventually(lambda: value("sidecar_logs_lag_bytes") == 8)
        await eventually(lambda: value("sidecar_logs_unacked_bytes") == 8)
        await eventually(lambda: value("sidecar_logs_lag_seconds") > 0)
        sink.recover()
        await eventually(lambda: value("sidecar_logs_lag_bytes") == 0)
    assert value("sidecar_logs_lines_total") - lines == 2
    assert value("sidecar_logs_bytes_total") - size == 8
