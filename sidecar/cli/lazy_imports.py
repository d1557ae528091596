"""Import for a server alone: what a reader never uses does not go into its memory.

`import aiohttp` imports the client as well, and the client reads all certificates of the system:
3.5 MB and 60 ms of every start. Its modules for servers do without, and can be imported by their own names.
So here the package is put in its place without being run; it runs as soon as somebody asks it for a name.
`write --confirm` does: then it has the client, as always.

Only the commands do this, whose process is ours: in a user's program aiohttp stays what it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, util
from types import ModuleType
from typing import Any

_LATER = ("aiohttp", "prometheus_client")
"""The second one would bring web servers of its own, for programs that have none."""
_IN_PYTHON = "FROZENLIST_NO_EXTENSIONS"
"""That library's own switch: its lists of three middlewares need no C++, whose runtime library is 1 MB."""


@contextmanager
def server_alone() -> Iterator[None]:
    """Import the rooms of HTTP inside of this."""
    for name in _LATER:
        _put_in_place(name)
    before = os.environ.get(_IN_PYTHON)
    os.environ[_IN_PYTHON] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_IN_PYTHON]  # commands of the user's inherit the variables
        else:
            os.environ[_IN_PYTHON] = before


class _Later(ModuleType):
    """A package that is run when it is asked for a name that is neither known nor a module in it."""

    def __getattr__(self, name: str) -> Any:
        own = f"{self.__name__}.{name}"
        if not name.startswith("__") and util.find_spec(own) is not None:
            return import_module(own)
        self.__class__ = ModuleType  # type: ignore[assignment]  # from now on it is like any other
        with _without_certificates():
            self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]  # it has one: see below
        return getattr(self, name)


def _put_in_place(name: str) -> None:
    """Let a package be there without having been run, unless it has been already."""
    spec = util.find_spec(name) if name not in sys.modules else None
    if spec is None or spec.loader is None or spec.origin is None:
        return
    package = util.module_from_spec(spec)
    package.__class__ = _Later
    with contextlib.suppress(LookupError):
        package.__version__ = _version(spec.origin)  # type: ignore[attr-defined]  # its modules ask for it
    sys.modules[name] = package


def _version(source: str) -> str:
    """Return what a package says of itself. Raises `LookupError` if it does not do so in one plain line."""
    with open(source, encoding="utf-8") as lines:
        said = next((line for line in lines if line.startswith("__version__ = ")), "")
    return said.split('"')[1]


@contextmanager
def _without_certificates() -> Iterator[None]:
    """Run aiohttp's client, which makes two contexts for TLS, without those of the system.

    Who sends requests over TLS from these commands makes a context of its own (see `sidecar.http.apps.confirm`).
    """
    import ssl  # here, because a list of the commands must not pay for it

    def nothing(self: ssl.SSLContext, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        """Load no certificates."""

    real = ssl.SSLContext.load_default_certs
    ssl.SSLContext.load_default_certs = nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = real  # type: ignore[method-assign]
