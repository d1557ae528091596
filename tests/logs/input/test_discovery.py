"""Which files are found, and how they are opened: scenarios 22–25, 40, 42 and the hostile volume."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sidecar
from sidecar.logs.input import log_once
from sidecar.logs.input import tail as source
from sidecar.logs.input.discovery import Discovery
from sidecar.logs.testing import LogFile
from support import as_user
from support.logs_support import PAD, Follower, calls_during
from support.mounts import mounted, tmpfs


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name}\n")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.log", {"a.log"}),
        ("*.log", {"a.log", "b.log"}),
        ("?.log", {"a.log", "b.log"}),
        ("[!a].log", {"b.log"}),
        ("{a,c}.{log,txt}", {"a.log", "c.txt"}),
        ("**/*.log", {"a.log", "b.log", "x/d.log", "x/y/e.log"}),
        ("x/**", {"x/d.log", "x/y/e.log"}),
        ("*/*/e.log", {"x/y/e.log"}),
        (".h*", {".hidden.log"}),
        ("missing/*.log", set()),
    ],
)
def test_patterns_name_what_a_shell_would(tmp_path: Path, pattern: str, expected: set[str]) -> None:
    """Wildcards, classes, braces, any depth; a leading dot is named expressly or not at all."""
    touch(
        *(tmp_path / n for n in ("a.log", "b.log", "c.txt", ".hidden.log", "x/d.log", "x/y/e.log"))
    )
    found = Discovery([str(tmp_path / pattern)]).scan()
    assert {os.path.relpath(path, tmp_path) for path in found.files} == expected


def test_files_that_could_not_be_opened_and_are_gone_are_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that makes unreadable files with new names all day costs no memory; one that stays is named once."""
    monkeypatch.setattr(log_once, "_MAX_PATHS", 5)
    touch(tmp_path / "secret")
    (tmp_path / "log").mkdir()
    follower = Follower(tmp_path / "log" / "*.log")
    (tmp_path / "log" / "stays.log").symlink_to("../secret")
    for number in range(20):
        link = tmp_path / "log" / f"{number}.log"
        link.symlink_to("../secret")
        follower.news()
        link.unlink()
    assert len(follower.tail._require()._opener.errors) <= 5
    assert caplog.text.count("cannot read") == 21


@pytest.mark.root
def test_what_may_not_be_read_is_named_once_with_what_to_change(
    open_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong most often in a Pod: two users. Silence would look like an application without logs."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    touch(open_path / "app" / "a.log", open_path / "app" / "below" / "b.log")
    (open_path / "app" / "a.log").chmod(0o600)
    (open_path / "app" / "below").chmod(0o700)
    with as_user(65532):
        follower = Follower(open_path / "app" / "**" / "*.log")
        for _ in range(3):
            assert follower.news() == []
    for path in ("a.log", "below"):
        said = f"cannot read {open_path}/app/{path}: permission denied for user 65532 and group 65532 ("
        assert caplog.text.count(said) == 1
    assert caplog.text.count("fsGroup") == 2
    assert sorted(follower.news()) == ["a.log", "b.log"]


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory with 1200 others in each other. Taken away by rm(1): pytest's own way ends at a thousand."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    yield tmp_path
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)


def test_directories_may_be_as_deep_as_anybody_makes_them(deep: Path) -> None:
    """Whoever writes to the volume must not be able to end the collection of all others by it."""
    touch(deep / "a.log")
    found = Discovery([str(deep / "**" / "*.log")]).scan()
    assert list(found.files) == [str(deep / "a.log")]


