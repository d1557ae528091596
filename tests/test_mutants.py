"""The list of planted faults stays true: `make mutants` plants them, and takes minutes."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support import StartProcess

ROOT = Path(__file__).parent.parent


def program() -> ModuleType:
    """`tests/mutants/run.py`, which is no package."""
    spec = importlib.util.spec_from_file_location("mutants_run", ROOT / "tests/mutants/run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


RUN = program()
FAULTS = RUN.faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_planted_fault_still_has_its_place(fault: Any) -> None:
    """Its text stands once in its file, what replaces it is other code, and its tests are there."""
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    assert fault.new != fault.old
    if fault.file.endswith(".py"):
        compile((ROOT / fault.file).read_text().replace(fault.old, fault.new), fault.file, "exec")
    for test in fault.tests:
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text() if name else (ROOT / path).exists()


def test_the_names_of_planted_faults_differ() -> None:
    """A name on the command line means one fault."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_fault_that_nobody_notices_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is planted in a copy of its own; what survives is named, and is an error unless it is argued."""
    listed = tmp_path / "faults.toml"
    listed.write_text(
        """
        [[fault]]
        name = "missed"
        file = "Makefile"
        old = ".DEFAULT_GOAL := help"
        new = ".DEFAULT_GOAL := run"
        tests = ["tests/test_make.py"]
        promise = "help comes first"
        [[fault]]
        name = "noticed"
        file = "LICENSE"
        old = "Version 2.0, January 2004"
        new = "Version 3.0, January 2004"
        tests = ["tests/test_packaging.py"]
        promise = "the licence is Apache-2.0"
        """
    )
    every = RUN.faults(listed)
    monkeypatch.setattr(RUN, "faults", lambda: every)
    monkeypatch.setattr(
        RUN, "run_tests", lambda root, _, **__: ["red"] * ("3.0" in (root / "LICENSE").read_text())
    )
    assert RUN.main([]) == 1
    told = capsys.readouterr().out
    assert ": 1 caught, 0 accepted, 1 survived\n  missed: help comes first" in told
    assert RUN.main(["noticed"]) == 0
    every[0] = dataclasses.replace(every[0], accepted="nobody relies on it")
    assert RUN.main([]) == 0
    assert "1 caught, 1 accepted, 0 survived" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(
    tmp_path: Path, start_process: StartProcess, number: int
) -> None:
    """The tests that run are ended, and the copies are removed; the project was only read."""
    copies, waiting = tmp_path / "copies", tmp_path / "waiting"
    copies.mkdir()
    os.mkfifo(waiting)
    with ExitStack() as files:

        def reads() -> bool:
            with suppress(OSError):  # ENXIO: nobody has it open for reading
                files.callback(os.close, os.open(waiting, os.O_WRONLY | os.O_NONBLOCK))
                return True
            return False

        one = start_process(
            *(sys.executable, RUN.__file__, "--jobs", "1", FAULTS[0].name),
            env={"TMPDIR": str(copies), "PYTEST_ADDOPTS": f"@{waiting}"},
        )
        one.wait_until(reads, 50)  # pytest has begun, and waits for its arguments
        (directory,) = copies.iterdir()
        one.send(number)
        assert one.wait(50) == 1
    assert one.output.endswith("interrupted\n")
    assert list(copies.iterdir()) == []
    assert not [path for path in Path("/proc").glob("[0-9]*/cwd") if _leads_into(path, directory)]


def _leads_into(link: Path, directory: Path) -> bool:
    try:
        return os.readlink(link).startswith(str(directory))
    except OSError:
        return False  # it has ended
