"""Environment variables: each option has one, and an unknown one is an error.

A misspelt flag stops the program; a misspelt variable would go unnoticed for months.
Kubernetes sets variables for every Service of the namespace, and a Service may be named `sidecar`:
those are recognised by their form and ignored
(https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import click

PREFIX = "SIDECAR_"

CHANGE_VARIABLES = frozenset({"SIDECAR_VERSION", "SIDECAR_ETAG", "SIDECAR_PATH", "SIDECAR_CHANGED"})
"""The variables that `reload --exec` sets for its command, which may be `sidecar` itself."""

_LINK_NAME = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


def name(command: str, option: str) -> str:
    """Return the variable of an option, which has the words of the flag.

    >>> name("write", "max-size")
    'SIDECAR_WRITE_MAX_SIZE'
    """
    return f"{PREFIX}{command}_{option}".upper().replace("-", "_")


def is_service_link(variable: str, value: str) -> bool:
    """Return whether Kubernetes has set this variable for a Service.

    >>> is_service_link("SIDECAR_WRITE_PORT", "tcp://10.0.0.1:8080")
    True
    >>> is_service_link("SIDECAR_WRITE_PORT", "8080")
    False
    """
    if variable.endswith("_PORT") and _LINK_VALUE.match(value):
        return True
    return _LINK_NAME.search(variable) is not None


def names_of(command: click.Command) -> frozenset[str]:
    """Return the variables of one command."""
    return frozenset(option.envvar for option in command.params if isinstance(option.envvar, str))


def unknown(environment: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """Return the `SIDECAR_` variables that no option reads, sorted."""
    return sorted(
        variable
        for variable, value in environment.items()
        if variable.startswith(PREFIX) and not is_service_link(variable, value)
        if variable not in CHANGE_VARIABLES | frozenset(known)
    )


def unknown_variable_error(variable: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown variable, with the nearest known one."""
    from difflib import get_close_matches

    near = get_close_matches(variable, sorted(known), n=1, cutoff=0.75)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"{variable} is set, and no option reads it{meant}; correct the name or unset it"
