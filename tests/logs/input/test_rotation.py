"""Rotation, truncation and identity: scenarios 1–12 and 16–21 of the list, each counted line by line."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest

from sidecar.logs.input.file_content import PlainFile
from sidecar.logs.testing import LogFile
from support.logs_support import PAD, Follower, numbered


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "offsets.json"


# 1-5: rename


def test_lines_to_the_old_and_to_the_new_file_all_arrive_after_a_rename(log: LogFile) -> None:
    """Scenario 1: the application writes to the renamed file until it reopens."""
    follower = Follower(log.path)
    log.write("before")
    assert follower.news() == ["before"]
    log.rotate()
    log.write("to the old file")
    log.reopen()
    log.write("to the new file")
    assert follower.news() == ["to the old file", "to the new file"]


def test_several_renames_between_two_scans_lose_nothing(log: LogFile) -> None:
    """Scenario 2: what lived only between two scans lies outside the pattern, and is read all the same."""
    follower = Follower(log.path)
    for number in range(5):
        log.write(f"generation {number}")
        log.rotate()
        log.reopen()
    log.write("last")
    assert sorted(follower.news()) == [*(f"generation {n}" for n in range(5)), "last"]


@pytest.mark.parametrize("copied", [False, True], ids=["renamed", "copied"])
def test_many_files_rotating_at_once_lose_nothing(tmp_path: Path, copied: bool) -> None:
    """Scenario 3: a hundred logs, each rotated three times."""
    logs = [LogFile(tmp_path / f"app-{chr(97 + n % 26)}{n}.log") for n in range(100)]
    follower = Follower(tmp_path / "*.log")
    for generation in range(3):
        for n, log in enumerate(logs):
            log.write(f"{n} {generation}")
            if copied:
                log.copytruncate()
            else:
                log.rotate()
            log.write(f"{n} {generation} late")
            log.reopen()
        follower.news()
    follower.news()
    expected = [f"{n} {g}{end}" for n in range(100) for g in range(3) for end in ("", " late")]
    assert sorted(follower.seen) == sorted(expected)
    for log in logs:
        log.close()


def test_a_write_to_the_old_file_arrives_even_after_the_waiting_time(log: LogFile) -> None:
    """Scenario 4: a rotated file that is quiet is closed, and looked at all the same while it has a name."""
    follower = Follower(log.path, rotate_wait=5)
    log.write("one")
    follower.news()
    log.rotate()
    log.write("soon after")
    assert follower.later(3) == ["soon after"]
    assert follower.later(60) == []
    log.write("an hour later")
    assert follower.later(60) == ["an hour later"]


def test_rotated_while_stopped_gives_the_rest_of_the_old_and_all_of_the_new(
    log: LogFile, state: Path
) -> None:
    """Scenario 5: what was read is not read again."""
    follower = Follower(log.path, state=state)
    log.write(*numbered(1, 2))
    follower.news()
    follower.stop()
    log.write(*numbered(3))
    log.rotate()
    log.reopen()
    log.write(*numbered(4))
    assert sorted(follower.start()) == numbered(3, 4)


def test_rotated_twice_while_stopped_gives_also_what_was_never_seen(
    log: LogFile, state: Path
) -> None:
    """Scenario 5, twice: the file in between was born and rotated between two scans."""
    follower = Follower(log.path, state=state)
    log.write(*numbered(1))
    follower.news()
    follower.stop()
    for number in (2, 3):
        log.write(*numbered(number))
        log.rotate()
        log.reopen()
    log.write(*numbered(4))
    assert sorted(follower.start()) == numbered(2, 3, 4)


# 6-12: truncation


@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
def test_copytruncate_gives_exactly_the_lines_written(log: LogFile, pattern: str) -> None:
    """Scenario 6: the copy may be matched by the pattern or not; the rest is read from it either way."""
    follower = Follower(log.path.with_name(pattern))
    log.write("one")
    follower.news()
    log.write("two")
    log.copytruncate()
    log.write("three")
    follower.news()
    assert follower.seen == ["one", "two", "three"]
    assert follower.news() == []


@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
def test_a_copy_in_the_making_is_not_taken_for_a_new_log(log: LogFile, pattern: str) -> None:
    """Scenario 6: between copy and truncation there are two files of the same content; the copy begins empty."""
    follower = Follower(log.path.with_name(pattern))
    log.write(*numbered(1, 2, 3))
    follower.news()
    copy = log.path.with_name("app.log.1")
    copy.touch()
    assert follower.news() == []
    copy.write_bytes(log.path.read_bytes()[:100])
    assert follower.news() == []
    copy.write_bytes(log.path.read_bytes())
    assert follower.news() == []
    log.truncate()
    log.write(*numbered(4))
    assert follower.news() == numbered(4)


def test_a_copy_that_was_found_empty_is_read_by_one_stream_only(log: LogFile) -> None:
    """An event says that it was written, at the moment at which the original is truncated."""
    follower = Follower(log.path.with_name("app.log*"))
    log.write(*numbered(1, 2))
    follower.news()
    log.write(*numbered(3))
    copy = log.path.with_name("app.log.1")
    copy.touch()
    follower.tail.scan()
    copy.write_bytes(log.path.read_bytes())
    log.truncate()
    follower.tail.on_write([str(log.path)])
    follower.tail.on_write([str(copy)])
    assert follower.news(scan=False) == numbered(3)
    assert follower.news() == []


def test_a_copy_that_was_found_empty_is_not_read_again_after_a_restart(
    log: LogFile, state: Path
) -> None:
    """Of what was empty nothing is known: under the same inode it is found as if for the first time, as a copy."""
    follower = Follower(log.path.with_name("app.log*"), state=state)
    log.write(*numbered(1, 2, 3))
    copy = log.path.with_name("app.log.1")
    copy.touch()
    assert follower.news() == numbered(1, 2, 3)
    follower.stop()
    copy.write_bytes(log.path.read_bytes())
    assert follower.start() == []
    log.truncate()
    log.write(*numbered(4))
    assert follower.news() == numbered(4)


@pytest.mark.parametrize("touched", [False, True], ids=["new", "met-empty"])
def test_a_copy_that_fills_while_it_is_examined_is_read_by_one_stream_only(
    log: LogFile, monkeypatch: pytest.MonkeyPatch, touched: bool
) -> None:
    """Scenario 6: empty when its size was asked for, complete at the first read. It was judged as an empty file."""
    follower = Follower(log.path.with_name("app.log*"))
    log.write(*numbered(1, 2, 3))
    follower.news()
    copy = log.path.with_name("app.log.1")
    copy.touch()
    if touched:
        follower.news()
        os.utime(copy)
    read = PlainFile.read

    def filled_meanwhile(self: PlainFile, offset: int, size: int) -> bytes:
        if os.path.sameopenfile(self.fd, copying.fileno()) and not copying.tell():
            copying.write(log.path.read_bytes())
        return read(self, offset, size)

    with copy.open("ab", buffering=0) as copying, monkeypatch.context() as planted:
        planted.setattr(PlainFile, "read", filled_meanwhile)
        assert follower.news() == []
        assert copying.tell()
    log.truncate()
    log.write(*numbered(4))
    assert follower.news() == numbered(4)


@pytest.mark.parametrize("lines", [1, 20, 5000], ids=["one", "some", "many"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
def test_a_copy_that_ends_before_what_was_read_is_not_read_again(
    log: LogFile, state: Path, pattern: str, compressed: bool, lines: int
) -> None:
    """Scenario 6: lines written while logrotate was between copy and truncation, and read at once by us."""
    follower = Follower(log.path.with_name(pattern), state=state)
    log.write(*numbered(*range(lines)))
    copy = log.path.with_name("app.log.1")
    shutil.copyfile(log.path, copy)
    log.write("between copy and truncation")
    assert len(follower.news()) == lines + 1
    log.truncate()
    if compressed:
        log.compress(copy)
    log.write("after it")
    assert follower.news() == ["after it"]
    assert follower.restart() == []


def test_a_rotated_log_with_the_same_beginning_is_no_short_copy(log: LogFile) -> None:
    """The other side of it: born and rotated between two scans, with a banner that all of them have."""
    banner = ["=" * 600, "-" * 600]
    follower = Follower(log.path)
    log.write(*banner, *numbered(*range(100)))
    follower.news()
    log.truncate()
    log.delete()
    log.reopen()
    log.write(*banner, *numbered(*range(500, 550)))
    log.rotate()
    log.reopen()
    log.write("last")
    assert set(follower.news()) == {*banner, *numbered(*range(500, 550)), "last"}


def test_a_file_that_begins_like_another_is_read_as_soon_as_it_differs(tmp_path: Path) -> None:
    """The other side of it: a second worker that has begun with the same line is no copy."""
    first, second = LogFile(tmp_path / "app-1.log"), LogFile(tmp_path / "app-2.log")
    follower = Follower(tmp_path / "app-*.log")
    first.write("started", "one")
    follower.news()
    second.write("started")
    follower.news()
    second.write("two")
    follower.news()
    assert sorted(follower.seen) == ["one", "started", "started", "two"]
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("worker-1.log", "worker-2.log"),
        ("run.1", "run.2"),
        ("app-20261128.log", "app-20261129.log"),
        ("pod-a/app.log", "pod-b/app.log"),
        ("pod-a/app.log", "pod-b/app.log.1"),
    ],
)
@pytest.mark.parametrize("lines", [["started"], numbered(*range(40))], ids=["short", "long"])
def test_a_log_that_is_a_prefix_of_another_is_delivered_at_once(
    tmp_path: Path, first: str, second: str, lines: list[str]
) -> None:
    """Issue 12.1a: rotation makes no `worker-2.log` of `worker-1.log`, nor a copy in another application's directory."""
    paths = [tmp_path / "log" / name for name in (first, second)]
    for path, more in zip(paths, ([], ["more"]), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in [*lines, *more]))
    follower = Follower(tmp_path / "log" / "**" / "*")
    assert sorted(follower.news()) == sorted([*lines, *lines, "more"])


