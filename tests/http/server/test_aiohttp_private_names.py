"""What we use of aiohttp that is not public: listed in one place, and looked for before anything is served."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from aiohttp import web

import sidecar
from sidecar.http.server import aiohttp_protocol
from sidecar.http.server.aiohttp_protocol import PRIVATE_NAMES, AiohttpProtocol
from sidecar.http.server.fastpath.protocol import FastPathProtocol
from sidecar.http.server.protocol import ServerProtocol

PACKAGE = Path(inspect.getfile(sidecar)).parent


def test_the_list_of_private_names_is_what_the_module_uses() -> None:
    """Neither one more, which would break unseen, nor one less."""
    assert private_attributes(AiohttpProtocol) == PRIVATE_NAMES


@pytest.mark.parametrize("protocol", [ServerProtocol, FastPathProtocol])
def test_the_other_protocols_use_their_own_attributes(protocol: type[web.RequestHandler]) -> None:
    """They see aiohttp by the public names of the one module."""
    own = {*vars(ServerProtocol), *vars(FastPathProtocol)}
    assert private_attributes(protocol) <= own - PRIVATE_NAMES


def test_no_other_module_uses_private_names_of_aiohttp() -> None:
    """So a new aiohttp concerns one module: neither attributes of connections, nor private modules."""
    private = {name for name in vars(web.RequestHandler) if name[:1] == "_" != name[1:2]}
    for path in PACKAGE.rglob("*.py"):
        if path == Path(inspect.getfile(aiohttp_protocol)):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and not is_own(node):
                assert node.attr not in private, f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aiohttp"):
                names = [*(node.module or "").split("."), *(one.name for one in node.names)]
                assert not [name for name in names if name.startswith("_")], f"{path}:{node.lineno}"


def private_attributes(protocol: type[web.RequestHandler]) -> set[str]:
    tree = ast.parse(inspect.getsource(protocol))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in used if name.startswith("_") and not name.startswith("__")}


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_an_aiohttp_without_one_of_them_is_refused_at_the_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the name and what to do, instead of an error at each request."""
    monkeypatch.delattr(web.RequestHandler, "_messages")
    with pytest.raises(ImportError, match=r"no RequestHandler\._messages.*pip install"):
        importlib.reload(aiohttp_protocol)
