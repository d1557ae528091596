"""A publisher under strace, and a place where syncs cost nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.faultkit import Publisher


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in memory where there is one: what is killed here is a process, not the machine."""
    memory = "/dev/shm"
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("scratch")
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="sidecar-test-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def publisher(scratch: Path) -> Iterator[Publisher]:
    """A program that publishes, and whose syscalls can be made to fail."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    program = Publisher(scratch)
    yield program
    program.close()
