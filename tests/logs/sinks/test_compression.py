"""Rotated files that were compressed: scenarios 13–15."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import lzma
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from sidecar import logs
from sidecar.logs.input import archives
from sidecar.logs.testing import LogFile, MemorySink
from support.logs_support import PAD, Follower, numbered


@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
@pytest.mark.parametrize("kill", [False, True])
def test_what_was_compressed_while_stopped_continues_at_the_same_offset(
    log: LogFile, tmp_path: Path, pattern: str, kill: bool
) -> None:
    """Scenario 13: half of it was read as a plain file, the rest is in the archive."""
    follower = Follower(log.path.with_name(pattern), state=tmp_path / "offsets.json")
    log.write(*numbered(1, 2))
    follower.news()
    follower.tail.save()
    if kill:
        follower.kill()
    else:
        follower.stop()
    log.write(*numbered(3))
    log.compress(log.rotate())
    log.reopen()
    log.write(*numbered(4))
    assert sorted(follower.start()) == numbered(3, 4)


@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
def test_an_archive_of_a_file_that_was_read_is_not_read_again(log: LogFile, pattern: str) -> None:
    """Scenario 13, `delaycompress`: compressed one rotation later; no duplicates, no garbage."""
    follower = Follower(log.path.with_name(pattern))
    for number in range(4):
        log.write(*numbered(number))
        follower.news()
        previous = log.path.with_name("app.log.1")
        if previous.exists():
            log.compress(previous).rename(log.path.with_name(f"app.log.{number + 1}.gz"))
            follower.news()
        log.rotate()
        log.reopen()
    assert follower.later(60) == []
    assert follower.seen == numbered(0, 1, 2, 3)


def test_an_archive_in_the_making_waits_for_its_end(log: LogFile) -> None:
    """Half an archive beside its source is neither a new log nor damage."""
    follower = Follower(log.path.with_name("app.log*"))
    log.write(*numbered(*range(500)))
    follower.news()
    rotated = log.rotate()
    log.reopen()
    packed = gzip.compress(rotated.read_bytes())
    archive = rotated.with_name("app.log.1.gz")
    archive.write_bytes(packed[: len(packed) // 2])
    assert follower.news() == []
    archive.write_bytes(packed)
    assert follower.news() == []
    rotated.unlink()
    assert follower.news() == []
    assert follower.tail.lost == {}


def test_copied_compressed_and_truncated_is_finished_from_the_archive(log: LogFile) -> None:
    """`copytruncate` with `compress`: by the time of the next scan, the plain copy is gone."""
    follower = Follower(log.path)
    log.write(*numbered(1))
    follower.news()
    log.write(*numbered(2))
    log.compress(log.copytruncate())
    log.write(*numbered(3))
    follower.news()
    assert sorted(follower.seen) == numbered(1, 2, 3)


def test_archives_from_before_the_first_start_are_read_once(tmp_path: Path) -> None:
    """A pattern that names archives means them."""
    with gzip.open(tmp_path / "old.log.gz", "wb") as archive:
        archive.write(b"one\ntwo\n")
    follower = Follower(tmp_path / "*.log*", state=tmp_path / "offsets.json")
    assert follower.news() == ["one", "two"]
    assert follower.restart() == []


@pytest.mark.parametrize("options", [{"start": "end"}, {"ignore_older": 3600.0}])
def test_archives_that_nobody_wants_are_left_alone(
    log: LogFile, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Those of months lie there at the very first start, and the pattern for what comes names them, too."""
    for number in (3, 2):
        archive = log.path.with_name(f"app.log.{number}.gz")
        archive.write_bytes(gzip.compress(f"old {number} {PAD}\n".encode() * 5000))
        os.utime(archive, (time.time() - 7200,) * 2)
    follower = Follower(log.path.with_name("app.log*"), state=tmp_path / "offsets.json", **options)
    assert follower.news() == []
    assert follower.tail.stats().lag_bytes == 0
    log.write(*numbered(1))
    assert follower.restart() == numbered(1)
    log.compress(log.rotate())
    log.reopen()
    log.write(*numbered(2))
    assert follower.news() == numbered(2)
    assert follower.restart() == []


