"""What a follower of log files has to survive: 46 scenarios, each with the tests that play it.

The list is what eight established collectors are tested for, and what their users have reported.
Each scenario counts lines by number: none lost, none twice; twice only after SIGKILL or a power cut.
A test says in its docstring which scenario it plays; `python tests/logs/test_scenarios.py` prints the map.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

SCENARIOS = {
    # Rotation by rename
    1: "rotated and created: lines to the old file and to the new one",
    2: "several renames in a row on one path",
    3: "many files that rotate quickly",
    4: "lines to the renamed file, soon and long after",
    5: "rotated while stopped: the rest of the old file and all of the new one",
    # Truncation
    6: "copytruncate, the copy matched by the pattern too",
    7: "copytruncate under a writer that never reopens",
    8: "copytruncate across a restart",
    9: "truncated, and grown past the old position before the next scan",
    10: "truncated while the sink is blocked",
    11: "a writer without O_APPEND leaves a hole of NUL bytes",
    12: "copytruncate of files with an identical first kibibyte",
    # Compression
    13: "renamed or copied, then compressed, at once or one rotation later; archives matched too",
    14: "an archive of several members",
    15: "a damaged archive",
    # Identity
    16: "an inode is used again for another content, and the checkpoint knows it",
    17: "deleted and made again under the same path",
    18: "deleted while open, with unread bytes",
    19: "replaced by rename, with the same content and with another",
    20: "moved away, truncated, moved back",
    21: "two files with the same first line; empty files",
    # Discovery
    22: "links: followed, pointed elsewhere; targets rotated, truncated, removed",
    23: "files and trees that come and go",
    24: "no permission to read, then permission",
    25: "excluded files, old files, old files that become active again",
    # Lines
    26: "a restart at the end of a line, and in the middle of one",
    27: "a line written in pieces, a line ending cut in two",
    28: "a last line without a newline",
    29: "empty lines, CRLF, byte order marks, UTF-16, bytes that are no UTF-8",
    30: "a line as long as the limit, longer by one, longer by far",
    31: "lines that belong together: at rotation, at a restart, at the timeout",
    # Sinks and life
    32: "a sink that is down, refuses, hangs, fails, is busy, slow, or refuses one record",
    33: "a sink that is down while the log rotates three times",
    34: "SIGKILL at random moments",
    35: "SIGTERM with a backlog",
    36: "SIGTERM, then SIGKILL soon after",
    37: "another configuration under load; other labels do not read anything again",
    38: "a batch that was not acknowledged comes again after a restart, and nothing else does",
    # Limits and damage
    39: "a full disk; a checkpoint that is cut off, empty, zeroed, garbage",
    40: "more files than descriptors",
    41: "inotify: overflow, no watches left, none at all",
    42: "thousands of idle files beside a busy one: cost, time, fairness",
    43: "a file of more than 2 GiB",
    44: "JSON inside JSON survives its escaping",
    45: "what waits for a sink survives a restart",
    46: "an orderly end leaves no descriptor and no task, also while a write is blocked",
}


@functools.cache
def played() -> dict[int, list[str]]:
    """The tests of each scenario, by their docstrings."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in [*TESTS.glob("logs/**/test_*.py"), TESTS / "cli" / "commands" / "test_collect.py"]:
        for name, said in _tests(ast.parse(path.read_text())):
            for numbers in re.findall(r"[Ss]cenarios? (\d+(?:(?:, | and )\d+)*)", said):
                for number in re.findall(r"\d+", numbers):
                    found[int(number)].append(f"{path.relative_to(TESTS)}::{name}")
    return found


def _tests(module: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(module):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test_"):
            yield node.name, ast.get_docstring(node) or ""


@pytest.mark.parametrize("number", SCENARIOS)
def test_each_scenario_is_played(number: int) -> None:
    """A scenario that lost its last test would not be missed otherwise."""
    assert played()[number], f"no test says that it plays scenario {number}: {SCENARIOS[number]}"


def test_no_test_plays_a_scenario_that_is_not_in_the_list() -> None:
    """A mistyped number would hide a gap."""
    assert set(played()) <= set(SCENARIOS)


if __name__ == "__main__":
    for number, tests in sorted(played().items()):
        print(f"{number:2} {SCENARIOS[number]}", *tests, sep="\n       ")
