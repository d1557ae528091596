"""The mechanism that runs the blocks of a page: what it compares, and that it fails where a page is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import pages


def page(directory: Path, text: str) -> Path:
    """A page as one of the documentation, in a directory of its own."""
    path = directory / "page.md"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["ok"], "ok\n", True),
        (["ok"], "ok", True),
        (["ok"], "ok\nand more\n", False),
        (["at … end"], "at 12:00 end\n", True),
        (["first", "…", "last"], "first\n1\n2\nlast\n", True),
        (["first", "…", "last"], "first\nlast\n", True),
        (["first", "…", "last"], "first\n1\n", False),
        (["a.b"], "aXb\n", False),
    ],
)
def test_printed_lines_are_compared_letter_by_letter_but_for_dots(
    expected: list[str], printed: str, same: bool
) -> None:
    """`…` is the only sign that stands for something else."""
    assert pages.matches(expected, printed) is same


def test_a_command_goes_on_after_a_backslash_and_to_the_end_of_a_here_document() -> None:
    """What a reader pastes as one is one."""
    text = "$ one \\\n  two\nprinted\n$ cat <<'EOF'\n$ no command\nEOF\nalso printed\n"

    assert pages.read_commands(text) == [
        ("one \\\n  two", ["printed"]),
        ("cat <<'EOF'\n$ no command\nEOF", ["also printed"]),
    ]


@pytest.mark.root
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```console\n$ echo one\ntwo\n```\n", "the page says\ntwo"),
        ("```console\n$ false\n```\n", "exit 1"),
        ("```python\nif:\n```\n", "invalid syntax"),
        ("```sh\nsidecar write --pth x\n```\n", "No such option '--pth'"),
        (
            "```yaml\ncontainers: [{name: a, image: sidecar, args: [raed]}]\n```\n",
            "no sidecar raed",
        ),
        ("```yaml\ncontainers: [{name: a, imag: sidecar}]\n```\n", "imag"),
        ("```yaml\nfiles: a\nsinks: [stdot]\n```\n", "stdot"),
        ("```console cluster\n$ kubectl get pod/a\n```\n", "nothing on the page makes pod/a"),
        ("```cobol\nx\n```\n", "nobody checks"),
    ],
)
def test_a_page_that_is_wrong_fails(
    text: str, complaint: str, tmp_path: Path, mount_points: None
) -> None:
    """Each kind of block has a check that notices."""
    with pytest.raises((AssertionError, pytest.fail.Exception), match=complaint):
        pages.run_page(page(tmp_path, text), tmp_path)


@pytest.mark.root
def test_files_are_saved_and_a_change_is_waited_for(tmp_path: Path, mount_points: None) -> None:
    """In order, in one shell: its background processes and variables stay."""
    text = """
```python title="lib/late.py"
import sys
print(sys.argv[1], flush=True)
```
```console
$ name=file
$ python lib/late.py $name > seen.txt &
$ cat seen.txt
file
```
"""
    assert pages.run_page(page(tmp_path, text), tmp_path) == 3
