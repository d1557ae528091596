"""One file, one directory: what is written is whole, has its mode, and is never left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.disk import atomic, generations
from support import as_user


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """The directory of the test, open."""
    with opened(tmp_path) as descriptor:
        yield descriptor


def failing(error: int, calls: list[int] | None = None) -> Callable[..., None]:
    def fail(*args: object, **_: object) -> None:
        if calls is not None:
            calls.append(len(calls))
        raise OSError(error, os.strerror(error))

    return fail


@pytest.fixture(params=[0o077, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever the umask is."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def published(fd: int, name: str, data: bytes, mode: int = 0o644) -> None:
    staged = atomic.Staged(fd)
    staged.write(data)
    staged.seal(mode, None)
    staged.replace(name, fd)
    staged.discard()


# A file


def test_a_staged_file_is_hidden_and_private_until_it_is_sealed(fd: int, tmp_path: Path) -> None:
    """Nobody may read what is not whole: its name begins with `..`, its mode is 0600."""
    staged = atomic.Staged(fd)
    staged.write(b"half")
    (entry,) = tmp_path.iterdir()
    assert entry.name.startswith("..tmp-")
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    staged.discard()


@pytest.mark.usefixtures("umask")
def test_the_mode_is_the_one_asked_for(fd: int, tmp_path: Path) -> None:
    """A container with a restrictive umask still publishes for the others."""
    published(fd, "config", b"x", 0o640)
    assert stat.S_IMODE((tmp_path / "config").stat().st_mode) == 0o640


@pytest.mark.root
def test_mode_and_group_are_there_before_the_name_is(fd: int, tmp_path: Path) -> None:
    """A file is never visible with the wrong owner."""
    staged = atomic.Staged(fd)
    staged.seal(0o640, 12345)
    (entry,) = tmp_path.iterdir()
    assert (stat.S_IMODE(entry.stat().st_mode), entry.stat().st_gid) == (0o640, 12345)
    staged.discard()


@pytest.mark.root
def test_a_group_that_may_not_be_given_is_named(open_path: Path) -> None:
    """The message says which group, and what to change in the Pod."""
    with as_user(65532), opened(open_path) as fd:
        staged = atomic.Staged(fd)
        with pytest.raises(atomic.GroupRefused) as caught:
            staged.seal(0o644, 12345)
        staged.discard()
    assert "group 12345" in atomic.remedy(caught.value)
    assert "supplementalGroups" in atomic.remedy(caught.value)
    assert list(open_path.iterdir()) == []


def test_the_group_that_a_file_has_already_needs_no_permission(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory with the set-group-id bit gives the group by itself, as with fsGroup."""
    monkeypatch.setattr(os, "fchown", failing(errno.EPERM))
    staged = atomic.Staged(fd)
    staged.seal(0o644, os.getegid())
    staged.discard()


