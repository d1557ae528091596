"""Opening and reading what lies on a volume, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar import NothingPublished, ReadError
from sidecar.fs import openat
from support import read_beneath

LIMIT = 1 << 20
needs_openat2 = pytest.mark.skipif(
    not openat.openat2_works(), reason="this kernel has no openat2 to compare with"
)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a directory with a file, a directory, and links inside of it."""
    (tmp_path / "config").write_text("content")
    (tmp_path / "..gen-1").mkdir()
    (tmp_path / "..gen-1" / "key").write_text("of the set")
    (tmp_path / "..data").symlink_to("..gen-1")
    (tmp_path / "key").symlink_to("..data/key")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(params=["openat2", "walk"], autouse=True)
def _resolver(request: pytest.FixtureRequest) -> Iterator[None]:
    before = openat._openat2.available
    openat._openat2.available = before and request.param == "openat2"
    yield
    openat._openat2.available = before


def test_files_and_links_inside_are_read(volume: int) -> None:
    """The `..data` layout is made of links."""
    assert read_beneath(volume, "config", LIMIT, "config").data == b"content"
    assert read_beneath(volume, "key", LIMIT, "key").data == b"of the set"
    assert read_beneath(volume, "./..gen-1/../config", LIMIT, "config").data == b"content"


def test_what_is_missing_is_an_error_of_its_own(volume: int) -> None:
    """Nothing is there, against: something is there that is not fit."""
    with pytest.raises(NothingPublished, match="/shared/none: nothing has been published there"):
        read_beneath(volume, "none", LIMIT, "/shared/none")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("..", "leads out of the directory"),
        ("../outside", "leads out of the directory"),
        ("..gen-1/../../outside", "leads out of the directory"),
        ("/etc/passwd", "leads out of the directory"),
        ("config/", "a part of the path is a file"),
        ("config/x", "a part of the path is a file"),
        ("config/..", "a part of the path is a file"),
        ("..gen-1", "it is a directory"),
    ],
)
def test_what_is_refused_is_refused_with_its_reason(volume: int, path: str, reason: str) -> None:
    """The path as the user knows it, and why."""
    with pytest.raises(ReadError, match=f"cannot read /shared/x: .*{reason}"):
        read_beneath(volume, path, LIMIT, "/shared/x")


def test_no_descriptor_is_left_open(volume: int, tmp_path: Path) -> None:
    """Neither after a success nor after any failure, at any step."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "out").symlink_to("../../etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("config", "key", "loop", "out", "fifo", "none", "..gen-1", "config/x", "..", ""):
        for act in (
            lambda p: os.close(openat.open_beneath(volume, p)),
            lambda p: openat.stat_beneath(volume, p),
            lambda p: read_beneath(volume, p, 3, p),
        ):
            with contextlib.suppress(OSError):
                act(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "size", [0, 1, 10, openat._READ_CHUNK_BYTES, openat._READ_CHUNK_BYTES * 2 + 1]
)
def test_the_limit_is_exact(tmp_path: Path, size: int) -> None:
    """As many bytes as the limit are read, one more is refused, whatever the size said before."""
    (tmp_path / "file").write_bytes(b"x" * size)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert len(openat.read_descriptor(fd, size, "file").data) == size
        os.lseek(fd, 0, os.SEEK_SET)
        if size:
            with pytest.raises(
                ReadError, match=rf"{size} bytes are more than the limit of {size - 1}"
            ):
                openat.read_descriptor(fd, size - 1, "file")
    finally:
        os.close(fd)


@pytest.mark.parametrize("claimed", [0, 3, 10, 50])
def test_bytes_are_read_to_the_end_whatever_the_size_said(tmp_path: Path, claimed: int) -> None:
    """A file may grow or shrink between the two calls; files of /proc have no size at all."""
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    assert openat._read_all(fd, claimed, LIMIT) == b"0123456789"
    os.lseek(fd, 0, os.SEEK_SET)
    assert len(openat._read_all(fd, claimed, 5)) <= max(6, claimed)
    os.close(fd)


def test_a_file_that_changes_while_it_is_read_is_not_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes may be of two contents; a rename over it, or another link, leaves them alone."""
    path = tmp_path / "config"
    path.write_text("old")
    os.utime(path, (1, 1))
    fd = os.open(tmp_path, os.O_RDONLY)
    read_all = openat._read_all
    assert read_beneath(fd, "config", LIMIT, "config").stable

    def meanwhile(change: str) -> bool:
        def read(fd: int, expected: int, limit: int) -> bytes:
            data = read_all(fd, expected, limit)
            {"rewrite": lambda: path.write_text("new"), "link": lambda: os.link(path, f"{path}.2")}[
                change
            ]()
            return data

        monkeypatch.setattr(openat, "_read_all", read)
        return read_beneath(tmp_fd, "config", LIMIT, "config").stable

    tmp_fd = fd
    assert meanwhile("link")
    assert not meanwhile("rewrite")
    os.close(fd)


