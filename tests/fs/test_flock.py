"""One writer at a time, and what killed ones have left."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.fs import atomic, dirs, flock
from support import as_user, failing, opened


def test_the_lock_keeps_other_processes_out(fd: int, tmp_path: Path) -> None:
    """And says, after its time, that somebody else is holding it."""
    with holding(tmp_path):
        begin = time.monotonic()
        lock = flock.directory_lock(fd, timeout=0.2, where="/shared")
        with pytest.raises(_errors.VolumeUnavailable, match="another writer") as caught, lock:
            pytest.fail("two writers at a time")
        assert caught.value.errno == errno.EWOULDBLOCK
        assert time.monotonic() - begin >= 0.2
    with flock.directory_lock(fd, timeout=5, where="/shared"):
        pass  # a killed writer frees the lock


def test_a_lock_that_was_deleted_is_not_used_again(tmp_path: Path) -> None:
    """Others lock the new file of that name: the open one would exclude nobody."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    kept = flock.OpenLock()
    with opened(shared) as fd:
        with flock.directory_lock(fd, timeout=1, where="/shared", kept=kept):
            pass
        (shared / "..lock").unlink()
        with flock.directory_lock(fd, timeout=1, where="/shared", kept=kept):
            lock = flock.directory_lock(fd, timeout=0, where="/shared")
            with pytest.raises(_errors.VolumeUnavailable), lock:
                pytest.fail("two writers at a time")
    kept.close()


def test_whoever_waits_for_the_lock_can_give_up(fd: int, tmp_path: Path) -> None:
    """A cancelled publish does not wait for a neighbour."""

    def give_up() -> None:
        raise _errors.PublishError("cancelled")

    lock = flock.directory_lock(fd, timeout=60, where="/shared", before_wait=give_up)
    with holding(tmp_path), pytest.raises(_errors.PublishError, match="cancelled"), lock:
        pytest.fail("two writers at a time")


