"""Hints by watchfiles: told from a thread of their own, and its failures, too."""

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
    bell: WakeupPipe, fd: int, tmp_path: Path
) -> None:
    """From a thread of its own, which ends with it."""
    hints = WatchfilesNotifier(bell)
    hints.arm([WatchTarget(fd, str(tmp_path), frozenset({b"config"}))])
    replace(tmp_path / "config", "x")
    bell.wait(10, None)
    assert hints.drain().urgent
    hints.close()
    assert not [one for one in threading.enumerate() if one.name == "sidecar-watchfiles"]
    assert not threads()


def test_watchfiles_begins_again_after_a_name_that_it_cannot_read(
    bell: WakeupPipe, fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own loop ends with an exception; everything has to be looked at."""
    monkeypatch.setattr(watchfiles_backend, "_MIN_LIFETIME", 0.0)
    hints = WatchfilesNotifier(bell)
    hints.arm([WatchTarget(fd, str(tmp_path), frozenset({b"config"}))])
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff", os.O_CREAT))
    bell.wait(10, None)
    assert hints.drain().lost
    hints._ready.clear()
    wait(hints._ready.is_set)
    replace(tmp_path / "config", "x")
    wait(lambda: hints.drain().urgent)
    hints.close()


def test_watchfiles_that_cannot_work_says_so(bell: WakeupPipe, tmp_path: Path) -> None:
    """An exception in a thread must not be a silence."""
    hints = WatchfilesNotifier(bell)
    with pytest.raises(OSError, match="No such file"):
        hints.arm([WatchTarget(-1, str(tmp_path / "missing"), None)])
    hints.close()
