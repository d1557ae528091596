"""Where lines begin and end: scenarios 26–31."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import logs
from sidecar.logs.input import framing
from sidecar.logs.input import tail as source
from sidecar.logs.input.framing import Multiline
from sidecar.logs.records import MAX_BLOCK_RECORDS, newlines_in
from sidecar.logs.testing import LogFile
from support.logs_support import Follower


def test_a_restart_at_a_line_boundary_neither_loses_nor_repeats(
    log: LogFile, tmp_path: Path
) -> None:
    """Scenario 26."""
    follower = Follower(log.path, state=tmp_path / "offsets.json")
    log.write("one")
    follower.news()
    log.write("two")
    assert follower.restart() == ["two"]


def test_a_line_begun_before_a_restart_is_completed_once(log: LogFile, tmp_path: Path) -> None:
    """Scenario 26: half a line is held back, whatever happens meanwhile."""
    follower = Follower(log.path, state=tmp_path / "offsets.json")
    log.write_raw(b"one\nhalf a li")
    assert follower.news() == ["one"]
    assert follower.restart() == []
    log.write_raw(b"ne\n")
    assert follower.news() == ["half a line"]
    assert follower.restart() == []


@pytest.mark.parametrize(
    "options", [{}, {"multiline": Multiline(start="^x")}, {"encoding": "utf-16-le"}]
)
def test_a_block_says_how_many_records_it_holds(log: LogFile, options: dict[str, Any]) -> None:
    """The number in the metrics is that of the records, also of groups and transcoded lines."""
    follower = Follower(log.path, **options)
    encoding = options.get("encoding", "utf-8")
    log.write_raw("x one\n  more\nx two\nx three\n".encode(encoding))
    follower.tail.scan()
    blocks = follower.tail.read("", 1 << 20)
    assert blocks
    assert [block.lines for block in blocks] == [len(list(block.records())) for block in blocks]


def test_a_line_written_byte_by_byte_is_one_line(log: LogFile) -> None:
    """Scenario 27."""
    follower = Follower(log.path)
    for byte in b"one\r\n":
        assert follower.news() == []
        log.write_raw(bytes([byte]))
    assert follower.news() == ["one"]


@given(st.lists(st.integers(0, 3000), max_size=40), st.sampled_from([b"", b"end", b"x" * 9000]))
def test_newlines_are_counted_whichever_way_is_quicker(widths: list[int], rest: bytes) -> None:
    """Short lines, long ones, both in one block, none at all."""
    data = b"".join(b"x" * width + b"\n" for width in widths) + rest
    assert newlines_in(data) == len(widths)


def test_a_last_line_without_a_newline_comes_when_nothing_follows(log: LogFile) -> None:
    """Scenario 28: held back at first, since more may come; not for ever."""
    follower = Follower(log.path, partial_timeout=10)
    log.write_raw(b"one\nthe last words")
    assert follower.news() == ["one"]
    assert follower.later(5) == []
    assert follower.later(6) == ["the last words"]
    log.write_raw(b" and more\n")
    assert follower.news() == [" and more"]


def test_the_last_line_of_a_rotated_file_comes_without_its_newline(log: LogFile) -> None:
    """Scenario 28: nobody writes to it any more."""
    follower = Follower(log.path, rotate_wait=5, partial_timeout=None)
    log.write_raw(b"cut off")
    follower.news()
    log.rotate()
    log.reopen()
    follower.news()
    assert follower.later(6) == ["cut off"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\n\n\n", ["", "", ""]),
        (b"one\r\n\r\ntwo\r\n", ["one", "", "two"]),
        (b"a\rb\n", ["a\rb"]),
        (codecs.BOM_UTF8 + "grün\n".encode(), ["grün"]),
        (b"bad \xff\xfe byte\n", ["bad \ufffd\ufffd byte"]),
        (codecs.BOM_UTF16_LE + "grün\r\nzwei\n".encode("utf-16-le"), ["grün", "zwei"]),
        (
            codecs.BOM_UTF16_BE + "\u0a0a\u0d0a\nzwei\n".encode("utf-16-be"),
            ["\u0a0a\u0d0a", "zwei"],
        ),
        (b"\0 not a hole? yes, one\n", [" not a hole? yes, one"]),
        (b"in the \0 middle\n", ["in the \0 middle"]),
    ],
)
def test_encodings_and_line_endings(log: LogFile, content: bytes, expected: list[str]) -> None:
    """Scenario 29: what is not UTF-8 is replaced, never lost; a byte order mark tells the encoding."""
    follower = Follower(log.path)
    log.write_raw(content)
    assert follower.news() == expected


def test_a_declared_encoding_is_handed_on_as_utf8(log: LogFile) -> None:
    """Scenario 29: with the offsets of the file, not of the translation."""
    follower = Follower(log.path, encoding="latin-1")
    log.write_raw("grün\nöl\n".encode("latin-1"))
    (block,) = (
        follower.tail.read("", 1000) or (follower.tail.scan(), *follower.tail.read("", 1000))[1:]
    )
    assert block is not None
    records = list(block.records())
    assert [(r.text, r.offset, r.end) for r in records] == [("grün", 0, 5), ("öl", 5, 8)]


def test_zeros_are_compared_and_not_searched() -> None:
    """A file may be filled with megabytes of zeros ahead, and each line has them looked through: stripping costs thirty times as much."""

    class Bytes(bytes):
        def lstrip(self, *_: object) -> bytes:
            raise AssertionError("the zeros are searched one by one")

    assert framing.zero_prefix(Bytes(1 << 20)) == 1 << 20
    assert framing.zero_prefix(bytes(5) + b"line\n") == 5


@pytest.mark.parametrize("length", [99, 100, 101, 10_000])
def test_a_line_around_the_limit_harms_no_neighbour(log: LogFile, length: int) -> None:
    """Scenario 30: a longer line comes in pieces; nothing of it is lost."""
    follower = Follower(log.path, max_line=100)
    log.write("before", "x" * length, "after")
    got = follower.news()
    assert (got[0], got[-1]) == ("before", "after")
    assert "".join(got[1:-1]) == "x" * length
    assert all(len(line) <= 100 for line in got)
    assert len(got) == 2 + -(-length // 100)


def test_a_piece_of_an_overlong_line_ends_with_a_whole_character(log: LogFile) -> None:
    """Scenario 30: whoever asks for text must not find U+FFFD where the line had none."""
    follower = Follower(log.path, max_line=100)
    text = "aaä€😀" * 100
    log.write(text, "after")
    got = follower.news()
    assert ("".join(got[:-1]), got[-1]) == (text, "after")
    assert all(90 < len(piece.encode()) <= 100 for piece in got[:-2])


def test_a_piece_of_what_is_no_utf8_has_the_full_length(log: LogFile) -> None:
    """Scenario 30: bytes that look like the middle of characters, without end."""
    follower = Follower(log.path, max_line=100)
    log.write_raw(b"\x80" * 250 + b"\n")
    assert [len(piece) for piece in follower.news()] == [100, 100, 50]


def test_half_a_character_holds_back_neither_the_end_nor_its_other_half(log: LogFile) -> None:
    """Scenario 29: UTF-16, cut in the middle. It is not lost, and nothing waits for it in vain."""
    follower = Follower(log.path, encoding="utf-16-le", partial_timeout=10)
    whole = "one\ntwo\n".encode("utf-16-le")
    log.write_raw(whole[:9])
    assert follower.news() == ["one"]
    assert follower.later(10.5) == []
    follower.tail.flush(everything=True)
    assert follower.news() == []
    follower.tail.flush(everything=True)
    assert not follower.tail.has_data(""), "--once would ask for ever"
    log.write_raw(whole[9:])
    assert follower.news() == ["two"]


def test_half_a_character_at_the_end_of_a_deleted_file_does_not_keep_it_open(log: LogFile) -> None:
    """Scenario 29: nobody can complete it any more, so it is replaced, and the file is done with."""
    follower = Follower(log.path, encoding="utf-16-le", rotate_wait=5)
    log.write_raw("one\n".encode("utf-16-le") + b"t")
    assert follower.news() == ["one"]
    log.delete()
    follower.news()
    assert follower.later(5.5) == ["\ufffd"]
    assert follower.later(5.5) == []
    assert follower.tail.positions() == {}


def test_a_line_longer_than_one_read_comes_whole(log: LogFile) -> None:
    """Scenario 30: the limit counts, not the size of a read."""
    follower = Follower(log.path, max_line=1 << 20)
    log.write("a", "x" * 900_000, "b")
    assert [len(line) for line in follower.news()] == [1, 900_000, 1]


@given(
    st.lists(st.one_of(st.text("ab\r\0ü", max_size=30), st.just("x" * 90)), max_size=30),
    st.integers(1, 40),
)
def test_cutting_loses_no_byte(texts: list[str], step: int) -> None:
    """Whatever is read at once: the blocks, put together, are what was written."""
    whole = "".join(text.replace("\n", "") + "\n" for text in texts).encode()
    out, start, end = b"", 0, 0
    while start < len(whole):
        end = min(end + step, len(whole))
        cut = framing.frame_lines(whole[start:end], 50, final=False)
        if cut is not None:
            assert 0 < cut.size <= end - start
            out += whole[start : start + cut.size]
            start += cut.size
    assert out == whole


# 31: groups

TRACE = Multiline(start=r"^\d{4} ", timeout=1.0)


def test_a_stack_trace_is_one_record(log: LogFile) -> None:
    """Scenario 31: a group is complete when the next one begins, or when nothing more comes."""
    follower = Follower(log.path, multiline=TRACE)
    log.write("0001 error", "  at a", "  at b", "0002 fine")
    assert follower.news() == ["0001 error\n  at a\n  at b"]
    assert follower.later(1.5) == ["0002 fine"]


def test_a_group_that_ends_with_a_line_needs_no_waiting(log: LogFile) -> None:
    """Scenario 31: the other kind of rule, a backslash at the end of all lines but the last."""
    follower = Follower(log.path, multiline=Multiline(end=r"[^\\]$"))
    log.write("a \\", "b \\", "c", "d", "e \\")
    assert follower.news() == ["a \\\nb \\\nc", "d"]


def test_a_group_is_not_torn_by_a_restart(log: LogFile, tmp_path: Path) -> None:
    """Scenario 31: the checkpoint stays before the group."""
    follower = Follower(log.path, state=tmp_path / "offsets.json", multiline=TRACE)
    log.write("0001 error", "  at a")
    assert follower.news() == []
    assert follower.restart() == []
    log.write("  at b", "0002 fine")
    assert follower.news() == ["0001 error\n  at a\n  at b"]


def test_a_group_is_finished_in_the_rotated_file(log: LogFile) -> None:
    """Scenario 31: rotation in the middle of a group."""
    follower = Follower(log.path, multiline=TRACE)
    log.write("0001 error", "  at a")
    follower.news()
    log.rotate()
    log.write("  at b")
    log.reopen()
    log.write("0002 fine")
    follower.news()
    assert sorted(follower.later(1.5)) == ["0001 error\n  at a\n  at b", "0002 fine"]


@pytest.mark.parametrize(
    "lines", ["0001 error\n  at a", "0001 error\n  at a\n0002 fi", "  at a\n  at"]
)
def test_a_group_whose_last_line_has_no_newline_comes_when_nothing_follows(
    log: LogFile, lines: str
) -> None:
    """Scenarios 28 and 31: the trace of an application that has crashed. Half a line waits longer than a group."""
    follower = Follower(log.path, multiline=TRACE, partial_timeout=10)
    log.write_raw(lines.encode())
    assert follower.news() + follower.later(1.5) == []
    assert follower.later(9) == lines.replace("\n0002", "|0002").split("|")


def test_the_last_group_of_a_deleted_file_comes_without_its_newline(log: LogFile) -> None:
    """Scenarios 18, 28 and 31 at once."""
    follower = Follower(log.path, multiline=TRACE, rotate_wait=5)
    log.write_raw(b"0001 error\n  at a\n  at")
    log.delete()
    assert follower.news() == []
    assert follower.later(5.5) == ["0001 error\n  at a\n  at"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be"])
def test_groups_are_found_in_every_encoding(log: LogFile, encoding: str) -> None:
    """Scenarios 29 and 31: with the offsets of the file."""
    follower = Follower(log.path, multiline=TRACE, encoding=encoding)
    texts = [
        "0001 früh Ċ" if "16" in encoding else "0001 früh",
        "  at a",
        "0002 spät",
        "  at b",
        "0003 end",
    ]
    data = [f"{text}\n".encode(encoding) for text in texts]
    log.write_raw(b"".join(data))
    follower.tail.scan()
    records = [record for block in follower.tail.read("", 1000) for record in block.records()]
    assert [record.text for record in records] == ["\n".join(texts[:2]), "\n".join(texts[2:4])]
    places = [len(b"".join(data[:count])) for count in (0, 2, 4)]
    assert [(r.offset, r.end) for r in records] == [(places[0], places[1]), (places[1], places[2])]
    assert follower.later(1.5) == ["0003 end"]


def test_a_rule_that_never_matches_holds_nothing_back_for_ever(log: LogFile) -> None:
    """A group has at most so many lines."""
    follower = Follower(log.path, multiline=Multiline(start="never", max_lines=3))
    log.write(*"abcdefg")
    assert follower.news() == ["a\nb\nc", "d\ne\nf"]


@pytest.mark.parametrize("options", [{}, {"start": "a", "end": "b"}])
def test_a_rule_needs_exactly_one_pattern(options: dict[str, Any]) -> None:
    """Anything else would not say what it means."""
    with pytest.raises(ValueError, match="either start or end"):
        Multiline(**options)


@pytest.mark.parametrize("rule", [None, logs.Multiline(start="^$"), logs.Multiline(end="x$")])
@pytest.mark.parametrize("line", ["", "x"])
def test_a_block_makes_no_more_records_than_memory_is_meant_for(
    tmp_path: Path, rule: logs.Multiline | None, line: str
) -> None:
    """Each line becomes an object of 500 bytes, however short it is: none is lost, and none comes twice."""
    (tmp_path / "a.log").write_text(f"{line}\n" * 50_000)
    tail = source.tail(tmp_path / "a.log", multiline=rule)
    tail.open()
    records = []
    while blocks := tail.read("", 1 << 20):
        for block in blocks:
            assert block.lines == len(list(block.records())) <= MAX_BLOCK_RECORDS
            records += [record.text for record in block.records()]
        tail.acknowledge("", blocks)
    tail.flush(everything=True)
    for block in tail.read("", 1 << 20):
        records += [record.text for record in block.records()]
    tail.close()
    assert sum(text.count("\n") + 1 for text in records) == 50_000
