"""The architecture: who may import whom, and what only one module may do. The layers are contracts in pyproject.toml."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "sidecar"

# Who may import what from outside. A name that is not here is free.
ONLY = {
    "aiohttp": ("http/", "mirror/", "logs/sinks", "cli/", "testing"),
    "click": ("cli/",),
    "prometheus_client": ("process/metrics",),
    "aiomqtt": ("mirror/sources/mqtt",),
    "nats": ("mirror/sources/nats",),
    "obstore": ("mirror/sources/objects",),
    "cryptography": ("volume/validation/signatures",),
    "ctypes": ("fs/", "process/", "http/server/sockets", "volume/validation/command_process"),
    "watchfiles": ("fs/notify/watchfiles_backend",),
    "pythonjsonlogger": ("process/logging",),
    "jsonschema": ("volume/validation/schema",),
    "yaml": ("volume/validation/syntax", "logs/pipeline", "logs/config_file"),
}
# What only one place may call, whoever is in need of it.
CALLS = {
    ("fs/atomic",): {"os.rename", "os.replace", "os.fsync", "os.fdatasync", "os.sync"},
    # The demonstration is the parent of two programs, and has no event loop;
    # a command hears a signal before it has imported anything else.
    ("process/lifecycle", "process/signals", "cli/commands/demo", "cli/main"): {
        "signal.signal",
        "os._exit",
        "asyncio.run",
    },
}


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """The modules that a file imports, anywhere in it; those of ours without the leading `sidecar.`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                if alias.name == "__version__":
                    continue  # a constant: it brings nothing along
                inner = f"{module}.{alias.name}"
                found.add(inner if module_file(inner, root) else module)
    return found


def module_file(module: str, root: Path) -> Path | None:
    """Return the file of a module of ours."""
    base = root.parent.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if module.split(".", maxsplit=1)[0] == root.name and candidate.is_file():
            return candidate
    return None


def place(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def misplaced_imports(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Name each library that a file imports and that belongs to other modules."""
    for module in imports(path, root):
        top = module.split(".")[0]
        if top in ONLY and not place(path, root).startswith(ONLY[top]):
            yield f"{place(path, root)} imports {module}, which belongs in {ONLY[top]}"


def calls(path: Path) -> set[str]:
    """The `module.function` that a file mentions."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def cycle(directory: Path, root: Path = ROOT) -> list[str] | None:
    """Return a circle of imports among the modules of one package."""
    graph = {
        place(path, root): {
            place(target, root)
            for module in imports(path, root)
            if (target := module_file(module, root)) and directory in target.parents
        }
        for path in files(directory)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


MODULES = files(ROOT)
PACKAGES = sorted({path.parent for path in MODULES} - {ROOT})
GUIDES = [path / "__init__.py" for path in PACKAGES]


def test_the_contracts_of_the_layers_hold() -> None:
    """Those of `[tool.importlinter]` in pyproject.toml: no package imports from one above it or beside it."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: place(path, ROOT))
def test_a_library_is_imported_where_it_belongs(path: Path) -> None:
    """One module hides each: it can be replaced there."""
    assert list(misplaced_imports(path)) == []


@pytest.mark.parametrize("directory", PACKAGES, ids=lambda path: place(path, ROOT))
def test_the_modules_of_a_package_form_no_circle(directory: Path) -> None:
    """No two modules of a package that need each other."""
    assert cycle(directory) is None


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: place(path.parent, ROOT))
def test_a_package_says_what_its_modules_are_for(guide: Path) -> None:
    """A reader finds each module by its purpose."""
    told = ast.get_docstring(ast.parse(guide.read_text())) or ""
    files_here = {path.stem for path in guide.parent.glob("[!_]*.py")}
    packages_here = {f"{path.parent.name}/" for path in guide.parent.glob("*/__init__.py")}
    assert [name for name in files_here | packages_here if f"`{name}`" not in told] == []


@pytest.mark.parametrize("owners", CALLS, ids=lambda owners: owners[0])
def test_what_one_module_does_no_other_does(owners: tuple[str, ...]) -> None:
    """One module renames and syncs, one handles signals."""
    found = {place(path, ROOT): calls(path) & CALLS[owners] for path in MODULES}
    assert {name for name, used in found.items() if used} <= set(owners)
    assert found[owners[0]], "the rule guards nothing any more"


def test_the_file_system_knows_no_event_loop() -> None:
    """Plain blocking functions, testable without a loop."""
    assert [place(path, ROOT) for path in files(ROOT / "fs") if "asyncio" in imports(path)] == []


#: Class names of two modules: `sidecar.sync` has those of the asynchronous classes that it stands for.
NAMESAKES = {
    name: {"sync/" + module, other}
    for name, module, other in (
        ("Upload", "publishing", "volume/publish/upload"),
        ("Volume", "publishing", "volume/volume"),
        ("Watch", "watching", "volume/watch/watch"),
        ("WatchGroup", "watching", "volume/watch/group"),
    )
}


def test_no_two_classes_have_one_name() -> None:
    """Whoever searches for a class finds one."""
    owners: dict[str, set[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, set()).add(place(path, ROOT))
    assert {name: found for name, found in owners.items() if len(found) > 1} == NAMESAKES


def test_a_planted_import_of_a_library_is_found(tmp_path: Path) -> None:
    """The check itself works, and what is allowed is not refused."""
    root = empty_package(tmp_path)
    (root / "volume/watch/watch.py").write_text("def late():\n    import aiohttp.web")
    (root / "http/server/serve.py").write_text("from aiohttp import web")
    assert len(list(misplaced_imports(root / "volume/watch/watch.py", root))) == 1
    assert list(misplaced_imports(root / "http/server/serve.py", root)) == []


def test_a_planted_import_of_a_higher_layer_is_found(tmp_path: Path) -> None:
    """The contracts name this package's layers, and not some that it had once."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT.parent / "pyproject.toml", project)
    shutil.copytree(ROOT, project / "sidecar", ignore=shutil.ignore_patterns("__pycache__"))
    with (project / "sidecar/fs/atomic.py").open("a") as file:
        file.write("\nfrom sidecar.volume.content import snapshot\n")
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=project, env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "sidecar.fs.atomic -> sidecar.volume.content.snapshot" in done.stdout


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    """Also one that is hidden in a function."""
    root = empty_package(tmp_path)
    (root / "volume/watch/watch.py").write_text(
        "from sidecar.volume.content.snapshot import Snapshot"
    )
    (root / "volume/content/snapshot.py").write_text(
        "def f():\n    from sidecar.volume.watch import watch"
    )
    assert cycle(root / "volume", root) is not None


def empty_package(directory: Path) -> Path:
    """Build some of the modules, empty."""
    root = directory / "sidecar"
    for name in (
        "__init__", "_errors", "testing", "fs/atomic", "process/lifecycle", "process/executor",
        "volume/watch/watch", "volume/content/snapshot", "logs/tail", "http/server/serve", "cli/main",
    ):  # fmt: skip
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.touch()
    return root
