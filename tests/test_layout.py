"""Tests lie where the code lies: the test of `sidecar/http/server/limits.py` is `tests/http/server/test_limits.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "sidecar"
#: Tests of the whole: of pages, of processes on one directory, of faults of the storage, of other programs, Pods and types.
OF_THE_WHOLE = {"docs", "e2e", "faults", "peers", "pod", "typing"}


def files_of_packages(tests: Path) -> Iterator[Path]:
    """Yield the test files that belong to a package."""
    for file in sorted(tests.rglob("test_*.py")):
        path = file.relative_to(tests)
        if len(path.parts) > 1 and path.parts[0] not in OF_THE_WHOLE:
            yield path


def misplaced(tests: Path, package: Path) -> list[str]:
    """Return the test files in a directory that the package does not have, or that are named after a module elsewhere in it."""
    found = []
    for path in files_of_packages(tests):
        module = path.stem.removeprefix("test_")
        top = package / path.parts[0]
        homes = {one.parent.relative_to(package) for one in top.rglob(f"{module}.py")}
        if not (package / path.parent).is_dir() or (homes and path.parent not in homes):
            found.append(str(path))
    return found


def test_each_test_lies_where_its_module_lies() -> None:
    """Whoever changes a module finds its tests by its path."""
    assert misplaced(TESTS, PACKAGE) == []


def test_each_package_has_tests() -> None:
    """In a directory of the same path."""
    packages = {file.parent.relative_to(PACKAGE) for file in PACKAGE.rglob("__init__.py")}
    assert {one for one in packages if not (TESTS / one).is_dir()} == set()


@pytest.mark.parametrize("path", ["http/test_limits.py", "fs/notify/inotify/test_drain.py"])
def test_a_misplaced_test_is_found(tmp_path: Path, path: str) -> None:
    """The check itself."""
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    assert misplaced(tmp_path, PACKAGE) == [path]
