"""What most tests of a collection begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.logs.testing import LogFile


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogFile]:
    """A log that an application writes, in a directory of its own."""
    log = LogFile(tmp_path / "log" / "app.log")
    yield log
    log.close()