def test_members_of_an_archive_are_read_one_after_the_other(tmp_path: Path) -> None:
    """Scenario 14: concatenated archives are one archive, and zeros behind it are padding."""
    packed = gzip.compress(b"one\ntw") + gzip.compress(b"o\nthree") + bytes(512)
    (tmp_path / "a.log").write_bytes(packed)
    follower = Follower(tmp_path / "a.log")
    assert follower.news() == ["one", "two", "three"]


def test_a_damaged_archive_gives_what_can_be_read_and_is_counted(tmp_path: Path) -> None:
    """Scenario 15: its neighbours are not harmed."""
    lines = b"".join(b"%d %s\n" % (n, os.urandom(40).hex().encode()) for n in range(2000))
    packed = bytearray(gzip.compress(lines))
    packed[len(packed) // 2 : len(packed) // 2 + 40] = bytes(40)
    (tmp_path / "a.log.gz").write_bytes(packed)
    (tmp_path / "b.log").write_text("fine\n")
    follower = Follower(tmp_path / "*.log*")
    got = follower.news()
    assert "fine" in got
    assert any(line.startswith("0 ") for line in got)
    assert follower.tail.lost["damaged"] > 0
    assert follower.later(60) == []


def test_a_cut_off_archive_gives_what_can_be_read(tmp_path: Path) -> None:
    """Scenario 15: as a full disk leaves it."""
    packed = gzip.compress(b"".join(b"%d\n" % n for n in range(10_000)))
    (tmp_path / "a.log.gz").write_bytes(packed[:-3000])
    follower = Follower(tmp_path / "*.gz")
    got = follower.news()
    assert got[:3] == ["0", "1", "2"]
    assert str(len(got)).startswith("".join(follower.later(60)))


@pytest.mark.parametrize("length", [5, 40, -20, -4])
def test_an_archive_that_is_cut_off_is_named_once_it_is_quiet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    """A full disk, a copy that was broken off: nobody would look for the missing lines. Not while it may still grow."""
    packed = gzip.compress("\n".join(numbered(*range(100))).encode())
    path = tmp_path / "app.log.1.gz"
    path.write_bytes(packed[:length])
    follower = Follower(tmp_path / "app.log*")
    follower.news()
    follower.later(20)
    assert "cut off" not in caplog.text
    follower.later(20)
    follower.later(20)
    assert caplog.text.count(f"{path} is cut off") == 1

    with path.open("ab") as file:
        file.write(packed[length:])
    follower.later(1)
    follower.later(60)
    # A last line without its end is taken as complete after a while, as in any file.
    assert "".join(follower.seen) == "".join(numbered(*range(100)))


@pytest.mark.parametrize("size", [10, 1023, 1024, 1025, 131_072])
def test_an_archive_that_was_read_to_its_last_byte_is_not_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    """Whatever was asked of it last, be it exactly what it holds."""
    (tmp_path / "app.log.1.gz").write_bytes(gzip.compress(b"x" * (size - 1) + b"\n"))
    follower = Follower(tmp_path / "app.log*")
    follower.news()
    [stream] = follower.tail._require().registry.streams
    for asked in (size, 1024, size - 1):
        assert stream.content is not None
        stream.content.read(0, asked)
        follower.tail._require().warn_if_truncated(stream)
    assert "cut off" not in caplog.text


@pytest.mark.parametrize("length", [5, -20, None])
def test_a_single_run_names_an_archive_that_is_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, length: int | None
) -> None:
    """`--once` does not wait: it says so before its end. Of a whole one there is nothing to say."""
    path = tmp_path / "app.log.1.gz"
    path.write_bytes(gzip.compress("\n".join(numbered(*range(100))).encode())[:length])
    sink = MemorySink()
    asyncio.run(logs.collect(logs.tail(path), sink=sink, until_end=True))
    assert caplog.text.count(f"{path} is cut off") == (length is not None)
    assert (len(sink.lines) == 100) == (length is None)


