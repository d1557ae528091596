"""What an installation brings: modules that import, types, public names, and no more weight than needed."""

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import files, packages_distributions
from pathlib import Path

import pytest

import sidecar
from sidecar import logs, mirror, reload, sync, testing
from support import StartProcess, WaitFor

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = sorted((ROOT / "sidecar").rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python(*arguments: str) -> str:
    """Run this interpreter with warnings as errors, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ALONE = """
import gc, importlib, os, sys
for name in sys.argv[2].split():
    importlib.import_module(name)
assert "sidecar" not in sys.modules
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[1]
gc.freeze()
for name in sys.argv[3:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(name, "->", type(error).__name__, error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_module_imports_alone_and_without_a_warning(tmp_path: Path) -> None:
    """No hidden order of imports: each one in a process that has imported nothing of ours yet.

    What is not ours is there already, and each module of ours is compiled once: a warning of that is an error, and not kept.
    """
    names = [module_name(path) for path in FILES if path.stem != "__main__"]
    others = "aiohttp.web asyncio click orjson prometheus_client uvloop watchfiles"
    assert python("-c", ALONE, str(tmp_path), others, *names) == ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    python("-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory))
    (path,) = directory.iterdir()
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_files_of_the_page(wheel: zipfile.ZipFile) -> None:
    """They are no Python, and are served from the package."""
    files = [path for path in (ROOT / "sidecar/http/apps/page/static").iterdir() if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= set(wheel.namelist())
    assert any(path.suffix == ".html" for path in files)


def test_the_wheel_holds_the_package_its_types_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """`py.typed` is what lets a user's type checker see ours (PEP 561)."""
    names = {name for name in wheel.namelist() if not re.search(r"\.(dist-info|data)/", name)}
    ours = {path.relative_to(ROOT).as_posix() for path in FILES}
    assert "sidecar/py.typed" in names
    assert ours <= names
    assert {name.split("/")[0] for name in names} == {"sidecar"}
    assert [name for name in names if "test" in name.removesuffix("testing.py")] == []


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("bash", "bash-completion/completions/sidecar"),  # bash-completion's README, "FAQ"
        ("zsh", "zsh/site-functions/_sidecar"),  # zsh's INSTALL, "--enable-site-fndir"
        ("fish", "fish/vendor_completions.d/sidecar.fish"),  # fish: "Where to put completions"
    ],
)
def test_the_wheel_has_completion_where_the_shell_looks(
    wheel: zipfile.ZipFile, shell: str, path: str
) -> None:
    """It is what the command itself prints for `eval`."""
    program = Path(sys.executable).parent / "sidecar"
    printed = subprocess.run(
        [program],
        env={**os.environ, "_SIDECAR_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (name,) = (name for name in wheel.namelist() if name.endswith(f".data/data/share/{path}"))

    assert wheel.read(name).decode() == printed


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    """Version of the package, licence with its text, the command."""
    info = next(name for name in wheel.namelist() if name.endswith("METADATA")).split("/")[0]
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {sidecar.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
    assert b"sidecar = sidecar.cli.main:main" in wheel.read(f"{info}/entry_points.txt")


# Types that stand in the public signatures of a dependency, and so come with it.
COME_WITH = {
    "multidict": "aiohttp",
    "opentelemetry-api": "opentelemetry-sdk",
    "paho-mqtt": "aiomqtt",
    "yarl": "aiohttp",
    "referencing": "jsonschema",
}


def declared(requirements: list[str]) -> set[str]:
    names = (re.split(r"[^A-Za-z0-9._-]", one)[0] for one in requirements)
    return {name.lower().replace("_", "-") for name in names}


@cache
def files_of(distribution: str) -> frozenset[str]:
    return frozenset(str(path) for path in files(distribution) or ())


def has(distribution: str, module: str) -> bool:
    """Whether a distribution has this module: several may share a namespace, as those of OpenTelemetry."""
    path = module.replace(".", "/")
    return not files_of(distribution).isdisjoint({f"{path}.py", f"{path}/__init__.py"})


def imported(*, at_start_only: bool) -> set[str]:
    """The distributions that the package imports: all, or those that importing a module brings along."""
    known = packages_distributions()
    found: set[str] = set()
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in tree.body if at_start_only else ast.walk(tree):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for module in modules:
                names = set(known.get(module.split(".")[0], ())) - {PROJECT["name"]}
                found |= names if len(names) == 1 else {one for one in names if has(one, module)}
    normal = {name.lower().replace("_", "-") for name in found}
    return {COME_WITH.get(name, name) for name in normal}


def test_every_dependency_is_declared_and_used() -> None:
    """Each one is something to install, to trust and to update: none without a reason."""
    optional = PROJECT["optional-dependencies"]
    users = optional.keys() - {"docs", "test"}
    extras = declared([one for name in users for one in optional[name]])
    assert imported(at_start_only=False) == declared(PROJECT["dependencies"]) | extras


def test_extras_are_imported_only_where_they_are_used() -> None:
    """Without the extra everything else works."""
    optional = PROJECT["optional-dependencies"]
    extras = declared([*optional["schema"], *optional["sign"]])
    assert not imported(at_start_only=True) & extras


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (module.__name__, name)
        for module in (sidecar, logs, mirror, reload, sync, testing)
        for name in module.__all__
        if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name))
    ],
)
def test_each_public_name_says_what_it_is_and_shows_it(module: str, name: str) -> None:
    """A docstring each, with an example: the contract is where people look for it. An error needs no example."""
    value = getattr(importlib.import_module(module), name)
    doc = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    assert doc, f"{module}.{name} has no docstring"
    is_error = inspect.isclass(value) and issubclass(value, Exception)
    assert is_error or ">>> " in doc, f"{module}.{name} has no example"


def test_type_checkers_see_the_names_that_there_are() -> None:
    """The block for type checkers and the table for the interpreter are the same list."""
    tree = ast.parse((ROOT / "sidecar" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == sidecar._MODULES


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    """As in any module, so `hasattr` and typing mistakes behave."""
    with pytest.raises(AttributeError, match="Volumes"):
        sidecar.Volumes  # noqa: B018
    assert "Volume" in dir(sidecar)


def test_the_bill_of_materials_is_what_the_image_is_made_of(tmp_path: Path) -> None:
    """CycloneDX, with the digests of the lock: what a scanner is given is what was installed."""
    found = tmp_path / "sbom.json"
    recipe = (ROOT / "Makefile").read_text().partition("\nsbom:")[2].partition("\n\n")[0]
    command = recipe.partition("cyclonedx-py ")[2].replace("\\\n", " ").split()
    command[command.index("dist/sidecar.cdx.json")] = str(found)
    subprocess.run([sys.executable, "-m", "cyclonedx_py", *command], check=True, cwd=ROOT)
    listed = {one["name"]: one for one in json.loads(found.read_text())["components"]}
    locked = dict(
        re.findall(r"^(\S+)==(\S+)", (ROOT / "image/requirements.txt").read_text(), re.MULTILINE)
    )
    assert {name: one["version"] for name, one in listed.items()} == locked
    for one in listed.values():
        assert one["externalReferences"][0]["hashes"], one["name"]


MEASURE = """
import sys
import sidecar
[getattr(sidecar, name) for name in sys.argv[1:]]
pages = int(open("/proc/self/statm").read().split()[1])
print(pages * 4096 / 1e6, *sys.modules)
"""


def weight(*names: str) -> tuple[float, set[str]]:
    """MB and modules of a program that uses these names; the smallest of three."""
    runs = [python("-c", MEASURE, *names).split() for _ in range(3)]
    best = min(runs, key=lambda run: float(run[0]))
    return float(best[0]), set(best[1:])


def test_a_program_that_only_publishes_loads_no_web_server() -> None:
    """A writer of twelve lines stays small."""
    megabytes, modules = weight("Volume", "run", "every")
    assert not {"aiohttp", "click", "jsonschema", "yaml"} & modules
    assert megabytes < 34


def test_what_a_reader_needs_leaves_the_rest_alone() -> None:
    """Imports are most of the time to the first answer; `make bench` measures it."""
    _megabytes, modules = weight("reader_app", "serve", "run")
    assert not {"jsonschema", "yaml", "click", "tomllib", "importlib.metadata"} & modules


def test_a_reader_at_rest_stays_under_45_megabytes(
    tmp_path: Path, sidecar_process: StartProcess, free_port: int, wait_for: WaitFor
) -> None:
    """Once it has settled, two seconds after its start."""
    (tmp_path / "content").write_text("123")
    url = f"http://127.0.0.1:{free_port}"
    options = ("--path", tmp_path / "content", "--host", "127.0.0.1", "--port", free_port)
    reader = sidecar_process("read", *options, until=f"{url}/readyz")

    def resident() -> int:
        """RSS in kB, as `ps` shows it."""
        return int(Path(f"/proc/{reader.pid}/statm").read_text().split()[1]) * 4

    wait_for(lambda: resident() < 45_000)
