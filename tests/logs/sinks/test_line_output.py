"""Standard output and files: lines as they came or as JSON, back-pressure, rotation, exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sidecar
from sidecar import logs
from sidecar.fs import atomic
from sidecar.logs.records import Batch, Block, Record
from sidecar.logs.sinks import file as files
from sidecar.logs.sinks.file import FileSink
from sidecar.logs.sinks.stdout import StdoutSink
from support import Eventually


def batch(*lines: str) -> Batch:
    data = "".join(line + "\n" for line in lines).encode()
    return Batch([Block(data, "/log/app", "id", 0, len(data), 1)])


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


def bytes_in(pipe: int) -> int:
    """Return how many bytes nobody has read yet."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


# standard output


async def test_lines_that_no_stage_changed_are_written_as_they_came(pipe: tuple[int, int]) -> None:
    """Byte by byte, also what is not UTF-8; parsing alone changes nothing."""
    raw = b'{"b": 1,  "a": 2}\nbad \xff byte\n'
    block = Block(raw, "/log/app", "id", 0, len(raw), 1)
    parsed = [logs.parse_json(record) for record in block.records()]
    sink = StdoutSink(fd=pipe[1])
    await sink.write(Batch([block]))
    await sink.write(Batch([block], [record for record in parsed if record is not None]))
    assert os.read(pipe[0], 1000) == raw * 2


async def test_a_changed_record_is_written_as_json(pipe: tuple[int, int]) -> None:
    """Only that one; with `json`, each."""
    block = batch("one", "two").blocks[0]
    one, two = block.records()
    two.fields["user"] = "ada"
    await StdoutSink(fd=pipe[1]).write(Batch([block], [one, two]))
    first, second = os.read(pipe[0], 1000).splitlines()
    assert first == b"one"
    assert json.loads(second)["user"] == "ada"
    await StdoutSink(fd=pipe[1], json=True).write(batch("three"))
    assert json.loads(os.read(pipe[0], 1000))["message"] == "three"


async def test_json_within_json_survives_its_escaping(pipe: tuple[int, int]) -> None:
    """Scenario 44: quotes, backslashes and line ends of the inner document come out as they went in."""
    inner = json.dumps({"a": 'say "hi"\\\n', "b": {"c": "\u2028\x00"}})
    await StdoutSink(fd=pipe[1], json=True).write(batch(inner))
    assert json.loads(os.read(pipe[0], 1000))["message"] == inner


async def test_a_record_that_was_put_back_is_not_changed() -> None:
    """What counts is what it says, not who touched it."""
    record = Record(b"text")
    record.text = "other"
    assert record.changed
    record.text = "text"
    assert not record.changed


async def test_a_full_pipe_waits_for_its_reader_and_can_be_cancelled(
    pipe: tuple[int, int], eventually: Eventually
) -> None:
    """A stalled reader never hangs the process."""
    size = fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 65536)
    sink = StdoutSink(fd=pipe[1])
    task = asyncio.create_task(sink.write(batch(*["x" * 999] * 200)))
    await eventually(lambda: bytes_in(pipe[0]) == size)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)


async def test_everything_passes_a_pipe_that_is_read_slowly(pipe: tuple[int, int]) -> None:
    """In pieces that fit, in order, whole."""
    sent = batch(*(f"{n} {'x' * 500}" for n in range(2000)))
    task = asyncio.create_task(StdoutSink(fd=pipe[1]).write(sent))
    got = b""
    while len(got) < sent.size:
        got += await asyncio.to_thread(os.read, pipe[0], 5000)
    await task
    assert got == sent.blocks[0].data


async def test_a_reader_that_is_gone_is_an_error(pipe: tuple[int, int]) -> None:
    """Not a line that was delivered."""
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError):
        await StdoutSink(fd=pipe[1]).write(batch("one"))


# files


async def test_a_file_gets_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    """Images set 077 often enough, and the container that is to read it has another user. What is there keeps its own."""
    (tmp_path / "there").touch(0o600)
    before = os.umask(0o077)
    try:
        for name in ("new", "there"):
            sink = FileSink(tmp_path / name, mode=0o664)
            await sink.open(None)
            await sink.close()
    finally:
        os.umask(before)

    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o664
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o600


async def test_a_file_gets_the_lines_and_its_mode(tmp_path: Path) -> None:
    """Its directory is made where it is missing."""
    sink = FileSink(tmp_path / "deep" / "out", mode=0o640)
    await sink.open(None)
    await sink.write(batch("one"))
    await sink.write(batch("two"))
    await sink.flush()
    await sink.close()
    assert (tmp_path / "deep" / "out").read_text() == "one\ntwo\n"
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("size", [1, 1000, files._MAX_WRITE_BYTES, 3 * files._MAX_WRITE_BYTES + 1])
async def test_blocks_of_any_size_and_number_are_written_whole(tmp_path: Path, size: int) -> None:
    """However many system calls that takes."""
    count = 2 * files._MAX_IOVECS if size < 2000 else 5
    lines = [f"{number} ".ljust(size - 1, "x")[: size - 1] for number in range(count)]
    blocks = [one for line in lines for one in batch(line).blocks]
    sink = FileSink(tmp_path / "out")
    await sink.open(None)
    await sink.write(Batch(blocks))
    await sink.close()
    assert (tmp_path / "out").read_text().splitlines() == lines


async def test_what_was_not_remembered_is_cut_off_at_the_next_start(tmp_path: Path) -> None:
    """The checkpoint knows the first batch; the second comes again."""
    sink = FileSink(tmp_path / "out")
    await sink.open(None)
    remembered = (await sink.write(batch("one"))).resume
    await sink.write(batch("two"))
    await sink.close()
    await sink.open(remembered)
    await sink.write(batch("two"))
    await sink.close()
    assert (tmp_path / "out").read_text() == "one\ntwo\n"


