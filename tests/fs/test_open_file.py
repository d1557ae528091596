"""Large files: held open, read in pieces, and believed only as long as nobody has written to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar import ContentAltered, NothingPublished, ReadError
from sidecar.fs import open_file
from sidecar.fs.openat import FileRead, StatSignature
from support.watching import descriptors

DATA = os.urandom(3 << 20)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[int]:
    """A directory with one large file, whose writer is long gone."""
    write(tmp_path / "large", DATA)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, (1_700_000_000, 1_700_000_000))


def read(volume: int, **options: object) -> open_file.LargeRead:
    found = open_file.read(volume, "large", 1 << 30, "/shared/large", **options)  # type: ignore[arg-type]
    assert isinstance(found, open_file.LargeRead)
    return found


def test_a_large_file_is_held_open_with_its_digest(volume: int, tmp_path: Path) -> None:
    """Any part of it can be read, and the whole; up to the threshold it comes as bytes."""
    found = read(volume)
    assert found.digest == hashlib.sha256(DATA).hexdigest()
    assert found.signature == StatSignature.of((tmp_path / "large").stat())
    assert found.file.read(1_234_567, 89) == DATA[1_234_567:1_234_656]
    assert found.file.read(len(DATA) - 5, 89) == DATA[-5:]
    assert b"".join(found.file.pieces(7, 2_000_000)) == DATA[7:2_000_000]
    assert found.file.read_all() == DATA
    write(tmp_path / "large", DATA[: open_file.LARGE_FILE_BYTES])
    assert isinstance(open_file.read(volume, "large", 1 << 30, "x"), FileRead)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_who_holds_it_keeps_it_whatever_becomes_of_its_name(
    volume: int, tmp_path: Path, how: str
) -> None:
    """An open file outlives its name."""
    file = read(volume).file
    if how == "replaced":
        write(tmp_path / "new", b"new")
        (tmp_path / "new").rename(tmp_path / "large")
    else:
        (tmp_path / "large").unlink()
    assert file.read_all() == DATA


@pytest.mark.parametrize("how", ["rewritten", "truncated", "appended to"])
def test_bytes_of_a_file_that_was_written_to_are_never_handed_out(
    volume: int, tmp_path: Path, how: str
) -> None:
    """Whoever writes in place takes the old content away: an error, and no mixture."""
    file = read(volume).file
    with (tmp_path / "large").open("r+b") as writer:
        match how:
            case "rewritten":
                writer.write(b"x")
            case "truncated":
                writer.truncate(5)
            case _:
                writer.seek(0, os.SEEK_END)
                writer.write(b"x")
    for attempt in (file.check, file.read_all, lambda: file.read(2 << 20, 10)):
        with pytest.raises(ContentAltered, match="/shared/large"):
            attempt()


def test_a_file_that_changes_while_it_is_read_has_no_digest(volume: int, tmp_path: Path) -> None:
    """The bytes before and after are of two contents."""

    def write_between() -> None:
        with (tmp_path / "large").open("r+b") as writer:
            writer.write(b"x")

    assert read(volume, on_progress=write_between).digest is None


def test_reading_ends_when_nobody_waits_for_it(volume: int) -> None:
    """`on_progress` ends it by raising, after a piece and not after a gigabyte; nothing stays open."""
    before, calls = descriptors(), []

    def stop() -> None:
        calls.append(1)
        raise InterruptedError

    with pytest.raises(ReadError):
        read(volume, on_progress=stop)
    assert (len(calls), descriptors()) == (1, before)


def test_the_descriptor_goes_with_the_last_who_has_it(volume: int) -> None:
    """Nobody closes a file that another one is sending."""
    before = descriptors()
    file = read(volume).file
    other = file.open()
    del file
    assert descriptors() == before + 1
    del other
    assert descriptors() == before


def test_what_is_known_is_not_read_again(volume: int) -> None:
    """A digest that was noted for this very state of the file."""
    digests = open_file.DigestCache()
    digests.put(read(volume).signature, "0123")
    assert read(volume, known=digests, on_progress=lambda: pytest.fail("read")).digest == "0123"


def test_digests_are_not_remembered_without_end() -> None:
    """Those that were noted first give way."""
    digests = open_file.DigestCache()
    for number in range(3000):
        digests.put(StatSignature(1, number, 0, 0, 0), str(number))
    assert digests.get(StatSignature(1, 0, 0, 0, 0)) is None
    assert digests.get(StatSignature(1, 2999, 0, 0, 0)) == "2999"


def test_a_file_can_be_opened_anew_each_time(volume: int, tmp_path: Path) -> None:
    """Where too many would be held open: by name, in a directory that is; another file is not taken for it."""
    found = read(volume)
    named = open_file.LazyFile(
        open_file.Directory(os.dup(volume)), "large", found.signature, "/shared/large"
    )
    assert (named.size, named.read_all()) == (len(DATA), DATA)
    write(tmp_path / "new", DATA)
    (tmp_path / "new").rename(tmp_path / "large")
    with pytest.raises(ContentAltered):
        named.open()
    (tmp_path / "large").unlink()
    with pytest.raises(ContentAltered):
        named.open()


def test_a_copy_is_believed_only_with_the_right_digest(volume: int) -> None:
    """What is published from an older content is what its version says."""
    found, out = read(volume), bytearray()
    assert found.digest is not None
    open_file.copy(found.file, found.digest[:32], out.extend)
    assert out == DATA
    with pytest.raises(ContentAltered):
        open_file.copy(found.file, "0" * 32, out.extend)


def test_what_lies_in_the_page_cache_is_at_hand(volume: int) -> None:
    """It was just written, so nothing has to wait for the disk; beyond the end there is nothing."""
    file = read(volume).file
    assert file.in_page_cache(0, file.size) in (True, False)  # a file system may be unable to tell
    assert not file.in_page_cache(file.size, 10)
    assert not file.in_page_cache(0, 0)


def test_the_rules_of_reading_hold_for_large_files(volume: int, tmp_path: Path) -> None:
    """The limit, links that lead out, and what is no regular file."""
    with pytest.raises(ReadError, match="more than the limit"):
        open_file.read(volume, "large", len(DATA) - 1, "/shared/large")
    (tmp_path / "out").symlink_to("/etc/passwd")
    with pytest.raises(ReadError, match="leads out"):
        open_file.read(volume, "out", 1 << 30, "/shared/out")
    with pytest.raises(NothingPublished):
        open_file.read(volume, "none", 1 << 30, "/shared/none")
