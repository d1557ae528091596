r"""References in configuration values: `${NAME}` to an environment variable, `${file:/path}` to a file.

    url: https://logs.example.com/${REGION}
    tenant: ${TENANT:-shop}
    headers: {X-Key: '${file:/run/secrets/key}'}

They are resolved after the file is parsed, so a value cannot add lines or keys.
`$${` is a literal `${`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from sidecar._errors import ConfigError

_REFERENCE = re.compile(r"\$(\$\{|\{([^{}]*)\})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_FILE_BYTES = 64 << 10


class References:
    """Resolves references, and records the files that they name.

    >>> References({"SITE": "berlin"}).resolved({"labels": {"site": "${SITE}", "price": "$${x}"}}, "here")
    {'labels': {'site': 'berlin', 'price': '${x}'}}
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self.files: set[str] = set()
        """The files that were read: a change of one is a change of the configuration."""

    def resolved(self, value: Any, where: str) -> Any:
        """Return a value with all references in its strings resolved.

        Raises:
            ConfigError: a variable without a default is not set, or a file cannot be read;
                the message names the location of the reference.
        """
        if isinstance(value, str):
            return _REFERENCE.sub(lambda found: self._resolve(found, where), value)
        if isinstance(value, dict):
            return {name: self.resolved(one, f"{where}: {name}") for name, one in value.items()}
        if isinstance(value, list):
            return [self.resolved(one, f"{where}, {at}") for at, one in enumerate(value, 1)]
        return value

    def _resolve(self, found: re.Match[str], where: str) -> str:
        inner = found[2]
        if inner is None:
            return "${"
        if inner.startswith("file:"):
            return self._read(inner.removeprefix("file:"), where)
        name, has_default, default = inner.partition(":-")
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: ${{{inner}}} names no variable: write ${{NAME}}, ${{NAME:-default}}"
                " or ${file:/path}, and $${ for the signs themselves"
            )
        value = self._environ.get(name)
        if value is None and not has_default:
            raise ConfigError(
                f"{where}: the variable {name} is not set (set it, or write ${{{name}:-default}})"
            )
        return default if not value and has_default else value or ""

    def _read(self, path: str, where: str) -> str:
        self.files.add(path)
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(_MAX_FILE_BYTES).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(
                f"{where}: cannot read {path or 'a file without a name'}: {said}"
            ) from error
