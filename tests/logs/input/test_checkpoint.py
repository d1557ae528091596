"""What survives a restart, and what survives damage: scenario 39, goal C2."""

from __future__ import annotations

import errno
import json
import os
import random
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.fs import atomic
from sidecar.logs.input import checkpoint
from sidecar.logs.input.checkpoint import Checkpoint, CheckpointState, FileState
from sidecar.logs.input.fingerprint import Fingerprint, Position
from sidecar.logs.testing import LogFile
from support.logs_support import PAD, Follower, calls_during


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "offsets.json"


def state(offset: int = 42) -> CheckpointState:
    place = Position(offset, Fingerprint.of(b"before"))
    entry = FileState(
        "id", "/log/ü\udcff", 1, 2, Fingerprint.of(b"head"), 50, {"stdout": place}, 7, 1.5
    )
    return CheckpointState([entry], {"stdout": {"size": 3}})


def test_what_is_saved_is_loaded(path: Path) -> None:
    """Every field, also of a path that is not UTF-8."""
    Checkpoint(str(path)).save(state())
    assert Checkpoint(str(path)).load() == state()


@pytest.mark.parametrize("resume", [2**70, "\udcff", {"deep": [1.5, None, True]}])
def test_whatever_a_sink_remembers_comes_back(path: Path, resume: object) -> None:
    """Anything that JSON can hold."""
    Checkpoint(str(path)).save(CheckpointState([], {"mine": resume}))
    assert Checkpoint(str(path)).load().resume == {"mine": resume}


def test_a_checkpoint_of_thousands_of_files_costs_little(path: Path) -> None:
    """It is made each second while lines come: a few calls for each file, and one encoder of C for them all."""
    [entry] = state().entries
    many = [replace(entry, path=f"/var/log/app/{n}.log", inode=n) for n in range(5000)]
    assert calls_during(lambda: checkpoint.encode(CheckpointState(many))) <= 5 * len(many)
    assert checkpoint.decode(checkpoint.encode(CheckpointState(many))).entries == many


def test_nothing_is_written_if_nothing_has_changed(path: Path) -> None:
    """An idle collector writes nothing at all."""
    one = Checkpoint(str(path))
    assert one.save(state())
    assert not one.save(state())
    assert one.save(state(43))


def test_the_previous_generation_is_kept(path: Path) -> None:
    """It is what a damaged checkpoint falls back to."""
    one = Checkpoint(str(path))
    one.save(state(10))
    one.save(state(20))
    path.write_bytes(b"")
    assert Checkpoint(str(path)).load() == state(10)


def test_a_digit_that_has_changed_is_not_believed(path: Path) -> None:
    """The document is well formed and says something else: its checksum tells, and the one before it is used."""
    one = Checkpoint(str(path))
    one.save(state(10))
    one.save(state(987654321))
    data = path.read_bytes()
    assert data.count(b" 987654321,") == 1
    path.write_bytes(data.replace(b" 987654321,", b" 987654322,"))
    assert Checkpoint(str(path)).load() == state(10)


def test_what_has_not_changed_is_not_written_again(path: Path) -> None:
    """`save` says whether it wrote; a quiet collector must not wear the disk."""
    kept = Checkpoint(str(path))
    assert kept.save(state())
    written = path.stat().st_ino
    assert not kept.save(state())
    assert path.stat().st_ino == written
    assert kept.save(state(43))
    assert not Checkpoint(None).save(state())


@pytest.mark.parametrize(
    "damage",
    [b"", b"\0" * 4096, b"not json", b"{}", b"[]", b'{"crc32": "', os.urandom(300)],
    ids=["empty", "zeros", "text", "object", "list", "begun", "random"],
)
def test_damage_never_stops_the_start(path: Path, damage: bytes) -> None:
    """Scenario 39: reported, set aside for people to look at, and begun anew."""
    path.parent.mkdir()
    path.write_bytes(damage)
    assert Checkpoint(str(path)).load() == CheckpointState()
    assert path.with_name("offsets.json.damaged").read_bytes() == damage


def test_foreign_things_in_its_place_do_not_stop_the_start(tmp_path: Path) -> None:
    """A directory, a FIFO, another version."""
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    newer = checkpoint.encode(CheckpointState()).replace(b'"version": 1', b'"version": 9')
    (tmp_path / "newer").write_bytes(newer)
    for name in ("dir", "fifo", "newer"):
        assert Checkpoint(str(tmp_path / name)).load() == CheckpointState()


def test_a_thousand_mutations_cost_at_most_one_reading_again(log: LogFile, path: Path) -> None:
    """Goal C2: torn, flipped, zeroed anywhere: no crash, no loss."""
    expected = [f"{n} {PAD}" for n in range(3)]
    log.write(*expected)
    follower = Follower(log.path, state=path)
    follower.news()
    follower.stop()
    original = path.read_bytes()
    chance = random.Random(4)
    log.write("new")
    for _ in range(1000):
        data = bytearray(original)
        match chance.randrange(3):
            case 0:
                del data[chance.randrange(len(data)) :]
            case 1:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case _:
                start = chance.randrange(len(data))
                data[start : start + 64] = bytes(min(64, len(data) - start))
        path.write_bytes(data)
        tail = Follower(log.path, state=path)
        got = tail.news()
        assert got in (["new"], [*expected, "new"])
        tail.kill()
        for left in path.parent.iterdir():
            left.unlink()