def test_a_file_that_nfs_has_forgotten_is_opened_once_more(
    volume: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was replaced on the server between open and read."""
    read_all, calls = openat._read_all, []

    def stale_at_first(fd: int, expected: int, limit: int) -> bytes:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read_all(fd, expected, limit)

    monkeypatch.setattr(openat, "_read_all", stale_at_first)
    assert read_beneath(volume, "config", LIMIT, "config").data == b"content"


def test_a_file_that_holds_more_than_it_says_is_held_to_the_limit() -> None:
    """Files of the kernel have size 0, and one that grows has more than a moment before."""
    fd = os.open("/proc/self/status", os.O_RDONLY)
    try:
        with pytest.raises(ReadError, match="11 bytes are more than the limit of 10"):
            openat.read_descriptor(fd, 10, "file")
    finally:
        os.close(fd)


def test_a_file_over_the_limit_is_not_read_at_all(
    volume: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size says so before; the message names the whole size, not where reading stopped."""
    (tmp_path / "giant").touch()
    os.truncate(tmp_path / "giant", 1 << 40)
    monkeypatch.setattr(openat, "_read_all", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ReadError, match=f"{1 << 40} bytes are more than the limit of {LIMIT}"):
        read_beneath(volume, "giant", LIMIT, "giant")


def test_looking_at_a_fifo_does_not_open_it(volume: int, tmp_path: Path) -> None:
    """`stat_beneath` never waits for a writer, and follows links inside only."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-fifo").symlink_to("fifo")
    assert stat.S_ISFIFO(openat.stat_beneath(volume, "fifo").st_mode)
    assert stat.S_ISFIFO(openat.stat_beneath(volume, "to-fifo").st_mode)
    assert openat.stat_beneath(volume, "key").st_size == len("of the set")


def test_no_link_is_followed_where_none_is_wanted(volume: int) -> None:
    """`O_NOFOLLOW` means the last component, as in openat2(2)."""
    with pytest.raises(OSError, match=r".") as caught:
        openat.open_beneath(volume, "..data", os.O_RDONLY | os.O_NOFOLLOW)
    assert caught.value.errno == errno.ELOOP
    os.close(openat.open_beneath(volume, "..data/key", os.O_RDONLY | os.O_NOFOLLOW))


def test_as_many_links_are_followed_as_by_the_kernel(volume: int, tmp_path: Path) -> None:
    """Forty, and no more (path_resolution(7))."""
    target = "config"
    for number in range(1, 42):
        (tmp_path / f"link-{number}").symlink_to(target)
        target = f"link-{number}"
    assert openat.stat_beneath(volume, "link-40").st_size == len("content")
    with pytest.raises(OSError, match=r".") as caught:
        openat.stat_beneath(volume, "link-41")
    assert caught.value.errno == errno.ELOOP


NAMES = ["a", "b", "c"]
TARGETS = st.lists(st.sampled_from([*NAMES, "..", ".", ""]), min_size=1, max_size=4).map("/".join)


@needs_openat2
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    links=st.lists(st.tuples(st.sampled_from(NAMES), TARGETS), max_size=5),
    path=TARGETS,
    flags=st.sampled_from([os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY, os.O_PATH]),
    data=st.data(),
)
def test_the_walk_goes_where_the_kernel_goes(
    tmp_path_factory: pytest.TempPathFactory,
    links: list[tuple[str, str]],
    path: str,
    flags: int,
    data: st.DataObject,
) -> None:
    """On any tree of files, directories and links: the same file, or a refusal of the same kind."""
    root = tmp_path_factory.mktemp("root") / "volume"
    root.mkdir()
    (root / "a").mkdir()
    (root / "a" / "b").write_text("file")
    (root / "b").write_text("file")
    for place, target in links:
        where = data.draw(st.sampled_from([root, root / "a"])) / place
        if target and not os.path.lexists(where):
            where.symlink_to(target)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert _outcome(fd, path, flags, kernel=True) == _outcome(fd, path, flags, kernel=False)
    finally:
        os.close(fd)


def _outcome(fd: int, path: str, flags: int, *, kernel: bool) -> object:
    openat._openat2.available = kernel
    try:
        opened = openat.open_beneath(fd, path, flags)
    except OSError as error:
        return error.errno
    try:
        return openat.StatSignature.of(os.fstat(opened)).identity
    finally:
        os.close(opened)


def test_where_the_kernel_refuses_openat2_the_walk_takes_over() -> None:
    """Some seccomp filters answer EPERM: it is tried once."""
    kernel = openat._OpenAt2()
    kernel._syscall = lambda *_: -1  # type: ignore[assignment]
    assert not kernel.available


@needs_openat2
def test_a_directory_that_is_being_renamed_is_tried_again(volume: int) -> None:
    """openat2(2) answers EAGAIN where a `..` met a rename; that is over in a moment."""
    kernel, answers = openat._OpenAt2(), iter([errno.EAGAIN, errno.EINTR])
    ask = kernel._syscall

    def interrupted(*arguments: Any) -> int:
        if (code := next(answers, None)) is None:
            return int(ask(*arguments))
        ctypes.set_errno(code)
        return -1

    kernel._syscall = interrupted  # type: ignore[assignment]
    openat.close(kernel.open(volume, "config", os.O_RDONLY))
    assert next(answers, None) is None


def test_every_reason_says_what_to_change() -> None:
    """Words, not numbers."""
    for code in (errno.EXDEV, errno.EACCES, errno.ENXIO, errno.ENOTDIR, errno.EMFILE, errno.EIO):
        said = openat.explain(OSError(code, "x"))
        assert "Errno" not in said
        assert len(said) > 10
