"""The kernel's limits: a queue that overflows, no watch left, no instance left. Real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import Process, StartProcess, WaitFor
from support.watching import replace

HERE = Path(__file__).parent


def state(process: Process) -> dict[str, Any]:
    """The last line that the consumer has written."""
    lines = [one for one in process.output.splitlines() if one.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def said(process: Process, text: str) -> int:
    """How many log lines of the consumer hold a text."""
    return sum(text in one for one in process.output.splitlines() if one.startswith("LOG"))


@pytest.mark.parametrize("mode", ["inotify", "watchfiles"])
def test_an_overflow_of_the_queue_loses_no_content(
    start_process: StartProcess, wait_for: WaitFor, tmp_path: Path, mode: str
) -> None:
    """The consumer is stopped, the queue runs full, and the last change is the one whose event is lost."""
    path = tmp_path / "config"
    replace(path, "before")
    process = start_process(sys.executable, HERE / "consumer.py", path, 0.5, mode)
    wait_for(lambda: state(process).get("text") == "before")
    process.send(signal.SIGSTOP)
    wait_for(lambda: _is_stopped(process.pid))
    _fill_the_queue(tmp_path)
    replace(path, "after")
    process.send(signal.SIGCONT)
    wait_for(lambda: state(process)["text"] == "after")
    if mode == "inotify":
        wait_for(lambda: state(process)["errors"] >= 1)
        wait_for(lambda: said(process, "were lost") == 1)


def _is_stopped(pid: int) -> bool:
    """Whether every thread has stopped: until then one may still empty the queue."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(text.rpartition(")")[2].split()[0] == "T" for text in stats)


def _fill_the_queue(directory: Path) -> None:
    """Close files for writing more often than a queue holds; two in turn, for equal events in a row are one."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    names = [directory / "one", directory / "two"]
    for number in range(limit + 500):
        os.close(os.open(names[number % 2], os.O_WRONLY | os.O_CREAT))


LIMITED = """
import os, sys
from pathlib import Path
limit = Path("/proc/sys/user/" + sys.argv[1])
limit.write_text("0")
if not os.fork():
    while not Path(sys.argv[2]).exists():
        import time
        time.sleep(0.02)
    limit.write_text("1000")
    os._exit(0)
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


@pytest.mark.parametrize("limit", ["max_inotify_watches", "max_inotify_instances"])
@pytest.mark.parametrize("mode", ["auto", "watchfiles"])
def test_at_a_limit_of_the_kernel_it_polls_says_so_once_and_recovers(
    start_process: StartProcess, wait_for: WaitFor, tmp_path: Path, limit: str, mode: str
) -> None:
    """The limits are those of a user of the node: other containers can use them up."""
    if subprocess.run(["unshare", "-Ur", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    path, lifted = tmp_path / "config", tmp_path / "lifted"
    replace(path, "0")
    process = start_process(
        "unshare", "-Ur", sys.executable, "-c", LIMITED, limit, lifted,
        HERE / "consumer.py", path, 0.1, mode, 0.5,
    )  # fmt: skip
    wait_for(lambda: state(process).get("text") == "0")
    wait_for(lambda: state(process)["mode"] == "poll")
    assert limit.removeprefix("max_inotify_") in state(process)["fallback"] or mode != "auto"
    assert state(process)["stale"] is None
    replace(path, "1")
    wait_for(lambda: state(process)["text"] == "1")
    lifted.touch()
    wait_for(lambda: state(process)["mode"] != "poll", timeout=15.0)
    replace(path, "2")
    wait_for(lambda: state(process)["text"] == "2")
    assert said(process, "polled every") == 1
    assert said(process, "is watched by") == 1
    assert state(process)["errors"] == 1