def test_excluded_files_are_left_alone(tmp_path: Path) -> None:
    """Scenario 25: by name in any directory, or by path."""
    touch(*(tmp_path / n for n in ("a.log", "debug.log", "x/debug.log", "x/b.log", "y/c.log")))
    pattern = str(tmp_path / "**" / "*.log")
    found = Discovery([pattern], exclude=["debug.*", str(tmp_path / "y" / "*")]).scan()
    assert {os.path.relpath(path, tmp_path) for path in found.files} == {"a.log", "x/b.log"}


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("*.log", {"x/b.log", "x/y/c.log"}),
        ("x/*.log", {"a.log", "x/y/c.log"}),
        ("**/b.log", {"a.log", "x/y/c.log"}),
        ("**/*.log", set()),
        ("x/**", {"a.log"}),
        ("{a,x/b}.log", {"x/y/c.log"}),
    ],
)
def test_an_excluded_path_is_a_pattern_as_those_of_files(
    tmp_path: Path, exclude: str, left: set[str]
) -> None:
    """Scenario 25: a star ends at a slash, two of them may be no directory; nothing more is left out than is said."""
    touch(*(tmp_path / n for n in ("a.log", "x/b.log", "x/y/c.log")))
    found = Discovery([str(tmp_path / "**" / "*.log")], exclude=[f"{tmp_path}/{exclude}"]).scan()
    assert {os.path.relpath(path, tmp_path) for path in found.files} == left


def test_an_excluded_name_knows_braces(tmp_path: Path) -> None:
    touch(*(tmp_path / n for n in ("a.log", "b.log", "x/a.log", "x/c.log")))
    found = Discovery([str(tmp_path / "**" / "*.log")], exclude=["{a,b}.log"]).scan()
    assert {os.path.relpath(path, tmp_path) for path in found.files} == {"x/c.log"}


def test_files_and_directories_that_come_later_are_found(tmp_path: Path) -> None:
    """Scenario 23: also where the directory of the pattern itself is not there yet."""
    follower = Follower(tmp_path / "log" / "**" / "*.log")
    assert follower.news() == []
    touch(tmp_path / "log" / "a.log")
    assert follower.news() == ["a.log"]
    touch(tmp_path / "log" / "new" / "deep" / "b.log")
    assert follower.news() == ["b.log"]


def test_a_tree_that_comes_and_goes_leaves_nothing_open(tmp_path: Path) -> None:
    """Scenario 23: trees of temporary directories."""
    follower = Follower(tmp_path / "**" / "*.log", rotate_wait=1)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        file = tmp_path / f"job{number}" / "out.log"
        touch(file)
        file.write_text(f"job {number} {PAD}\n")
        follower.news()
        file.unlink()
        file.parent.rmdir()
    follower.later(5)
    assert len(follower.seen) == 20
    assert len(os.listdir("/proc/self/fd")) == before


# 22: links


def test_a_link_is_followed_and_its_new_target_is_read(tmp_path: Path) -> None:
    """Scenario 22: `current` points to the file of the day."""
    touch(tmp_path / "data" / "monday", tmp_path / "data" / "tuesday")
    link = tmp_path / "current.log"
    link.symlink_to("data/monday")
    follower = Follower(link)
    assert follower.news() == ["monday"]
    with (tmp_path / "data" / "monday").open("a") as monday:
        monday.write("late on monday\n")
    other = tmp_path / "other"
    other.symlink_to("data/tuesday")
    other.rename(link)
    assert sorted(follower.news()) == ["late on monday", "tuesday"]


def test_the_target_of_a_link_may_rotate_be_truncated_and_removed(tmp_path: Path) -> None:
    """Scenario 22."""
    target = LogFile(tmp_path / "data" / "app.log")
    (tmp_path / "current").symlink_to("data/app.log")
    follower = Follower(tmp_path / "current")
    target.write("one")
    follower.news()
    target.rotate()
    target.write("two")
    target.reopen()
    target.write("three")
    follower.news()
    target.truncate()
    target.write("four")
    follower.news()
    target.delete()
    target.reopen()
    target.write("five " + PAD)
    follower.news()
    assert follower.seen == ["one", "two", "three", "four", "five " + PAD]
    target.close()


