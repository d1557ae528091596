"""What the documentation shows is run as it stands: programs, transcripts, commands, docstrings.

Paths and ports are those of the text, so each block runs in namespaces of its own (unshare(1)):
an own network, and empty directories in the places that the text names.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import sidecar
from sidecar import logs, mirror, reload, sync, testing

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
BIN = Path(sys.executable).parent

_SETUP = """
set -e
ip link set lo up
mount --make-rprivate /
mount -t tmpfs none /shared
mkdir -p /tmp/gin
mount -t tmpfs none /tmp/gin
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def modules() -> Iterator[str]:
    yield "sidecar"
    for found in pkgutil.walk_packages(sidecar.__path__, "sidecar."):
        if not found.name.endswith("__main__"):
            yield found.name


@pytest.fixture
def shared_directory() -> Iterator[None]:
    """The mount point /shared: made for the test, and gone after it."""
    made = not os.path.isdir("/shared")
    if made:
        os.mkdir("/shared")
    yield
    if made:
        os.rmdir("/shared")


@pytest.fixture
def in_namespace(shared_directory: None, tmp_path: Path):
    """`in_namespace(script)`: run a shell script as on a machine of its own, and return what it printed."""

    def run(script: str, timeout: float = 50.0) -> str:
        path = f"{BIN}:{os.environ['PATH']}"
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                _SETUP + script,
            ],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings_run(name: str) -> None:
    """What a docstring shows is what happens."""
    module = importlib.import_module(name)

    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)

    assert failed == 0


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (module, name)
        for module in (sidecar, logs, mirror, reload, sync, testing)
        for name in module.__all__
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_an_example_of_a_public_name_needs_no_more_than_public_names(
    module: ModuleType, name: str
) -> None:
    """Whoever pastes it has imported the name, and perhaps its neighbours; all else the example imports itself."""
    public = {name: getattr(module, name) for name in module.__all__}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(public[name], name, module=False, globs=public):
        runner.run(test)

    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *PAGES[1:], *EXAMPLES],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A relative link names a file of this repository."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())

    missing = [target for target in targets if not (page.parent / target).exists()]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_compile(page: Path) -> None:
    """No block of Python has a slip of the pen; those of the README also run, below."""
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


@pytest.mark.root
def test_readme_producer_and_consumers_run_as_written(in_namespace, tmp_path: Path) -> None:
    """The programs of the README work together on /shared and port 8080, and end well on SIGTERM."""
    programs = blocks(README, "python")
    for number, program in enumerate(programs):
        (tmp_path / f"{number}.py").write_text(program)

    printed = in_namespace(f"""
        {sys.executable} 0.py & producer=$!
        {sys.executable} 1.py & consumer=$!
        {sys.executable} 2.py > loop.txt & loop=$!
        until curl -sf localhost:8080/ > greeting.json; do sleep 0.1; done
        cat greeting.json; echo
        curl -sf localhost:8080/site/index.html; echo
        curl -sf localhost:8080/readyz > ready.json
        until grep -q . loop.txt; do sleep 0.1; done
        for program in $producer $consumer $loop; do kill -TERM $program; wait $program; done
        echo all ended with 0
    """)

    assert re.search(r'\{"version": "[0-9a-f]{32}", "at": "20..-', printed)
    assert "<h1>Written at " in printed
    assert "all ended with 0" in printed
    assert re.match(r"[0-9a-f]{32} 20..-", (tmp_path / "loop.txt").read_text())


@pytest.mark.root
def test_programs_of_the_page_on_python_run_as_written(in_namespace, tmp_path: Path) -> None:
    """Producer, consumer, a WSGI application and a script together, then a receiver of log lines, and a test."""
    for number, program in enumerate(blocks(ROOT / "docs" / "python.md", "python")):
        (tmp_path / f"{number}.py").write_text(program)

    printed = in_namespace(f"""
        echo '{{"level": "error"}}' > /shared/app.log
        {sys.executable} 0.py > producer.txt & producer=$!
        {sys.executable} 1.py > consumer.txt & consumer=$!
        {sys.executable} 2.py & wsgi=$!
        {sys.executable} 4.py > counter.txt & counter=$!
        for name in producer consumer counter; do until grep -q . $name.txt; do sleep 0.1; done; done
        for program in $producer $consumer $counter; do kill -TERM $program; wait $program; done
        {sys.executable} 3.py > script.txt
        until curl -sf localhost:8000/ > settings.json; do sleep 0.1; done
        grep -q 127.0.0.1 /shared/last_visit.txt
        kill -TERM $wsgi
        {sys.executable} 5.py
        echo all ended with 0
    """)

    assert "all ended with 0" in printed
    version = (tmp_path / "producer.txt").read_text().split()[0]
    assert (tmp_path / "consumer.txt").read_text().startswith(f"{version} Settings(at='20")
    assert (tmp_path / "counter.txt").read_text() == "1\n"
    assert '"at": "20' in (tmp_path / "settings.json").read_text()
    assert (tmp_path / "script.txt").read_text().endswith(" True\n")


