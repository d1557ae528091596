"""What we use of aiohttp that is not public: listed in one place, and looked for before anything is served."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from aiohttp import web

import sidecar.http
from sidecar.http.server import protocol as connection
from sidecar.http.server.fastpath.protocol import FastPathProtocol
from sidecar.http.server.protocol import PRIVATE_NAMES, ServerProtocol


def test_the_list_of_private_names_is_what_the_protocols_use() -> None:
    """Neither one more, which would break unseen, nor one less."""
    used: set[str] = set()
    own: set[str] = set()
    for protocol in (ServerProtocol, FastPathProtocol):
        own |= set(vars(protocol))
        tree = ast.parse(inspect.getsource(protocol))
        used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    assert private - own | {"_process_keepalive"} == PRIVATE_NAMES


def test_private_names_of_aiohttp_are_used_in_its_protocols_alone() -> None:
    """Applications know nothing of connections; so a new aiohttp concerns two modules."""
    private = {name for name in vars(web.RequestHandler) if name[:1] == "_" != name[1:2]}
    package = Path(inspect.getfile(sidecar.http)).parent
    for path in package.rglob("*.py"):
        if path.stem == "protocol":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and not is_own(node):
                assert node.attr not in private, f"{path}:{node.lineno}"


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_an_aiohttp_without_one_of_them_is_refused_at_the_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the name and what to do, instead of an error at each request."""
    monkeypatch.delattr(web.RequestHandler, "_messages")
    with pytest.raises(ImportError, match=r"no RequestHandler\._messages.*pip install"):
        importlib.reload(connection)