def test_a_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    """A log collector is a confused deputy: whoever plants a link must not read the collector's secrets."""
    (tmp_path / "secret").write_text("secret\n")
    inside = tmp_path / "log"
    inside.mkdir()
    (inside / "a.log").symlink_to("../secret")
    (inside / "b.log").symlink_to(tmp_path / "secret")
    (inside / "c.log").write_text("fine\n")
    assert Follower(inside / "*.log").news() == ["fine"]


def test_a_link_may_lead_as_far_as_root_permits(tmp_path: Path) -> None:
    """As the links of /var/log/containers do: absolute, into a neighbouring directory."""
    touch(tmp_path / "pods" / "0.log")
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / "web.log").symlink_to(tmp_path / "pods" / "0.log")
    follower = Follower(tmp_path / "containers" / "*.log", root=str(tmp_path))
    assert follower.news() == ["0.log"]


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    """A FIFO, a socket, a directory, a link in a circle and a name that is not UTF-8: none of them blocks or stops."""
    os.mkfifo(tmp_path / "fifo.log")
    (tmp_path / "link.log").symlink_to("fifo.log")
    (tmp_path / "loop.log").symlink_to("loop.log")
    (tmp_path / "dir.log").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.log"))
        with open(os.fsencode(tmp_path) + b"/\xff.log", "wb") as strange:
            strange.write(b"strange name\n")
        touch(tmp_path / "good.log")
        assert sorted(Follower(tmp_path / "*.log").news()) == ["good.log", "strange name"]


# 24, 40: not readable, no descriptors


