"""A file of the caller's that is published by its path."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.volume.volume import Volume

SIZES = pytest.mark.parametrize("size", [10, 2 << 20], ids=["small", "large"])


def rewriting(path: Path, size: int, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Rewrite a file in place, so many times, whenever it is about to be read once more."""
    path.write_bytes(b"0" * size)
    left = list(range(times))

    def sleep(_: float) -> None:
        if left:
            left.pop()
            path.write_bytes(str(len(left) % 10).encode() * size)

    monkeypatch.setattr(time, "sleep", sleep)


@SIZES
async def test_a_file_that_is_always_being_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Half of a content is no version, and neither is a mixture of two."""
    rewriting(tmp_path / "source", size, monkeypatch, 99)
    with pytest.raises(_errors.ReadError, match="changed while it was read"):
        await Volume(tmp_path / "shared").put("config", tmp_path / "source")
    assert not (tmp_path / "shared" / "config").exists()


@SIZES
async def test_a_file_that_changes_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Then it is whole."""
    rewriting(tmp_path / "source", size, monkeypatch, 1)
    await Volume(tmp_path / "shared").put("config", tmp_path / "source")
    assert (tmp_path / "shared" / "config").read_bytes() == (tmp_path / "source").read_bytes()