@pytest.mark.parametrize("growing", [False, True])
def test_what_may_be_a_copy_is_delayed_with_a_bound_and_then_delivered(
    log: LogFile, growing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 12.1a: by its name it could be one, `app.log.1`; ten quiet seconds, or sixty of any kind. Twice is better than never."""
    lines = numbered(*range(40))
    log.write(*lines)
    follower = Follower(log.path.with_name("app.log*"))
    follower.news()
    other = log.path.with_name("app.log.1")
    other.write_text("".join(f"{line}\n" for line in lines[:20]))
    assert follower.news() == []
    assert follower.tail.stats().possible_copies == 1
    if growing:
        for number in range(20, 26):
            with other.open("a") as file:
                file.write(f"{lines[number]}\n")
            assert follower.later(9) == []
        assert follower.later(9) == lines[:26]
    else:
        assert follower.later(11) == lines[:20]
    assert "still repeats the beginning of" in caplog.text
    assert follower.tail.stats().possible_copies == 0


def test_a_log_that_has_only_the_beginning_of_its_own_past_is_delivered_at_once(
    log: LogFile,
) -> None:
    """Issue 12.1a: rotation copies to `app.log.1`, never to `app.log`: no wait, and no loss by a deletion meanwhile."""
    log.path.with_name("app.log.1").write_text("".join(f"{n}\n" for n in numbered(*range(9))))
    log.write(*numbered(*range(5)))
    follower = Follower(log.path.with_name("app.log*"))
    assert sorted(follower.news()) == sorted(numbered(*range(9), *range(5)))


@pytest.mark.parametrize("scans_between", [0, 1], ids=["last words", "written on without a name"])
def test_what_may_be_a_copy_is_not_lost_by_its_deletion(log: LogFile, scans_between: int) -> None:
    """Issue 12.1a: it is held open while nobody knows what it is, so it is read on without a name if it differs."""
    lines = numbered(*range(40))
    log.write(*lines)
    follower = Follower(log.path.with_name("app.log*"))
    follower.news()
    other = LogFile(log.path.with_name("app.log.1"))
    other.write(*lines[:20])
    assert follower.news() == []
    if scans_between:
        other.path.unlink()
        assert follower.news() == []
    other.write("another line")
    other.path.unlink(missing_ok=True)
    assert follower.news() == [*lines[:20], "another line"]
    other.close()


def test_a_copy_that_was_deleted_is_let_go_once_it_is_quiet(log: LogFile) -> None:
    """All that it held is delivered from the other file: no descriptor is kept, and nothing comes twice."""
    log.write(*numbered(*range(40)))
    follower = Follower(log.path.with_name("app.log*"))
    follower.news()
    copy = log.path.with_name("app.log.1")
    copy.write_text("".join(f"{n}\n" for n in numbered(*range(20))))
    follower.news()
    copy.unlink()
    assert follower.news() == []
    assert follower.later(11) == []
    assert follower.tail.stats().possible_copies == 0


def test_more_possible_copies_than_are_held_open_are_delivered_at_once(log: LogFile) -> None:
    """Issue 12.1a: each is held open for its deletion, 64 at most; what cannot be held does not wait."""
    lines = numbered(*range(20))
    log.write(*lines)
    follower = Follower(log.path.with_name("app.log*"))
    follower.news()
    for number in range(66):
        log.path.with_name(f"app.log.{number}").write_text("".join(f"{n}\n" for n in lines[:9]))
    assert follower.news() == lines[:9] * 2
    assert follower.tail.stats().possible_copies == 64


def test_a_log_that_begins_with_all_of_a_deleted_one_is_another_log(log: LogFile) -> None:
    """The other way round: the shorter one is gone by then, and was delivered."""
    log.write(*numbered(1, 2))
    follower = Follower(log.path.with_name("app*"))
    follower.news()
    log.delete()
    follower.later(31)
    log.path.with_name("app.log.1").write_text("".join(f"{n}\n" for n in numbered(1, 2, 3)))
    assert follower.news() == numbered(1, 2, 3)


def test_an_archive_with_more_than_the_log_has_is_no_archive_of_it(log: LogFile) -> None:
    """A log that was rotated, and the next one, which has only the banner of both so far."""
    log.write(*numbered(1, 2))
    follower = Follower(log.path.with_name("app*"))
    follower.news()
    whole = "".join(f"{n}\n" for n in numbered(1, 2, 3, 4))
    archive = log.path.with_name("app.log.1.gz")
    archive.write_bytes(gzip.compress(whole.encode()))
    os.utime(archive, (1, 1))
    assert follower.news() == numbered(1, 2, 3, 4)


def test_a_writer_that_kept_its_descriptor_is_followed_after_copytruncate(log: LogFile) -> None:
    """Scenario 7: the application never reopens."""
    follower = Follower(log.path)
    for number in range(4):
        log.write(*numbered(number))
        follower.news()
        log.copytruncate()
    log.write(*numbered(4))
    follower.news()
    assert follower.seen == numbered(*range(5))


def test_copytruncate_while_stopped_is_finished_from_the_copy(log: LogFile, state: Path) -> None:
    """Scenario 8: the copy lies outside the pattern."""
    follower = Follower(log.path, state=state)
    log.write(*numbered(1))
    follower.news()
    follower.stop()
    log.write(*numbered(2))
    log.copytruncate()
    log.write(*numbered(3))
    assert sorted(follower.start()) == numbered(2, 3)


def test_truncated_and_grown_past_the_old_offset_is_read_from_the_beginning(log: LogFile) -> None:
    """Scenario 9: the size says nothing, the bytes before the offset do."""
    follower = Follower(log.path)
    log.write("old line")
    follower.news()
    log.truncate()
    log.write("first new line, longer than all there was", "second")
    assert follower.news() == ["first new line, longer than all there was", "second"]


def test_truncated_and_grown_while_stopped_is_read_from_the_beginning(
    log: LogFile, state: Path
) -> None:
    """Scenario 9 across a restart."""
    follower = Follower(log.path, state=state)
    log.write(*numbered(1))
    follower.news()
    follower.stop()
    log.truncate()
    log.write(*numbered(2, 3, 4))
    assert follower.start() == numbered(2, 3, 4)


def test_a_hole_left_by_a_writer_without_append_is_skipped_and_counted(log: LogFile) -> None:
    """Scenario 11: after copytruncate such a writer goes on at its old offset."""
    fd = os.open(log.path, os.O_WRONLY)
    follower = Follower(log.path)
    os.write(fd, b"one\ntwo\n")
    follower.news()
    log.truncate()
    follower.news()
    os.write(fd, b"three\n")
    assert follower.news() == ["three"]
    assert follower.tail.lost == {"hole": 8}
    os.close(fd)


def test_space_reserved_for_later_is_not_skipped(log: LogFile) -> None:
    """A file that its writer has enlarged ahead is no hole: the bytes come later, in place."""
    fd = os.open(log.path, os.O_WRONLY)
    follower = Follower(log.path)
    os.ftruncate(fd, 4096)
    assert follower.news() == []
    os.write(fd, b"one\n")
    assert follower.news() == ["one"]
    os.write(fd, b"two\n")
    assert follower.news() == ["two"]
    os.close(fd)


@pytest.mark.parametrize("zeros", ["reserved", "written"])
def test_space_that_is_filled_late_is_not_skipped(log: LogFile, zeros: str) -> None:
    """An appender that maps its file into memory enlarges it ahead, and may be quiet for long. Nothing waits meanwhile."""
    size = 3 << 20
    fd = os.open(log.path, os.O_WRONLY)
    follower = Follower(log.path, partial_timeout=10)
    os.write(fd, b"first, before there is more space\n")
    assert follower.news() == ["first, before there is more space"]
    start = os.lseek(fd, 0, os.SEEK_CUR)
    if zeros == "reserved":
        os.ftruncate(fd, size)
    else:
        os.pwrite(fd, bytes(size - start), start)
    assert follower.news() == []
    assert follower.later(60) == []
    assert follower.tail.stats().lag_bytes == 0
    for line in ("one", "two"):
        os.write(fd, f"{line}\n".encode())
        assert follower.news() == [line]
        assert follower.later(60) == []
    assert follower.tail.lost == {}
    os.close(fd)


def test_a_file_of_reserved_space_is_the_same_file_when_it_is_filled(
    log: LogFile, state: Path
) -> None:
    """Found empty, full of zeros; filled across scans and restarts. Nothing counts as lost, nothing comes twice."""
    fd = os.open(log.path, os.O_WRONLY)
    os.ftruncate(fd, 1 << 20)
    follower = Follower(log.path, state=state)
    assert follower.news() == []
    assert follower.tail.stats().lag_bytes == 0
    for number in range(4):
        os.write(fd, f"line {number}\n".encode())
        assert follower.news() == [f"line {number}"]
        os.write(fd, f"and {number}\n".encode())
        assert follower.restart() == [f"and {number}"]
        assert follower.later(60) == []
        assert follower.tail.lost == {}
    os.close(fd)


def test_a_file_of_written_zeros_is_followed(log: LogFile) -> None:
    """The application has filled it ahead, and writes its lines over the zeros."""
    log.write_raw(bytes(4 << 20))
    follower = Follower(log.path)
    assert follower.news() == []
    offset = 0
    with log.path.open("r+b", buffering=0) as file:
        for number in range(10):
            line = f"{number} {PAD}\n".encode()
            os.pwrite(file.fileno(), line, offset)
            offset += len(line)
            assert follower.news() == [line.decode().rstrip()]


def test_zeros_at_the_end_of_a_deleted_file_do_not_keep_it_open(log: LogFile) -> None:
    """Nobody will fill them any more."""
    follower = Follower(log.path, rotate_wait=5)
    log.write_raw(b"one\n" + bytes(1000))
    assert follower.news() == ["one"]
    log.delete()
    follower.news()
    assert follower.later(6) == []
    assert follower.later(6) == []
    assert follower.tail.positions() == {}


def test_offsets_beyond_two_gibibytes_are_offsets_like_others(log: LogFile, state: Path) -> None:
    """Scenario 43: and a hole of that size costs one step, not two gibibytes of reading."""
    log.write("one")
    follower = Follower(log.path, state=state)
    follower.news()
    os.truncate(log.path, 3 << 30)
    log.write("two")
    assert follower.news() == ["two"]
    log.write("three")
    assert follower.restart() == ["three"]
    assert follower.tail.stats().lag_bytes == 0


@pytest.mark.parametrize("copy", ["app.bak", "app.old", "app.1", "app.20261125.gz"])
def test_a_copy_with_another_extension_is_finished(log: LogFile, copy: str) -> None:
    """Scenario 6: `cp app.log app.bak && : > app.log` in a script of the application's."""
    follower = Follower(log.path)
    lines = [f"line {number}" for number in range(100)]
    log.write(*lines[:50])
    follower.news()
    log.write(*lines[50:])
    data = log.path.read_bytes()
    (log.path.parent / copy).write_bytes(gzip.compress(data) if copy.endswith(".gz") else data)
    log.truncate()
    log.write("new")
    follower.news()
    assert sorted(follower.seen) == sorted([*lines, "new"])


def test_an_identical_first_kibibyte_does_not_confuse_copytruncate(log: LogFile) -> None:
    """Scenario 12: every file begins with the same long banner."""
    banner = ["=" * 600, "-" * 600]
    follower = Follower(log.path.with_name("app.log*"))
    for number in range(3):
        log.write(*banner, *numbered(number))
        follower.news()
        log.write(*numbered(number + 10))
        log.copytruncate()
    follower.news()
    got = [line for line in follower.seen if line not in banner]
    assert sorted(got) == sorted(numbered(0, 10, 1, 11, 2, 12))


# 16-21: identity


def test_a_reused_inode_is_read_from_the_beginning(log: LogFile, state: Path) -> None:
    """Scenario 16: deleted and made again at once, the checkpoint knows the old one."""
    follower = Follower(log.path, state=state)
    log.write(*numbered(1, 2))
    follower.news()
    follower.stop()
    log.delete()
    log.reopen()
    log.write(*numbered(3, 4, 5))
    assert follower.start() == numbered(3, 4, 5)


def test_another_beginning_is_another_content_even_if_the_rest_is_the_same(
    log: LogFile, state: Path
) -> None:
    """The bytes before the offset fit, a KiB of them, and those at the head do not: all of it is new."""
    follower = Follower(log.path, state=state)
    log.write("first", *numbered(*range(100)))
    follower.news()
    follower.stop()
    inode = log.path.stat().st_ino
    log.path.write_text(log.path.read_text().replace("first", "other"))
    assert log.path.stat().st_ino == inode
    assert follower.start() == ["other", *numbered(*range(100))]


def test_deleted_and_made_again_is_read_from_the_beginning(log: LogFile) -> None:
    """Scenario 17, and its hard case: the new file begins with the very same line."""
    follower = Follower(log.path)
    log.write("started")
    follower.news()
    log.delete()
    log.reopen()
    log.write("started")
    assert follower.news() == ["started"]


def test_unread_bytes_of_a_deleted_file_are_read(log: LogFile) -> None:
    """Scenario 18: the file is open, so its content is there."""
    follower = Follower(log.path)
    log.write("one")
    follower.news()
    log.write("two")
    log.delete()
    log.write("three, to a file without a name")
    assert follower.news() == ["two", "three, to a file without a name"]


def test_a_deleted_file_is_let_go_after_the_waiting_time(log: LogFile) -> None:
    """Scenario 18: its space must come back."""
    follower = Follower(log.path, rotate_wait=5)
    log.write("one")
    follower.news()
    log.delete()
    log.close()
    follower.news()
    follower.later(6)
    held = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)
    ]
    assert not [target for target in held if target.startswith(str(log.path))]


