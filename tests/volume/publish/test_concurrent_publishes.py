"""Without durability a small content is published by the event loop itself: a change of threads costs more than that."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecar import Volume
from sidecar.fs import flock, inode_reuse, mounts
from sidecar.process import executor
from sidecar.volume.publish import budget, store
from sidecar.volume.publish.store import Store
from sidecar.volume.volume import Durability
from support import Eventually, opened


@pytest.fixture
async def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path, durability="none")
    await volume.put("config", "0")
    return volume


def at_once(volume: Volume, content: bytes) -> bool:
    return volume._store.put_inline("config", content) is not None


async def test_a_small_content_needs_no_thread(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is visible and in the history as any other."""
    monkeypatch.setattr(
        executor, "run_queued_cancellable", lambda *_: pytest.fail("a thread was used")
    )
    await volume.put("config", "1")
    assert (tmp_path / "config").read_text() == "1"
    assert volume.published is not None
    monkeypatch.undo()
    assert len(await volume.versions("config")) == 2


async def test_what_leaves_the_history_goes_after_the_answer(
    tmp_path: Path, eventually: Eventually
) -> None:
    """To unlink a file that is on its way to the disk takes longer than all of the publish; it is never listed."""
    volume = Volume(tmp_path, durability="none", keep=3)
    for number in range(20):
        await volume.put("config", str(number))
    assert len(await volume.versions("config")) == 3
    await eventually(lambda: len(os.listdir(tmp_path / "..versions" / "file-config")) == 3)


@pytest.mark.parametrize("durability", ["none", "full"])
async def test_contents_take_turns_in_the_files_of_those_that_leave_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """To make a file and to remove one is most of the work: with two kept, four files do for all."""
    monkeypatch.setattr(inode_reuse, "_TICK_NS", -1)
    monkeypatch.setattr("sidecar.volume.volume._EXPIRY_DELAY", 3600.0)
    volume = Volume(tmp_path, durability=durability, keep=2)
    inodes = set()
    for number in range(20):
        await volume.put("config", "9" * number)
        inodes.add((tmp_path / "config").stat().st_ino)
        assert (tmp_path / "config").read_text() == "9" * number
    assert len(inodes) <= 4


async def test_who_has_an_old_content_open_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader may take its time: what it has opened is one content, and stays that one."""
    monkeypatch.setattr(inode_reuse, "_TICK_NS", -1)
    volume = Volume(tmp_path, durability="none", keep=1)
    with ExitStack() as stack:
        opened = []
        for number in range(20):
            await volume.put("config", str(number))
            opened.append(stack.enter_context((tmp_path / "config").open()))
        assert [file.read() for file in opened] == [str(number) for number in range(20)]


def test_the_next_program_removes_what_one_that_ended_has_left(tmp_path: Path) -> None:
    """What is removed after the answer is not removed if the program ends before; it must not add up."""

    async def publish(numbers: range) -> None:
        volume = Volume(tmp_path, keep=2)
        for number in numbers:
            await volume.put("config", str(number))

    asyncio.run(publish(range(9)))
    asyncio.run(publish(range(9, 10)))
    assert len(os.listdir(tmp_path / "..versions" / "file-config")) == 2


async def test_whoever_would_have_to_wait_is_left_to_a_thread(
    volume: Volume, tmp_path: Path
) -> None:
    """Another publisher has the lock: the event loop goes on meanwhile."""
    lock = tmp_path / "..lock"
    fd = os.open(lock if lock.exists() else tmp_path, os.O_WRONLY if lock.exists() else os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert not at_once(volume, b"1")
    finally:
        os.close(fd)
    assert at_once(volume, b"1")


async def test_one_that_took_long_is_not_repeated_at_once(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that stalls must not stall all that the event loop does; a core that others use stalls threads as well."""
    monkeypatch.setattr(store, "_INLINE_SLOW_SECONDS", -1.0)
    monkeypatch.setattr(store, "_voluntary_switches", lambda: 7)
    assert at_once(volume, b"1")
    assert at_once(volume, b"2")
    monkeypatch.setattr(store, "_voluntary_switches", itertools.count().__next__)
    assert at_once(volume, b"3")
    assert not at_once(volume, b"4")


async def test_what_may_take_long_is_never_tried(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Syncs, large contents, sets, volumes of other machines, and a budget for which much has to be counted."""
    assert not at_once(volume, bytes(store._INLINE_MAX_BYTES + 1))
    durable = Volume(tmp_path)
    await durable.prepare()
    assert not at_once(durable, b"1")
    monkeypatch.setattr(mounts, "filesystem", lambda _: "nfs4")
    remote = Volume(tmp_path, durability="none")
    await remote.prepare()
    assert not at_once(remote, b"1")
    monkeypatch.undo()
    monkeypatch.setattr(budget, "_QUICK_COUNT_SECONDS", 0.0)
    bounded = Volume(tmp_path, durability="none", volume_budget=1 << 20)
    await bounded.put("config", "2")
    assert not at_once(bounded, b"3")
    await volume.publish({"config": "a set"})
    assert not at_once(volume, b"1")
    assert isinstance(volume._store, Store)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("durability", ["none", "full"])
async def test_a_volume_at_rest_keeps_nothing_open(
    tmp_path: Path, durability: Durability, eventually: Eventually
) -> None:
    """The event loop leaves the directory open between publishes that follow each other; it can be unmounted later."""
    volume = Volume(tmp_path, durability=durability)
    await volume.put("config", "0")
    before = descriptors()
    for number in range(5):
        await volume.put("config", str(number))
        if durability == "full":
            assert descriptors() == before
    await eventually(lambda: descriptors() == before)


@pytest.mark.parametrize("durability", ["none", "full"])
async def test_a_directory_that_was_replaced_meanwhile_is_not_published_to(
    tmp_path: Path, durability: Durability
) -> None:
    """The path counts, and not the directory that was open."""
    path = tmp_path / "shared"
    volume = Volume(path, durability=durability)
    for number in range(3):
        await volume.put("config", str(number))
    path.rename(tmp_path / "old")
    path.mkdir()
    await volume.put("config", "new")
    assert (path / "config").read_text() == "new"
    assert (tmp_path / "old" / "config").read_text() == "2"


async def test_the_lock_of_now_is_taken_by_each_publish(volume: Volume, tmp_path: Path) -> None:
    """A lock that was open for the publish before may be none any more: its file was removed, or the mode has changed."""
    for number in range(3):
        await volume.put("config", str(number))
    (tmp_path / "..lock").unlink(missing_ok=True)
    for mode in (0o755, 0o700, 0o755):
        tmp_path.chmod(mode)
        assert at_once(volume, b"%o" % mode)
        with opened(tmp_path) as fd, flock.directory_lock(fd, timeout=0, where="/shared"):
            assert not at_once(volume, b"beside")
        (tmp_path / "..lock").unlink(missing_ok=True)
        with opened(tmp_path) as fd, flock.directory_lock(fd, timeout=0, where="/shared"):
            assert not at_once(volume, b"beside")


async def test_a_forked_process_shares_no_open_lock(volume: Volume) -> None:
    """Child and parent would hold the lock together: flock(2) belongs to the open file description."""
    for number in range(3):
        await volume.put("config", str(number))
    before = descriptors()
    pid = os.fork()
    if not pid:
        os._exit(int(descriptors() >= before))
    assert os.waitpid(pid, 0)[1] == 0