def test_short_writes_are_continued(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """write(2) may take less than it was given."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    published(fd, "config", b"more than three bytes")
    assert (tmp_path / "config").read_bytes() == b"more than three bytes"


def test_bytes_that_have_not_arrived_are_an_error(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that says it took everything is not believed."""
    monkeypatch.setattr(os, "write", lambda _, data: len(data))
    staged = atomic.Staged(fd)
    staged.write(b"lost")
    with pytest.raises(OSError, match="4 bytes were written, and 0 arrived"):
        staged.seal(0o644, None)
    staged.discard()


def test_a_failed_sync_is_never_repeated(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a lost page once: a second fsync would say that all is well."""
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, calls))
    staged = atomic.Staged(fd)
    with pytest.raises(OSError, match="error"):
        staged.seal(0o644, None)
    staged.discard()
    assert calls == [0]
    assert list(tmp_path.iterdir()) == []


def test_a_close_that_fails_stops_the_publish(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and FUSE report a full disk only at close(2)."""
    staged = atomic.Staged(fd)
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", failing(errno.ENOSPC))
        number = staged.fd
        with pytest.raises(OSError, match="space"):
            staged.seal(0o644, None)
    os.close(number)
    staged.discard()


def test_a_discarded_file_leaves_neither_name_nor_descriptor(fd: int, tmp_path: Path) -> None:
    """Also if it is discarded twice."""
    before = os.listdir("/proc/self/fd")
    staged = atomic.Staged(fd)
    staged.discard()
    staged.discard()
    assert list(tmp_path.iterdir()) == []
    assert os.listdir("/proc/self/fd") == before


def test_a_file_system_that_cannot_sync_directories_is_no_error(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of other machines have no such call; every other error counts."""
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    atomic.sync_directory(fd)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="error"):
        atomic.sync_directory(fd)


def test_a_directory_that_is_gone_after_its_sync_was_not_synced(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XFS lets the sync succeed although its log has just died; only stat(2) tells."""
    with monkeypatch.context() as dead:
        dead.setattr(os, "fstat", failing(errno.EIO))
        with pytest.raises(OSError) as caught:  # noqa: PT011 (its number says which)
            atomic.sync_directory(fd)
    assert caught.value.errno == errno.EIO


# The lock


def test_the_lock_keeps_other_processes_out(fd: int, tmp_path: Path) -> None:
    """And says, after its time, that somebody else is holding it."""
    holder = holding(tmp_path)
    begin = time.monotonic()
    lock = atomic.locked(fd, timeout=0.2, where="/shared")
    with pytest.raises(_errors.VolumeUnavailable, match="another writer") as caught, lock:
        pytest.fail("two writers at a time")
    assert caught.value.errno == errno.EWOULDBLOCK
    assert 0.2 <= time.monotonic() - begin < 5
    holder.kill()
    holder.communicate()
    with atomic.locked(fd, timeout=5, where="/shared"):
        pass  # a killed writer frees the lock


def test_whoever_waits_for_the_lock_can_give_up(fd: int, tmp_path: Path) -> None:
    """A cancelled publish does not wait for a neighbour."""
    holder = holding(tmp_path)

    def give_up() -> None:
        raise _errors.PublishError("cancelled")

    lock = atomic.locked(fd, timeout=60, where="/shared", waiting=give_up)
    with pytest.raises(_errors.PublishError, match="cancelled"), lock:
        pytest.fail("two writers at a time")
    holder.kill()
    holder.communicate()


def test_without_locks_one_writer_is_assumed(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS cannot lock a directory; publishing works there all the same."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.EBADF))
    with atomic.locked(fd, timeout=0.0, where="/shared"):
        pass


def holding(directory: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock of a directory until it is killed."""
    program = (
        "import fcntl, os, sys, time\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('locked', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


# The sweep


def test_the_sweep_takes_what_the_dead_have_left(fd: int, tmp_path: Path) -> None:
    """Files, links, directories; and nothing else."""
    (tmp_path / "..tmp-file").write_bytes(b"half")
    (tmp_path / "..tmp-tree" / "sub").mkdir(parents=True)
    (tmp_path / "..tmp-link").symlink_to("/etc")
    os.mkfifo(tmp_path / "..tmp-fifo")
    for kept in ("config", ".hidden", "..data_tmp", "..versions"):
        (tmp_path / kept).write_bytes(b"")
    assert atomic.sweep(fd) == 4
    assert sorted(os.listdir(tmp_path)) == ["..data_tmp", "..versions", ".hidden", "config"]


def test_the_sweep_spares_a_living_writer(fd: int, tmp_path: Path) -> None:
    """Its file is locked, in this process or in another one; when it ends, the file is fair game."""
    staged = atomic.Staged(fd)
    other = staging(tmp_path)
    assert atomic.sweep(fd) == 0
    assert len(list(tmp_path.iterdir())) == 2
    other.kill()
    other.communicate()
    assert atomic.sweep(fd) == 1
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
    assert atomic.sweep(fd) == 1
    assert os.listdir(tmp_path) == ["..tmp-young"]


@pytest.mark.root
def test_the_young_files_of_another_user_are_spared(open_path: Path) -> None:
    """Their lock cannot be asked for: they are private while they are written."""
    for name, age in (("..tmp-young", 60), ("..tmp-old", 7200)):
        (open_path / name).touch(mode=0o600)
        os.utime(open_path / name, (0, time.time() - age))
    with as_user(65532), opened(open_path) as fd:
        assert atomic.sweep(fd) == 1
    assert os.listdir(open_path) == ["..tmp-young"]


def plant_deep_tree(fd: int, top: str) -> None:
    """Nest directories deeper than any recursion may go."""
    inner = os.dup(fd)
    for name in [top, *(["d"] * 1500)]:
        os.mkdir(name, dir_fd=inner)
        above, inner = inner, os.open(name, os.O_RDONLY, dir_fd=inner)
        os.close(above)
    os.close(inner)


def test_a_tree_deeper_than_any_recursion_does_no_harm(fd: int, tmp_path: Path) -> None:
    """A neighbour can plant one; the sweep goes on without a traceback."""
    plant_deep_tree(fd, "..tmp-deep")
    (tmp_path / "..tmp-file").write_bytes(b"")
    atomic.sweep(fd)
    subprocess.run(["rm", "-rf", tmp_path / "..tmp-deep"], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_walk_ends_in_a_tree_deeper_than_any_recursion(fd: int, tmp_path: Path) -> None:
    """No error, and not one descriptor for each level; a set cannot take its place either."""
    plant_deep_tree(fd, "deep")
    before = len(os.listdir("/proc/self/fd"))
    walked = [(path, len(os.listdir("/proc/self/fd"))) for path, *_ in atomic.walk(fd, "deep")]
    path, opened = walked[-1]
    assert path == "deep" + "/d" * atomic.DEEPEST
    assert opened < before + 100
    with pytest.raises(IsADirectoryError):
        generations.check_places(fd, ["deep/a", "deep" + "/d" * 32])
    assert len(os.listdir("/proc/self/fd")) == before
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)


def staging(directory: Path) -> subprocess.Popen[str]:
    """Start a process that has a staged file until it is killed."""
    program = (
        "import os, sys, time\n"
        "from sidecar.disk import atomic\n"
        "staged = atomic.Staged(os.open(sys.argv[1], os.O_RDONLY))\n"
        "print('staged', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "staged\n"
    return process


# Directories


@pytest.mark.usefixtures("umask")
def test_a_new_directory_has_mode_0755(tmp_path: Path) -> None:
    """The other containers must be able to enter it, and all that are above it."""
    atomic.make_directory(str(tmp_path / "a" / "b"))
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_new_directories_stay_in_the_group_of_the_one_above(tmp_path: Path) -> None:
    """With fsGroup the root of a volume has the set-group-id bit: files deeper in it are to be of that group, too."""
    tmp_path.chmod(0o2775)
    atomic.make_directory(str(tmp_path / "a" / "b"))
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o2755


def test_the_names_of_new_directories_are_synced(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is lost with the directory that holds it: each one above is synced, the outermost first."""
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    atomic.make_directory(str(tmp_path / "a" / "b"))
    assert synced == [".", "a"]
    atomic.make_directory(str(tmp_path / "a" / "b"))  # whose maker may have been killed before
    assert synced == [".", "a", "a"]
    synced.clear()
    with atomic.inside(fd, "c/d", make=True, durable=True):
        assert synced == [".", "c"]


def test_an_existing_directory_is_left_as_it_is(tmp_path: Path) -> None:
    """Whoever made it has chosen its mode."""
    os.chmod(tmp_path, 0o750)
    atomic.make_directory(str(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


def test_a_file_in_the_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    """Not a traceback in the first publish."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        atomic.make_directory(str(tmp_path / "file"))


@pytest.mark.usefixtures("umask")
def test_an_inner_directory_has_its_mode_before_its_name(fd: int, tmp_path: Path) -> None:
    """And inherits the group of a volume with fsGroup, whose directories have the set-group-id bit."""
    os.chmod(tmp_path, 0o2775)
    with atomic.inside(fd, "a/b", make=True):
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o2755
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("make", [False, True])
def test_no_link_is_followed_on_the_way(fd: int, tmp_path: Path, make: bool) -> None:
    """A neighbour could have planted it: nothing outside the volume may be touched."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "link").symlink_to("outside")
    with pytest.raises(NotADirectoryError), atomic.inside(fd, "link/inner", make=make):
        pytest.fail("went through the link")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("kernel", ["exchanges", "cannot"])
def test_a_link_takes_the_place_of_a_directory(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    """Where the kernel can exchange two names, the name is never missing."""
    if kernel == "cannot":
        monkeypatch.setattr(atomic, "_exchange", failing(errno.EINVAL))
    missing: list[int] = []
    for turn in range(50):
        (tmp_path / "name").mkdir()
        (tmp_path / "name" / "file").write_bytes(b"")
        (tmp_path / "link").symlink_to("elsewhere")
        watcher = Looking(tmp_path / "name")
        atomic.exchange(fd, "link", "name")
        missing += [turn] * watcher.end()
        assert os.readlink(tmp_path / "name") == "elsewhere"
        assert os.listdir(tmp_path) == ["name"]
        (tmp_path / "name").unlink()
    assert missing == [] or kernel == "cannot"


def test_empty_directories_are_pruned_upwards(fd: int, tmp_path: Path) -> None:
    """As far as they are empty."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "other").write_bytes(b"")
    atomic.prune(fd, "a/b/c")
    assert os.listdir(tmp_path / "a") == ["other"]


@pytest.mark.root
def test_a_directory_that_is_a_mount_of_its_own_is_no_single_file(tmp_path: Path) -> None:
    """That is what every volume is."""
    for name in ("source", "volume"):
        (tmp_path / name).mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "source", tmp_path / "volume"], check=True)
    try:
        assert not atomic.is_single_file_mount(str(tmp_path / "volume"))
    finally:
        subprocess.run(["umount", tmp_path / "volume"], check=True)


@pytest.mark.root
@pytest.mark.parametrize("name", ["config", "my config", "back\\slash"])
def test_a_single_file_mount_is_recognised(tmp_path: Path, name: str) -> None:
    """`subPath` in a Pod: also by a path that goes through a link, and with blanks in it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for path in (tmp_path / "source", tmp_path / "real" / name, tmp_path / "real" / "other"):
        path.write_bytes(b"")
    subprocess.run(["mount", "--bind", tmp_path / "source", tmp_path / "real" / name], check=True)
    try:
        assert atomic.is_single_file_mount(str(tmp_path / "link" / name))
        assert not atomic.is_single_file_mount(str(tmp_path / "link" / "other"))
        assert not atomic.is_single_file_mount(str(tmp_path / "real"))
    finally:
        subprocess.run(["umount", tmp_path / "real" / name], check=True)


class Looking:
    """A thread that looks at a path as often as it can, and counts how often it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._missing = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def end(self) -> int:
        self._stop.set()
        self._thread.join()
        return self._missing

    def _look(self) -> None:
        while not self._stop.is_set():
            self._missing += not os.path.lexists(self._path)


# Errors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_of_its_own(number: int) -> None:
    """It is answered with 507, and it is an `OSError` for code that knows nothing of us."""
    publishing = atomic.publishing("publish /shared/config")
    full = pytest.raises(_errors.VolumeFull, match="cannot publish /shared/config: ")
    with full as caught, publishing:
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number


@pytest.mark.parametrize(
    "name",
    [
        "EROFS",
        "EIO",
        "ESTALE",
        "EACCES",
        "EPERM",
        "EBUSY",
        "EXDEV",
        "EMFILE",
        "ENOENT",
        "ENOTDIR",
        "EISDIR",
        "EINVAL",
    ],
)
def test_every_other_error_makes_the_volume_unavailable(name: str) -> None:
    """And says in words what is wrong, without the number of the error."""
    number = getattr(errno, name)
    publishing = atomic.publishing("publish /shared/config")
    with pytest.raises(_errors.VolumeUnavailable) as caught, publishing:
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith("cannot publish /shared/config: ")
    assert "Errno" not in str(caught.value)
