"""What runs beside this process, by the names that people know."""

from __future__ import annotations

import os
from pathlib import Path

from sidecar.process import process_table
from support import StartProcess


def test_a_process_has_its_program_its_script_and_its_parent(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """Also one whose name looks like the fields behind it (proc_pid_stat(5): comm is in parentheses)."""
    script = tmp_path / "a) S 1 (b"
    script.write_text("#!/bin/bash\necho ready; sleep 1000; :\n")
    script.chmod(0o755)
    program = start_process(script, until="ready")
    (found,) = [one for one in process_table.others() if one.pid == program.pid]
    assert found == (program.pid, os.getpid(), ("bash", "a) S 1 (b"), "a) S 1 (b")


def test_this_process_and_its_parent_are_not_among_them() -> None:
    """Who waits for the end of a process must not wait for itself, and nobody is to get a signal of its own."""
    assert {os.getpid(), os.getppid()} & {one.pid for one in process_table.others()} == set()
