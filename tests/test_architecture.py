"""What docs/architecture.md and CONTRIBUTING.md say of the code is there: pictures, functions, paths."""

from __future__ import annotations

import importlib
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = ROOT / "sidecar"
PAGE = ROOT / "docs" / "architecture.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
SUPPORT = ROOT / "tests" / "support"
NAME = r"((?:\w+/)+\w+)\.(\w+(?:\.\w+)*)"
"""`http/server/serve.serve`: a module's path, and a name in it."""


def quoted(text: str) -> list[str]:
    """Return what stands in backticks, outside of code blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall("`([^`\n]+)`", prose)


def section(page: Path, title: str) -> str:
    """Return the part of a page under a heading."""
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found, title
    return found[1]


def is_name(quote: str) -> bool:
    """Whether `http/server/serve.serve` is a name in a module; it may be that of a method."""
    if not (found := re.fullmatch(NAME, quote)):
        return False
    try:
        one: object = importlib.import_module("sidecar." + found[1].replace("/", "."))
        for part in found[2].split("."):
            one = getattr(one, part)
    except (ImportError, AttributeError):
        return False
    return True


def is_there(path: str) -> bool:
    """Whether a path leads somewhere: from the root of the project, in `sidecar/`, or to a module without its suffix."""
    return any(
        (above / form).exists()
        for above in (ROOT, CODE)
        for form in (path.rstrip("/"), f"{path}.py")
    )


@pytest.fixture
def draw() -> Callable[[str], str]:
    """`draw(text)`: the page with its pictures as the code is now."""
    render = runpy.run_path(str(ROOT / "tools" / "architecture.py"))["page"]
    assert callable(render)
    return render  # type: ignore[no-any-return]


def test_the_pictures_are_what_the_code_imports(draw: Callable[[str], str]) -> None:
    """Red? Run `.venv/bin/python tools/architecture.py`, and commit docs/architecture.md."""
    assert draw(PAGE.read_text()) == PAGE.read_text()


def test_a_page_without_its_marks_is_not_overwritten(draw: Callable[[str], str]) -> None:
    """The text around the pictures survives the tool."""
    with pytest.raises(ValueError, match="has lost its marks"):
        draw("# Architecture\n")


def test_an_arrow_that_others_imply_is_left_out() -> None:
    """a → b → c says that a may reach c; a circle has no such picture."""
    reduced = runpy.run_path(str(ROOT / "tools" / "architecture.py"))["reduced"]
    assert reduced({"a": {"b", "c"}, "b": {"c"}}) == {"a": {"b"}, "b": {"c"}}
    with pytest.raises(ValueError, match="imports form a circle"):
        reduced({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize(
    "title", ["A content, from PUT to a subscriber", "A log line, from the file to a sink"]
)
def test_each_step_of_a_walk_names_code_that_exists(title: str) -> None:
    """A function that was renamed or moved is renamed in the walk as well."""
    steps = re.findall(r"^\d+\. (.*)$", section(PAGE, title), re.MULTILINE)
    assert len(steps) > 10
    for step in steps:
        names = [one for one in quoted(step) if re.fullmatch(NAME, one)]
        assert names, f"a step without a function: {step}"
        assert [one for one in names if not is_name(one)] == []


def test_each_of_ten_questions_is_answered_by_a_path_and_a_name() -> None:
    """What a newcomer asks first is found by the tree alone."""
    rows = section(PAGE, "Ten questions, and the path that answers each").splitlines()
    rows = [row for row in rows if row.startswith("| Where")]
    assert len(rows) == 10
    for row in rows:
        _, _, paths, names, _ = row.split("|")
        assert [one for one in quoted(paths) if not is_there(one)] == []
        assert quoted(names)
        assert [one for one in quoted(names) if not is_name(one)] == []


@pytest.mark.parametrize("page", [PAGE, CONTRIBUTING, *DECISIONS], ids=lambda page: page.name)
def test_each_path_that_a_page_names_is_there(page: Path) -> None:
    """A file that was moved is moved in the page as well."""
    named = {one for one in quoted(page.read_text()) if re.fullmatch(r"[\w-]+/[\w./-]*", one)}
    assert [one for one in sorted(named) if not (is_there(one) or is_name(one))] == []


def test_each_package_has_a_paragraph() -> None:
    """A new package is described where a reader looks for it, and one that has gone is not."""
    told = re.findall(
        r"^\*\*`([\w/]+)/`\*\*", section(PAGE, "What each package does"), re.MULTILINE
    )
    packages = {path.parent.relative_to(CODE).as_posix() for path in CODE.rglob("__init__.py")}
    assert sorted(told) == sorted(packages - {"."})


def test_twenty_changes_are_told_where_they_are_made() -> None:
    """Each row has a path to go to; that the path exists is checked above."""
    rows = [
        row
        for row in section(CONTRIBUTING, "To change X, go to Y").splitlines()
        if row.count("|") == 4
    ][2:]
    assert len(rows) >= 20
    assert [row for row in rows if not quoted(row.split("|")[2])] == []


def test_each_module_that_tests_share_is_described() -> None:
    """Who writes a test finds what is there already."""
    told = (SUPPORT / "README.md").read_text()
    modules = {path.stem for path in SUPPORT.glob("[!_]*.py")}
    assert modules
    assert [name for name in sorted(modules) if f"`{name}`" not in told] == []
