"""A read lease tells whether anybody has a file open for writing."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.fs import leases

SAYS = """
import os, sys
sys.path.insert(0, sys.argv[2])
from sidecar.fs import leases
os.setuid(4321)
print(leases.is_open_for_writing(os.open(sys.argv[1], os.O_RDONLY)))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_bytes(b"x" * 4096)
    path.chmod(0o644)
    return path


def ask(path: Path) -> bool | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return leases.is_open_for_writing(fd)
    finally:
        os.close(fd)


def test_a_file_is_open_for_writing_until_its_writer_has_closed_it(file: Path) -> None:
    """fcntl(2): a read lease "can be placed only on a file descriptor that is opened read-only", while nobody writes."""
    assert ask(file) is False
    with file.open("ab"):
        assert ask(file) is True
    with file.open("rb"):
        assert ask(file) is False


def test_a_file_that_is_mapped_is_open_for_writing(file: Path) -> None:
    """mmap(2): the mapping keeps the file, whose descriptor is closed."""
    with file.open("r+b") as opened:
        mapped = mmap.mmap(opened.fileno(), 0)
    assert ask(file) is True
    mapped.close()
    assert ask(file) is False


@pytest.mark.root
def test_of_a_file_of_another_user_the_kernel_says_nothing(open_path: Path) -> None:
    """fcntl(2): EACCES without CAP_LEASE."""
    file = open_path / "config"
    file.write_bytes(b"x" * 4096)
    said = subprocess.run(
        [sys.executable, "-c", SAYS, file, Path(__file__).parents[2]],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "None"


def test_a_write_lease_is_for_a_file_that_nobody_else_has_open(file: Path) -> None:
    """fcntl(2): it "may be placed on a file only if there are no other open file descriptors for the file"."""
    with file.open("rb"), file.open("r+b") as own:
        assert not leases.take_write_lease(own.fileno())
    with file.open("r+b") as own:
        assert leases.take_write_lease(own.fileno())
        with pytest.raises(BlockingIOError):
            os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    assert file.read_bytes() == b"x" * 4096
