"""The source of events is one that works on the file system and the platform."""

from __future__ import annotations

import errno
import sys

import pytest

from sidecar.fs import libc
from sidecar.fs.notify import select
from sidecar.fs.notify.wakeup import WakeupPipe


def test_a_source_that_does_not_exist_is_an_error_like_a_limit(
    wakeup: WakeupPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wants notifier falls back to polling, and does not die."""
    monkeypatch.setattr(libc, "_find", lambda _: None)
    with pytest.raises(OSError, match="not implemented") as caught:
        select.open_notifier("inotify", wakeup)
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize(
    ("filesystem", "mode"),
    [
        ("ext4", "inotify"),
        ("tmpfs", "inotify"),
        ("overlay", "inotify"),
        ("fuseblk", "inotify"),
        ("nfs4", "poll"),
        ("fuse", "poll"),
        ("fuse.sshfs", "poll"),
        ("9p", "poll"),
        ("virtiofs", "poll"),
        ("unknown", "inotify"),
    ],
)
def test_the_best_mode_depends_on_the_file_system(filesystem: str, mode: str) -> None:
    """Changes that another machine makes send no event here."""
    assert select.best_mode(filesystem) == mode


def test_elsewhere_than_on_linux_it_is_watchfiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no inotify."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert select.best_mode("apfs") == "watchfiles"
