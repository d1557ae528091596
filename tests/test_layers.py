"""The house of seven rooms: who may import whom, and what only one place may do."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "sidecar"

FLOORS = [
    {"_errors"},
    {"disk", "runtime"},
    {"volume", "logs"},
    {"http", "reload", "sync"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
BESIDE = {"", "testing", "__main__"}  # files beside the rooms, which may import all of them

# Who may import what from outside. A name that is not here is free.
ONLY = {
    "aiohttp": ("http/", "reload/", "logs/sinks", "cli/", "testing"),
    "click": ("cli/",),
    "prometheus_client": ("process/metrics",),
    "asyncinotify": ("fs/notify/inotify",),
    "watchfiles": ("fs/notify/watchfiles_backend",),
    "pythonjsonlogger": ("process/logging",),
    "jsonschema": ("volume/validation/schema",),
    "yaml": ("volume/validation/syntax", "logs/pipeline"),
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


def room(path: Path, root: Path) -> str:
    first = path.relative_to(root).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def place(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def trespasses(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Name each import of a file that leads up, sideways, or to what another file keeps for itself."""
    here = room(path, root)
    for module in imports(path, root):
        top = module.split(".")[0]
        if top == root.name:
            target = module_file(module, root)
            there = room(target, root) if target else "?"
            if here in BESIDE or there == here:
                continue
            if there not in FLOOR or FLOOR[there] >= FLOOR[here]:
                yield f"{place(path, root)} ({here}) imports {module} ({there or 'the package itself'})"
        elif top in ONLY and not place(path, root).startswith(ONLY[top]):
            yield f"{place(path, root)} imports {module}, which belongs in {ONLY[top]}"


def calls(path: Path) -> set[str]:
    """The `module.function` that a file mentions."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def cycle(directory: Path, root: Path = ROOT) -> list[str] | None:
    """Return a circle of imports among the files of one room."""
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


ROOMS = sorted(path for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists())
MODULES = files(ROOT)
GUIDES = [path for path in MODULES if path.name == "__init__.py" and path.parent != ROOT]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: place(path, ROOT))
def test_a_room_imports_only_from_the_floors_below(path: Path) -> None:
    """And never from its neighbours: volume and logs do not see each other, nor do disk and runtime."""
    assert list(trespasses(path)) == []


@pytest.mark.parametrize("directory", ROOMS, ids=lambda path: path.name)
def test_the_files_of_a_room_form_a_straight_line(directory: Path) -> None:
    """No two files of a room that need each other."""
    assert cycle(directory) is None


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: place(path.parent, ROOT))
def test_a_room_tells_where_everything_is(guide: Path) -> None:
    """Whoever opens the door finds each file by what it is for."""
    told = ast.get_docstring(ast.parse(guide.read_text())) or ""
    files_here = {path.stem for path in guide.parent.glob("[!_]*.py")}
    rooms_here = {f"{path.parent.name}/" for path in guide.parent.glob("*/__init__.py")}
    assert [name for name in files_here | rooms_here if f"`{name}`" not in told] == []


def test_every_room_has_a_floor() -> None:
    """A new room is placed on purpose."""
    assert {room(path, ROOT) for path in MODULES} - BESIDE <= set(FLOOR)


@pytest.mark.parametrize("owners", CALLS, ids=lambda owners: owners[0])
def test_what_one_place_does_no_other_does(owners: tuple[str, ...]) -> None:
    """One file renames and syncs, one file handles signals: one file to get right."""
    found = {place(path, ROOT): calls(path) & CALLS[owners] for path in MODULES}
    assert {name for name, used in found.items() if used} <= set(owners)
    assert found[owners[0]], "the rule guards nothing any more"


def test_the_disk_knows_no_event_loop() -> None:
    """Plain blocking functions, testable without a loop."""
    assert [place(path, ROOT) for path in files(ROOT / "disk") if "asyncio" in imports(path)] == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("fs/atomic.py", "from sidecar.process import executor"),
        ("fs/atomic.py", "from sidecar.volume.watch.watch import watch"),
        ("process/lifecycle.py", "import sidecar.fs.atomic"),
        ("volume/watch/watch.py", "def late():\n    from sidecar.http.server import serve"),
        ("volume/watch/watch.py", "from sidecar.logs import tail"),
        ("volume/watch/watch.py", "import sidecar"),
        ("volume/watch/watch.py", "from sidecar import testing"),
        ("volume/watch/watch.py", "from sidecar import Volume"),
        ("volume/watch/watch.py", "import aiohttp.web"),
        ("http/server/serve.py", "import click"),
        ("_errors.py", "from sidecar.fs import atomic"),
    ],
)
def test_a_planted_trespass_is_found(tmp_path: Path, file: str, text: str) -> None:
    """The guard itself is awake."""
    root = house(tmp_path)
    (root / file).write_text(text)
    assert len(list(trespasses(root / file, root))) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("volume/watch/watch.py", "from sidecar import _errors\nfrom sidecar.fs import atomic"),
        ("http/server/serve.py", "from sidecar.volume.watch.watch import watch\nimport aiohttp"),
        ("__init__.py", "from sidecar.cli import main"),
        ("testing.py", "from sidecar.http.server.serve import serve\nimport aiohttp"),
    ],
)
def test_the_way_down_is_free(tmp_path: Path, file: str, text: str) -> None:
    """What the design allows is not refused."""
    root = house(tmp_path)
    (root / file).write_text(text)
    assert list(trespasses(root / file, root)) == []


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    """Also one that is hidden in a function."""
    root = house(tmp_path)
    (root / "volume/watch/watch.py").write_text(
        "from sidecar.volume.content.snapshot import Snapshot"
    )
    (root / "volume/content/snapshot.py").write_text(
        "def f():\n    from sidecar.volume.watch import watch"
    )
    assert cycle(root / "volume", root) is not None


def house(directory: Path) -> Path:
    """Build an empty copy of the house."""
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
