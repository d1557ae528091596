"""Events by watchfiles: reported from a thread of its own, and its failures, too."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sidecar.fs.notify import watchfiles_backend
from sidecar.fs.notify.base import WatchTarget
from sidecar.fs.notify.wakeup import WakeupPipe
from sidecar.fs.notify.watchfiles_backend import WatchfilesNotifier
from support.watching import replace, threads, wait


def test_watchfiles_tells_of_changes_and_rings_the_bell(
    wakeup: WakeupPipe, fd: int, tmp_path: Path
) -> None:
    """From a thread of its own, which ends with it."""
    notifier = WatchfilesNotifier(wakeup)
    notifier.arm([WatchTarget(fd, str(tmp_path), frozenset({b"config"}))])
    replace(tmp_path / "config", "x")
    wakeup.wait(10, None)
    assert notifier.drain().urgent
    notifier.close()
    assert not [one for one in threading.enumerate() if one.name == "sidecar-watchfiles"]
    assert not threads()


def test_watchfiles_begins_again_after_a_name_that_it_cannot_read(
    wakeup: WakeupPipe, fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own loop ends with an exception; everything has to be looked at."""
    monkeypatch.setattr(watchfiles_backend, "_MIN_LIFETIME", 0.0)
    notifier = WatchfilesNotifier(wakeup)
    notifier.arm([WatchTarget(fd, str(tmp_path), frozenset({b"config"}))])
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff", os.O_CREAT))
    wakeup.wait(10, None)
    assert notifier.drain().lost
    notifier._ready.clear()
    wait(notifier._ready.is_set)
    replace(tmp_path / "config", "x")
    wait(lambda: notifier.drain().urgent)
    notifier.close()


def test_watchfiles_that_cannot_work_says_so(wakeup: WakeupPipe, tmp_path: Path) -> None:
    """An exception in a thread must not be a silence."""
    notifier = WatchfilesNotifier(wakeup)
    with pytest.raises(OSError, match="No such file"):
        notifier.arm([WatchTarget(-1, str(tmp_path / "missing"), None)])
    notifier.close()
