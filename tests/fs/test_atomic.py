"""One file: what is written is whole, has its mode, and is never left behind."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from sidecar.fs import atomic, dirs, layout, libc, oserrors
from support import as_user, failing, opened


def published(fd: int, name: str, data: bytes, mode: int = 0o644) -> None:
    staged = atomic.TempFile(fd)
    staged.write(data)
    staged.finalize(mode, None)
    staged.rename_into(name, fd)
    staged.discard()


def test_a_staged_file_is_hidden_and_private_until_it_is_sealed(fd: int, tmp_path: Path) -> None:
    """Nobody may read what is not whole: its name begins with `..`, its mode is 0600."""
    staged = atomic.TempFile(fd)
    staged.write(b"half")
    (entry,) = tmp_path.iterdir()
    assert entry.name.startswith("..tmp-")
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    staged.discard()


def test_a_planted_file_is_never_written_to(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`O_EXCL` of open(2): whoever guesses the name of a temporary file holds nothing that is published."""
    (tmp_path / "..tmp-guessed").write_text("planted")
    monkeypatch.setattr(layout, "temporary_name", lambda: "..tmp-guessed")
    with pytest.raises(FileExistsError):
        atomic.TempFile(fd)
    assert (tmp_path / "..tmp-guessed").read_text() == "planted"


@pytest.mark.usefixtures("umask")
def test_the_mode_is_the_one_asked_for(fd: int, tmp_path: Path) -> None:
    """A container with a restrictive umask still publishes for the others."""
    published(fd, "config", b"x", 0o640)
    assert stat.S_IMODE((tmp_path / "config").stat().st_mode) == 0o640


@pytest.mark.root
def test_mode_and_group_are_there_before_the_name_is(fd: int, tmp_path: Path) -> None:
    """A file is never visible with the wrong owner."""
    staged = atomic.TempFile(fd)
    staged.finalize(0o640, 12345)
    (entry,) = tmp_path.iterdir()
    assert (stat.S_IMODE(entry.stat().st_mode), entry.stat().st_gid) == (0o640, 12345)
    staged.discard()


@pytest.mark.root
def test_a_group_that_may_not_be_given_is_named(
    open_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which group, and what to change in the Pod."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with as_user(65532), opened(open_path) as fd:
        staged = atomic.TempFile(fd)
        with pytest.raises(oserrors.ChownDenied) as caught:
            staged.finalize(0o644, 12345)
        staged.discard()
    assert "group 12345" in oserrors.hint(caught.value)
    assert "supplementalGroups" in oserrors.hint(caught.value)
    assert list(open_path.iterdir()) == []


def test_the_group_that_a_file_has_already_needs_no_permission(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory with the set-group-id bit gives the group by itself, as with fsGroup."""
    monkeypatch.setattr(os, "fchown", failing(errno.EPERM))
    staged = atomic.TempFile(fd)
    staged.finalize(0o644, os.getegid())
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
    staged = atomic.TempFile(fd)
    staged.write(b"lost")
    with pytest.raises(OSError, match="4 bytes were written, and 0 arrived"):
        staged.finalize(0o644, None)
    staged.discard()


def test_bytes_of_somebody_else_are_an_error(fd: int, tmp_path: Path) -> None:
    """A file that holds more than was written is not what was to be published."""
    staged = atomic.TempFile(fd)
    staged.write(b"ours")
    with (tmp_path / staged.name).open("ab") as file:
        file.write(b" and theirs")
    with pytest.raises(OSError, match="4 bytes were written, and 15 arrived"):
        staged.finalize(0o644, None)
    staged.discard()


def test_a_failed_sync_is_never_repeated(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a lost page once: a second fsync would say that all is well."""
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, calls))
    staged = atomic.TempFile(fd)
    with pytest.raises(OSError, match="error"):
        staged.finalize(0o644, None)
    staged.discard()
    assert calls == [0]
    assert list(tmp_path.iterdir()) == []


def test_a_close_that_fails_stops_the_publish(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and FUSE report a full disk only at close(2)."""
    staged = atomic.TempFile(fd)
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", failing(errno.ENOSPC))
        number = staged.fd
        with pytest.raises(OSError, match="space"):
            staged.finalize(0o644, None)
    os.close(number)
    staged.discard()


def test_a_discarded_file_leaves_neither_name_nor_descriptor(fd: int, tmp_path: Path) -> None:
    """Also if it is discarded twice."""
    before = os.listdir("/proc/self/fd")
    staged = atomic.TempFile(fd)
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


@pytest.mark.parametrize("kernel", ["exchanges", "cannot"])
def test_a_link_takes_the_place_of_a_directory(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    """Where the kernel can exchange two names, the name is never missing."""
    if kernel == "cannot":
        monkeypatch.setattr(libc, "call", failing(errno.EINVAL))
    missing: list[int] = []
    for turn in range(50):
        (tmp_path / "name").mkdir()
        (tmp_path / "name" / "file").write_bytes(b"")
        (tmp_path / "link").symlink_to("elsewhere")
        watcher = Looking(tmp_path / "name")
        dirs.rmtree(fd, atomic.exchange(fd, "link", "name"))
        missing += [turn] * watcher.end()
        assert os.readlink(tmp_path / "name") == "elsewhere"
        assert os.listdir(tmp_path) == ["name"]
        (tmp_path / "name").unlink()
    assert missing == [] or kernel == "cannot"


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


@pytest.mark.parametrize("fault", ["stat", "ignored", "none"])
def test_what_had_a_name_is_kept_until_all_is_in_place(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Whatever the file system makes of an exchange: it must come back if a later step fails."""
    (tmp_path / "config").write_text("theirs")
    (tmp_path / "..tmp-ours").write_text("ours")
    real, call = os.stat, libc.call

    def failing_stat(path: str, **options: Any) -> os.stat_result:
        if path == "..tmp-ours":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, **options)

    def exchanging(name: str, dir_fd: int, first: bytes, *others: Any) -> int:
        if fault == "none":  # an old kernel, NFS
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if fault == "ignored":  # the flags of renameat2(2)
            os.rename(first, others[1], src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            return 0
        return call(name, dir_fd, first, *others)

    monkeypatch.setattr(libc, "call", exchanging)
    with monkeypatch.context() as patched:
        if fault == "stat":
            patched.setattr(os, "stat", failing_stat)
        before = atomic.rename_or_exchange(fd, "..tmp-ours", "config")
    assert (tmp_path / "config").read_text() == "ours"
    if fault == "ignored":
        assert before is None
    else:
        assert before is not None
        assert (tmp_path / before).read_text() == "theirs"
