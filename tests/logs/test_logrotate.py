"""The real logrotate, in a matrix of its options, under a writer that never stops."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sidecar.logs.testing import LogFile
from support.logs_support import Follower

LOGROTATE = shutil.which("logrotate") or "/usr/sbin/logrotate"
pytestmark = pytest.mark.skipif(not os.path.exists(LOGROTATE), reason="logrotate is not installed")

BASICS = ["su root root", "rotate 50", "ifempty", "missingok", "createolddir 755"]
MATCHES_ARCHIVES = "**/app*"
MODES = ["create", "copytruncate", "nocreate", "renamecopy", "copy"]
COMPRESS = ["nocompress", "compress", "compress\n  delaycompress"]
NAMES = ["start 1", "dateext\n  dateformat -COUNT", "start 0", "extension .log"]
PLACES = ["noolddir", "olddir old"]


class Rotation:
    """A configuration of logrotate for one log."""

    def __init__(self, log: LogFile, directory: Path, *options: str) -> None:
        self.log, self.directory, self.options = log, directory, options
        self._count = itertools.count(1)
        directory.mkdir()

    def rotate(self) -> None:
        # Several rotations a second, each with a date of its own.
        lines = [line.replace("COUNT", f"%Y%m%d-{next(self._count)}") for line in self.options]
        config = self.directory / "config"
        config.write_text("\n  ".join([f"{self.log.path} {{", *BASICS, *lines]) + "\n}\n")
        config.chmod(0o644)
        command: list[str | Path] = [
            LOGROTATE,
            "--force",
            "--state",
            self.directory / "state",
            config,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if not {"copytruncate", "copy"} & set(lines):
            self.log.reopen()


MATRIX = list(itertools.product(MODES, COMPRESS, NAMES, PLACES))


@pytest.mark.parametrize(("mode", "compress", "name", "place"), MATRIX)
@pytest.mark.parametrize("pattern", ["app.log", MATCHES_ARCHIVES])
def test_no_line_is_lost_or_repeated(
    tmp_path: Path, mode: str, compress: str, name: str, place: str, pattern: str
) -> None:
    """Scenarios 1, 5, 6, 8, 13. Four rotations: with a scan before, none before, a restart before, and half a backlog before."""
    log = LogFile(tmp_path / "log" / "app.log")
    old = log.path.parent / "old"
    old.mkdir()
    rotation = Rotation(log, tmp_path / "rotate", mode, compress, name, place)
    archives = [str(old)] if place == "olddir old" else []
    follower = Follower(
        log.path.parent / pattern, state=tmp_path / "offsets.json", archives=archives
    )
    written: list[str] = []

    def write(count: int) -> None:
        lines = [f"{len(written) + n:06d} {'.' * 60}" for n in range(count)]
        written.extend(lines)
        log.write(*lines)

    write(10)
    follower.news()
    write(10)
    follower.news()
    rotation.rotate()
    write(10)
    rotation.rotate()
    write(10)
    follower.news()
    follower.stop()
    write(10)
    rotation.rotate()
    write(10)
    follower.start()
    write(10)
    rotation.rotate()
    write(1)
    follower.news()
    follower.later(60)
    assert sorted(set(written) - set(follower.seen)) == []
    if mode == "copy" and pattern == MATCHES_ARCHIVES:
        # Nothing tells a copy that stays from a log that began as another: it is delivered after a while, too.
        return
    assert len(follower.seen) == len(written)
    log.close()
