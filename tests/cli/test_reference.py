"""docs/cli.md holds every option as it is now."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from sidecar.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "cli.md"


@pytest.fixture
def tool() -> dict[str, object]:
    return runpy.run_path(str(ROOT / "tools" / "cli_reference.py"))


def test_the_page_is_what_the_commands_say(tool: dict[str, object]) -> None:
    """Red? Run `python tools/cli_reference.py`, and commit docs/cli.md."""
    render = tool["page"]
    assert callable(render)
    assert render(PAGE.read_text()) == PAGE.read_text()


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_page_has_a_section_for_each_command(name: str) -> None:
    """With its usage, as a block."""
    assert f"\n## sidecar {name}\n\n    sidecar {name} [OPTIONS]" in PAGE.read_text()


def test_a_page_without_its_mark_is_not_overwritten(tool: dict[str, object]) -> None:
    """What people wrote above the mark must survive the tool."""
    render = tool["page"]
    assert callable(render)
    with pytest.raises(ValueError, match="has lost its mark"):
        render("# The command line\n")