def test_a_document_that_is_well_formed_and_wrong_does_not_stop_the_start(path: Path) -> None:
    """The checksum is right, the content is not: written by somebody else's program."""
    path.parent.mkdir()
    body = json.dumps({"version": 1, "files": [{"id": 1}], "sinks": {}}).encode()
    path.write_bytes(b'{"crc32": "%08x", "state":\n%b\n}\n' % (zlib.crc32(body), body))
    assert Checkpoint(str(path)).load() == CheckpointState()


def test_a_full_disk_leaves_the_last_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 39: the error comes out, the old file stays, no temporary file is left."""
    one = Checkpoint(str(path))
    one.save(state(10))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as planted:
        planted.setattr(atomic.TempFile, "finalize", full)
        with pytest.raises(OSError, match="No space"):
            one.save(state(20))
    assert Checkpoint(str(path)).load() == state(10)
    assert [p.name for p in path.parent.iterdir()] == ["offsets.json"]
    assert one.save(state(20))


def test_what_a_kill_left_behind_is_swept(path: Path) -> None:
    """A temporary file of a writer that does not live any more."""
    Checkpoint(str(path)).save(state())
    orphan = path.with_name("..tmp-0123456789abcdef")
    orphan.write_bytes(b"half")
    Checkpoint(str(path)).load()
    assert not orphan.exists()


def test_unacknowledged_lines_are_read_again_after_a_restart(log: LogFile, path: Path) -> None:
    """Scenario 38: handed out is not delivered."""
    follower = Follower(log.path, state=path)
    log.write("one")
    follower.news()
    log.write("two")
    assert follower.news(acknowledge=False) == ["two"]
    assert follower.restart() == ["two"]


def test_four_thousand_lines_with_a_restart_midway_come_exactly_once(
    log: LogFile, path: Path
) -> None:
    """Scenario 38, as Vector tests it."""
    follower = Follower(log.path, state=path)
    log.write(*(str(n) for n in range(2000)))
    follower.news()
    log.write(*(str(n) for n in range(2000, 4000)))
    follower.restart()
    assert follower.seen == [str(n) for n in range(4000)]


def test_a_new_name_of_a_sink_takes_over_the_old_progress(log: LogFile, path: Path) -> None:
    """Scenario 37: changing the configuration does not read everything again."""
    follower = Follower(log.path, state=path)
    log.write("one")
    follower.news()
    follower.stop()
    log.write("two")
    follower.tail.open(["another"])
    (block,) = follower.tail.read("another", 1000)
    assert block.data == b"two\n"
    follower.kill()


IMPOSSIBLE = {
    "a negative offset": (("places", "stdout", 0), -1),
    "an offset beyond off_t": (("places", "stdout", 0), 1 << 64),
    "an infinite offset": (("places", "stdout", 0), float("inf")),
    "a mark of a terabyte": (("places", "stdout", 1), 1 << 40),
    "a head of a terabyte": (("head", 0), 1 << 40),
    "a negative size": (("size",), -5),
    "a device that is text": (("device",), "1"),
    "an inode beyond ino_t": (("inode",), 1 << 70),
    "an infinite time": (("gone",), float("inf")),
    "no time": (("gone",), float("nan")),
    "a path with NUL": (("path",), "/log/\0"),
    "a path that is a list": (("path",), []),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_entry_that_cannot_be_true_costs_its_own_file_alone(
    log: LogFile, path: Path, case: str
) -> None:
    """Issue 12.3e: no input may end the collector. The checksum is right, so somebody has written it on purpose."""
    log.write("one")
    other = LogFile(log.path.with_name("other.log"))
    other.write("elsewhere")
    follower = Follower(log.path.parent / "*.log", state=path)
    follower.news()
    follower.stop()
    document = json.loads(path.read_bytes())["state"]
    entry = next(one for one in document["files"] if one["path"] == str(log.path))
    entry["places"] = {"stdout": entry["places"][""]}
    *way, last = IMPOSSIBLE[case][0]
    for step in way:
        entry = entry[step]
    entry[last] = IMPOSSIBLE[case][1]
    body = json.dumps(document).encode()
    path.write_bytes(b'{"crc32": "%08x", "state":\n%b\n}\n' % (zlib.crc32(body), body))
    assert sorted(Follower(log.path.parent / "*.log", state=path).news()) == ["one"]
    other.close()


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"[]", b'"text"', b'{"version":1,"files":{},"sinks":[]}']
)
def test_a_checkpoint_of_another_shape_is_set_aside(path: Path, body: bytes) -> None:
    """The same for the document as a whole."""
    path.parent.mkdir()
    path.write_bytes(b'{"crc32": "%08x", "state":\n%b\n}\n' % (zlib.crc32(body), body))
    assert Checkpoint(str(path)).load() == CheckpointState()
