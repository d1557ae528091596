"""What the tests of pages share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def mount_points() -> Iterator[None]:
    """The directories that pages name: made for the test, and gone after it."""
    made = [path for path in ("/shared", "/tmp/gin") if not os.path.isdir(path)]
    for path in made:
        os.mkdir(path)
    yield
    for path in made:
        os.rmdir(path)