def transcript(block: str) -> list[tuple[str, str]]:
    """Split a console block into commands and what they print."""
    steps = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (step.partition("\n") for step in steps)]


@pytest.mark.root
def test_readme_transcript_is_what_the_demo_answers(in_namespace) -> None:
    """The article's exchange, command by command, against `sidecar demo`, which `make run` starts."""
    steps = transcript(blocks(README, "console")[0])
    checks = "\n".join(
        f"""answer=$({command.replace("curl ", "curl -s ")})
        [ "$answer" = {shlex.quote(output.strip())} ] || {{ echo "{command}: $answer"; exit 3; }}
        sleep 0.2"""
        for command, output in steps
    )

    printed = in_namespace(f"""
        sidecar demo > demo.txt 2>&1 & demo=$!
        until curl -sf localhost:8081/readyz > /dev/null && curl -sf localhost:8080/readyz > /dev/null
        do sleep 0.1; kill -0 $demo || {{ cat demo.txt; exit 4; }}; done
        {checks}
        kill -TERM $demo; wait $demo
        cat demo.txt
    """)

    assert len(steps) == 5
    for command, _ in steps:
        assert command in printed


@pytest.mark.root
def test_readme_commands_run(in_namespace, tmp_path: Path) -> None:
    """Each command of the README does what its line says, in the order of the page."""
    commands = [c for block in blocks(README, "console")[1:] for c, _ in transcript(block)]
    (tmp_path / "settings.json").write_text('{"debug": true}')

    in_namespace("\n".join(commands) + "\ngrep -q debug /tmp/gin/config")

    assert len(commands) >= 3


def test_every_problem_is_documented_with_its_status() -> None:
    """The table of docs/http.md and the table in the code say the same."""
    from sidecar.http.problems import PROBLEM_TYPES

    rows = re.findall(
        r"^\| (`[^|]+`) \| (\d{3}) \|", (ROOT / "docs/http.md").read_text(), re.MULTILINE
    )
    documented = {
        name: int(status) for cell, status in rows for name in re.findall("`([^`]+)`", cell)
    }

    assert documented == {name: kind.status for name, kind in PROBLEM_TYPES.items()}


@pytest.mark.parametrize("page", ["docs/faults.md", "docs/security.md", "docs/volume.md"])
def test_each_test_that_a_page_names_is_there(page: str) -> None:
    """A promise whose test has gone is one that nobody keeps any more."""
    named = set(
        re.findall(r"`(?:tests/)?([\w/]+/test_\w+\.py|test_\w+\.py)`", (ROOT / page).read_text())
    )
    assert named
    assert [one for one in sorted(named) if not (ROOT / "tests" / one).is_file()] == []


def spoken() -> Iterator[str]:
    """Yield each text of our code and of the chart's templates, with `…` in the place of what is put in."""
    for path in (ROOT / "sidecar").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[-+#0]*\d*(?:\.\d+)?[dgfrsx]", "…", node.value)
    for path in (ROOT / "charts/sidecar/templates").rglob("*.tpl"):
        for said in re.findall(r'fail \(?(?:printf )?"((?:[^"\\]|\\.)*)"', path.read_text()):
            yield re.sub(r"%[dqsv]", "…", said)


def test_each_message_of_troubleshooting_is_one_of_ours() -> None:
    """Whoever looks for what the log says finds it: a message that has changed changes the page."""
    messages = [line for block in blocks(TROUBLESHOOTING, "text") for line in block.splitlines()]
    texts = "\n".join(set(spoken()))

    assert len(messages) > 40
    assert [one for one in messages if one not in texts] == []


def test_each_symptom_has_a_cause_and_a_remedy() -> None:
    """A section without a way out helps nobody."""
    sections = re.split(r"^#{2,3} ", TROUBLESHOOTING.read_text(), flags=re.MULTILINE)
    symptoms = [one for one in sections if "**Why.**" in one or "**What to do.**" in one]

    assert len(symptoms) == len(re.findall(r"^### ", TROUBLESHOOTING.read_text(), re.MULTILINE))
    assert [
        one for one in symptoms if one.count("**Why.**") != 1 or one.count("**What to do.**") != 1
    ] == []