def test_a_large_archive_is_read_in_pieces(tmp_path: Path) -> None:
    """The end of one read is the beginning of the next, wherever the members and lines lie."""
    lines = [f"{n} {PAD}" for n in range(20_000)]
    with (tmp_path / "a.log.gz").open("wb") as out:
        for start in range(0, len(lines), 5000):
            with gzip.GzipFile(fileobj=out, mode="wb") as member:
                member.write("".join(f"{line}\n" for line in lines[start : start + 5000]).encode())
    follower = Follower(tmp_path / "*.gz")
    assert follower.news() == lines
    shutil.rmtree(tmp_path)


def zipped(data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("app.log", data)
    return packed.getvalue()


def zstandard(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard,
    "zip": zipped,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
def test_each_way_to_compress_is_read_and_keeps_the_position(
    log: LogFile, tmp_path: Path, form: str, pattern: str
) -> None:
    """Issue 12.6: `compresscmd` of logrotate, `%i.log.zip` of logback; never their bytes as lines."""
    follower = Follower(log.path.with_name(pattern), state=tmp_path / "offsets.json")
    log.write(*numbered(1, 2))
    follower.news()
    follower.stop()
    log.write(*numbered(*range(3, 600)))
    rotated = log.rotate()
    Path(f"{rotated}.{form}").write_bytes(FORMS[form](rotated.read_bytes()))
    rotated.unlink()
    log.reopen()
    log.write(*numbered(700))
    assert sorted(follower.start()) == numbered(*range(3, 600), 700)
    assert follower.later(60) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_archive_of_any_form_ends_nothing(tmp_path: Path, form: str) -> None:
    """What can be read is delivered, and the rest is counted."""
    lines = "".join(f"{n} {os.urandom(20).hex()}\n" for n in range(2000))
    packed = bytearray(FORMS[form](lines.encode()))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / f"a.log.{form}").write_bytes(packed)
    (tmp_path / "b.log").write_text("fine\n")
    follower = Follower(tmp_path / "*.log*")
    got = follower.news()
    assert "fine" in got
    assert follower.tail.lost["damaged"] > 0
    assert follower.later(60) == []


@pytest.mark.parametrize("magic", [b"\x1f\x9d", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c"])
@pytest.mark.parametrize("found_empty", [False, True])
def test_what_cannot_be_decompressed_is_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, magic: bytes, found_empty: bool
) -> None:
    """Loudly, and never as lines: LZ4, compress, 7-Zip; also where the file was empty at first."""
    path = tmp_path / "app.log.1.x"
    path.touch()
    follower = Follower(tmp_path / "app.log*")
    if found_empty:
        follower.news()
    path.write_bytes(magic + b"one\ntwo\n")
    assert follower.news() == follower.later(60) == []
    assert str(path) in follower.tail.unreadable
    assert f"cannot read {path}: it is compressed with" in caplog.text


@pytest.mark.parametrize("line", [60, 300_000, 1_500_000])
@pytest.mark.parametrize("rule", [None, logs.Multiline(start="^begin")])
def test_each_byte_of_an_archive_is_decompressed_once_for_each_sink_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int, rule: logs.Multiline | None
) -> None:
    """Issue 12.2b: linear, with long lines, groups, and sinks at different places; counted, for time is others' too."""
    content = (b"begin " + b"x" * line + b"\n") * (6_000_000 // line)
    (tmp_path / "app.log.gz").write_bytes(gzip.compress(content, 1))
    decompressed = 0
    read = archives._Members.read

    def counted(members: archives._Members, size: int) -> bytes:
        nonlocal decompressed
        piece = read(members, size)
        decompressed += len(piece)
        return piece

    monkeypatch.setattr(archives._Members, "read", counted)
    tail = logs.tail(tmp_path / "*.gz", multiline=rule)
    tail.open(("quick", "slow"))
    got = {"quick": 0, "slow": 0}
    while tail.has_data("quick") or tail.has_data("slow"):
        for sink, limit in (("quick", 1 << 20), ("slow", 1 << 17)):
            blocks = tail.read(sink, limit)
            tail.acknowledge(sink, blocks)
            got[sink] += sum(block.end - block.start for block in blocks)
        tail.scan()
        tail.flush(everything=True)
    tail.close()
    assert set(got.values()) == {len(content)}
    assert decompressed <= 2.1 * len(content)