async def test_a_rotated_output_goes_back_across_the_rotation(tmp_path: Path) -> None:
    """Killed after it had begun the next file: that one only holds what comes again."""
    sink = FileSink(tmp_path / "out", max_bytes=10, keep=5)
    await sink.open(None)
    remembered = (await sink.write(batch("first"))).resume
    for line in ("second", "third", "fourth"):
        await sink.write(batch(line))
    await sink.close()
    assert len(list(tmp_path.iterdir())) == 4
    await sink.open(remembered)
    for line in ("second", "third", "fourth"):
        await sink.write(batch(line))
    await sink.close()
    assert sorted(p.read_text() for p in tmp_path.iterdir()) == [
        "first\n",
        "fourth\n",
        "second\n",
        "third\n",
    ]


async def test_a_kill_in_the_middle_of_a_rotation_is_undone(tmp_path: Path) -> None:
    """The full file had its new name, and the next one was not there yet."""
    sink = FileSink(tmp_path / "out", max_bytes=10)
    await sink.open(None)
    remembered = (await sink.write(batch("first"))).resume
    await sink.write(batch("second"))
    await sink.close()
    (tmp_path / "out").rename(tmp_path / "out.0")
    (tmp_path / "out.1").rename(tmp_path / "out.2")
    (tmp_path / "out.0").rename(tmp_path / "out.1")
    await sink.open(remembered)
    await sink.close()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out", "first\n")]


async def test_old_outputs_are_removed(tmp_path: Path) -> None:
    """`keep` of them stay, and one more, into which a restart may have to go back."""
    sink = FileSink(tmp_path / "out", max_bytes=5, keep=2)
    await sink.open(None)
    for number in range(10):
        await sink.write(batch(f"line {number}"))
    await sink.close()
    assert {p.name for p in tmp_path.iterdir()} == {"out", "out.1", "out.2", "out.3"}
    assert (tmp_path / "out.1").read_text() == "line 8\n"


async def test_a_foreign_resume_is_ignored(tmp_path: Path) -> None:
    """Another inode, nonsense, nothing: the file stays as it is."""
    (tmp_path / "out").write_text("mine\n")
    resumes: tuple[Any, ...] = (
        {"device": 1, "inode": 2, "size": 0},
        "nonsense",
        [],
        {"size": None},
    )
    for resume in resumes:
        sink = FileSink(tmp_path / "out")
        await sink.open(resume)
        await sink.close()
    assert (tmp_path / "out").read_text() == "mine\n"


async def test_it_goes_on_in_a_new_file_when_somebody_renames_the_old_one(tmp_path: Path) -> None:
    """logrotate does not tell."""
    sink = FileSink(tmp_path / "out")
    await sink.open(None)
    await sink.write(batch("one"))
    (tmp_path / "out").rename(tmp_path / "out.old")
    await sink.write(batch("two"))
    await sink.close()
    assert (tmp_path / "out.old").read_text() == "one\n"
    assert (tmp_path / "out").read_text() == "two\n"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "look after its volume"),
    ],
)
async def test_a_full_volume_leaves_no_half_line_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    """Half of the batch was written when the disk was full."""
    sink = FileSink(tmp_path / "out")
    await sink.open(None)
    await sink.write(batch("one"))

    def full(fd: int, pieces: list[memoryview]) -> int:
        os.write(fd, bytes(pieces[0])[:2])
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as planted:
        planted.setattr(files, "_write_all", full)
        with pytest.raises(logs.SinkUnavailable, match=remedy):
            await sink.write(batch("two"))
    assert (tmp_path / "out").read_text() == "one\n"
    await sink.write(batch("two"))
    await sink.close()
    assert (tmp_path / "out").read_text() == "one\ntwo\n"


async def test_lines_that_could_not_be_made_durable_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of a failed sync once, and has dropped the pages then: nothing may rely on them, and no later sync."""
    source, offsets, out = tmp_path / "app.log", tmp_path / "offsets.json", tmp_path / "out"
    source.write_text("one\n")
    await logs.collect(logs.tail(source, checkpoint=offsets), sink=FileSink(out), until_end=True)
    durable, sync = out.stat().st_size, os.fdatasync
    failed: list[int] = []

    def fails_once(fd: int) -> None:
        if not failed:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)

    with monkeypatch.context() as planted, source.open("a") as file:
        file.write("two\n")
        file.flush()
        planted.setattr(atomic, "sync_data", fails_once)
        with pytest.raises(
            sidecar.SidecarError, match=f"cannot make {out} durable: input/output error"
        ):
            await logs.collect(
                logs.tail(source, checkpoint=offsets), sink=FileSink(out), until_end=True
            )
    os.truncate(out, durable)  # as it is when the pages are read from the disk again
    await logs.collect(logs.tail(source, checkpoint=offsets), sink=FileSink(out), until_end=True)
    assert out.read_text() == "one\ntwo\n"


async def test_two_collectors_cannot_share_a_file(tmp_path: Path) -> None:
    """Each would cut off what the other has written."""
    first, second = FileSink(tmp_path / "out"), FileSink(tmp_path / "out")
    await first.open(None)
    with pytest.raises(sidecar.SidecarError, match="another collector does"):
        await second.open(None)
    await first.close()
    with pytest.raises(sidecar.ConfigError):
        FileSink(tmp_path / "out", max_bytes=0)


async def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    """Somebody who shares the volume must not choose where we write."""
    (tmp_path / "target").touch()
    (tmp_path / "out").symlink_to("target")
    with pytest.raises(
        sidecar.SidecarError, match=f"cannot write to {tmp_path}/out: .*is a symbolic link"
    ):
        await FileSink(tmp_path / "out").open(None)
