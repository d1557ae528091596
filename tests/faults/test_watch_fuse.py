"""A file system of another machine: no events, errors, and looks that hang. A real one, by FUSE."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.testing import ConfigMapVolume, until
from sidecar.volume.watch import session
from sidecar.volume.watch import watch as watches
from sidecar.volume.watch.watch import Watch
from support import StartProcess, WaitFor
from support.watching import BOUND, consumer, replace, threads

pytest.importorskip("mfusepy")
pytestmark = pytest.mark.root

HERE = Path(__file__).parent


@dataclass
class Remote:
    """The directory of the server, the mount here, and the file that says what goes wrong."""

    source: Path
    mount: Path
    control: Path


@pytest.fixture
def remote(start_process: StartProcess, wait_for: WaitFor, tmp_path: Path) -> Iterator[Remote]:
    one = Remote(tmp_path / "source", tmp_path / "mount", tmp_path / "control")
    one.source.mkdir()
    one.mount.mkdir()
    replace(one.source / "config", "0")
    start_process(sys.executable, HERE / "fuse_volume.py", one.source, one.mount, one.control)
    wait_for(one.mount.is_mount)
    yield one
    one.control.unlink(missing_ok=True)
    subprocess.run(["umount", "--lazy", one.mount], check=False)


async def test_what_a_server_changes_is_found_by_polling(remote: Remote) -> None:
    """`auto` knows that this type of file system sends no events."""
    async with consumer(remote.mount / "config") as seen:
        await seen.converge("0")
        assert seen.watch.mode == "poll"
        assert seen.watch.fallback is None
        for number in range(1, 5):
            replace(remote.source / "config", str(number))
            await seen.converge(str(number))


@pytest.mark.parametrize("mode", ["inotify", "watchfiles"])
async def test_where_events_are_wanted_and_do_not_come_the_re_check_finds_it(
    remote: Remote, mode: str
) -> None:
    """As with every file system of which nobody knows that it sends none."""
    async with consumer(remote.mount / "config", watch=mode) as seen:
        await seen.converge("0")
        for number in range(1, 5):
            replace(remote.source / "config", str(number))
            await seen.converge(str(number))


async def test_sets_of_a_server_are_followed(remote: Remote) -> None:
    """Through the same links."""
    volume = ConfigMapVolume(remote.source / "set")
    volume.update({"a": "0"})
    async with consumer(remote.mount / "set") as seen:
        await seen.converge({"a": "0"})
        volume.update({"a": "1", "b": "1"})
        await seen.converge({"a": "1", "b": "1"})


async def test_errors_of_a_server_leave_the_last_good_content(remote: Remote) -> None:
    """And it is read again as soon as the server is well."""
    async with consumer(remote.mount / "config") as seen:
        await seen.converge("0")
        for fault in ("EIO", "ESTALE", "EACCES"):
            replace(remote.control, fault)
            await until(lambda: seen.watch.stale, timeout=BOUND)
            remote.control.unlink()
            await until(lambda: seen.watch.stale is None, timeout=BOUND)
    assert len(seen) == 1


async def test_a_server_that_hangs_is_a_failure_and_hurts_nobody_else(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another watch goes on, the loop goes on, leaving goes on; and when it answers, all is well."""
    monkeypatch.setattr(watches, "_SCAN_STALL", 0.3)
    monkeypatch.setattr(session, "_JOIN_TIMEOUT", 0.2)
    other = tmp_path / "other"
    replace(other, "0")
    async with consumer(other) as good:
        async with Watch(remote.mount / "config", recheck=0.05) as one:
            await one.changed(None, BOUND)
            replace(remote.control, "hang")
            await until(lambda: "has been hanging" in str(one.failure), timeout=BOUND)
            assert one.snapshot is not None
            replace(other, "1")
            await good.converge("1")
        remote.control.unlink()
        await until(lambda: len(threads()) == 1, timeout=BOUND)
