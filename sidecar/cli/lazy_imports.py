"""Lazy imports for servers: parts of packages that a reader never uses are not loaded.

`import aiohttp` also imports the client, which reads all CA certificates of the system:
6 MiB and 150 ms of every start (docs/decisions/own-code.md). Its server modules do not need the client, and can be imported by their own names.
So the package is put into `sys.modules` without being executed; it is executed when an attribute is needed.
`write --confirm` does that: then the client is loaded as usual.

Only our commands do this; in a user's program aiohttp is not changed.
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

_LAZY_PACKAGES = ("aiohttp", "prometheus_client")
"""prometheus_client would import web servers of its own: 0.5 MiB."""
_PURE_PYTHON_SWITCH = "FROZENLIST_NO_EXTENSIONS"
"""A switch of frozenlist: its lists of three middlewares need no C++, whose runtime library is 1 MB."""


@contextmanager
def server_alone() -> Iterator[None]:
    """Import the HTTP packages within this block."""
    for name in _LAZY_PACKAGES:
        _install_lazily(name)
    before = os.environ.get(_PURE_PYTHON_SWITCH)
    os.environ[_PURE_PYTHON_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PURE_PYTHON_SWITCH]  # child processes inherit the variables
        else:
            os.environ[_PURE_PYTHON_SWITCH] = before


class _LazyPackage(ModuleType):
    """A package that is executed at the first access to an attribute that is not a submodule."""

    def __getattr__(self, name: str) -> Any:
        own = f"{self.__name__}.{name}"
        if not name.startswith("__") and util.find_spec(own) is not None:
            return import_module(own)
        self.__class__ = ModuleType  # type: ignore[assignment]  # from now on an ordinary module
        with _without_certificates():
            self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]  # it has one: see below
        return getattr(self, name)


def _install_lazily(name: str) -> None:
    """Put a package into `sys.modules` without executing it, unless it is loaded already."""
    spec = util.find_spec(name) if name not in sys.modules else None
    if spec is None or spec.loader is None or spec.origin is None:
        return
    package = util.module_from_spec(spec)
    package.__class__ = _LazyPackage
    with contextlib.suppress(LookupError):
        package.__version__ = _version(spec.origin)  # type: ignore[attr-defined]  # its modules ask for it
    sys.modules[name] = package


def _version(source: str) -> str:
    """Return the `__version__` of a package. Raises `LookupError` if it is not a plain assignment."""
    with open(source, encoding="utf-8") as lines:
        line = next((line for line in lines if line.startswith("__version__ = ")), "")
    return line.split('"')[1]


@contextmanager
def _without_certificates() -> Iterator[None]:
    """Import aiohttp's client, which creates two TLS contexts, without the CA certificates of the system.

    TLS requests of these commands use a context of their own (see `sidecar.http.apps.confirm`).
    """
    import ssl  # here, because `sidecar --help` does not need it

    def nothing(self: ssl.SSLContext, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        """Load no certificates."""

    real = ssl.SSLContext.load_default_certs
    ssl.SSLContext.load_default_certs = nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = real  # type: ignore[method-assign]