def test_a_file_that_cannot_be_opened_now_is_opened_later(
    log: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 24: no permission, then permission. Planted, since root may read everything."""
    log.write("one")
    opened = Discovery.open

    def refuse(self: Discovery, path: str) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Discovery, "open", refuse)
    follower = Follower(log.path)
    assert follower.news() == []
    monkeypatch.setattr(Discovery, "open", opened)
    assert follower.news() == ["one"]


@contextmanager
def descriptors(more: int) -> Iterator[None]:
    """Let this process open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_files_than_descriptors_lose_nothing(tmp_path: Path) -> None:
    """Scenario 40: files that were not used for long are closed, and opened again when there is something to read."""
    logs = [tmp_path / f"{chr(97 + n % 26)}{n}.log" for n in range(300)]
    seen = []
    with descriptors(60):
        follower = Follower(tmp_path / "*.log")
        for generation in range(3):
            for path in logs:
                with path.open("a") as file:
                    file.write(f"{path.name} {generation} {PAD}\n")
            seen += follower.news()
        follower.stop()
    assert sorted(seen) == sorted(f"{p.name} {g} {PAD}" for p in logs for g in range(3))


def test_log_files_leave_descriptors_for_all_others(tmp_path: Path) -> None:
    """Issue 12.2a: sinks and the checkpoint need some, also while not one of the files was read."""
    touch(*(tmp_path / f"{n}.log" for n in range(200)))
    with descriptors(60):
        follower = Follower(tmp_path / "*.log")
        others = [os.open(tmp_path, os.O_RDONLY) for _ in range(20)]
        for fd in others:
            os.close(fd)
        assert len(follower.news()) == 200
        follower.stop()


def test_a_file_that_could_not_be_opened_and_was_renamed_since_is_read(
    log: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor for a moment, and rotation in that moment: its new name is outside the pattern."""
    log.write("one")
    opened = Discovery.open

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Discovery, "open", refuse)
    follower = Follower(log.path)
    assert follower.news() == []
    log.rotate()
    monkeypatch.setattr(Discovery, "open", opened)
    assert follower.news() == ["one"]


def test_what_is_deleted_while_it_was_closed_and_unread_is_counted(tmp_path: Path) -> None:
    """The price of more unread files than descriptors: it is not hidden."""
    paths = [tmp_path / f"{n}.log" for n in range(200)]
    touch(*paths)
    with descriptors(60):
        follower = Follower(tmp_path / "*.log")
        for path in paths:
            path.unlink()
        delivered = sum(len(line) + 1 for line in follower.news())
        written = sum(len(path.name) + 1 for path in paths)
        assert 0 < delivered < written
        assert follower.tail.lost["deleted"] == written - delivered
        follower.stop()


def test_one_scan_opens_a_bounded_number_of_files(tmp_path: Path) -> None:
    """A signal is heard, and lines flow, while ten thousand files are found for the first time."""
    touch(*(tmp_path / f"{n}.log" for n in range(600)))
    tail = source.tail(tmp_path / "*.log")
    tail.open()
    looks = 1
    while tail.incomplete:
        assert len(tail.positions()) <= 256 * looks
        tail.scan()
        looks += 1
    assert len(tail.positions()) == 600
    tail.close()


# 25, 42


def test_reading_may_begin_at_the_end_of_what_is_there(log: LogFile) -> None:
    """`start="end"`: existing files from their end on, in whole lines; files that come later from their beginning."""
    log.write_raw(b"old\nold too\nbegun ")
    follower = Follower(log.path.with_name("*.log"), start="end")
    touch(log.path.with_name("later.log"))
    log.write_raw(b"and done\n")
    assert sorted(follower.news()) == ["begun and done", "later.log"]


def test_files_that_were_old_at_the_first_start_are_read_from_their_end(
    log: LogFile, tmp_path: Path
) -> None:
    """Scenario 25: `ignore_older`. What comes later is read whole, however old it says it is."""
    old, later = log.path.with_name("old.log"), log.path.with_name("later.log")
    touch(log.path, old)
    os.utime(old, (1, 1))
    follower = Follower(log.path.with_name("*.log"), ignore_older=60, state=tmp_path / "offsets")
    assert follower.news() == ["app.log"]
    with old.open("a") as file:
        file.write("active again\n")
    touch(later)
    os.utime(later, (1, 1))
    assert sorted(follower.news()) == ["active again", "later.log"]
    follower.stop()
    touch(log.path.with_name("meanwhile.log"))
    os.utime(log.path.with_name("meanwhile.log"), (1, 1))
    assert follower.start() == ["meanwhile.log"]


def test_a_file_made_between_two_runs_was_not_there_at_the_first_start(
    tmp_path: Path,
) -> None:
    """A native sidecar starts before the application: killed before that writes, it must not skip its lines."""
    follower = Follower(tmp_path / "*.log", state=tmp_path / "offsets.json", start="end")
    assert follower.news() == []
    follower.stop()
    touch(tmp_path / "a.log")
    assert follower.start() == ["a.log"]


def test_an_old_file_that_becomes_active_again_is_read(log: LogFile) -> None:
    """Scenario 25: age does not matter, growth does."""
    follower = Follower(log.path, start="end")
    os.utime(log.path, (1, 1))
    follower.later(100_000)
    log.write("back again")
    assert follower.news() == ["back again"]


def test_a_busy_file_does_not_keep_others_waiting(tmp_path: Path) -> None:
    """Scenario 42: each file has its turn before any has a second one."""
    (tmp_path / "busy.log").write_bytes(b"x" * 99 + b"\n" + (b"y" * 99 + b"\n") * 50_000)
    for number in range(9):
        (tmp_path / f"quiet{number}.log").write_text("hello\n")
    tail = source.tail(str(tmp_path / "*.log"))
    tail.open()
    first = tail.read("", 1 << 18)
    assert {Path(block.file).name for block in first} >= {f"quiet{n}.log" for n in range(9)}
    tail.close()


def follow_idle_files(directory: Path, count: int) -> Follower:
    """Follow so many files of a line each, which have all been read."""
    directory.mkdir()
    for number in range(count):
        (directory / f"{number}.log").write_text(f"{number}\n")
    follower = Follower(directory / "*.log")
    assert len(follower.news()) == count
    while not follower.tail._discovery._is_unchanged():
        follower.tail.scan()  # directories that were written just now are listed again
    return follower


def test_a_scan_of_thousands_of_idle_files_costs_a_few_calls_each(tmp_path: Path) -> None:
    """Scenario 42: no file is opened, and no directory is listed again."""
    follower = follow_idle_files(tmp_path / "log", 2000)
    assert calls_during(follower.tail.scan) <= 10 * 2000


def test_a_line_costs_the_same_however_many_idle_files_there_are(tmp_path: Path) -> None:
    """Scenario 42: an event names the file, so the others are not looked at."""

    def read_a_line(follower: Follower, busy: Path) -> int:
        with busy.open("a") as file:
            file.write("a line\n")

        def read() -> None:
            assert follower.tail.on_write([str(busy)])
            assert follower.news(scan=False) == ["a line"]

        return calls_during(read)

    few = follow_idle_files(tmp_path / "few", 5)
    many = follow_idle_files(tmp_path / "many", 1000)
    assert read_a_line(many, tmp_path / "many" / "3.log") == read_a_line(
        few, tmp_path / "few" / "3.log"
    )


def test_no_pattern_and_a_limit_of_nothing_are_refused() -> None:
    """Said at once, not at the first line."""
    with pytest.raises(sidecar.ConfigError, match="no log file is named"):
        source.tail()
    with pytest.raises(sidecar.ConfigError, match="held_limit must be"):
        source.tail("/log/*", held_limit=0)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("klingon", "no encoding of texts is called 'klingon'"),
        ("hex", "no encoding of texts is called 'hex'"),
        ("utf-16", "'utf-16' cannot be cut into lines.*utf-16-le"),
        ("utf-8-sig", "'utf-8-sig' cannot be cut into lines"),
        ("idna", "'idna' cannot be cut into lines"),
    ],
)
def test_an_encoding_without_lines_is_refused(encoding: str, said: str) -> None:
    """At the start: it would end the collection at the first line, or find none for ever."""
    with pytest.raises(sidecar.ConfigError, match=said):
        source.tail("/x", encoding=encoding)


@pytest.mark.root
@pytest.mark.parametrize("pattern", ["*.log", "app.log"])
def test_a_file_on_another_device_than_its_directory_is_read(tmp_path: Path, pattern: str) -> None:
    """Issue 12.1b: a bind mount of one file, as `docker -v` and `subPath` make it; rotated within it, too."""
    app = tmp_path / "log" / "app.log"
    touch(app)
    with tmpfs(tmp_path / "disk", "size=100k") as disk:
        mounted_file = disk / "host.log"
        mounted_file.write_text(f"one {PAD}\n")
        subprocess.run(["mount", "--bind", mounted_file, app], check=True)
        try:
            follower = Follower(app.parent / pattern, state=tmp_path / "state")
            assert follower.news() == [f"one {PAD}"]
            mounted_file.write_text("two\n")
            assert follower.later(1) == ["two"]
            assert follower.restart() == []
            follower.stop()
        finally:
            subprocess.run(["umount", app], check=True)


@pytest.mark.root
def test_an_overlay_of_two_file_systems_is_read(tmp_path: Path) -> None:
    """Its directories and its files have two devices."""
    with tmpfs(tmp_path / "low", "size=100k") as low, tmpfs(tmp_path / "up", "size=100k") as up:
        touch(low / "log" / "old.log")
        for name in ("data", "work"):
            (up / name).mkdir()
        layers = f"lowerdir={low},upperdir={up}/data,workdir={up}/work"
        with mounted(tmp_path / "all", "-t", "overlay", "-o", layers, "overlay") as overlay:
            touch(overlay / "log" / "new.log")
            follower = Follower(overlay / "log" / "*.log")
            assert sorted(follower.news()) == ["new.log", "old.log"]
            follower.kill()