def test_beyond_the_limit_the_oldest_unread_deleted_file_is_given_up(
    log: LogFile, caplog: pytest.LogCaptureFixture
) -> None:
    """Scenario 33: a sink that is away must not fill the volume. What is lost is counted, and said;
    a deleted file that has been read keeps nothing back, and goes on.
    """
    length = len(numbered(0)[0]) + 1
    follower = Follower(log.path, held_limit=2 * length + 10)
    log.write("read in time")
    follower.news()
    writer = log.path.open("a")
    for number in range(4):
        log.delete()
        log.reopen()
        log.write(*numbered(number))
        follower.tail.scan()
    log.delete()
    follower.tail.scan()
    assert follower.tail.lost == {"deleted": 2 * length}
    with writer:
        writer.write("goes on\n")
    assert sorted(follower.news()) == [*numbered(2, 3), "goes on"]
    assert "raise held_limit" in caplog.text


def _is_link(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_a_file_replaced_by_one_of_the_same_content_is_not_read_again(log: LogFile) -> None:
    """Scenario 19: as editors and rsync do it."""
    follower = Follower(log.path)
    log.write(*numbered(1, 2))
    follower.news()
    copy = log.path.with_name("tmp")
    copy.write_bytes(log.path.read_bytes())
    copy.rename(log.path)
    assert follower.news() == []
    log.reopen()
    log.write(*numbered(3))
    assert follower.news() == numbered(3)


def test_a_file_replaced_by_one_of_new_content_is_read(log: LogFile) -> None:
    """Scenario 19, the other half."""
    follower = Follower(log.path)
    log.write(*numbered(1, 2))
    follower.news()
    other = log.path.with_name("tmp")
    other.write_text("something else\n")
    other.rename(log.path)
    assert follower.news() == ["something else"]


def test_moved_away_truncated_and_moved_back_is_read_from_the_beginning(log: LogFile) -> None:
    """Scenario 20."""
    follower = Follower(log.path)
    log.write("one", "two")
    follower.news()
    away = log.path.with_name("away")
    log.path.rename(away)
    os.truncate(away, 0)
    away.rename(log.path)
    log.write("three")
    assert follower.news() == ["three"]


def test_files_with_the_same_first_line_are_different_files(tmp_path: Path, state: Path) -> None:
    """Scenario 21: headers repeat, and empty files are all alike; across a restart too."""
    logs = [LogFile(tmp_path / "log" / f"{name}.log") for name in ("a", "b", "c")]
    follower = Follower(tmp_path / "log" / "*.log", state=state)
    for log in logs[:2]:
        log.write("time,level,message")
    follower.news()
    follower.restart()
    for log in logs:
        log.write(f"only in {log.path.name}")
    assert sorted(follower.news()) == ["only in a.log", "only in b.log", "only in c.log"]
    assert follower.restart() == []
    for log in logs:
        log.close()


def test_rotation_into_another_directory_is_followed(log: LogFile, state: Path) -> None:
    """`olddir`, on another device as well: then the file is a copy with another inode."""
    old = log.path.parent / "old"
    old.mkdir()
    follower = Follower(log.path, state=state)
    log.write(*numbered(1))
    follower.news()
    follower.stop()
    log.write(*numbered(2))
    shutil.copy2(log.path, old / "app.log.1")
    log.delete()
    log.reopen()
    log.write(*numbered(3))
    assert sorted(follower.start()) == numbered(2, 3)