def test_without_locks_one_writer_is_assumed(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS cannot lock a directory; publishing works there all the same."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.EBADF))
    with flock.directory_lock(fd, timeout=0.0, where="/shared"):
        pass


@pytest.mark.root
def test_whoever_may_only_read_cannot_hold_the_lock(open_path: Path) -> None:
    """flock(2) asks for nothing but an open file: what readers can open they could lock for ever."""
    open_path.chmod(0o755)
    with opened(open_path) as fd, flock.directory_lock(fd, timeout=5, where="/shared"):
        pass
    lock = open_path / "..lock"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o200
    with as_user(65532), opened(open_path) as reader:
        for flags in (os.O_RDONLY, os.O_WRONLY):
            with pytest.raises(PermissionError):
                os.open(lock, flags)
    with opened(open_path) as reader, opened(open_path) as fd:
        fcntl.flock(reader, fcntl.LOCK_EX)
        with flock.directory_lock(fd, timeout=0, where="/shared"):
            pass


@pytest.mark.root
def test_all_who_may_write_share_the_lock(open_path: Path) -> None:
    """Two users of one group keep each other out, whoever of them made the file, and whenever the mode was widened."""
    open_path.chmod(0o755)
    os.chown(open_path, 65531, 2000)
    with (
        as_user(65531),
        opened(open_path) as fd,
        flock.directory_lock(fd, timeout=0, where="/shared"),
    ):
        pass
    open_path.chmod(0o2775)
    with as_user(65531, 2000), opened(open_path) as fd:
        flock.share(fd)
    with (
        opened(open_path) as fd,
        flock.directory_lock(fd, timeout=0, where="/shared"),
        as_user(65532, 2000),
        opened(open_path) as other,
        pytest.raises(_errors.VolumeUnavailable),
        flock.directory_lock(other, timeout=0, where="/shared"),
    ):
        pytest.fail("two writers at a time")


def test_a_lock_file_that_was_removed_is_made_anew(fd: int, tmp_path: Path) -> None:
    """Whoever waits for a file that no name leads to must not go on beside the next writer."""
    tmp_path.chmod(0o755)
    with flock.directory_lock(fd, timeout=0, where="/shared"):
        (tmp_path / "..lock").unlink()
        with flock.directory_lock(fd, timeout=0, where="/shared"):
            pass
    for plant in (os.mkdir, os.mkfifo, lambda path: os.symlink("gone", path)):
        (tmp_path / "..lock").unlink()
        plant(tmp_path / "..lock")
        with flock.directory_lock(fd, timeout=0, where="/shared"):
            pass
        dirs.rmtree(fd, "..lock")
        (tmp_path / "..lock").touch()


def test_who_has_waited_for_a_file_that_was_removed_locks_the_one_of_now(
    fd: int, tmp_path: Path
) -> None:
    """Else it would go on beside the next writer, which locks another file."""
    tmp_path.chmod(0o755)
    first = flock.directory_lock(fd, timeout=0, where="/shared")
    first.__enter__()

    def give_way() -> None:
        (tmp_path / "..lock").unlink()
        first.__exit__(None, None, None)

    third = flock.directory_lock(fd, timeout=0, where="/shared")
    with (
        flock.directory_lock(fd, timeout=5, where="/shared", before_wait=give_way),
        pytest.raises(_errors.VolumeUnavailable),
        third,
    ):
        pytest.fail("two writers at a time")


def test_who_waits_gets_the_lock_before_who_has_just_released_it(fd: int, tmp_path: Path) -> None:
    """Else a writer that publishes in a loop leaves a moment in which a neighbour must happen to ask."""
    tmp_path.chmod(0o755)
    waits, may_ask = threading.Event(), threading.Event()

    def wait_to_ask() -> None:
        waits.set()
        may_ask.wait(20)

    def neighbour() -> None:
        with (
            opened(tmp_path) as own,
            flock.directory_lock(own, timeout=20, where="/shared", before_wait=wait_to_ask),
        ):
            pass

    with ThreadPoolExecutor(1) as threads:
        with flock.directory_lock(fd, timeout=0, where="/shared"):
            waiting = threads.submit(neighbour)
            assert waits.wait(20)
        for _ in range(3):
            with (
                pytest.raises(_errors.VolumeUnavailable),
                flock.directory_lock(fd, timeout=0, where="/shared"),
            ):
                pytest.fail("the neighbour was first")
        may_ask.set()
        waiting.result(20)
    with flock.directory_lock(fd, timeout=0, where="/shared"):
        pass


def test_the_next_in_line_cannot_keep_the_lock_from_others(fd: int, tmp_path: Path) -> None:
    """It may be stopped, or a hostile neighbour: the lock itself is free."""
    tmp_path.chmod(0o755)
    with flock.directory_lock(fd, timeout=0, where="/shared"):
        pass
    stuck = os.open(tmp_path / "..lock", os.O_WRONLY)
    fcntl.lockf(stuck, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    with flock.directory_lock(fd, timeout=20, where="/shared"):
        pass
    os.close(stuck)


def holding(directory: Path) -> AbstractContextManager[None]:
    """Let another process hold the lock of a directory, and kill it at the end."""
    return doing(
        "from sidecar.fs import flock\nlock = flock.directory_lock(fd, timeout=5, where='')\nlock.__enter__()",
        directory,
    )


def test_the_sweep_takes_what_the_dead_have_left(fd: int, tmp_path: Path) -> None:
    """Files, links, directories; and nothing else."""
    (tmp_path / "..tmp-file").write_bytes(b"half")
    (tmp_path / "..tmp-tree" / "sub").mkdir(parents=True)
    (tmp_path / "..tmp-link").symlink_to("/etc")
    os.mkfifo(tmp_path / "..tmp-fifo")
    for kept in ("config", ".hidden", "..data_tmp", "..versions"):
        (tmp_path / kept).write_bytes(b"")
    assert flock.remove_orphans(fd) == 4
    assert sorted(os.listdir(tmp_path)) == ["..data_tmp", "..versions", ".hidden", "config"]


def test_the_sweep_spares_a_living_writer(fd: int, tmp_path: Path) -> None:
    """Its file is locked, in this process or in another one; when it ends, the file is fair game."""
    staged = atomic.TempFile(fd)
    with staging(tmp_path):
        assert flock.remove_orphans(fd) == 0
        assert len(list(tmp_path.iterdir())) == 2
    assert flock.remove_orphans(fd) == 1
    staged.discard()
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_only_old_files_are_swept(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else tells whether their writer lives."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    for name, age in (("..tmp-young", 60), ("..tmp-old", 7200)):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (0, time.time() - age))
    assert flock.remove_orphans(fd) == 1
    assert os.listdir(tmp_path) == ["..tmp-young"]


@pytest.mark.root
def test_the_young_files_of_another_user_are_spared(open_path: Path) -> None:
    """Their lock cannot be asked for: they are private while they are written."""
    for name, age in (("..tmp-young", 60), ("..tmp-old", 7200)):
        (open_path / name).touch(mode=0o600)
        os.utime(open_path / name, (0, time.time() - age))
    with as_user(65532), opened(open_path) as fd:
        assert flock.remove_orphans(fd) == 1
    assert os.listdir(open_path) == ["..tmp-young"]


def staging(directory: Path) -> AbstractContextManager[None]:
    """Let another process have a staged file, and kill it at the end."""
    return doing("from sidecar.fs import atomic\nstaged = atomic.TempFile(fd)", directory)


@contextmanager
def doing(what: str, directory: Path) -> Iterator[None]:
    """Start a process that has done something to a directory, `fd`, and kill it at the end."""
    program = (
        "import os, signal, sys\nfd = os.open(sys.argv[1], os.O_RDONLY)\n"
        f"{what}\nprint('done', flush=True)\nsignal.pause()"
    )
    command = [sys.executable, "-c", program, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
            yield
        finally:
            process.kill()
